//! A copy of all that this node keeps, while it runs, as it goes to who makes a backup of it.

use tokio::sync::mpsc;

use super::node::Node;
use crate::store::{Piece, StoreError, backup::frame};

/// Why no copy is begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCopy {
    #[error("another backup is being made: wait for it")]
    Busy,
    #[error("{0}")]
    Failed(String),
}

/// A copy that is being made. Where it ends without its last frame it is not whole.
#[derive(Debug)]
pub struct Copying(mpsc::Receiver<Piece>);

/// A piece of a copy.
#[derive(Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// It is the last: the flush that the copy is of.
    pub whole_at: Option<u64>,
}

impl Copying {
    pub async fn next(&mut self) -> Option<Frame> {
        let piece = self.0.recv().await?;
        let whole_at = match piece {
            Piece::End { sequence } => Some(sequence),
            Piece::Records(_) => None,
        };
        Some(Frame { bytes: frame(&piece), whole_at })
    }
}

impl Node {
    /// Begins a copy of the store as of one flush; requests go on.
    ///
    /// # Errors
    /// [`NoCopy`]
    pub fn copy(&self) -> Result<Copying, NoCopy> {
        match self.store.copy() {
            Ok(pieces) => Ok(Copying(pieces)),
            Err(StoreError::Busy) => Err(NoCopy::Busy),
            Err(error) => Err(NoCopy::Failed(error.to_string())),
        }
    }
}
