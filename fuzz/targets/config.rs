//! Any configuration is taken or refused with reasons.
#![no_main]
use libfuzzer_sys::fuzz_target;
use outrigger::sidecar::config;

fuzz_target!(|text: &str| {
    if let Err(problems) = config::parse(text) {
        assert!(!problems.is_empty() && problems.iter().all(|p| !p.is_empty()));
        // Nothing in a file can make a message look like another, or act on a terminal.
        assert!(
            problems
                .iter()
                .all(|p| !p.contains(|c: char| c.is_control() && c != '\n')),
            "{problems:?}"
        );
    }
});
