use std::path::Path;

use memchr::memmem;

use super::*;
use crate::adapter::trouble::{Component as Where, Troubles};

/// Counts what it was shown.
struct Count(u64);

impl Replay for Count {
    fn state(&mut self, json: &[u8]) -> Result<bool, String> {
        let state = std::str::from_utf8(json).ok().and_then(|s| s.parse().ok());
        self.0 = state.unwrap_or(self.0);
        Ok(state.is_some())
    }

    fn frame(&mut self, sequence: u64, json: &[u8]) -> Result<bool, String> {
        let whole = self.is_whole(sequence, json);
        self.0 = if whole { sequence } else { self.0 };
        Ok(whole)
    }

    fn is_whole(&self, sequence: u64, json: &[u8]) -> bool {
        serde_json::from_slice::<serde_json::Value>(json).is_ok_and(|v| v["n"] == sequence)
    }

    fn rebuilt(&self) -> String {
        self.0.to_string()
    }
}

fn open_as(dir: &Path, retention: Retention) -> Result<(OpenedJournal, u64), String> {
    let mut count = Count(0);
    let opened = JournalWriter::open(
        dir,
        retention,
        0,
        Where::Journal,
        &Troubles::default(),
        &mut count,
    )?;
    Ok((opened, count.0))
}

fn open(dir: &Path, segment_bytes: u64) -> (OpenedJournal, u64) {
    open_as(
        dir,
        Retention {
            segment_bytes,
            segments: 4,
            durable: true,
        },
    )
    .unwrap()
}

fn text(n: u64, size: usize) -> String {
    format!("{{\"n\":{n},\"t\":\"{}\"}}", "x".repeat(size))
}

async fn fill(writer: &mut JournalWriter, sizes: impl IntoIterator<Item = usize>) {
    for size in sizes {
        let state = writer.next().to_string();
        writer.append(|n, out| out.extend_from_slice(text(n, size).as_bytes()));
        writer.commit(|| state.clone()).await;
    }
}

/// Everything from `from` on, as (sequence, json), and the gap before it.
#[allow(clippy::type_complexity)]
fn all(journal: &Arc<Journal>, from: u64) -> (Vec<(u64, String)>, Option<(u64, u64)>) {
    let (mut cursor, mut bytes, mut gap) = (journal.subscribe(from), Vec::new(), None);
    while let Some(part) = cursor.read().unwrap() {
        match part {
            StreamPart::Frames(f) => bytes.extend_from_slice(&f),
            StreamPart::Gap { from, to } => gap = Some((from, to)),
        }
    }
    let text = String::from_utf8(bytes).unwrap();
    let frames = text
        .split_terminator("\n\n")
        .filter(|f| !f.starts_with(':'))
        .map(|f| {
            let (id, data) = f.split_once('\n').unwrap();
            (
                id.strip_prefix("id: ").unwrap().parse().unwrap(),
                data.strip_prefix("data: ").unwrap().to_owned(),
            )
        })
        .collect();
    (frames, gap)
}

fn assert_whole(frames: &[(u64, String)], from: u64, to: u64) {
    let ids: Vec<u64> = frames.iter().map(|f| f.0).collect();
    assert_eq!(ids, (from..=to).collect::<Vec<_>>());
}

#[tokio::test]
async fn sequences_go_on_across_restarts_and_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut head = 0;
    for round in 0..6 {
        let (opened, seen) = open(dir.path(), 4000);
        assert_eq!((seen, opened.damage), (head, None), "round {round}");
        let mut writer = opened.writer;
        fill(&mut writer, (0..20).map(|i| i * 7)).await;
        head += 20;
        let journal = writer.journal();
        let first = journal.first();
        for from in first..=head {
            let (frames, gap) = all(&journal, from);
            assert_whole(&frames, from, head);
            assert_eq!(gap, None);
        }
        let (frames, gap) = all(&journal, 1);
        assert_eq!(gap, (first > 1).then_some((1, first - 1)));
        assert_whole(&frames, first, head);
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = open(dir.path(), 1 << 20);
    let mut writer = opened.writer;
    fill(&mut writer, [3, 5, 0]).await;
    drop(writer);
    let file = dir.path().join(format!("{:020}.sse", 1));
    let whole = std::fs::read(&file).unwrap();
    let ends: Vec<usize> = memmem::find_iter(&whole, b"\n\n").map(|i| i + 2).collect();
    for cut in 0..whole.len() {
        std::fs::write(&file, &whole[..cut]).unwrap();
        let (opened, _) = open(dir.path(), 1 << 20);
        let kept = ends.iter().filter(|e| **e <= cut).count().saturating_sub(1) as u64;
        assert_eq!(opened.writer.next(), kept + 1, "cut at {cut}");
        let mut writer = opened.writer;
        fill(&mut writer, [1]).await;
        assert_whole(&all(&writer.journal(), 1).0, 1, kept + 1);
    }
    // What a power cut leaves: blocks of zeros, a later block without the one before it, or a
    // broken one. No number that may have been shown comes again.
    let tails = [
        (vec![0; 300], 100_004),
        (b"id: 9\ndata: {\"n\":9}\n\n".to_vec(), 100_010),
        (b"id: 4\ndata: {\"broken\n\n".to_vec(), 100_005),
    ];
    for (tail, next) in tails {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join(file.file_name().unwrap()),
            [whole.as_slice(), &tail].concat(),
        )
        .unwrap();
        let (opened, _) = open(dir.path(), 1 << 20);
        // The directory has no mark of its last writer, as if that had been lost, too.
        assert_eq!(opened.writer.next(), next);
        let mut writer = opened.writer;
        fill(&mut writer, [1]).await;
        let (frames, gap) = all(&writer.journal(), 1);
        assert_eq!(
            frames.iter().map(|f| f.0).collect::<Vec<_>>(),
            if next == 100_010 {
                vec![1, 2, 3, 9, next]
            } else {
                vec![1, 2, 3, next]
            }
        );
        assert_eq!(gap, Some((if next == 100_010 { 10 } else { 4 }, next - 1)));
    }
}

#[tokio::test]
async fn frames_of_any_size_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = open(dir.path(), 1 << 30);
    let mut writer = opened.writer;
    let near = |n: usize| (n - 40)..(n + 5);
    let sizes: Vec<usize> = near(READ_BYTES)
        .chain(near(2 * READ_BYTES))
        .chain([RECENT_BYTES + 5, 0, 3 * RECENT_BYTES, 1, 1])
        .collect();
    fill(&mut writer, sizes.iter().copied()).await;
    let (frames, _) = all(&writer.journal(), 1);
    assert_whole(&frames, 1, sizes.len() as u64);
    for ((n, json), size) in frames.iter().zip(&sizes) {
        assert!(*json == text(*n, *size), "frame {n} of {size}");
    }
    let last = sizes.len() as u64;
    assert_whole(&all(&writer.journal(), last - 2).0, last - 2, last);
}

#[tokio::test]
async fn a_cursor_sees_all_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = open(dir.path(), 300_000);
    let mut writer = opened.writer;
    let journal = writer.journal();
    let teller = journal.clone();
    let telling = tokio::spawn(async move { teller.wake_cursors().await });
    let readers: Vec<_> = (0..4)
        .map(|r| {
            let journal = journal.clone();
            tokio::spawn(async move {
                let (mut cursor, mut got) = (journal.subscribe(1), Vec::new());
                while let Some(part) = cursor.next().await {
                    match part {
                        StreamPart::Frames(f) => got.extend_from_slice(&f),
                        StreamPart::Gap { .. } => panic!("nothing was rotated away"),
                    }
                    if r % 2 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                got
            })
        })
        .collect();
    for i in 0..5_000_usize {
        writer.append(|n, out| out.extend_from_slice(text(n, i % 131).as_bytes()));
        if i % 3 == 0 {
            writer.commit(|| "0".into()).await;
            tokio::task::yield_now().await;
        }
    }
    writer.commit(|| "0".into()).await;
    writer.close();
    for reader in readers {
        let got = reader.await.unwrap();
        let ids: Vec<u64> = memmem::find_iter(&got, b"id: ")
            .map(|i| {
                std::str::from_utf8(&got[i + 4..])
                    .unwrap_or_default()
                    .split('\n')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        assert_eq!(ids, (1..=5_000).collect::<Vec<_>>());
    }
    telling.abort();
}

#[test]
fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path(), 1 << 20);
    let again = open_as(dir.path(), Retention::default());
    assert!(again.unwrap_err().contains("in use by another adapter"));
    drop(first);
    open(dir.path(), 1 << 20);
}

/// A journal of several segments in a directory of its own, for tests that damage its files.
struct Sample {
    dir: tempfile::TempDir,
    /// What was written.
    frames: Vec<(u64, String)>,
}

const SEGMENT: u64 = 20_000;

fn sample_retention() -> Retention {
    Retention {
        segment_bytes: SEGMENT,
        segments: 64,
        durable: false,
    }
}

async fn sample(count: usize) -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = open_as(dir.path(), sample_retention()).unwrap();
    let mut writer = opened.writer;
    fill(&mut writer, (0..count).map(|i| (i * 37) % 901)).await;
    let frames = all(&writer.journal(), 1).0;
    assert_whole(&frames, 1, count as u64);
    writer.close();
    Sample { dir, frames }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "sse"))
        .collect();
    files.sort();
    files
}

/// Opens a journal that was damaged, reads all of it, and goes on with it. Every frame that is
/// shown must be what it was; returns their numbers.
async fn look(sample: &Sample) -> Vec<u64> {
    look_at(sample, true).await
}

/// `sums`: the checksums are as they were. Without them a text that is still JSON is taken for
/// whole.
async fn look_at(sample: &Sample, sums: bool) -> Vec<u64> {
    let (opened, _) = open_as(sample.dir.path(), sample_retention()).unwrap();
    let mut writer = opened.writer;
    let next = writer.next();
    assert!(
        next > sample.frames.len() as u64,
        "numbers are not used again: {next}"
    );
    fill(&mut writer, [5]).await;
    let (mut cursor, mut bytes, mut at) = (writer.journal().subscribe(1), Vec::new(), 1);
    let mut shown = Vec::new();
    loop {
        match cursor.read().unwrap() {
            Some(StreamPart::Frames(f)) => bytes.extend_from_slice(&f),
            part => {
                let text = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
                for frame in text
                    .split_terminator("\n\n")
                    .filter(|f| !f.starts_with(':'))
                {
                    let (id, data) = frame.split_once("\ndata: ").unwrap();
                    let id: u64 = id.strip_prefix("id: ").unwrap().parse().unwrap();
                    assert_eq!(id, at, "in order, and nothing left out without a word");
                    if let Some(before) = sample.frames.get(id as usize - 1) {
                        assert!(!sums || data == before.1, "frame {id}: {data}");
                        shown.push(id);
                    } else {
                        assert_eq!(id, next);
                    }
                    at = id + 1;
                }
                match part {
                    Some(StreamPart::Gap { from, to }) => {
                        assert_eq!(from, at, "a gap begins where frames end");
                        at = to + 1;
                    }
                    _ => break,
                }
            }
        }
    }
    assert_eq!(at, next + 1, "to the end");
    writer.close();
    let (again, _) = open_as(sample.dir.path(), sample_retention()).unwrap();
    assert_eq!(
        (again.damage, again.writer.next()),
        (None, next + 1),
        "what was told once is not told again"
    );
    shown
}

#[tokio::test]
async fn what_is_damaged_costs_itself_alone() {
    let files = |s: &Sample| segments(s.dir.path());
    // A segment in the middle that is too short, one that is gone, and two whose names are swapped.
    let s = sample(400).await;
    let middle = files(&s)[2].clone();
    let bytes = std::fs::read(&middle).unwrap();
    std::fs::write(&middle, &bytes[..bytes.len() - 300]).unwrap();
    assert!(look(&s).await.len() >= 395);

    let s = sample(400).await;
    std::fs::remove_file(&files(&s)[2]).unwrap();
    let shown = look(&s).await;
    assert!(shown.len() > 300 && shown.len() < 399, "{}", shown.len());

    let s = sample(400).await;
    let (a, b, spare) = (
        files(&s)[1].clone(),
        files(&s)[3].clone(),
        s.dir.path().join("spare"),
    );
    for (from, to) in [(&a, &spare), (&b, &a), (&spare, &b)] {
        std::fs::rename(from, to).unwrap();
    }
    assert_eq!(look(&s).await.len(), 400);

    // A letter in a text, in the newest segment and in an old one: only its checksum tells.
    for file in [1, usize::MAX] {
        let s = sample(400).await;
        let file = files(&s)[file.min(files(&s).len() - 1)].clone();
        let mut bytes = std::fs::read(&file).unwrap();
        let at = memmem::find(&bytes, b"xxxx").unwrap();
        bytes[at] = b'y';
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(look(&s).await.len(), 399);
    }

    // All heads but the first, and the newest segment.
    let s = sample(400).await;
    for file in &files(&s)[1..] {
        let mut bytes = std::fs::read(file).unwrap();
        bytes[3] = b'!';
        std::fs::write(file, bytes).unwrap();
    }
    assert_eq!(look(&s).await.len(), 400);
    let s = sample(400).await;
    std::fs::remove_file(files(&s).last().unwrap()).unwrap();
    assert!(look(&s).await.len() > 300);
}

#[tokio::test]
async fn what_was_kept_is_read_before_anything_new_is_written() {
    for count in [20, 60, 400] {
        let s = sample(count).await;
        let newest = segments(s.dir.path()).pop().unwrap();
        let bytes = std::fs::read(&newest).unwrap();
        std::fs::write(&newest, [&bytes[..], b"garbage\n"].concat()).unwrap();
        let (opened, _) = open_as(s.dir.path(), sample_retention()).unwrap();
        // Another segment is begun behind the damaged one, and has nothing yet.
        assert!(opened.damage.is_some());
        let journal = opened.writer.journal();
        for from in [1, 11, count as u64] {
            let first = journal.subscribe(from).read().unwrap();
            assert!(
                matches!(&first, Some(StreamPart::Frames(f)) if f.starts_with(format!("id: {from}\n").as_bytes())),
                "{from} of {count}: {first:?}"
            );
        }
    }
}

/// Chance with a seed, which is told, so that a failure can be played again.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

fn damage(dir: &Path, chance: &mut Chance) -> String {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file() && !p.ends_with("lock"))
        .collect();
    files.sort();
    let file = files[chance.below(files.len())].clone();
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let mut bytes = std::fs::read(&file).unwrap();
    let (at, what) = (chance.below(bytes.len()), chance.below(9));
    match what {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
        1 if !bytes.is_empty() => bytes[at] = b'\n',
        2 => bytes.truncate(at),
        3 => {
            let end = (at + chance.below(600)).min(bytes.len());
            bytes[at..end].fill(0);
        }
        4 => drop(bytes.drain(at..(at + chance.below(600)).min(bytes.len()))),
        5 => bytes.extend_from_slice(b"id: 3\ndata: {}\n\ngarbage"),
        6 => {
            std::fs::remove_file(&file).unwrap();
            return format!("{name} removed");
        }
        7 => {
            let other = files[chance.below(files.len())].clone();
            std::fs::write(&file, std::fs::read(&other).unwrap()).unwrap();
            return format!("{name} is {}", other.display());
        }
        _ => {
            let rest = bytes.split_off(at);
            bytes.extend_from_slice(b"\n\n");
            bytes.extend_from_slice(&rest);
        }
    }
    std::fs::write(&file, bytes).unwrap();
    format!("{name}: {what} at {at}")
}

/// `OUTRIGGER_SOAK=1`: ten thousand journals.
#[tokio::test]
#[expect(
    clippy::print_stdout,
    reason = "a failure is played again by what it prints"
)]
async fn whatever_is_damaged_everything_whole_is_served() {
    let rounds = if std::env::var_os("OUTRIGGER_SOAK").is_some() {
        10_000
    } else {
        300
    };
    let seed = std::env::var("OUTRIGGER_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| getrandom::u64().unwrap() >> 1);
    println!("OUTRIGGER_SEED={seed}");
    let (mut chance, whole) = (Chance(seed | 1), sample(150).await);
    let mut shown = 0;
    for _ in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(whole.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let s = Sample {
            dir,
            frames: whole.frames.clone(),
        };
        let what: Vec<String> = (0..=chance.below(3))
            .map(|_| damage(s.dir.path(), &mut chance))
            .collect();
        println!("{what:?}");
        let sums = !what.iter().any(|w| w.contains(".sums"));
        shown += look_at(&s, sums).await.len();
    }
    println!("{shown} of {} frames were whole", rounds * 150);
    assert!(shown > rounds * 90);
}
