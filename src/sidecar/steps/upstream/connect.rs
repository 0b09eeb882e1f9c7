//! A connection to a provider: name, address, TCP, TLS, each within its time.

use std::error::Error as StdError;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::sidecar::policy::is_loopback;
use crate::sidecar::steps::upstream::address::{is_link_local, is_special};
use crate::sidecar::steps::upstream::error::ConnectError;
use crate::sidecar::steps::upstream::resolve::Resolver;
use crate::sidecar::steps::upstream::tls::Tls;

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
pub(super) struct Connector {
    pub(super) tls: Arc<Tls>,
    pub(super) names: Arc<Resolver>,
    /// The address is a provider's public one, not one that the operator wrote.
    pub(super) public: bool,
    pub(super) timeout: Duration,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<MaybeTls>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            tokio::time::timeout(this.timeout * 2, this.connect(&uri))
                .await
                .unwrap_or(Err(ConnectError::Timeout))
                .map(TokioIo::new)
        })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<MaybeTls, ConnectError> {
        let host = uri.host().ok_or(ConnectError::Address)?;
        let tls = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = tokio::time::timeout(self.timeout, self.dial(host, port))
            .await
            .unwrap_or(Err(ConnectError::Timeout))?;
        let _ = stream.set_nodelay(true);
        notice_dead_paths(&stream);
        if !tls {
            return Ok(MaybeTls::Plain(stream));
        }
        let name = ServerName::try_from(
            host.trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
        )
        .map_err(|_| ConnectError::Address)?;
        let connector = TlsConnector::from(self.tls.config());
        let stream = tokio::time::timeout(self.timeout, connector.connect(name, stream))
            .await
            .map_err(|_| ConnectError::Timeout)?;
        Ok(MaybeTls::Tls(Box::new(stream.map_err(ConnectError::Tls)?)))
    }

    /// Tries the addresses that are known; when none of them answers, those of a new look-up.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let known = self.names.find(host, port).await?;
        match self.dial_any(host, &known).await {
            Err(ConnectError::Connect(_) | ConnectError::Timeout) => {
                match self.names.renew(host, port).await {
                    Ok(fresh) if fresh != known => self.dial_any(host, &fresh).await,
                    _ => Err(ConnectError::Connect(io::ErrorKind::HostUnreachable.into())),
                }
            }
            done => done,
        }
    }

    async fn dial_any(&self, host: &str, all: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
        let mut last = ConnectError::Address;
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
        !self.public || is_loopback(host) || !is_special(ip)
    }
}

/// Lets the kernel end a connection whose path is gone: bytes that nobody acknowledges, or
/// silence in which probes are not answered. A NAT that forgets a connection says nothing.
fn notice_dead_paths(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5));
    let _ = sockopt::set_tcp_keepcnt(stream, 3);
    let _ = sockopt::set_tcp_user_timeout(stream, 20_000);
}

/// A connection to a provider.
#[derive(Debug)]
pub(super) enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for MaybeTls {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for MaybeTls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(s) => Pin::new(s).poll_read(cx, buf),
            MaybeTls::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MaybeTls::Plain(s) => Pin::new(s).poll_write(cx, buf),
            MaybeTls::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(s) => Pin::new(s).poll_flush(cx),
            MaybeTls::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(s) => Pin::new(s).poll_shutdown(cx),
            MaybeTls::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MaybeTls::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            MaybeTls::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            MaybeTls::Plain(s) => s.is_write_vectored(),
            MaybeTls::Tls(s) => s.is_write_vectored(),
        }
    }
}
