//! `outrigger audit verify`: does the chain of audit records hold?

use std::io::Write;

use serde_json::json;

use super::{Exit, fail};
use crate::cli;
use crate::sidecar::audit::chain;
use crate::sidecar::audit::verify::{NotVerified, Verified, verify};

pub fn run(args: &cli::AuditCommand) -> Exit {
    let cli::AuditCommand::Verify(args) = args;
    let key = match args
        .public_key
        .as_deref()
        .map(chain::public_key)
        .transpose()
    {
        Ok(key) => key,
        Err(why) => return fail(Exit::Usage, &format!("`--public-key`: {why}")),
    };
    let result = verify(&args.file, key.as_deref());
    let exit = match &result {
        Ok(_) => Exit::Ok,
        Err(NotVerified::Broken(_)) => Exit::Failed,
        Err(NotVerified::Unreadable { .. }) => Exit::Unavailable,
    };
    let text = match (&result, args.json) {
        (Ok(whole), false) => summary(whole),
        (Err(why), false) => return fail(exit, &why.to_string()),
        (_, true) => as_json(&result).to_string(),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => exit,
        Err(e) => fail(Exit::Unavailable, &format!("cannot write: {e}")),
    }
}

fn summary(whole: &Verified) -> String {
    let counted = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let beginning = match whole.first {
        0 | 1 => String::new(),
        first => format!("; records before {first} have been deleted"),
    };
    format!(
        "the chain holds: {} in {}, numbers {} to {}, {}{beginning}",
        counted(whole.records, "record"),
        counted(whole.files as u64, "file"),
        whole.first,
        whole.last,
        counted(whole.checkpoints, "signed checkpoint"),
    )
}

fn as_json(result: &Result<Verified, NotVerified>) -> serde_json::Value {
    match result {
        Ok(whole) => {
            json!({ "ok": true, "files": whole.files, "records": whole.records, "first": whole.first, "last": whole.last, "checkpoints": whole.checkpoints })
        }
        Err(NotVerified::Broken(at)) => {
            json!({ "ok": false, "file": at.file.display().to_string(), "line": at.line, "request_id": at.request_id, "why": at.why })
        }
        Err(NotVerified::Unreadable { file, why }) => {
            json!({ "ok": false, "file": file.display().to_string(), "why": why })
        }
    }
}
