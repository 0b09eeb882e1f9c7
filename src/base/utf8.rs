//! UTF-8 in pieces.

/// UTF-8 validation of a text that arrives in pieces.
#[derive(Debug, Default)]
pub(crate) struct Utf8 {
    /// The beginning of a character that the last piece cut.
    pub(crate) cut: [u8; 4],
    pub(crate) len: usize,
}

impl Utf8 {
    pub(crate) fn is_whole(&self) -> bool {
        self.len == 0
    }

    /// Err: the offset in `piece` at (or just after) which it breaks.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> Result<(), usize> {
        let mut taken = 0;
        while self.len > 0 {
            let Some((&b, rest)) = piece.split_first() else {
                return Ok(());
            };
            self.cut[self.len] = b;
            self.len += 1;
            taken += 1;
            piece = rest;
            match std::str::from_utf8(&self.cut[..self.len]) {
                Ok(_) => self.len = 0,
                Err(e) if e.error_len().is_some() || self.len == 4 => return Err(taken),
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(e) if e.error_len().is_none() => {
                let tail = &piece[e.valid_up_to()..];
                self.cut[..tail.len()].copy_from_slice(tail);
                self.len = tail.len();
                Ok(())
            }
            Err(e) => Err(taken + e.valid_up_to()),
        }
    }
}
