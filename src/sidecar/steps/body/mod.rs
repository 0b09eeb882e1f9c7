//! The request's body, held whole in memory that all requests share.
//!
//! Step 3 of a request. Nothing is decided before the body is whole, and what was checked is what is
//! forwarded: the client's own bytes, or, where they were compressed, what they decode to.
//!
//! Invariants:
//! - Every byte that is held is counted, including the read buffer that a kept piece pins.
//! - A body must keep coming: [`IDLE_TIME`] between two pieces, and a mean rate. When memory runs
//!   short, a body that stands still makes room, or the one that holds most; when connections run
//!   short, the one with the lowest rate.
//! - Large bodies never take the last quarter of the memory, so that a small request is served
//!   whatever the large ones do.
//! - Decoding gives the thread back after each chunk, so that no body holds up other requests.

pub mod buffered;
mod decode;

mod upload;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderMap};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use self::buffered::BufferedBody;
use self::decode::encoding;
use self::upload::{GivenUp, LATENESS, Progress, Upload, UploadRegistration, Uploads};
use crate::base::sync::lock;
use crate::sidecar::refusal::{Code, Refusal};

/// Largest body, compressed or decoded; Anthropic's own limit.
pub const MAX_BODY: usize = 32 * 1024 * 1024;

/// What all bodies, and the lists of models that are cut down, may hold together.
const MEMORY: usize = 96 * 1024 * 1024;

/// What the parts of bodies beyond [`SMALL_BODY`] may take of it.
const LARGE_MEMORY: usize = MEMORY / 4 * 3;

const SMALL_BODY: usize = 1024 * 1024;

/// How long a request waits for memory that another was told to give back.
const EVICTION_TIME: Duration = Duration::from_secs(1);

/// A body is not slow before this.
pub const GRACE: Duration = Duration::from_millis(100);

/// The read buffer of a connection; a piece that is kept pins one, whatever its own size.
pub const READ_BUFFER: usize = 64 * 1024;

/// What one body may take in before others have their turn.
const TURN: usize = 256 * 1024;

/// Pieces below this are copied together, so that what is pinned is at most twice what is held.
const KEPT_PIECE: usize = READ_BUFFER / 2;

/// The memory for bodies, and the bodies that are still coming.
#[derive(Debug)]
pub struct BodyMemory {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
    uploads: Mutex<Uploads>,
    /// Told when an upload begins while there is no other.
    first_upload: Notify,
}

/// What one request holds of the memory.
#[derive(Debug, Default)]
pub struct Share {
    all: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Share {
    fn add(
        &mut self,
        all: OwnedSemaphorePermit,
        large: Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) {
        let merge = |mine: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit| match mine
        {
            Some(mine) => mine.merge(more),
            None => *mine = Some(more),
        };
        merge(&mut self.all, all);
        if let Some(large) = large {
            merge(&mut self.large, large);
        }
        self.bytes += bytes;
    }
}

impl Default for BodyMemory {
    fn default() -> Self {
        BodyMemory {
            all: Arc::new(Semaphore::new(MEMORY)),
            large: Arc::new(Semaphore::new(LARGE_MEMORY)),
            uploads: Mutex::default(),
            first_upload: Notify::new(),
        }
    }
}

impl BodyMemory {
    /// Bytes that are not held by anybody.
    pub fn free(&self) -> usize {
        self.all.available_permits()
    }

    /// Takes memory for `bytes` more. Bodies that come too slowly make room.
    ///
    /// # Errors
    /// `busy` when nobody can make room.
    pub async fn reserve(&self, share: &mut Share, bytes: usize) -> Result<(), Refusal> {
        self.reserve_for(share, bytes, None).await
    }

    async fn reserve_for(
        &self,
        share: &mut Share,
        bytes: usize,
        upload: Option<u64>,
    ) -> Result<(), Refusal> {
        let large = (share.bytes + bytes).saturating_sub(SMALL_BODY).min(bytes);
        loop {
            let part = if large > 0 {
                self.large
                    .clone()
                    .try_acquire_many_owned(large as u32)
                    .ok()
                    .map(Some)
            } else {
                Some(None)
            };
            if let Some(part) = part
                && let Ok(whole) = self.all.clone().try_acquire_many_owned(bytes as u32)
            {
                share.add(whole, part, bytes);
                return Ok(());
            }
            if !self.evict(upload, share.bytes) {
                return Err(busy());
            }
            let (pool, wanted) = if large > 0 && self.large.available_permits() < large {
                (&self.large, large)
            } else {
                (&self.all, bytes)
            };
            // Only waits until it is there: it is taken above, together with the other part.
            if tokio::time::timeout(EVICTION_TIME, pool.acquire_many(wanted as u32))
                .await
                .is_err()
            {
                return Err(busy());
            }
        }
    }

    /// Tells the body that has been waited for the longest to make room: one that stands still,
    /// or, when all are coming, the one that holds most beyond a fair share. Returns whether
    /// there was one.
    fn evict(&self, but: Option<u64>, mine: usize) -> bool {
        let uploads = lock(&self.uploads);
        let now = Instant::now();
        let held: usize = uploads.open.values().map(|u| lock(&u.progress).held).sum();
        let fair = held / (uploads.open.len() + 1);
        let candidates = || {
            uploads
                .open
                .iter()
                .filter(|(id, _)| Some(**id) != but)
                .map(|(_, u)| (u, *lock(&u.progress)))
                .filter(|(_, p)| p.given_up.is_none() && p.held > 0)
        };
        let still = candidates()
            .filter(|(_, p)| now - p.last > GRACE)
            .max_by_key(|(_, p)| (now - p.last, p.held));
        let greedy = || {
            candidates()
                .filter(|(_, p)| p.held > fair && p.held > mine)
                .max_by_key(|(_, p)| p.held)
        };
        still
            .or_else(greedy)
            .map(|(upload, _)| upload.give_up(GivenUp::MakeRoom))
            .is_some()
    }

    /// Ends the upload with the lowest mean rate, of those that have taken longer than `age`, to
    /// make room for another connection. Returns whether there was one.
    pub fn evict_slowest(&self, age: Duration) -> bool {
        let uploads = lock(&self.uploads);
        let now = Instant::now();
        let rate = |u: &Upload, p: &Progress| {
            (p.held as u128 * 1_000_000) / (now - u.since).as_micros().max(1)
        };
        let slowest = uploads
            .open
            .values()
            .map(|u| (u, *lock(&u.progress)))
            .filter(|(u, p)| p.given_up.is_none() && now - u.since > age)
            .min_by_key(|(u, p)| rate(u, p));
        slowest
            .map(|(upload, _)| upload.give_up(GivenUp::MakeRoom))
            .is_some()
    }

    /// Gives up the bodies that are late, for as long as the sidecar runs. One clock for all of
    /// them: a timer for each piece that is waited for costs as much as reading the piece.
    pub async fn give_up_late(&self) {
        loop {
            self.first_upload.notified().await;
            loop {
                tokio::time::sleep(LATENESS).await;
                let now = Instant::now();
                let uploads = lock(&self.uploads);
                if uploads.open.is_empty() {
                    break;
                }
                uploads
                    .open
                    .values()
                    .filter(|u| u.is_late(now))
                    .for_each(|u| u.give_up(GivenUp::Late));
            }
        }
    }

    fn list(&self) -> UploadRegistration<'_> {
        let now = Instant::now();
        let progress = Progress {
            held: 0,
            received: 0,
            last: now,
            given_up: None,
        };
        let upload = Arc::new(Upload {
            since: now,
            progress: Mutex::new(progress),
            given_up: Notify::new(),
        });
        let mut uploads = lock(&self.uploads);
        if uploads.open.is_empty() {
            self.first_upload.notify_one();
        }
        uploads.next += 1;
        let id = uploads.next;
        uploads.open.insert(id, upload.clone());
        UploadRegistration {
            memory: self,
            id,
            upload,
        }
    }

    /// Takes the whole body in, and undoes its compression.
    ///
    /// # Errors
    /// `body_too_large`, `body_timeout`, `busy`, `unsupported_encoding`, `bad_request`.
    pub async fn collect(
        &self,
        body: Incoming,
        headers: &HeaderMap,
    ) -> Result<BufferedBody, Refusal> {
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse::<u64>().ok());
        if announced.is_some_and(|n| n > MAX_BODY as u64) {
            return Err(too_large());
        }
        let encoding = encoding(headers)?;
        let held = self.gather(body).await?;
        match encoding {
            None => Ok(held),
            Some(encoding) => self.decode(held, encoding).await,
        }
    }

    async fn gather(&self, mut body: Incoming) -> Result<BufferedBody, Refusal> {
        let (mut pieces, mut small, mut len) = (Vec::new(), BytesMut::new(), 0usize);
        let mut share = Share::default();
        // A body that is there already is not an upload: nobody waits for it.
        let mut listed: Option<UploadRegistration<'_>> = None;
        let mut unyielded = 0;
        loop {
            let ready =
                std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            let frame = match ready {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    next_piece(&mut body, &listed.get_or_insert_with(|| self.list()).upload).await?
                }
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|e| {
                Refusal::new(
                    Code::BadRequest,
                    "the request body is incomplete or malformed",
                )
                .cause(e)
            })?;
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            len += piece.len();
            unyielded += piece.len();
            if len > MAX_BODY {
                return Err(too_large());
            }
            if unyielded > TURN {
                unyielded = 0;
                tokio::task::yield_now().await;
            }
            let whole = len == piece.len() && body.is_end_stream();
            let cost = if whole || piece.len() >= KEPT_PIECE {
                READ_BUFFER
            } else {
                room(&small, piece.len())
            };
            if cost > 0 {
                self.reserve_for(&mut share, cost, listed.as_ref().map(|l| l.id))
                    .await?;
            }
            if whole || piece.len() >= KEPT_PIECE {
                pieces.extend((!small.is_empty()).then(|| small.split().freeze()));
                small = BytesMut::new();
                pieces.extend((!piece.is_empty()).then_some(piece));
            } else {
                if small.len() + piece.len() > READ_BUFFER {
                    pieces.push(std::mem::take(&mut small).freeze());
                }
                small.reserve(if small.is_empty() { READ_BUFFER } else { 0 });
                small.extend_from_slice(&piece);
            }
            if let Some(listed) = &listed {
                listed.upload.progressed(share.bytes, len);
            }
        }
        pieces.extend((!small.is_empty()).then(|| small.freeze()));
        Ok(BufferedBody {
            pieces,
            len,
            _share: Some(Arc::new(share)),
        })
    }
}

/// The memory that joining a piece of this size to the others takes.
fn room(small: &BytesMut, piece: usize) -> usize {
    if small.is_empty() || small.len() + piece > READ_BUFFER {
        READ_BUFFER
    } else {
        0
    }
}

/// Waits for the next piece of a body, until the body is given up.
async fn next_piece(
    body: &mut Incoming,
    upload: &Upload,
) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, Refusal> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
    tokio::select! {
        biased;
        () = upload.given_up.notified() => Err(upload.refusal()),
        frame = frame => Ok(frame),
    }
}

fn busy() -> Refusal {
    let mut busy = Refusal::new(
        Code::Busy,
        "the bodies of other requests hold all the memory set aside for them",
    )
    .hint("send it again in a second");
    busy.retry_after = Some(Duration::from_secs(1));
    busy
}

fn too_large() -> Refusal {
    Refusal::new(
        Code::BodyTooLarge,
        format!("the request body is larger than {} MiB", MAX_BODY >> 20),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecar::steps::body::decode::Encoding;
    use crate::sidecar::steps::body::upload::BASE_TIME;
    use crate::sidecar::steps::body::upload::IDLE_TIME;

    fn decode(bytes: Vec<u8>, encoding: Encoding) -> Result<Vec<u8>, Code> {
        let memory = BodyMemory::default();
        let pieces = bytes.chunks(1000).map(Bytes::copy_from_slice).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let done = runtime.block_on(memory.decode(BufferedBody::of(pieces), encoding));
        let done = done.map(|body| body.pieces.concat()).map_err(|d| d.code);
        assert_eq!(memory.free(), MEMORY, "everything is given back");
        done
    }

    #[test]
    fn a_bomb_stops_at_the_size_that_a_body_may_have() {
        let zstd = zstd::encode_all(vec![b' '; MAX_BODY + 1].as_slice(), 19).unwrap();
        assert!(zstd.len() < 10_000);
        assert_eq!(
            decode(zstd, Encoding::Zstd).unwrap_err(),
            Code::BodyTooLarge
        );
    }

    #[test]
    fn a_log_that_compresses_well_is_no_bomb() {
        let log = "[INFO] the same line, again and again\n"
            .repeat(80_000)
            .into_bytes();
        assert_eq!(
            decode(zstd::encode_all(log.as_slice(), 3).unwrap(), Encoding::Zstd).unwrap(),
            log
        );
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, &log).unwrap();
        let gzip = gzip.finish().unwrap();
        assert!(log.len() > 200 * gzip.len());
        assert_eq!(decode(gzip, Encoding::Gzip).unwrap(), log);
    }

    #[test]
    fn one_frame_is_decoded_and_nothing_behind_it() {
        let mut frames = zstd::encode_all(&b"{}"[..], 3).unwrap();
        assert_eq!(decode(frames.clone(), Encoding::Zstd).unwrap(), b"{}");
        frames.extend(zstd::encode_all(&b"{}"[..], 3).unwrap());
        assert_eq!(
            decode(frames, Encoding::Zstd).unwrap_err(),
            Code::BadRequest
        );
    }

    #[tokio::test]
    async fn large_bodies_leave_room_for_small_ones() {
        let memory = BodyMemory::default();
        let mut hogs = Vec::new();
        loop {
            let mut share = Share::default();
            if memory.reserve(&mut share, MAX_BODY).await.is_err() {
                break;
            }
            hogs.push(share);
        }
        assert!(hogs.len() >= 2);
        let mut small = Share::default();
        memory.reserve(&mut small, SMALL_BODY).await.unwrap();
        drop((hogs, small));
        assert_eq!(memory.free(), MEMORY);
    }

    #[tokio::test]
    async fn a_body_must_keep_coming_and_not_too_slowly() {
        let memory = BodyMemory::default();
        let listed = memory.list();
        let upload = &listed.upload;
        assert!(!upload.is_late(Instant::now()));
        assert!(
            upload.is_late(Instant::now() + IDLE_TIME + LATENESS),
            "no piece for so long"
        );
        upload.progressed(0, 10 * 1024);
        lock(&upload.progress).last = upload.since + BASE_TIME + Duration::from_secs(10);
        assert!(!upload.is_late(upload.since + BASE_TIME + Duration::from_secs(9)));
        assert!(
            upload.is_late(upload.since + BASE_TIME + Duration::from_secs(11)),
            "below the mean rate"
        );
        upload.give_up(GivenUp::Late);
        upload.given_up.notified().await;
        assert!(upload.refusal().message.starts_with("only 10240 bytes"));
    }

    #[tokio::test]
    async fn the_body_that_stands_still_makes_room() {
        let memory = BodyMemory::default();
        let (mut hog, mut other) = (Share::default(), Share::default());
        memory.reserve(&mut hog, MAX_BODY).await.unwrap();
        memory.reserve(&mut other, MAX_BODY).await.unwrap();
        let listed = memory.list();
        listed.upload.progressed(MAX_BODY, MAX_BODY);
        tokio::time::sleep(GRACE * 2).await;
        let evicted = async {
            listed.upload.given_up.notified().await;
            drop(hog);
        };
        let mut share = Share::default();
        let (taken, ()) = tokio::join!(memory.reserve(&mut share, MAX_BODY), evicted);
        taken.unwrap();
    }
}
