//! Checksums of frames, in a file beside each segment: what tells a damaged text that is still
//! JSON, and where the blocks of a segment are without reading it.
//!
//! A record for each block, numbers in little endian: the block's first sequence, where it
//! starts and ends (64 bits each), the number of frames, a CRC-32 of each, and one of the record
//! itself (32 bits each). Nothing waits for this file: where it ends, frames are judged by
//! their form alone.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{BLOCK_BYTES, Block};

/// Bytes of a record before its checksums.
const FIXED: usize = 28;

/// No block has more frames; a record that says so is damaged.
const MAX_FRAMES: usize = 1 << 20;

fn path(segment: &Path) -> PathBuf {
    segment.with_extension("sums")
}

pub fn remove(segment: &Path) {
    let _ = std::fs::remove_file(path(segment));
}

/// One record.
#[derive(Debug)]
struct SumRecord {
    first: u64,
    start: u64,
    end: u64,
    sums: Vec<u32>,
}

impl SumRecord {
    fn read(bytes: &[u8]) -> Option<(SumRecord, usize)> {
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let short = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let count = short(24)? as usize;
        if count == 0 || count > MAX_FRAMES {
            return None;
        }
        let end = FIXED + 4 * count;
        let sums = (0..count)
            .map(|i| short(FIXED + 4 * i))
            .collect::<Option<Vec<u32>>>()?;
        (crc32fast::hash(bytes.get(..end)?) == short(end)?).then_some(())?;
        Some((
            SumRecord {
                first: long(0)?,
                start: long(8)?,
                end: long(16)?,
                sums,
            },
            end + 4,
        ))
    }

    /// Reads the record at this place, and nothing else of the file.
    fn read_at(path: &Path, at: u64) -> Option<SumRecord> {
        let file = File::open(path).ok()?;
        let mut bytes = vec![0; FIXED];
        file.read_exact_at(&mut bytes, at).ok()?;
        let count = u32::from_le_bytes(bytes.last_chunk().copied()?) as usize;
        bytes.resize(FIXED + 4 * count.min(MAX_FRAMES) + 4, 0);
        file.read_exact_at(&mut bytes, at).ok()?;
        SumRecord::read(&bytes).map(|(record, _)| record)
    }

    /// The number of its last frame.
    fn last(&self) -> u64 {
        self.first + self.sums.len() as u64 - 1
    }

    fn write(first: u64, part: Range<u64>, sums: &[u32], out: &mut Vec<u8>) {
        let from = out.len();
        for long in [first, part.start, part.end] {
            out.extend_from_slice(&long.to_le_bytes());
        }
        out.extend_from_slice(&(sums.len() as u32).to_le_bytes());
        sums.iter()
            .for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        let own = crc32fast::hash(&out[from..]);
        out.extend_from_slice(&own.to_le_bytes());
    }
}

/// The records of a file up to the first that is damaged, with where they stand.
struct SumRecords<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> SumRecords<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        SumRecords { bytes, at: 0 }
    }
}

impl Iterator for SumRecords<'_> {
    type Item = (usize, SumRecord);

    fn next(&mut self) -> Option<Self::Item> {
        let (record, len) = SumRecord::read(self.bytes.get(self.at..)?)?;
        let at = self.at;
        self.at += len;
        Some((at, record))
    }
}

/// The checksums of a segment.
#[derive(Debug, Default)]
pub struct Sums(Vec<SumRecord>);

impl Sums {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The checksums of one block, as far as there are any.
    pub(super) fn of_block(segment: &Path, block: &Block) -> Sums {
        let record = block
            .unchecked
            .and_then(|at| SumRecord::read_at(&path(segment), at));
        Sums(record.into_iter().collect())
    }

    pub fn of(segment: &Path) -> Sums {
        Sums::load(&path(segment))
    }

    /// Those of all segments, for one that is not what its name says.
    pub fn of_all(dir: &Path) -> Sums {
        let mut records: Vec<SumRecord> = files(dir)
            .iter()
            .flat_map(|file| Sums::load(file).0)
            .collect();
        records.sort_by_key(|r| r.first);
        Sums(records)
    }

    fn load(path: &Path) -> Sums {
        Sums(
            SumRecords::new(&std::fs::read(path).unwrap_or_default())
                .map(|(_, record)| record)
                .collect(),
        )
    }

    /// Where the frames end that there are checksums of.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |r| r.end)
    }

    /// False: there is a checksum of this frame, and it is another.
    pub fn agree(&self, sequence: u64, sum: u32) -> bool {
        let at = self.0.partition_point(|r| r.first <= sequence);
        let Some(record) = at.checked_sub(1).and_then(|i| self.0.get(i)) else {
            return true;
        };
        let index = usize::try_from(sequence - record.first).unwrap_or(usize::MAX);
        record.sums.get(index).is_none_or(|known| *known == sum)
    }
}

/// The largest number that checksums tell of, also those of a segment that is gone.
pub fn highest(dir: Option<&Path>) -> u64 {
    let newest = dir.and_then(|dir| files(dir).pop());
    let sums = newest.map(|p| Sums::load(&p)).unwrap_or_default();
    sums.0.iter().map(SumRecord::last).max().unwrap_or(0)
}

/// All files of checksums, oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    let mut files: Vec<PathBuf> = all
        .filter(|p| p.extension().is_some_and(|e| e == "sums"))
        .collect();
    files.sort();
    files
}

/// The blocks of a segment as their checksums have them, not compared yet; `None` where those do
/// not reach its end. What is between them is known to be damaged.
pub fn blocks(segment: &Path, part: Range<u64>, above: u64) -> Option<Vec<Block>> {
    let bytes = std::fs::read(path(segment)).ok()?;
    let (mut records, mut blocks, mut end, mut last) =
        (SumRecords::new(&bytes), Vec::new(), part.start, above);
    for (at, record) in &mut records {
        if record.start < end || record.first <= last || record.end > part.end {
            return None;
        }
        (last, end) = (record.last(), record.end);
        blocks.push(Block {
            first: record.first,
            last,
            start: record.start,
            end,
            unchecked: Some(at as u64),
        });
    }
    (end == part.end && records.at == bytes.len()).then_some(blocks)
}

/// Writes the checksums of a segment, block by block.
#[derive(Debug)]
pub struct SumsWriter {
    /// `None` once it could not be written: the rest of the segment has no checksums then.
    file: Option<File>,
    len: u64,
    first: u64,
    part: Range<u64>,
    sums: Vec<u32>,
}

impl SumsWriter {
    /// Begins the file anew, with what was found in the segment.
    pub fn begin(segment: &Path, blocks: &[Block], sums: &[u32]) -> SumsWriter {
        let (mut out, mut at) = (Vec::new(), 0);
        for block in blocks {
            let count = (block.last - block.first + 1) as usize;
            SumRecord::write(
                block.first,
                block.start..block.end,
                &sums[at..at + count],
                &mut out,
            );
            at += count;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path(segment));
        let written = file.and_then(|file| file.write_all_at(&out, 0).map(|()| file));
        SumsWriter {
            file: written.ok(),
            len: out.len() as u64,
            first: 0,
            part: 0..0,
            sums: Vec::new(),
        }
    }

    /// Frames were written: their checksums, and where they stand.
    pub fn add(&mut self, first: u64, sums: &mut Vec<u32>, part: Range<u64>) {
        if self.sums.is_empty() {
            (self.first, self.part) = (first, part);
        } else {
            self.part.end = part.end;
        }
        self.sums.append(sums);
        if self.part.end - self.part.start >= BLOCK_BYTES || self.sums.len() >= MAX_FRAMES / 2 {
            self.flush();
        }
    }

    pub fn flush(&mut self) {
        if self.sums.is_empty() {
            return;
        }
        let mut out = Vec::new();
        SumRecord::write(self.first, self.part.clone(), &self.sums, &mut out);
        self.sums.clear();
        if let Some(file) = &self.file {
            match file.write_all_at(&out, self.len) {
                Ok(()) => self.len += out.len() as u64,
                Err(_) => self.file = None,
            }
        }
    }
}
