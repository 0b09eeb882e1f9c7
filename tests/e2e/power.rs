//! Power cuts in miniature: everything is stopped, what the disk has at that moment is copied,
//! and the adapter is started on the copy. What was only in memory is lost, as with the power.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::fake;
use crate::kit::{cannot_run, within};
use crate::pod::Pod;

fn ran(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// An ext4 file system in a file, mounted.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn mount(image: &Path, at: &Path) -> Option<Disk> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = ran(
            "mount",
            &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()],
        );
        mounted.then(|| Disk {
            image: image.to_owned(),
            at: at.to_owned(),
        })
    }

    /// `None`, loudly, where that is not permitted.
    fn make(image: &Path, at: &Path) -> Option<Disk> {
        std::fs::File::create(image)
            .unwrap()
            .set_len(24 << 20)
            .unwrap();
        let disk = if ran("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]) {
            Disk::mount(image, at)
        } else {
            None
        };
        if disk.is_none() {
            cannot_run("power cuts", "root, mkfs.ext4 and loop devices");
        }
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        ran("umount", &["-l", self.at.to_str().unwrap()]);
    }
}

/// Stops everything, keeps what the disk has, and ends everything.
async fn cut(pod: &mut Pod, disk: Disk, round: u64) -> Disk {
    let agents = pod.agents();
    pod.signal(Signal::STOP);
    agents
        .iter()
        .for_each(|pid| _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::STOP));
    let copy = disk.image.with_extension(round.to_string());
    std::fs::copy(&disk.image, &copy).unwrap();
    pod.signal(Signal::KILL);
    agents
        .iter()
        .for_each(|pid| _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL));
    pod.exit().await;
    let at = disk.at.clone();
    let old = disk.image.clone();
    drop(disk);
    std::fs::remove_file(old).unwrap();
    Disk::mount(&copy, &at).expect("the copy can be mounted")
}

/// What a stream has: each number once, in order, or told as a gap.
async fn stream_of(pod: &Pod) -> (Vec<Value>, Vec<(u64, u64)>) {
    let (mut events, mut gaps, mut at) = (Vec::<Value>::new(), Vec::new(), 1);
    let head = {
        let status = crate::kit::request(pod.stream, "GET", "/status", &[], b"")
            .await
            .json();
        status["sequence"].as_u64().unwrap()
    };
    let read = crate::pod::follow(pod.stream, "?deltas=0", None, |id, data| {
        let event: Value = serde_json::from_str(data).unwrap();
        if event["type"] == "stream.gap" {
            let (from, to) = (
                event["payload"]["from"].as_u64().unwrap(),
                event["payload"]["to"].as_u64().unwrap(),
            );
            assert!(from >= at && to >= from, "{event}");
            gaps.push((from, to));
            at = to + 1;
        } else {
            assert!(id.unwrap() >= at, "{id:?} after {at}");
            at = id.unwrap() + 1;
            events.push(event);
        }
        at <= head
    });
    within("the stream", async { read.await.unwrap() }).await;
    (events, gaps)
}

/// The number of events of a turn whose prompt says `n=5`: the input, the start, five pieces of
/// text, the message and the end.
const EVENTS_OF_TURN: u64 = 9;

#[tokio::test]
async fn after_a_power_cut_every_input_was_delivered_once_and_no_number_is_used_again() {
    let cuts = if std::env::var_os("OUTRIGGER_SOAK").is_some() {
        200
    } else {
        EVENTS_OF_TURN
    };
    let mut pod = Pod::new(json!({ "session": { "raw": false, "maxTurns": 100_000 } })).await;
    let Some(mut disk) = Disk::make(&pod.path("disk"), &pod.path("journal")) else {
        return;
    };
    pod.start();
    let (mut inputs, mut shown) = (0, Vec::<(u64, Value)>::new());
    for round in 0..cuts {
        for _ in 0..3 {
            pod.say(&format!("in{inputs}"), &format!("n=5 number={inputs}"))
                .await;
            inputs += 1;
        }
        let last = pod
            .wait("the last input", |e| {
                e["payload"]["input_id"] == format!("in{}", inputs - 1)
            })
            .await;
        // Each round cuts elsewhere in the last turn: from its input to its end.
        let cut_at = last["sequence"].as_u64().unwrap() + round % EVENTS_OF_TURN;
        pod.wait("the event to cut behind", |e| {
            e["sequence"].as_u64().unwrap() >= cut_at
        })
        .await;
        shown.extend(
            pod.events()
                .into_iter()
                .map(|e| (e["sequence"].as_u64().unwrap(), e)),
        );
        disk = cut(&mut pod, disk, round).await;
        pod.start();
    }
    pod.say("last", "n=1").await;
    pod.wait("the last input", |e| e["payload"]["input_id"] == "last")
        .await;
    let delivered: Vec<String> = fake::history(pod.dir.path())
        .into_iter()
        .map(|h| h.1)
        .collect();
    let expected: Vec<String> = (0..inputs)
        .map(|i| format!("n=5 number={i}"))
        .chain(["n=1".to_owned()])
        .collect();
    assert_eq!(delivered, expected, "each input once, in order");
    let (events, gaps) = stream_of(&pod).await;
    let told = |id: &str| {
        events
            .iter()
            .filter(|e| e["type"] == "user.message" && e["payload"]["input_id"] == id)
            .count()
    };
    let twice: Vec<usize> = (0..inputs)
        .filter(|i| told(&format!("in{i}")) > 1)
        .collect();
    assert!(twice.is_empty(), "told twice: {twice:?}");
    // What was shown under a number is what the number has, or it is in a gap.
    let mut lost = 0;
    for (number, event) in &shown {
        let in_gap = gaps.iter().any(|(from, to)| (from..=to).contains(&number));
        let now = events.iter().find(|e| e["sequence"] == *number);
        lost += usize::from(in_gap);
        assert!(
            in_gap || event["type"].as_str().unwrap().ends_with(".delta") || now == Some(event),
            "{number}: {event} became {now:?}"
        );
    }
    println!(
        "{cuts} power cuts, {inputs} inputs once each, {} gaps, {lost} of {} events lost and told",
        gaps.len(),
        shown.len()
    );
    // Before its disk goes: nothing of it is left.
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
    drop(disk);
}
