//! What the session and both ports share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use tokio::sync::{Semaphore, mpsc, watch};

use crate::adapter::config::ports::AccessPolicy;
use crate::adapter::inbox::Inbox;
use crate::adapter::journal::Journal;
use crate::adapter::port::access::PortGuard;
use crate::adapter::port::tickets::Tickets;
use crate::adapter::runtime::Runtime;
use crate::adapter::session::SessionCommand;
use crate::adapter::session::status::SharedStatus;
use crate::adapter::trouble::Troubles;

/// What every request shares.
#[derive(Debug)]
pub struct AdapterState {
    pub session_id: String,
    pub runtime: &'static Runtime,
    pub model: String,
    pub policy: AccessPolicy,
    pub stream_door: PortGuard,
    pub input_door: PortGuard,
    pub journal: Arc<Journal>,
    pub raw: Option<Arc<Journal>>,
    pub inbox: Arc<Inbox>,
    pub commands: mpsc::Sender<SessionCommand>,
    pub tickets: Tickets,
    /// Inputs that may be read at once, and other bodies.
    pub bodies: Semaphore,
    pub small_bodies: Semaphore,
    pub subscribers: Arc<AtomicUsize>,
    /// Connections that were closed because a port had as many as it may have.
    pub refused_connections: AtomicU64,
    pub troubles: Troubles,
    pub(crate) status: SharedStatus,
    pub(crate) draining: AtomicBool,
    pub(crate) terminating: watch::Sender<bool>,
}
