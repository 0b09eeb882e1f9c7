//! Why a provider could not be reached.

use std::io;
use std::net::IpAddr;

#[derive(Debug)]
pub(super) enum ConnectError {
    Name(io::Error),
    Connect(io::Error),
    Timeout,
    Tls(io::Error),
    Private(IpAddr),
    Address,
}
