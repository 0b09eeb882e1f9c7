//! Keys that a program prints (`bedrock-auth-helper`, `vault read …`): run with nothing but
//! `PATH` and `HOME` in its environment, for at most ten seconds.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

const TIME: Duration = Duration::from_secs(10);

pub(super) fn run(command: &[String]) -> Result<Zeroizing<Vec<u8>>, String> {
    let Some((program, args)) = command.split_first() else { return Err("no program".into()) };
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .envs(["PATH", "HOME"].iter().filter_map(|k| std::env::var_os(k).map(|v| (k, v))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot be run: {e}"))?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < TIME => std::thread::sleep(Duration::from_millis(20)),
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
    let mut bytes = Zeroizing::new(Vec::with_capacity(super::MAX_SECRET + 4));
    if let Some(out) = child.stdout.take() {
        out.take(super::MAX_SECRET as u64 + 4).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    }
    Ok(bytes)
}
