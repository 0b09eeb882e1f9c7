//! The sidecar as a whole: listeners, the threads that follow files, and the end.
//!
//! Everything that is started here is owned by [`Sidecar`] and waited for by its `stop`.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::{Quota, RateLimiter};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::audit::{self, Audit, AuditWriter};
use super::config::{self, Loaded, SidecarConfig};
use super::connection::{self, Handle, Rank};
use super::known_objects::KnownObjects;
use super::metrics::Metrics;
use super::{admin, advice};
use crate::base::sync::lock;
use crate::sidecar::credential::{SecretKind, Store};
use crate::sidecar::ledger::limiter::Ledger;
use crate::sidecar::reload::{FOLLOWERS_END, SLOW, follow, refresh};
use crate::sidecar::state::{RETRY_MEMORY, SidecarState};
use crate::sidecar::steps::body::{BodyMemory, GRACE};
use crate::sidecar::steps::guard::CallerPolicy;
use crate::sidecar::steps::upstream::Upstream;

/// Refused requests per second, of all connections together, that are answered at full speed.
const REFUSALS: NonZeroU32 = NonZeroU32::new(500).unwrap();

/// Probes and scrapes; nobody else has business on the admin port.
const ADMIN_CONNECTIONS: usize = 64;

/// Why a sidecar did not start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration is wrong: every problem of it.
    Config(Vec<String>),
    /// The machine is in the way: a port, the audit file.
    Unavailable(String),
}

#[derive(Debug)]
pub struct Sidecar {
    pub shared: Arc<SidecarState>,
    pub addr: SocketAddr,
    pub admin: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    /// The acceptors; each ends with the connections that it still has.
    acceptors: JoinSet<JoinSet<()>>,
    /// Told to end after the last connection has, so that readiness is seen to go.
    end: watch::Sender<bool>,
    /// What serves no client: the admin port, and the clock of request bodies.
    background: JoinSet<()>,
    writer: AuditWriter,
    followers: Vec<JoinHandle<()>>,
    following: Arc<AtomicBool>,
}

/// Reads the configuration without anything that outlives the reading.
///
/// # Errors
/// Every problem, with its path.
pub fn read_config(path: &Path) -> Result<(SidecarConfig, Vec<String>), Vec<String>> {
    config::load(path).map(|Loaded { config, policy }| {
        let advice = advice::on(&config, &policy);
        (config, advice)
    })
}

/// Looks at everything that a start would refuse, but for the ports.
///
/// # Errors
/// As [`Sidecar::start`].
pub fn check(config: &SidecarConfig) -> Result<(), StartError> {
    Upstream::new(&config.timeouts, config.ca_file.as_deref())
        .map_err(|e| StartError::Config(vec![e]))?;
    audit::check(&config.audit).map_err(|e| StartError::Config(vec![format!("`audit.file`: {e}")]))
}

impl Sidecar {
    /// Starts serving. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(path: &Path, session: Option<String>) -> Result<Sidecar, StartError> {
        let Loaded { mut config, policy } = config::load(path).map_err(StartError::Config)?;
        let fixed = config.fixed();
        let session = config.session_id.clone().or(session);
        let recovered = audit::recover(&config.audit).map_err(StartError::Unavailable)?;
        let ledger = Ledger::new(&recovered.state, session.as_deref());
        let upstream = Upstream::new(&config.timeouts, config.ca_file.as_deref())
            .map_err(|e| StartError::Config(vec![e]))?;
        let listeners = listen(config.listen).await?;
        let addr = local(&listeners[0])?;
        let admin_listener = match config.admin {
            Some(addr) => Some(bind(addr).await?),
            None => None,
        };
        let metrics = Arc::new(Metrics::new());
        let (audit, writer) =
            Audit::open(&config.audit, recovered, ledger.session(), metrics.clone()).map_err(
                |e| StartError::Unavailable(format!("the audit file cannot be used: {e}")),
            )?;
        let secrets = Store::new(config.secrets_dir.clone());
        let shared = Arc::new(SidecarState {
            callers: CallerPolicy::new(addr.port(), &config.hosts, config.token.take()),
            policy: ArcSwap::from_pointee(policy),
            secrets,
            ledger,
            audit,
            metrics,
            upstream,
            body_memory: BodyMemory::default(),
            retry_memory: Semaphore::new(RETRY_MEMORY),
            list_turns: Semaphore::new(1),
            known_objects: KnownObjects::default(),
            refusal_rate: RateLimiter::direct(Quota::per_second(REFUSALS)),
            draining: AtomicBool::new(false),
            config,
        });
        refresh(&shared, SecretKind::Files);
        let following = Arc::new(AtomicBool::new(true));
        let followers = follow(path, &shared, &following, fixed)
            .map_err(|e| StartError::Unavailable(e.to_string()))?;
        let (stop, stopping) = watch::channel(false);
        let (end, ending) = watch::channel(false);
        let (mut acceptors, mut background) = (JoinSet::new(), JoinSet::new());
        let ours = shared.clone();
        background.spawn(async move { ours.body_memory.give_up_late().await });
        let open = Arc::new(Mutex::new(BTreeMap::new()));
        for listener in listeners {
            acceptors.spawn(accept(
                shared.clone(),
                listener,
                open.clone(),
                stopping.clone(),
            ));
        }
        let admin = match admin_listener {
            Some(listener) => {
                let addr = local(&listener)?;
                background.spawn(serve_admin(shared.clone(), listener, ending));
                Some(addr)
            }
            None => None,
        };
        Ok(Sidecar {
            shared,
            addr,
            admin,
            stop,
            acceptors,
            end,
            background,
            writer,
            followers,
            following,
        })
    }

    /// Stops accepting, lets what is under way finish (for at most `timeouts.drain`, or until
    /// `hurry` ends), and writes the last records.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        let drain = self.shared.config.timeouts.drain;
        self.shared.draining.store(true, Ordering::Release);
        let _ = self.stop.send(true);
        let mut open = Vec::new();
        while let Some(connections) = self.acceptors.join_next().await {
            open.extend(connections);
        }
        let drained = async {
            for connections in &mut open {
                while connections.join_next().await.is_some() {}
            }
        };
        let cut = tokio::select! {
            () = drained => None,
            () = tokio::time::sleep(drain) => Some("at the end of the drain time"),
            () = hurry => Some("by a second signal"),
        };
        if let Some(why) = cut {
            tracing::warn!("streams that were still open are cut {why}");
            // Waits until every one of them is gone, and its record with the writer.
            for mut connections in open {
                connections.shutdown().await;
            }
        }
        let _ = self.end.send(true);
        self.background.shutdown().await;
        self.writer.close(Duration::from_secs(3));
        self.following.store(false, Ordering::Release);
        self.shared.secrets.stop();
        // One that hangs on a file system that is gone is left behind; the process ends anyway.
        let until = Instant::now() + FOLLOWERS_END;
        while self.followers.iter().any(|f| !f.is_finished()) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The configured loopback address, and the other family's where the machine has it.
async fn listen(addr: SocketAddr) -> Result<Vec<TcpListener>, StartError> {
    let first = bind(addr).await?;
    let port = local(&first)?.port();
    let other: IpAddr = if addr.is_ipv4() {
        Ipv6Addr::LOCALHOST.into()
    } else {
        std::net::Ipv4Addr::LOCALHOST.into()
    };
    match TcpListener::bind((other, port)).await {
        Ok(second) => Ok(vec![first, second]),
        // Somebody else there would be taken for us by clients that try that family first.
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Err(StartError::Unavailable(
            format!("cannot listen on `{}`: {e}", SocketAddr::new(other, port)),
        )),
        Err(_) => Ok(vec![first]),
    }
}

async fn bind(addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr)
        .await
        .map_err(|e| StartError::Unavailable(format!("cannot listen on `{addr}`: {e}")))
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|e| StartError::Unavailable(e.to_string()))
}

type OpenConnections = Arc<Mutex<BTreeMap<u64, Arc<Handle>>>>;

async fn accept(
    shared: Arc<SidecarState>,
    listener: TcpListener,
    open: OpenConnections,
    mut stop: watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    let mut id = 0u64;
    let loopback_v6 = u64::from(listener.local_addr().is_ok_and(|a| a.is_ipv6())) << 63;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match stream {
            // With the audit's memory full nobody may be served, not even with a refusal.
            Ok((stream, _)) if shared.audit.is_full() => {
                drop(stream);
                shared.audit.dropped_connection();
            }
            Ok((stream, _)) => {
                id += 1;
                let full = lock(&open).len() >= shared.config.connections;
                match admit(&shared, &open, loopback_v6 | id) {
                    Some(handle) => {
                        connections.spawn(tracked(
                            shared.clone(),
                            stream,
                            handle,
                            open.clone(),
                            loopback_v6 | id,
                            stop.clone(),
                        ));
                    }
                    None => shared.audit.dropped_connection(),
                }
                if full {
                    // One place is made per turn, so that a flood of connections leaves time to
                    // those that are served.
                    tokio::task::yield_now().await;
                }
            }
            Err(e) => {
                // Out of file descriptors: wait for some to be given back, do not spin.
                tracing::warn!(error = %e, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    connections
}

/// A place for a new connection. At the limit, the connection that is needed least makes room;
/// or the request whose body comes slowest does, by being refused.
fn admit(shared: &SidecarState, open: &OpenConnections, id: u64) -> Option<Arc<Handle>> {
    let mut open = lock(open);
    if open.len() >= shared.config.connections {
        let least = open
            .iter()
            .filter_map(|(id, h)| Some((h.rank()?, *id)))
            .min();
        let leaving = match least {
            Some((rank, id)) if rank < Rank::Idle => open.remove(&id),
            // A body that really does not come goes before a connection that was of use …
            _ if shared.body_memory.evict_slowest(SLOW) => None,
            Some((Rank::Idle, id)) => open.remove(&id),
            // … and one that comes slowly before a reply that is not read.
            _ if shared.body_memory.evict_slowest(GRACE) => None,
            Some((_, id)) => open.remove(&id),
            None => return None,
        };
        if let Some(handle) = leaving {
            handle.leave.notify_one();
        }
    }
    let handle = Handle::new();
    open.insert(id, handle.clone());
    Some(handle)
}

async fn tracked(
    shared: Arc<SidecarState>,
    stream: TcpStream,
    handle: Arc<Handle>,
    open: OpenConnections,
    id: u64,
    stop: watch::Receiver<bool>,
) {
    shared.metrics.connections.inc();
    connection::serve(shared.clone(), stream, handle, stop).await;
    shared.metrics.connections.dec();
    lock(&open).remove(&id);
}

async fn serve_admin(
    shared: Arc<SidecarState>,
    listener: TcpListener,
    mut end: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut order = VecDeque::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = end.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let Ok((stream, _)) = stream else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // The oldest makes room: who floods this port shall not fail a probe.
        if order.len() == ADMIN_CONNECTIONS
            && let Some(oldest) = order.pop_front()
        {
            tokio::task::AbortHandle::abort(&oldest);
        }
        let shared = shared.clone();
        order.push_back(connections.spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let response = admin::serve(&shared, &request);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let serve = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .max_buf_size(16 * 1024)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(Duration::from_secs(30), serve).await;
        }));
    }
    connections.shutdown().await;
}
