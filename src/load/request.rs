//! A request that was made ahead: everything but its time, its id and its signatures.

use serde::{Deserialize, Serialize};

use super::account::Account;
use crate::{
    crypto::CryptoError,
    wire::{
        ds::{DsContext, ProtocolVersion},
        encode,
        ids::{Domain, GroupId, RequestId, Timestamp},
    },
};

/// What a request is, as results name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    CreateGroup,
    AddUsers,
    Message,
    Update,
    Add,
    Remove,
    Join,
    Race,
    WelcomeInfo,
    ExternalCommitInfo,
}

impl Kind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateGroup => "create_group",
            Self::AddUsers => "add_users",
            Self::Message => "message",
            Self::Update => "update",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Join => "join",
            Self::Race => "race",
            Self::WelcomeInfo => "welcome_info",
            Self::ExternalCommitInfo => "external_commit_info",
        }
    }

    #[must_use]
    pub fn endpoint(self) -> &'static str {
        match self {
            Self::WelcomeInfo => "/v1/welcome_information",
            Self::ExternalCommitInfo => "/v1/external_commit_information",
            Self::CreateGroup
            | Self::AddUsers
            | Self::Message
            | Self::Update
            | Self::Add
            | Self::Remove
            | Self::Join
            | Self::Race => "/v1/group_operation",
        }
    }
}

/// Whose key signs towards the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signer {
    Leaf,
    User,
}

/// Encoded DSSenderID and DSRequest, and who sends them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub kind: Kind,
    pub account: u32,
    pub signer: Signer,
    #[serde(with = "serde_bytes_like")]
    pub sender: Vec<u8>,
    #[serde(with = "serde_bytes_like")]
    pub body: Vec<u8>,
}

impl Request {
    /// The DSMessage of now, signed. It is put together from its parts: they need not be read for that.
    pub(super) fn sign(
        &self,
        account: &Account,
        hub: &Domain,
        group: &GroupId,
        id: RequestId,
        now: Timestamp,
    ) -> Result<Vec<u8>, CryptoError> {
        let context = encode(&DsContext {
            version: ProtocolVersion::MIMI10,
            hub_domain: hub.clone(),
            group_id: group.clone(),
            timestamp: now,
            request_id: id,
        });
        let mut bytes =
            Vec::with_capacity(self.sender.len() + self.body.len() + context.len() + 256);
        bytes.extend_from_slice(&self.sender);
        bytes.extend_from_slice(&self.body);
        let before = bytes.len();
        bytes.extend_from_slice(&context);
        let signature = match self.signer {
            Signer::Leaf => account.key.sign_with_label(LABEL, &bytes)?,
            Signer::User => account.user_key()?.sign_with_label(LABEL, &bytes)?,
        };
        let signature = signature.as_slice();
        bytes.truncate(before);
        bytes.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(signature);
        bytes.extend_from_slice(&context);
        Ok(bytes)
    }
}

const LABEL: &str = "DSMessageTBS";

/// Bytes as bytes: serde would write a list of numbers.
mod serde_bytes_like {
    use serde::{Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl de::Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto,
        wire::{
            codec::decode,
            ds::{DsMessage, DsRequest, DsSenderId, WelcomeInfo},
            ids::{ClientUri, Epoch, LeafIndex},
        },
    };

    #[test]
    fn a_request_put_together_from_its_parts_is_the_message_and_its_signature_is_good() {
        let client = ClientUri::new("mimi://a.example/d/u1/load").unwrap();
        let account = Account::generate(client).unwrap();
        let domain = Domain::new("a.example").unwrap();
        let group = GroupId::of(&domain, [3; 16]);
        let info = WelcomeInfo {
            group_id: group.clone(),
            sender: account.key.public().clone(),
            epoch: Epoch(4),
        };
        let request = Request {
            kind: Kind::WelcomeInfo,
            account: 0,
            signer: Signer::Leaf,
            sender: encode(&DsSenderId::LeafIndex(LeafIndex(2))),
            body: encode(&DsRequest::WelcomeInfo(info)),
        };
        let kept: Request = postcard::from_bytes(&postcard::to_stdvec(&request).unwrap()).unwrap();
        assert_eq!(kept, request);
        let id = RequestId([9; 16]);
        let bytes = kept.sign(&account, &domain, &group, id, Timestamp(5)).unwrap();
        let message: DsMessage = decode(&bytes).unwrap();
        assert_eq!(
            (message.sender_id.clone(), message.context.request_id),
            (DsSenderId::LeafIndex(LeafIndex(2)), id)
        );
        crypto::verify_with_label(
            account.key.scheme(),
            account.key.public().as_slice(),
            LABEL,
            &message.to_be_signed(),
            message.signature.as_slice(),
        )
        .unwrap();
    }
}
