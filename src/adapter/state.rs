//! The state that both ports share. The session shares parts of it, such as the journal and the
//! inbox.

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

/// The state that is shared by all requests on both ports.
#[derive(Debug)]
pub struct AdapterState {
    pub session_id: String,
    pub runtime: &'static Runtime,
    pub model: String,
    pub policy: AccessPolicy,
    pub stream_guard: PortGuard,
    pub input_guard: PortGuard,
    pub journal: Arc<Journal>,
    pub raw: Option<Arc<Journal>>,
    pub inbox: Arc<Inbox>,
    pub commands: mpsc::Sender<SessionCommand>,
    pub tickets: Tickets,
    /// Limits how many bodies of `POST /inject` are read at the same time.
    pub bodies: Semaphore,
    /// Limits how many bodies of other routes are read at the same time.
    pub small_bodies: Semaphore,
    pub subscribers: Arc<AtomicUsize>,
    /// Counts the connections that were closed because a port had its maximum number of them.
    pub refused_connections: AtomicU64,
    pub troubles: Troubles,
    pub(crate) status: SharedStatus,
    pub(crate) draining: AtomicBool,
    pub(crate) terminating: watch::Sender<bool>,
}
