//! Stand-in.

use super::{Node, errors::unavailable};
use crate::{federation::Opened, wire::ds::DsError};

impl Node {
    pub async fn federated(&self, opened: Opened) -> Result<Vec<u8>, DsError> {
        Err(unavailable(&format!("stand-in {}", opened.sender)))
    }
}
