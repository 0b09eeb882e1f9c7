//! Keys that a program prints (`bedrock-auth-helper`, `vault read …`): run with nothing but
//! `PATH` and `HOME` in its environment, for at most ten seconds. It writes into memory of
//! ours, not into a pipe: what it leaves behind in the background is not waited for.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use zeroize::Zeroizing;

use super::secret::MAX_SECRET;

const TIME: Duration = Duration::from_secs(10);

/// Ends early when `stop` is set.
pub(super) fn run(command: &[String], stop: &AtomicBool) -> Result<Zeroizing<Vec<u8>>, String> {
    let Some((program, args)) = command.split_first() else {
        return Err("no program".into());
    };
    let mut out: File = memfd_create("key", MemfdFlags::CLOEXEC)
        .map_err(|e| e.to_string())?
        .into();
    let stdout = out.try_clone().map_err(|e| e.to_string())?;
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .envs(
            ["PATH", "HOME"]
                .iter()
                .filter_map(|k| std::env::var_os(k).map(|v| (k, v))),
        )
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot be run: {e}"))?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < TIME && !stop.load(Ordering::Acquire) => {
                std::thread::sleep(Duration::from_millis(20))
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not end within {} s", TIME.as_secs()));
            }
        }
    };
    if !status.success() {
        return Err(format!("ended with {status}"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 4));
    out.rewind()
        .and_then(|()| out.take(MAX_SECRET as u64 + 4).read_to_end(&mut bytes))
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}
