//! Names to addresses.
//!
//! The system's resolver blocks, so it runs on threads of our own, made at start (the agent may
//! have used up the pod's later). A name is looked up by one thread at a time, so that a name
//! server that does not answer occupies one thread for each of its names, and the others go on.
//!
//! Invariants:
//! - A name that has been looked up once is answered at once, from what is known; an answer
//!   older than [`FRESH`] is renewed in the background.
//! - The last good answer serves when a look-up fails. When none of its addresses can be
//!   reached, the caller asks for a new one ([`Resolver::renew`]).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::base::sync::lock;
use crate::sidecar::steps::upstream::error::ConnectError;

/// Names that can be looked up at the same time.
const THREADS: usize = 8;
/// An answer younger than this is not asked for again.
const FRESH: Duration = Duration::from_secs(10);
/// A look-up that takes longer has failed; the system's own limit is often longer.
const PATIENCE: Duration = Duration::from_secs(10);

type Lookup = Option<Result<Arc<[IpAddr]>, String>>;

/// What is known of one name.
#[derive(Debug, Default)]
struct KnownName {
    /// The last good answer, and when it came.
    known: Option<(Arc<[IpAddr]>, Instant)>,
    /// The look-up that is under way.
    running: Option<watch::Receiver<Lookup>>,
}

type Names = Arc<Mutex<HashMap<String, KnownName>>>;

#[derive(Debug)]
pub(super) struct Resolver {
    questions: mpsc::Sender<(String, watch::Sender<Lookup>)>,
    names: Names,
}

impl Resolver {
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start() -> Result<Resolver, String> {
        let (questions, queue) = mpsc::channel::<(String, watch::Sender<Lookup>)>();
        let (queue, names) = (Arc::new(Mutex::new(queue)), Names::default());
        for _ in 0..THREADS {
            let (queue, names) = (queue.clone(), names.clone());
            std::thread::Builder::new()
                .name("names".into())
                .stack_size(256 << 10)
                .spawn(move || work(&queue, &names))
                .map_err(|e| e.to_string())?;
        }
        Ok(Resolver { questions, names })
    }

    /// The addresses of a host. A name that is known is answered without waiting.
    pub(super) async fn find(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        if host == "localhost" {
            return Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]);
        }
        let known = lock(&self.names)
            .get(host)
            .and_then(|name| name.known.clone());
        match known {
            Some((ips, since)) => {
                if since.elapsed() > FRESH {
                    let _ = self.ask(host);
                }
                Ok(with_port(&ips, port))
            }
            None => self.renew(host, port).await,
        }
    }

    /// Looks the name up and waits for the answer.
    pub(super) async fn renew(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let mut answer = self.ask(host);
        let answered = answer.wait_for(Option::is_some);
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => match answer.as_ref() {
                Some(Ok(ips)) => Ok(with_port(ips, port)),
                Some(Err(why)) => Err(ConnectError::Name(io::Error::other(why.clone()))),
                None => Err(ConnectError::Address),
            },
            Ok(Err(_)) => Err(ConnectError::Address),
            Err(_) => Err(ConnectError::Timeout),
        }
    }

    /// Joins the look-up of this name that is under way, or begins one.
    fn ask(&self, host: &str) -> watch::Receiver<Lookup> {
        let mut names = lock(&self.names);
        let name = names.entry(host.to_owned()).or_default();
        if let Some(running) = &name.running {
            return running.clone();
        }
        let (answer, answered) = watch::channel(None);
        name.running = Some(answered.clone());
        let _ = self.questions.send((host.to_owned(), answer));
        answered
    }
}

fn with_port(ips: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
}

fn work(queue: &Mutex<mpsc::Receiver<(String, watch::Sender<Lookup>)>>, names: &Names) {
    loop {
        // The lock is held while waiting, and given to the next thread with the question taken.
        let Ok((host, answer)) = lock(queue).recv() else {
            return;
        };
        let found = (host.as_str(), 0)
            .to_socket_addrs()
            .map(|all| all.map(|a| a.ip()).collect::<Arc<[IpAddr]>>());
        let mut names = lock(names);
        let name = names.entry(host).or_default();
        name.running = None;
        if let Ok(ips) = &found {
            name.known = Some((ips.clone(), Instant::now()));
        }
        answer.send_replace(Some(found.map_err(|e| e.to_string())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_known_name_is_answered_while_its_look_up_hangs() {
        let (questions, queue) = mpsc::channel();
        let resolver = Resolver {
            questions,
            names: Names::default(),
        };
        let ip: IpAddr = "192.0.2.7".parse().unwrap();
        let long_ago = Instant::now().checked_sub(FRESH * 2).unwrap();
        lock(&resolver.names).insert(
            "slow.example".into(),
            KnownName {
                known: Some((Arc::new([ip]), long_ago)),
                running: None,
            },
        );
        for _ in 0..3 {
            assert_eq!(
                resolver.find("slow.example", 443).await.unwrap(),
                [SocketAddr::new(ip, 443)]
            );
        }
        // Nobody serves the queue: one question stands there, however often the name was needed.
        assert_eq!(queue.try_iter().count(), 1);
        assert!(
            resolver.find("127.0.0.1", 1).await.is_ok()
                && resolver.find("localhost", 1).await.is_ok()
        );
    }
}
