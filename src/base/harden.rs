//! What a process that holds keys does to itself before it reads one.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Makes the process's memory unreadable to its own uid (`/proc/PID/mem`, ptrace), forbids
/// core dumps, and raises the limit of open files to what is allowed. Returns what could not
/// be done, for the log.
pub fn this_process() -> Vec<String> {
    let mut weak = Vec::new();
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        weak.push(format!("the process could not be made undumpable: {e}"));
    }
    if let Err(e) = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    ) {
        weak.push(format!("core dumps could not be forbidden: {e}"));
    }
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    );
    if files.maximum.is_some_and(|n| n < 2048) {
        weak.push(format!(
            "only {} files may be open; 2048 are what 512 connections need at most",
            files.maximum.unwrap_or(0)
        ));
    }
    weak
}
