use super::*;

fn input(id: &str) -> Input {
    Input::new(id.into(), format!("text of {id}"))
}

fn image(id: &str, bytes: usize) -> Input {
    Input {
        attachments: vec![Attachment {
            media_type: "image/png".into(),
            data: "A".repeat(bytes),
        }],
        ..input(id)
    }
}

fn sent(id: &str, native: &str) -> Sent {
    Sent {
        input_id: id.into(),
        native_id: native.into(),
    }
}

fn ids(inbox: &Inbox) -> Vec<String> {
    inbox
        .lock()
        .open
        .iter()
        .map(|o| {
            format!(
                "{}{}",
                o.input.input_id,
                if o.sent.is_none() { "" } else { "*" }
            )
        })
        .collect()
}

fn open(path: &Path) -> Inbox {
    Inbox::open(path, Troubles::default()).unwrap().0
}

#[test]
fn order_and_state_survive_and_an_id_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox.jsonl");
    let inbox = open(&path);
    for id in ["a", "b", "c"] {
        assert!(!inbox.accept(input(id), 3).unwrap().duplicate);
    }
    assert_eq!(
        inbox.accept(input("b"), 3).unwrap(),
        Accepted {
            position: 2,
            duplicate: true
        }
    );
    inbox.sent(sent("a", "n")).unwrap();
    inbox.over("a").unwrap();
    inbox.sent(sent("b", "m")).unwrap();
    drop(inbox);
    for _ in 0..3 {
        let inbox = open(&path);
        assert_eq!(ids(&inbox), ["b*", "c"]);
        assert_eq!(inbox.in_flight()[0].1.native_id, "m");
        assert_eq!(inbox.next().unwrap().input_id, "c");
        assert_eq!(
            inbox.accept(input("a"), 3).unwrap(),
            Accepted {
                position: 1,
                duplicate: true
            }
        );
    }
}

#[test]
fn a_torn_tail_loses_only_what_was_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox.jsonl");
    let inbox = open(&path);
    inbox.accept(input("a"), 3).unwrap();
    let safe = inbox.lock().log.len() as usize;
    inbox.accept(input("b"), 3).unwrap();
    drop(inbox);
    let whole = std::fs::read(&path).unwrap();
    for cut in safe..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let inbox = open(&path);
        assert_eq!(ids(&inbox), ["a"], "cut at {cut}");
        assert!(!inbox.accept(input("b"), 3).unwrap().duplicate);
    }
}

#[test]
fn no_more_than_may_wait_by_number_and_by_size() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = open(&dir.path().join("inbox.jsonl"));
    for i in 0..CAPACITY {
        inbox.accept(input(&i.to_string()), 3).unwrap();
    }
    assert!(matches!(
        inbox.accept(input("more"), 3),
        Err(InboxError::Full)
    ));
    inbox.over("0").unwrap();
    inbox.accept(input("more"), 3).unwrap();

    let inbox = open(&dir.path().join("large.jsonl"));
    for i in 0..7 {
        inbox.accept(image(&i.to_string(), 8 << 20), 3).unwrap();
    }
    inbox.accept(image("7", (8 << 20) - 4096), 3).unwrap();
    assert!(matches!(
        inbox.accept(image("8", 8 << 20), 3),
        Err(InboxError::TooLarge)
    ));
    inbox.over("0").unwrap();
    inbox.accept(image("8", 8 << 20), 3).unwrap();
}

#[test]
fn attachments_stand_in_files_of_their_own_for_as_long_as_they_wait() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox.jsonl");
    let inbox = open(&path);
    for id in ["a", "b"] {
        inbox.accept(image(id, 100_000), 3).unwrap();
    }
    assert!(std::fs::metadata(&path).unwrap().len() < 2_000);
    let files = || {
        std::fs::read_dir(dir.path().join("inbox.payloads"))
            .unwrap()
            .count()
    };
    assert_eq!(files(), 2);
    inbox.over("a").unwrap();
    assert_eq!(files(), 1);
    drop(inbox);
    let inbox = open(&path);
    let mut next = inbox.next().unwrap();
    assert!(next.attachments.is_empty());
    inbox.load(&mut next).unwrap();
    assert_eq!(next.attachments[0].data.len(), 100_000);
    // One whose file is gone is an error, and not an input without its image.
    std::fs::remove_dir_all(dir.path().join("inbox.payloads")).unwrap();
    let mut next = inbox.next().unwrap();
    assert!(inbox.load(&mut next).is_err());
}

#[test]
fn that_it_was_sent_and_how_often_the_cli_died_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox.jsonl");
    let inbox = open(&path);
    inbox.accept(input("a"), 3).unwrap();
    inbox.sent(sent("a", "n")).unwrap();
    inbox.unsent("a").unwrap();
    inbox.died("a").unwrap();
    drop(inbox);
    let inbox = open(&path);
    let undecided = [Undecided {
        input_id: "a".into(),
        since: 4,
        was_sent: true,
    }];
    assert_eq!(
        (inbox.undecided().as_slice(), inbox.died("a").unwrap()),
        (undecided.as_slice(), 2)
    );
}

#[test]
fn a_log_of_what_is_over_is_rewritten_while_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox.jsonl");
    let inbox = open(&path);
    let long = |i: usize| Input {
        text: "x".repeat(60_000),
        ..input(&i.to_string())
    };
    for i in 0..200 {
        inbox.accept(long(i), 3).unwrap();
        inbox.sent(sent(&i.to_string(), "n")).unwrap();
        inbox.over(&i.to_string()).unwrap();
    }
    assert!(
        inbox.lock().log.len() < 2 * COMPACT_BYTES,
        "{}",
        inbox.lock().log.len()
    );
    inbox.accept(input("open"), 3).unwrap();
    drop(inbox);
    let inbox = open(&path);
    assert_eq!(ids(&inbox), ["open"]);
    assert!(
        inbox.accept(input("0"), 3).unwrap().duplicate,
        "ids are remembered"
    );
}

#[test]
fn one_that_waits_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox.jsonl");
    let inbox = open(&path);
    for id in ["a", "b"] {
        inbox.accept(input(id), 3).unwrap();
    }
    inbox.sent(sent("a", "n")).unwrap();
    let takes = ["a", "b", "c"].map(|id| inbox.take_back(id).unwrap());
    assert_eq!(
        takes,
        [TakenBack::TooLate, TakenBack::Yes, TakenBack::Unknown]
    );
    let listed: Vec<_> = inbox
        .list()
        .into_iter()
        .map(|l| (l.input_id, l.state))
        .collect();
    assert_eq!(listed, [("a".to_owned(), "sent")]);
    assert!(
        inbox.accept(input("b"), 3).unwrap().duplicate,
        "it is not delivered after all"
    );
}

#[test]
fn lines_that_are_damaged_cost_themselves_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox.jsonl");
    let inbox = open(&path);
    for id in ["a", "b", "c"] {
        inbox.accept(input(id), 3).unwrap();
    }
    drop(inbox);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(
        &path,
        format!("{}\n{}\n{}\n", lines[0], "\u{0}garbage", lines[2]),
    )
    .unwrap();
    let (inbox, opened) = Inbox::open(&path, Troubles::default()).unwrap();
    assert_eq!(
        (ids(&inbox), opened),
        (
            vec!["a".to_owned(), "c".to_owned()],
            OpenedInbox {
                fresh: false,
                damaged: 1
            }
        )
    );
}
