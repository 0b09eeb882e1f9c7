//! Any configuration is taken or refused with reasons.
#![no_main]
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use outrigger::sidecar::{config, limit::Ledger};

fuzz_target!(|text: &str| {
    if let Err(problems) = config::parse(text, &Arc::new(Ledger::default())) {
        assert!(!problems.is_empty() && problems.iter().all(|p| !p.is_empty()));
    }
});
