//! How the last writer of a journal ended: closed, killed, or together with the machine.
//!
//! After a kill the kernel still has all that was written. After a power cut the last moments
//! may be missing, although subscribers have seen them: their numbers must not be used again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::sync::Syncer;

/// `STATX_MNT_ID_UNIQUE`: the number of a mount that no other has had since the boot. An older
/// kernel gives none.
const MNT_ID_UNIQUE: u32 = 0x4000;
/// The mark always takes so many bytes, so that a full disk can still take a new one in its place.
const BYTES: usize = 512;

/// Whose memory has all that was written to the journal, also what is not on stable storage yet:
/// the kernel that is running, and the mount that it was written through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kernel {
    /// The boot of the machine, and the device of the file system.
    boot: String,
    device: u64,
    /// The mount, as seen from a mount namespace; another namespace (a container that is started
    /// again) sees the same file system under another number.
    mount: u64,
    namespace: String,
}

impl Kernel {
    fn of(dir: &Path) -> Kernel {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let namespace = std::fs::read_link("/proc/self/ns/mnt")
            .unwrap_or_default()
            .display()
            .to_string();
        let status = statx(
            CWD,
            dir,
            AtFlags::empty(),
            StatxFlags::from_bits_retain(MNT_ID_UNIQUE),
        );
        Kernel {
            boot,
            device: std::fs::metadata(dir).map_or(0, |m| m.dev()),
            mount: status.map_or(0, |s| s.stx_mnt_id),
            namespace,
        }
    }

    fn is_the_same(&self, other: &Kernel) -> bool {
        let here = self.boot == other.boot && self.device == other.device;
        here && (self.namespace != other.namespace || self.mount == other.mount)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LifeMark {
    kernel: Kernel,
    /// It was closed behind this number; `None` while a writer has it.
    closed: Option<u64>,
    /// Numbers below this were shown.
    shown: u64,
    /// Of the rest: a damaged mark says nothing.
    #[serde(default)]
    crc32: u32,
}

impl LifeMark {
    fn sum(&self) -> u32 {
        let LifeMark {
            kernel,
            closed,
            shown,
            crc32: _,
        } = self;
        crc32fast::hash(format!("{kernel:?} {closed:?} {shown}").as_bytes())
    }
}

/// What is known of the last writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// There was none, or one that left no mark.
    Unknown,
    Closed {
        head: u64,
    },
    /// The process was killed. Numbers below `shown` were shown.
    Killed {
        shown: u64,
    },
    /// The machine may have ended with it.
    Cut {
        shown: u64,
    },
}

#[derive(Debug)]
pub struct Life {
    file: Option<Arc<File>>,
    mark: LifeMark,
}

impl Life {
    /// Reads the mark of the last writer and leaves one of this.
    pub fn begin(dir: &Path) -> (Life, Last) {
        let kernel = Kernel::of(dir);
        let path = dir.join("life");
        let before: Option<LifeMark> = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(bytes.trim_ascii_end()).ok());
        let before = before.filter(|mark| mark.crc32 == mark.sum());
        let last = match &before {
            None => Last::Unknown,
            Some(LifeMark {
                closed: Some(head), ..
            }) => Last::Closed { head: *head },
            Some(mark) if mark.kernel.is_the_same(&kernel) => Last::Killed { shown: mark.shown },
            Some(mark) => Last::Cut { shown: mark.shown },
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .ok()
            .map(Arc::new);
        // Whatever stood there before.
        let _ = file.as_ref().map(|file| file.set_len(BYTES as u64));
        let shown = before.map_or(0, |mark| mark.shown);
        (
            Life {
                file,
                mark: LifeMark {
                    kernel,
                    closed: None,
                    shown,
                    crc32: 0,
                },
            },
            last,
        )
    }

    /// Everything below `shown` may have been shown from now on.
    pub fn shows(&mut self, shown: u64, syncer: &Syncer) {
        (self.mark.closed, self.mark.shown) = (None, shown);
        self.write(syncer);
    }

    pub fn close(&mut self, head: u64, syncer: &Syncer) {
        (self.mark.closed, self.mark.shown) = (Some(head), head + 1);
        self.write(syncer);
    }

    /// Not being able to is no reason to stop: then the next one knows less.
    fn write(&self, syncer: &Syncer) {
        let mark = LifeMark {
            crc32: self.mark.sum(),
            ..self.mark.clone()
        };
        let mut text = serde_json::to_vec(&mark).unwrap_or_default();
        text.resize(BYTES, b' ');
        if let Some(file) = &self.file {
            match file.write_all_at(&text, 0) {
                Ok(()) => syncer.file(file),
                Err(e) => tracing::warn!(error = %e, "the journal's mark cannot be written"),
            }
        }
    }
}
