//! Holds the place of the groups' service until it is here.

use super::node::Node;
use crate::wire::{
    ds::{Detail, DsError, DsMessage, DsResponse, Outcome, ProtocolVersion},
    ids::ClientUri,
};

impl Node {
    /// The Delivery Service's answer to `message`, which `from` handed in.
    pub async fn group_operation(&self, _from: &ClientUri, _message: DsMessage) -> DsResponse {
        DsResponse {
            version: ProtocolVersion::MIMI10,
            outcome: Outcome::Err(DsError::Unavailable {
                detail: Detail::truncated("groups are not served yet"),
                retry_after_ms: 1000,
            }),
        }
    }
}
