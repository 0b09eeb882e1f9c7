use std::path::{Path, PathBuf};

use super::verify::{Break, NotVerified, Verified};
use super::*;
use crate::sidecar::ledger::limiter::Ledger;
use crate::sidecar::ledger::state::{LedgerState, grant_id};
use crate::sidecar::policy::Limits;

fn config(dir: &Path) -> AuditConfig {
    AuditConfig {
        file: Some(dir.join("a.jsonl")),
        max_bytes: 1 << 20,
        keep: 3,
        keep_days: 30,
        signing_key: None,
        state: Some(dir.join("s.state.json")),
    }
}

fn open(config: &AuditConfig) -> Result<(Audit, AuditWriter), String> {
    Audit::open(config, recover(config)?, "ses", Arc::default())
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// Every record of the chain, the oldest first.
fn everything(config: &AuditConfig) -> Vec<serde_json::Value> {
    file::all(config.file.as_ref().unwrap())
        .iter()
        .flat_map(|f| lines(f))
        .collect()
}

/// The first break, which there must be.
fn first_break(path: &Path, key: Option<&[u8]>) -> Break {
    match verify::verify(path, key) {
        Err(NotVerified::Broken(at)) => at,
        other => panic!("{other:?}"),
    }
}

fn verified(config: &AuditConfig) -> Verified {
    verify::verify(config.file.as_ref().unwrap(), None).unwrap()
}

/// Waits for a condition that another thread brings about.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what} did not happen within 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn close(writer: AuditWriter) {
    writer.close(Duration::from_secs(5));
}

#[test]
fn every_entry_is_one_line_whatever_becomes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (audit, writer) = open(&config).unwrap();
    drop(audit.entry());
    let mut e = audit.entry();
    e.record.model_requested = Some("\u{1b}[31m\n\"x".into());
    drop(e);
    assert!(
        open(&config).is_err(),
        "a second sidecar must not share the file"
    );
    close(writer);
    let all = everything(&config);
    assert_eq!(all.len(), 2);
    assert_ne!(all[0]["request_id"], all[1]["request_id"]);
    assert_eq!(all[0]["tokens"]["input"], serde_json::Value::Null);
}

#[test]
fn half_a_record_is_cut_off_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let path = config.file.clone().unwrap();
    for torn in ["{\"a\":1}\n{\"b\"", "{\"b\"", ""] {
        std::fs::write(&path, torn).unwrap();
        let (audit, writer) = open(&config).unwrap();
        drop(audit.entry());
        close(writer);
        assert_eq!(lines(&path).len(), torn.matches('\n').count() + 1);
    }
}

#[test]
fn the_chain_goes_on_over_rotations_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig {
        max_bytes: 4096,
        ..config(dir.path())
    };
    for _ in 0..12 {
        let (audit, writer) = open(&config).unwrap();
        for _ in 0..3 {
            drop(audit.entry());
        }
        close(writer);
    }
    let whole = verified(&config);
    assert_eq!((whole.records, whole.first, whole.last), (36, 1, 36));
    assert!(
        whole.files > config.keep as usize + 1,
        "none is deleted before it is old enough"
    );
    assert!(config.file.unwrap().metadata().unwrap().len() <= 4096);
}

#[test]
fn files_that_are_old_enough_are_deleted_beyond_the_number_to_keep() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig {
        max_bytes: 4096,
        keep: 2,
        keep_days: 1,
        ..config(dir.path())
    };
    let (audit, writer) = open(&config).unwrap();
    let path = config.file.clone().unwrap();
    let file = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    for n in 0..60 {
        drop(audit.entry());
        until("a record", || audit.written() > n);
    }
    let before = file::all(&path).len();
    assert!(before > 4);
    let old = std::time::SystemTime::now() - Duration::from_secs(90_000);
    for n in 1..before as u32 {
        std::fs::File::options()
            .write(true)
            .open(file(n))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    for n in 60..80 {
        drop(audit.entry());
        until("a record", || audit.written() > n);
    }
    close(writer);
    let left = file::all(&path).len();
    assert!(left < before && left >= 3, "{left} of {before}");
    assert!(verified(&config).first > 1);
}

#[test]
fn a_change_or_a_missing_record_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (audit, writer) = open(&config).unwrap();
    for _ in 0..5 {
        drop(audit.entry());
    }
    close(writer);
    let path = config.file.clone().unwrap();
    let whole = std::fs::read_to_string(&path).unwrap();
    let broken = |text: String| {
        std::fs::write(&path, text).unwrap();
        first_break(&path, None)
    };
    let all: Vec<&str> = whole.lines().collect();
    let changed = broken(whole.replacen("\"decision\":\"deny\"", "\"decision\":\"allow\"", 3));
    assert_eq!(
        changed.line, 2,
        "the record behind the first changed one shows it"
    );
    let missing = broken([all[0], all[1], all[3], all[4], ""].join("\n"));
    assert!(
        missing.line == 3 && missing.why.contains("missing"),
        "{missing}"
    );
    let swapped = broken([all[0], all[2], all[1], all[3], all[4], ""].join("\n"));
    assert_eq!(swapped.line, 2);
    assert!(broken("nonsense\n".into()).why.contains("not a record"));
}

#[test]
fn records_that_were_cut_off_at_the_end_are_missed_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let path = config.file.clone().unwrap();
    let (audit, writer) = open(&config).unwrap();
    for _ in 0..4 {
        drop(audit.entry());
    }
    close(writer);
    let kept: String = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .take(2)
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(&path, kept).unwrap();
    let (audit, writer) = open(&config).unwrap();
    drop(audit.entry());
    close(writer);
    let found = first_break(&path, None);
    assert!(
        found.line == 3 && found.why.contains("record 5 follows record 2"),
        "{found}"
    );
}

#[test]
fn a_signed_chain_is_verified_by_its_public_key() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let public = chain::SigningKey::read(&key).unwrap().public().to_vec();
    let config = AuditConfig {
        signing_key: Some(key),
        ..config(dir.path())
    };
    for _ in 0..2 {
        let (audit, writer) = open(&config).unwrap();
        drop(audit.entry());
        close(writer);
    }
    let path = config.file.clone().unwrap();
    assert_eq!(verify::verify(&path, Some(&public)).unwrap().checkpoints, 2);
    let unsigned: String = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .filter(|l| !l.contains("checkpoint"))
        .take(1)
        .map(|l| format!("{l}\n"))
        .collect();
    let forged = dir.path().join("forged.jsonl");
    std::fs::write(&forged, unsigned).unwrap();
    assert!(
        first_break(&forged, Some(&public))
            .why
            .contains("no signed checkpoint")
    );
    assert!(matches!(
        verify::verify(&dir.path().join("none"), None),
        Err(NotVerified::Unreadable { .. })
    ));
    assert!(
        first_break(&path, Some(&[7; 32]))
            .why
            .contains("does not match")
    );
}

#[test]
fn a_file_that_was_removed_is_restored_and_one_that_was_moved_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let path = config.file.clone().unwrap();
    let (audit, writer) = open(&config).unwrap();
    drop(audit.entry());
    until("a record", || audit.written() == 1);
    std::fs::remove_file(&path).unwrap();
    until("the file again", || lines(&path).len() == 1);
    drop(audit.entry());
    until("a second record", || lines(&path).len() == 2);
    std::fs::rename(&path, dir.path().join("taken")).unwrap();
    until("a new file", || path.exists());
    drop(audit.entry());
    close(writer);
    assert_eq!(
        (lines(&dir.path().join("taken")).len(), lines(&path).len()),
        (2, 1)
    );
}

#[test]
fn a_disk_that_fails_closes_the_door_and_opens_it_again() {
    // A directory in the way of the new file: rotation fails as a full disk would.
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig {
        max_bytes: 4096,
        ..config(dir.path())
    };
    let path = config.file.clone().unwrap();
    let (audit, writer) = open(&config).unwrap();
    let blocked = path.with_extension("next");
    std::fs::create_dir(&blocked).unwrap();
    let mut n = 0;
    until("the door closed", || {
        drop(audit.entry());
        n += 1;
        !audit.works()
    });
    std::fs::remove_dir(&blocked).unwrap();
    until("the door open", || audit.works());
    close(writer);
    assert_eq!(verified(&config).records, n, "nothing unaudited");
}

#[test]
fn refused_requests_share_records_beyond_a_rate() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (audit, writer) = open(&config).unwrap();
    let mut served = audit.entry();
    served.record.code = Some("marker");
    drop(served);
    const REFUSED: usize = 20_000;
    for i in 0..REFUSED {
        let mut entry = audit.entry();
        entry.record.code = Some(if i % 2 == 0 {
            "scope_denied"
        } else {
            "route_denied"
        });
        entry.record.status = Some(403);
        let _ = entry.is_told_apart();
    }
    close(writer);
    let all = everything(&config);
    assert!(all.len() < 1100, "{} records", all.len());
    assert!(all.iter().any(|r| r["code"] == "marker"));
    let counted: u64 = all
        .iter()
        .filter(|r| r["code"] != "marker")
        .map(|r| r["count"].as_u64().unwrap_or(1))
        .sum();
    assert_eq!(
        counted as usize, REFUSED,
        "each is in a record, or counted in one"
    );
}

#[test]
fn what_was_let_in_shares_no_record_and_leaves_no_note() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (audit, writer) = open(&config).unwrap();
    let ledger = Ledger::new(&LedgerState::default(), Some("ses"));
    let limiter = ledger.limiter(
        &grant_id("ai.x"),
        &Limits {
            tokens_per_day: Some(1_000_000),
            ..Limits::default()
        },
    );
    // A flood of refusals, and then requests that are let in and fail.
    for _ in 0..2000 {
        let _ = audit.entry().is_told_apart();
    }
    for _ in 0..10 {
        let mut entry = audit.entry();
        let mut admission = crate::sidecar::steps::limit::Admission::of(&limiter, 5);
        admission.owe();
        entry.admit(admission).unwrap();
        assert!(entry.is_told_apart());
    }
    close(writer);
    let again = recover(&config).unwrap();
    assert_eq!(
        (
            again.unknown.len(),
            again.state.grants[&grant_id("ai.x")].tokens
        ),
        (0, 50)
    );
}

#[test]
fn what_was_under_way_stands_as_unknown_and_is_charged_by_its_hold() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let limits = Limits {
        tokens_per_day: Some(1000),
        ..Limits::default()
    };
    let (audit, writer) = open(&config).unwrap();
    let ledger = Ledger::new(&LedgerState::default(), Some("ses"));
    let limiter = ledger.limiter(&grant_id("ai.x"), &limits);
    let admitted = |tokens| {
        let mut entry = audit.entry();
        entry.record.model_requested = Some("m".into());
        let mut admission = crate::sidecar::steps::limit::Admission::of(&limiter, tokens);
        admission.owe();
        entry.admit(admission).unwrap();
        entry
    };
    let mut done = admitted(100);
    done.admission().unwrap().charge(7, 0.0);
    drop(done);
    let under_way = admitted(30);
    let id = under_way.id().to_owned();
    until("the record of the first", || audit.written() == 1);
    // The process is killed: nothing is written any more, and the lock on the file goes with it.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    drop(under_way);
    close(writer);

    let killed = AuditConfig {
        file: Some(copy.path().join("a.jsonl")),
        state: Some(copy.path().join("s.state.json")),
        ..config
    };
    let recovered = recover(&killed).unwrap();
    assert_eq!(
        recovered.state.grants[&grant_id("ai.x")].tokens,
        37,
        "7 of the first, and all that the second held"
    );
    let (_, writer) = Audit::open(&killed, recovered, "ses", Arc::default()).unwrap();
    close(writer);
    let all = everything(&killed);
    assert_eq!(
        (all.len(), &all[1]["code"], &all[1]["charged"]["tokens"]),
        (2, &"unknown".into(), &30.into())
    );
    assert_eq!(all[1]["request_id"], *id);
    assert_eq!(verified(&killed).records, 2);
    // Another start finds nothing more to do.
    let again = recover(&killed).unwrap();
    assert!(again.unknown.is_empty());
    assert_eq!(again.state.grants[&grant_id("ai.x")].tokens, 37);
}
