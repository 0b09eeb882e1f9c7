//! `outrigger healthcheck`: whether a port answers 200, as an exit code.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{Exit, fail};
use crate::cli;

pub fn run(args: &cli::Healthcheck) -> Exit {
    match ask(args) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Exit::Ok,
        Ok(answer) => fail(
            Exit::Unavailable,
            &format!(
                "not ready: {}",
                answer.rsplit("\r\n\r\n").next().unwrap_or_default()
            ),
        ),
        Err(e) => fail(
            Exit::Unavailable,
            &format!("`{}` does not answer: {e}", args.address),
        ),
    }
}

fn ask(args: &cli::Healthcheck) -> std::io::Result<String> {
    let time = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&args.address, time)?;
    stream.set_read_timeout(Some(time))?;
    stream.set_write_timeout(Some(time))?;
    write!(
        stream,
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        args.path, args.address
    )?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer)
}
