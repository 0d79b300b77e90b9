//! A whole group as an operator brings it in (`mimid admin import-group`). Not part of the drafts.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::List;
use super::ds::INFO_BYTES_MAX;
use super::extensions::ClientQueueConfig;
use super::ids::{GroupId, LeafIndex};
use super::mls::{GroupInfo, RatchetTree};

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupImport {
    pub group_id: GroupId,
    /// Its extensions are `external_pub` and nothing else.
    pub group_info: GroupInfo,
    pub ratchet_tree: RatchetTree,
    /// One for every leaf of the tree, in any order.
    pub members: List<MemberImport, INFO_BYTES_MAX>,
}

/// Where the messages of a member go.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MemberImport {
    pub leaf_index: LeafIndex,
    pub client_queue_config: ClientQueueConfig,
}
