//! Step 7 of a request: to the provider and back, once.
//!
//! Invariants:
//! - Only a [`SignedRequest`] is sent, and it is sent once: a pooled connection that turns
//!   out dead before a byte of the request left it is replaced, nothing else is repeated.
//! - Nothing is followed, upgraded or taken for a reply that is none.
//! - A provider's public name that leads into a private network is not dialled: the pod's
//!   DNS and `/etc/hosts` are the agent's to forge. TLS proves the rest.
//! - No thread is made after start (the agent may have used up the pod's): names are looked
//!   up on one thread of our own, and the last good answer serves when it fails.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Response, StatusCode, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{Timeouts, is_loopback};
use super::model::Outgoing;
use super::refusal::{Code, Denial};
use super::sign::SignedRequest;

/// Read buffer of an upstream connection. Replies are read as they come, in small pieces;
/// hyper's own default grows to 400 KiB.
const READ_BUFFER: usize = 64 * 1024;
/// Interim responses (1xx) before the real one.
const MAX_INTERIM: u32 = 16;

#[derive(Debug)]
pub struct Upstream {
    /// For providers' public addresses.
    public: Client<Connector, Outgoing>,
    /// For addresses that the operator wrote.
    own: Client<Connector, Outgoing>,
    first_byte: Duration,
}

impl Upstream {
    /// # Errors
    /// When the operator's CA file holds no certificate.
    pub fn new(timeouts: &Timeouts, ca_file: Option<&Path>) -> Result<Upstream, String> {
        let tls = Arc::new(Tls { extra: extra_roots(ca_file)?, config: OnceLock::new() });
        let names = Arc::new(Names::start()?);
        let client = |public| {
            let connector = Connector { tls: tls.clone(), names: names.clone(), public, timeout: timeouts.connect };
            Client::builder(TokioExecutor::new())
                .pool_idle_timeout(Duration::from_secs(30)) // below every provider's load balancer
                .pool_max_idle_per_host(32)
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .http1_max_buf_size(READ_BUFFER)
                .http2_adaptive_window(true)
                .build(connector)
        };
        Ok(Upstream { public: client(true), own: client(false), first_byte: timeouts.first_byte })
    }

    /// Sends the request and waits for the head of the reply.
    ///
    /// # Errors
    /// `upstream_*`, with the cause for the log.
    pub async fn send(&self, signed: SignedRequest, own: bool) -> Result<Response<Incoming>, Denial> {
        let client = if own { &self.own } else { &self.public };
        let mut request = signed.into_request();
        let interim = Arc::new(AtomicU32::new(0));
        let (too_many, flood) = oneshot::channel();
        let too_many = Mutex::new(Some(too_many));
        hyper::ext::on_informational(&mut request, move |_| {
            if interim.fetch_add(1, Ordering::Relaxed) == MAX_INTERIM
                && let Some(tx) = too_many.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                let _ = tx.send(());
            }
        });
        let reply = async {
            tokio::select! {
                biased;
                reply = client.request(request) => reply.map_err(|e| denial(&e)),
                Ok(()) = flood => Err(invalid("more than 16 interim responses")),
            }
        };
        let response = tokio::time::timeout(self.first_byte, reply)
            .await
            .map_err(|_| Denial::new(Code::UpstreamTimeout, format!("the provider did not begin to answer within {} s", self.first_byte.as_secs())))??;
        check(response)
    }
}

/// Takes a reply for one, or not.
fn check(response: Response<Incoming>) -> Result<Response<Incoming>, Denial> {
    let status = response.status();
    if status.is_redirection() {
        return Err(Denial::new(Code::UpstreamRedirect, format!("the provider answered with a redirect ({}), which is never followed", status.as_u16()))
            .hint("ask an operator to check the provider's `baseUrl`"));
    }
    if status.is_informational() || status.as_u16() > 599 {
        return Err(invalid(&format!("status {}", status.as_u16())));
    }
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let framed_once = coding.is_none_or(|c| c.as_bytes().eq_ignore_ascii_case(b"chunked") && !headers.contains_key(CONTENT_LENGTH));
    if codings.next().is_some() || !framed_once {
        return Err(invalid("ambiguous framing of the reply"));
    }
    Ok(response)
}

fn invalid(what: &str) -> Denial {
    Denial::new(Code::UpstreamInvalid, "the provider's answer is not HTTP as it should be").cause(what)
}

fn denial(e: &ClientError) -> Denial {
    let mut source: Option<&(dyn StdError + 'static)> = Some(e);
    let mut chain = String::new();
    let mut found: Option<&ConnectError> = None;
    let mut http: Option<&hyper::Error> = None;
    while let Some(s) = source {
        if !chain.is_empty() {
            chain.push_str(": ");
        }
        chain.push_str(&s.to_string());
        found = found.or_else(|| s.downcast_ref());
        http = http.or_else(|| s.downcast_ref());
        source = s.source();
    }
    let denial = match found {
        Some(ConnectError::Timeout) => Denial::new(Code::UpstreamTimeout, "the provider could not be reached in time"),
        Some(ConnectError::Tls(_)) => Denial::new(Code::UpstreamTls, "the provider could not prove who it is (TLS)")
            .hint("ask an operator to check the provider's `baseUrl` and `tls.caFile`"),
        Some(ConnectError::Private(_)) => Denial::new(Code::UpstreamUnreachable, "the provider's name leads into a private network, which is not dialled")
            .hint("ask an operator to set the provider's `baseUrl` if that is meant"),
        Some(_) => Denial::new(Code::UpstreamUnreachable, "the provider could not be reached"),
        None if http.is_some_and(|h| h.is_parse() || h.is_parse_too_large()) => return invalid(&chain),
        None => Denial::new(Code::UpstreamUnreachable, "the connection to the provider broke before it answered"),
    };
    denial.cause(chain)
}

#[derive(Debug)]
enum ConnectError {
    Name(io::Error),
    Connect(io::Error),
    Timeout,
    Tls(io::Error),
    Private(IpAddr),
    Address,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Name(e) => write!(f, "name look-up: {e}"),
            ConnectError::Connect(e) => write!(f, "connect: {e}"),
            ConnectError::Timeout => f.write_str("connect: timed out"),
            ConnectError::Tls(e) => write!(f, "tls: {e}"),
            ConnectError::Private(ip) => write!(f, "resolves to private address {ip}"),
            ConnectError::Address => f.write_str("no address"),
        }
    }
}

impl StdError for ConnectError {}

#[derive(Debug, Clone)]
struct Connector {
    tls: Arc<Tls>,
    names: Arc<Names>,
    public: bool,
    timeout: Duration,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { tokio::time::timeout(this.timeout * 2, this.connect(&uri)).await.unwrap_or(Err(ConnectError::Timeout)).map(TokioIo::new) })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Wire, ConnectError> {
        let host = uri.host().ok_or(ConnectError::Address)?;
        let tls = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = tokio::time::timeout(self.timeout, self.dial(host, port)).await.unwrap_or(Err(ConnectError::Timeout))?;
        let _ = stream.set_nodelay(true);
        if !tls {
            return Ok(Wire::Plain(stream));
        }
        let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned()).map_err(|_| ConnectError::Address)?;
        let connector = TlsConnector::from(self.tls.config());
        let stream = tokio::time::timeout(self.timeout, connector.connect(name, stream)).await.map_err(|_| ConnectError::Timeout)?;
        Ok(Wire::Tls(Box::new(stream.map_err(ConnectError::Tls)?)))
    }

    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let mut last = ConnectError::Address;
        let all = self.names.find(host, port).await?;
        // None of several addresses may use up the time of the others.
        let each = self.timeout / all.len().clamp(1, 4) as u32;
        for addr in all {
            if !self.may_dial(host, addr.ip()) {
                last = ConnectError::Private(addr.ip());
                continue;
            }
            match tokio::time::timeout(each, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => last = ConnectError::Connect(e),
                Err(_) => last = ConnectError::Timeout,
            }
        }
        Err(last)
    }

    fn may_dial(&self, host: &str, ip: IpAddr) -> bool {
        if is_link_local(ip) {
            return false; // the cloud's metadata service, among others
        }
        !self.public || is_loopback(host) || !is_private(ip)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            v4.is_private() || v4.is_loopback() || v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.segments()[0] & 0xfe00 == 0xfc00,
    }
}

/// Names to addresses, on a thread of its own.
#[derive(Debug)]
struct Names {
    ask: mpsc::Sender<Question>,
    last_good: Mutex<HashMap<String, Vec<SocketAddr>>>,
}

#[derive(Debug)]
struct Question {
    host: String,
    port: u16,
    answer: oneshot::Sender<io::Result<Vec<SocketAddr>>>,
}

impl Names {
    fn start() -> Result<Names, String> {
        let (ask, questions) = mpsc::channel::<Question>();
        let serve = move || {
            for q in questions {
                if q.answer.is_closed() {
                    continue; // whoever asked has given up
                }
                let _ = q.answer.send((q.host.as_str(), q.port).to_socket_addrs().map(Iterator::collect));
            }
        };
        std::thread::Builder::new().name("names".into()).spawn(serve).map_err(|e| e.to_string())?;
        Ok(Names { ask, last_good: Mutex::default() })
    }

    async fn find(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        if host == "localhost" {
            return Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]);
        }
        let (answer, answered) = oneshot::channel();
        let _ = self.ask.send(Question { host: host.to_owned(), port, answer });
        let last_good = || self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last_good().get(host).cloned();
        // With an answer of before at hand, a slow look-up is not waited for to its end.
        let patience = if known.is_some() { Duration::from_secs(1) } else { Duration::from_secs(60) };
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(Ok(found))) => {
                last_good().insert(host.to_owned(), found.clone());
                Ok(found)
            }
            Ok(Ok(Err(e))) => known.ok_or(ConnectError::Name(e)),
            _ => known.ok_or(ConnectError::Timeout),
        }
    }
}

/// TLS settings, made when the first connection needs them.
#[derive(Debug)]
struct Tls {
    extra: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<rustls::ClientConfig>>,
}

/// Where Linux distributions keep their bundle. Environment variables do not change it: what
/// a sidecar trusts is decided by its image and its configuration.
const BUNDLES: &[&str] = &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem"];

impl Tls {
    fn config(&self) -> Arc<rustls::ClientConfig> {
        self.config.get_or_init(|| Arc::new(self.build())).clone()
    }

    fn build(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        for bundle in BUNDLES {
            if let Ok(certificates) = CertificateDer::pem_file_iter(bundle) {
                roots.add_parsable_certificates(certificates.filter_map(Result::ok));
                break;
            }
        }
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots.add_parsable_certificates(self.extra.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = match rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions() {
            Ok(builder) => builder.with_root_certificates(roots).with_no_client_auth(),
            Err(_) => unreachable!("ring offers the default protocol versions"),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

fn extra_roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("`tls.caFile`: `{}` holds no certificate", file.display())),
        Err(e) => Err(format!("`tls.caFile`: `{}`: {e}", file.display())),
    }
}

/// A connection to a provider.
#[derive(Debug)]
enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        match self {
            Wire::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Wire::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Wire::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_flush(cx),
            Wire::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Wire::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Wire::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Plain(s) => s.is_write_vectored(),
            Wire::Tls(s) => s.is_write_vectored(),
        }
    }
}

/// Is this an answer that says our key is no good?
pub fn refuses_key(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_names_do_not_lead_home() {
        for ip in ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "::1", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(is_private(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"] {
            assert!(is_link_local(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["1.1.1.1", "2606:4700::1", "100.128.0.1"] {
            assert!(!is_private(ip.parse().unwrap()), "{ip}");
        }
    }
}
