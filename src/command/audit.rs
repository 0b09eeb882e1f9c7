//! `outrigger audit verify`: does the chain of audit records hold?

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::{Exit, fail};
use crate::cli;
use crate::sidecar::audit::chain;
use crate::sidecar::audit::verify::{Break, Verified, verify};

pub fn run(args: &cli::Audit) -> Exit {
    let cli::Audit::Verify(args) = args;
    let key = match args.public_key.as_deref().map(chain::public_key).transpose() {
        Ok(key) => key,
        Err(why) => return fail(Exit::Usage, &format!("`--public-key`: {why}")),
    };
    let result = verify(&args.file, key.as_deref());
    let (text, exit) = match (&result, args.json) {
        (Ok(whole), false) => (told(whole), Exit::Ok),
        (Ok(whole), true) => (
            json!({ "ok": true, "files": whole.files, "records": whole.records, "first": whole.first, "last": whole.last, "checkpoints": whole.checkpoints })
                .to_string(),
            Exit::Ok,
        ),
        (Err(Break { line: 0, why, file, .. }), false) => return fail(Exit::Unavailable, &format!("`{}` cannot be verified: {why}", file.display())),
        (Err(at), false) => return fail(Exit::Failed, &at.to_string()),
        (Err(at), true) => (broken(at).to_string(), Exit::Failed),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => exit,
        Err(e) => fail(Exit::Unavailable, &format!("cannot write: {e}")),
    }
}

fn told(whole: &Verified) -> String {
    let counted = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let beginning = match whole.first {
        0 | 1 => String::new(),
        first => format!("; older ones than number {first} are not there any more"),
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

fn broken(at: &Break) -> serde_json::Value {
    json!({ "ok": false, "file": Path::new(&at.file), "line": at.line, "request_id": at.request_id, "why": at.why })
}
