//! Compressed bodies.

use std::io::{BufRead, Read};
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::header::{CONTENT_ENCODING, HeaderMap};

use super::{BodyMemory, MAX_BODY, READ_BUFFER, Share, too_large};
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::body::buffered::BufferedBody;

/// 8 MiB: what `zstd` itself decodes without being asked to.
pub(super) const ZSTD_WINDOW_LOG: u32 = 23;

#[derive(Default)]
pub(super) struct Decoded {
    pub(super) pieces: Vec<Bytes>,
    pub(super) len: usize,
    pub(super) share: Share,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Encoding {
    Gzip,
    Zstd,
}

pub(super) fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Refusal> {
    let Some(value) = headers.get(CONTENT_ENCODING) else {
        return Ok(None);
    };
    match value.as_bytes() {
        b"identity" => Ok(None),
        b"gzip" => Ok(Some(Encoding::Gzip)),
        b"zstd" => Ok(Some(Encoding::Zstd)),
        other => Err(Refusal::new(
            Code::UnsupportedEncoding,
            format!(
                "content-encoding `{}` is not one of `gzip`, `zstd`, `identity`",
                other.escape_ascii()
            ),
        )
        .hint("send the body uncompressed")),
    }
}

/// Reads the pieces of a body as if they were one.
pub(super) struct Pieces<'a> {
    pub(super) rest: &'a [Bytes],
    pub(super) at: usize,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(rest: &'a [Bytes]) -> Self {
        Pieces { rest, at: 0 }
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        while let Some((first, rest)) = self.rest.split_first() {
            if self.at < first.len() {
                return Ok(&first[self.at..]);
            }
            (self.rest, self.at) = (rest, 0);
        }
        Ok(&[])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let piece = self.fill_buf()?;
        let n = piece.len().min(out.len());
        out[..n].copy_from_slice(&piece[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BodyMemory {
    /// Decodes one gzip member or one zstd frame, with nothing before or after it.
    pub(super) async fn decode(
        &self,
        held: BufferedBody,
        encoding: Encoding,
    ) -> Result<BufferedBody, Refusal> {
        let broken = |e: &dyn std::fmt::Display| {
            Refusal::new(Code::BadRequest, "the compressed request body is broken").cause(e)
        };
        let mut input = Pieces::new(&held.pieces);
        let mut out = Decoded::default();
        match encoding {
            Encoding::Gzip => {
                let mut decoder = flate2::bufread::GzDecoder::new(&mut input);
                self.decode_from(&mut decoder, &mut out).await?;
            }
            Encoding::Zstd => {
                // A skippable frame or a dictionary is nothing that a client of an API sends.
                if !held
                    .pieces
                    .first()
                    .is_some_and(|p| p.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]))
                {
                    return Err(broken(&"no zstd frame"));
                }
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut input)
                    .map_err(|e| broken(&e))?
                    .single_frame();
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .map_err(|e| broken(&e))?;
                self.decode_from(&mut decoder, &mut out).await?;
            }
        }
        if input.fill_buf().is_ok_and(|rest| !rest.is_empty()) {
            return Err(broken(&"bytes after the compressed data"));
        }
        Ok(BufferedBody {
            len: out.len,
            pieces: out.pieces,
            _share: Some(Arc::new(out.share)),
        })
    }

    pub(super) async fn decode_from(
        &self,
        decoder: &mut (impl Read + Send),
        out: &mut Decoded,
    ) -> Result<(), Refusal> {
        loop {
            self.reserve(&mut out.share, READ_BUFFER).await?;
            let mut chunk = Vec::with_capacity(READ_BUFFER);
            let read = decoder
                .by_ref()
                .take(READ_BUFFER as u64)
                .read_to_end(&mut chunk);
            read.map_err(|e| {
                Refusal::new(Code::BadRequest, "the compressed request body is broken").cause(e)
            })?;
            out.len += chunk.len();
            if out.len > MAX_BODY {
                return Err(too_large());
            }
            if chunk.is_empty() {
                return Ok(());
            }
            out.pieces.push(chunk.into());
            tokio::task::yield_now().await;
        }
    }
}
