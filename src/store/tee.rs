//! A copy of a store that is being written: everything as it is between two flushes, without stopping for longer than one.
//!
//! The writer's thread copies the keys in their order, a piece between two flushes. What a flush changes behind the place that
//! the copy has come to goes to the copy as well; what it changes ahead of it is read there later. So when the copy is
//! through, all that it was given, one after the other, is the store as of the last flush. The engine needs nothing for it.
//!
//! **Bounds.** Whoever takes the copy holds at most [`PIECES_AHEAD`] pieces; where it is slower than that, the copy stands still, and only
//! what is changed behind it waits, up to [`BACKLOG_BYTES_MAX`]. Beyond that the copy is given up, never a write.

use std::{collections::VecDeque, ops::ControlFlow};

use tokio::sync::mpsc;

use super::engine::{Changes, Engine, Failure};

/// A part of a copy. All of them, in order, are the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Keys with their values; none where a key that came before is gone.
    Records(Vec<Record>),
    /// There is no more: the copy is the store as of this flush.
    End { sequence: u64 },
}

/// A key and its value.
pub type Record = (Vec<u8>, Option<Vec<u8>>);

/// A key and the value that it has.
pub(super) type Stored = (Vec<u8>, Vec<u8>);

/// Pieces that wait for who takes them.
pub(super) const PIECES_AHEAD: usize = 4;
/// What waits in memory of changes behind the copy.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
const PIECE_BYTES: usize = 256 << 10;
const PIECE_RECORDS: usize = 1024;

/// What the copy does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It has more at once.
    Go,
    /// Who takes it is to make room first.
    Wait,
    /// It is whole, or nobody wants it any more.
    Over,
}

pub(super) struct Tee {
    to: mpsc::Sender<Piece>,
    /// Every key below it is copied.
    cursor: Vec<u8>,
    is_through: bool,
    backlog: VecDeque<Piece>,
    backlog_bytes: usize,
}

impl Tee {
    pub fn new(to: mpsc::Sender<Piece>) -> Self {
        Self {
            to,
            cursor: Vec::new(),
            is_through: false,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
        }
    }

    /// `changes` are in the engine now. `false`: too much waits, and the copy is given up.
    pub fn flushed(&mut self, changes: &Changes) -> bool {
        if self.is_through {
            return true;
        }
        let (mut piece, mut bytes) = (Vec::new(), 0);
        for (key, value) in changes.iter().take_while(|(key, _)| **key < self.cursor) {
            bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            piece.push((key.clone(), value.clone()));
            if bytes >= PIECE_BYTES {
                self.backlog_bytes += std::mem::take(&mut bytes);
                self.backlog.push_back(Piece::Records(std::mem::take(&mut piece)));
            }
        }
        if !piece.is_empty() {
            self.backlog_bytes += bytes;
            self.backlog.push_back(Piece::Records(piece));
        }
        self.backlog_bytes <= BACKLOG_BYTES_MAX
    }

    /// Hands on what waits, and then the next piece. `sequence` is that of the last flush.
    pub fn step(&mut self, engine: &dyn Engine, sequence: u64) -> Result<Step, Failure> {
        while let Some(piece) = self.backlog.pop_front() {
            match self.to.try_send(piece) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(piece)) => {
                    self.backlog.push_front(piece);
                    return Ok(Step::Wait);
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return Ok(Step::Over),
            }
        }
        self.backlog_bytes = 0;
        if self.is_through {
            return Ok(Step::Over);
        }
        if self.to.is_closed() {
            return Ok(Step::Over);
        }
        if self.to.capacity() == 0 {
            return Ok(Step::Wait);
        }
        let records = piece(engine, &self.cursor, PIECE_BYTES, PIECE_RECORDS)?;
        match records.last() {
            Some((last, _)) => {
                self.cursor.clone_from(last);
                self.cursor.push(0);
                let records = records.into_iter().map(|(key, value)| (key, Some(value)));
                self.backlog.push_back(Piece::Records(records.collect()));
            }
            None => {
                self.is_through = true;
                self.backlog.push_back(Piece::End { sequence });
            }
        }
        Ok(Step::Go)
    }
}

/// The next records from the key `from` on, of about `bytes_max` and at most `records_max`.
pub(super) fn piece(
    engine: &dyn Engine,
    from: &[u8],
    bytes_max: usize,
    records_max: usize,
) -> Result<Vec<Stored>, Failure> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    engine.scan(from, &[u8::MAX], &mut |key, value| {
        bytes += key.len() + value.len();
        found.push((key.to_vec(), value.to_vec()));
        if bytes < bytes_max && found.len() < records_max {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(found)
}
