//! One file of frames: making it, and finding what is whole in it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::sums::{self, Sums};
use super::{Block, READ_BYTES, Segment, extend};

/// First words of a segment; the number is the version of the format.
pub const HEADER: &str = ": outrigger journal 1 ";
/// Longest frame that is looked for; nothing that is written is longer.
const MAX_FRAME: u64 = 256 << 20;

/// What was found in a file.
#[derive(Debug, Default)]
pub struct Scanned {
    pub blocks: Vec<Block>,
    /// Of each frame of the blocks, in order.
    pub sums: Vec<u32>,
    /// Behind the last whole frame, or behind the head.
    pub end: u64,
    /// Something is not whole, beside a last frame that was only begun.
    pub damaged: bool,
    /// So is what stands behind the last whole frame.
    pub damaged_tail: bool,
    /// The largest number that a frame has, whole or not.
    pub highest: u64,
}

impl Scanned {
    fn add(&mut self, sequence: u64, start: u64, end: u64, sum: u32) {
        self.sums.push(sum);
        (self.end, self.damaged_tail) = (end, false);
        extend(
            &mut self.blocks,
            Block {
                first: sequence,
                last: sequence,
                start,
                end,
                unchecked: None,
            },
        );
    }
}

/// The segments there are, oldest first by what they hold, whatever their names say. A file that
/// cannot be opened is left out, and one in which nothing was written is removed.
pub fn list(dir: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let first = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_suffix(".sse"))
            .and_then(|n| n.parse().ok());
        let Some(first) = first else { continue };
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) if is_only_begun(&file, &path) => std::fs::remove_file(&path)?,
            Ok(file) => {
                let frames_at = read_head(&file).map_or(0, |(_, at)| at);
                segments.push(Segment {
                    first,
                    path,
                    file: Arc::new(file),
                    frames_at,
                    blocks: Vec::new(),
                });
            }
            Err(e) => {
                tracing::error!(error = %e, file = %path.display(), "a segment of the journal cannot be opened")
            }
        }
    }
    segments.sort_by_cached_key(|s| (first_number(s).unwrap_or(s.first), s.first));
    Ok(segments.into())
}

/// Not even its head was written whole.
fn is_only_begun(file: &File, path: &Path) -> bool {
    let empty = file.metadata().is_ok_and(|m| m.len() == 0);
    let begun = |bytes: Vec<u8>| {
        begins(&bytes, HEADER.as_bytes()) && memchr::memmem::find(&bytes, b"\n\n").is_none()
    };
    empty || read_head(file).is_none() && std::fs::read(path).is_ok_and(begun)
}

/// The number of the first frame that begins near the start of a segment.
pub fn first_number(segment: &Segment) -> Option<u64> {
    let mut lines = LinesAt::new(
        &segment.file,
        segment.frames_at..segment.frames_at + READ_BYTES as u64,
    );
    while lines.advance() {
        if let Some(sequence) = number(&lines.line) {
            return Some(sequence);
        }
    }
    None
}

/// Makes the file of a segment; its head is still to be written.
pub fn create(dir: &Path, first: u64) -> io::Result<Segment> {
    let path = dir.join(format!("{first:020}.sse"));
    sums::remove(&path);
    let file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    Ok(Segment {
        first,
        path,
        file: Arc::new(file),
        frames_at: 0,
        blocks: Vec::new(),
    })
}

pub fn remove(segment: &Segment) {
    let _ = std::fs::remove_file(&segment.path);
    sums::remove(&segment.path);
}

/// Renames a file in which nothing is whole, so that it is not taken for a segment again.
pub fn put_aside(segment: &Segment) {
    if let Err(e) = std::fs::rename(&segment.path, segment.path.with_extension("damaged")) {
        tracing::warn!(error = %e, file = %segment.path.display(), "a damaged segment cannot be renamed");
    }
    sums::remove(&segment.path);
}

/// The head of a segment: the state before it.
pub fn head(state: &str) -> Vec<u8> {
    format!("{HEADER}{state}\n\n").into_bytes()
}

/// The state at the head of a segment, and where its frames begin; `None` where it is damaged.
pub fn read_head(file: &File) -> Option<(Vec<u8>, u64)> {
    let mut lines = LinesAt::new(file, 0..u64::MAX);
    lines.advance();
    let state = lines
        .line
        .strip_prefix(HEADER.as_bytes())?
        .strip_suffix(b"\n")?
        .to_vec();
    lines.advance();
    (lines.line == b"\n").then_some((state, lines.end))
}

/// Finds every whole frame in a part of a file whose number is above `above`: `id`, `data` and a
/// blank line, in ascending order, and as their checksums and `whole` say they should be.
pub fn scan(
    file: &File,
    part: Range<u64>,
    above: u64,
    sums: &Sums,
    mut whole: impl FnMut(u64, &[u8]) -> Result<bool, String>,
) -> Result<Scanned, String> {
    let mut found = Scanned {
        end: part.start,
        ..Scanned::default()
    };
    let (mut lines, mut data, mut last) = (LinesAt::new(file, part), Vec::new(), above);
    while lines.advance() {
        let start = lines.start;
        let Some(sequence) = number(&lines.line) else {
            // At the very end a frame that was only begun, and so never shown, is no damage.
            found.damaged_tail |= !(lines.are_cut() && begins_id(&lines.line));
            found.damaged |= found.damaged_tail;
            continue;
        };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&lines.line);
        if !lines.advance() || lines.are_cut() && begins(&lines.line, b"data: ") {
            break;
        }
        hasher.update(&lines.line);
        let is_data = lines.line.starts_with(b"data: ");
        if is_data {
            std::mem::swap(&mut lines.line, &mut data);
            if !lines.advance() {
                break;
            }
            hasher.update(&lines.line);
        }
        let (sum, ends) = (hasher.finalize(), is_data && lines.line == b"\n");
        let json = data
            .strip_prefix(b"data: ")
            .and_then(|l| l.strip_suffix(b"\n"))
            .unwrap_or_default();
        found.highest = found.highest.max(sequence);
        if ends && sequence > last && sums.agree(sequence, sum) && whole(sequence, json)? {
            last = sequence;
            found.add(sequence, start, lines.end, sum);
        } else {
            (found.damaged, found.damaged_tail) = (true, true);
            lines.again = !ends;
        }
    }
    Ok(found)
}

fn begins(line: &[u8], with: &[u8]) -> bool {
    line.iter().zip(with).all(|(a, b)| a == b)
}

fn begins_id(line: &[u8]) -> bool {
    begins(line, b"id: ") && line.iter().skip(4).all(u8::is_ascii_digit)
}

fn number(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line.strip_prefix(b"id: ")?.strip_suffix(b"\n")?)
        .ok()?
        .parse()
        .ok()
}

/// How far from the start of a block one of its frames is.
pub fn offset_of(file: &File, block: &Block, sequence: u64) -> io::Result<u64> {
    let mut lines = LinesAt::new(file, block.start..block.end);
    while lines.advance() {
        if number(&lines.line) == Some(sequence) {
            return Ok(lines.start - block.start);
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

/// Reads a part of a file that others read, too.
struct FramePart<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for FramePart<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = out
            .len()
            .min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut out[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// The lines of a part of a file, with where they stand.
struct LinesAt<'a> {
    reader: BufReader<FramePart<'a>>,
    line: Vec<u8>,
    start: u64,
    end: u64,
    /// The line is to be looked at once more.
    again: bool,
}

impl<'a> LinesAt<'a> {
    fn new(file: &'a File, part: Range<u64>) -> Self {
        let (start, end) = (part.start, part.end.max(part.start));
        let reader = BufReader::with_capacity(
            READ_BYTES,
            FramePart {
                file,
                at: start,
                end,
            },
        );
        LinesAt {
            reader,
            line: Vec::new(),
            start,
            end: start,
            again: false,
        }
    }

    /// Reads the next line. Returns false at the end of the part.
    fn advance(&mut self) -> bool {
        if std::mem::take(&mut self.again) {
            return true;
        }
        self.line.clear();
        self.start = self.end;
        let n = self
            .reader
            .by_ref()
            .take(MAX_FRAME)
            .read_until(b'\n', &mut self.line)
            .unwrap_or(0);
        self.end += n as u64;
        n > 0
    }

    /// The part ended within this line.
    fn are_cut(&self) -> bool {
        !self.line.ends_with(b"\n")
    }
}

/// What is whole of a block.
///
/// # Errors
/// The segment cannot be read.
pub fn compare(file: &File, segment: &Path, block: &Block) -> io::Result<Vec<Block>> {
    let sums = Sums::of_block(segment, block);
    let json = |_: u64, json: &[u8]| {
        Ok(!sums.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok())
    };
    let found = scan(file, block.start..block.end, block.first - 1, &sums, json)
        .map_err(io::Error::other)?;
    Ok(found.blocks)
}
