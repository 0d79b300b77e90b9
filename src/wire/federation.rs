//! What providers say to each other: signed messages, their events and endpoints. PROTOCOL.md §4; TR.
//!
//! Deliberately absent: signing, verification and freshness (`federation`), and the bodies, which are the structs of
//! the other files.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{Opaque, Text};
use super::ds::{DsRequest, ProtocolVersion, REQUEST_BYTES_MAX};
use super::extensions::Signature;
use super::ids::{Domain, RequestId, Timestamp};
use super::portability::CONTENT_BYTES_MAX;

/// The largest body between providers: a request with what is around it.
pub const BODY_BYTES_MAX: usize = REQUEST_BYTES_MAX + 65_536;
/// The largest [`S2SMessage`], but for one that moves a group.
pub const MESSAGE_BYTES_MAX: usize = BODY_BYTES_MAX + 4_096;

/// What happened, and with what.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Event {
    /// [`EventType::name`]
    pub event_type: Text<96>,
    /// An encoded [`S2SPayload`].
    pub event_payload: Opaque<{ CONTENT_BYTES_MAX + 64 }>,
}

/// One provider to another. Signed by a key of the sender's with purpose `s2s` over [`S2SMessageTbs`], label
/// "S2SMessageTBS".
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct S2SMessage {
    pub version: ProtocolVersion,
    pub sender_domain: Domain,
    pub recipient_domain: Domain,
    pub event: Event,
    pub signature: Signature,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct S2SMessageTbs {
    pub version: ProtocolVersion,
    pub sender_domain: Domain,
    pub recipient_domain: Domain,
    pub event: Event,
}

/// What is in an event: fresh, and unique for its sender.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct S2SPayload {
    pub timestamp: Timestamp,
    /// The same in every repeat of one logical request.
    pub request_id: RequestId,
    pub body: Opaque<CONTENT_BYTES_MAX>,
}

/// What an event is about: it says which struct its body is, and belongs to one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventType {
    /// A DSMessage; the request's name as [`DsRequest::name`] has it.
    DeliveryService(&'static str),
    /// A QueueingServiceRequest.
    Deliver,
    /// A DeliverBatchRequest.
    DeliverBatch,
    /// A RecipientsGone.
    RecipientsGone,
    /// A ConnectionRequest, or a QueueingServiceRequest with a Welcome.
    ConnectionRequest,
    /// A CommitComplaint; answered with a ComplaintResponse.
    Complaint,
    ConnectionKeyPackages,
    GroupKeyPackages,
    MigrationRequest,
    MigrationContent,
    MigrationAbort,
    MigrationConfirmation,
}

/// Where a provider takes events, and what it shows of itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum S2SEndpoint {
    SignatureKey,
    GroupOperation,
    WelcomeInformation,
    ExternalCommitInformation,
    VerificationKey,
    ConnectionRequest,
    DeliverMessage,
    ConnectionKeyPackages,
    GroupKeyPackages,
    MigrationRequest,
    MigrationContent,
    Complaint,
}

impl EventType {
    /// The event of a Delivery Service request.
    #[must_use]
    pub fn of(request: &DsRequest) -> Self {
        Self::DeliveryService(request.name())
    }

    /// `mimi.<document>.<event>`
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::DeliveryService(operation) => format!("{DELIVERY_SERVICE}{operation}"),
            Self::Deliver => "mimi.queueing-service.deliver".to_owned(),
            Self::DeliverBatch => "mimi.queueing-service.deliver-batch".to_owned(),
            Self::RecipientsGone => "mimi.queueing-service.recipients-gone".to_owned(),
            Self::ConnectionRequest => "mimi.queueing-service.connection-request".to_owned(),
            Self::Complaint => "mimi.queueing-service.complaint".to_owned(),
            Self::ConnectionKeyPackages => "mimi.key-packages.connection".to_owned(),
            Self::GroupKeyPackages => "mimi.key-packages.group".to_owned(),
            Self::MigrationRequest => "mimi.portability.request".to_owned(),
            Self::MigrationContent => "mimi.portability.content".to_owned(),
            Self::MigrationAbort => "mimi.portability.abort".to_owned(),
            Self::MigrationConfirmation => "mimi.portability.confirmation".to_owned(),
        }
    }

    /// The event of this name; none for one that there is not.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(operation) = name.strip_prefix(DELIVERY_SERVICE) {
            let known = DsRequest::NAMES.iter().find(|known| **known == operation)?;
            return Some(Self::DeliveryService(known));
        }
        OTHERS.into_iter().find(|event| event.name() == name)
    }

    /// The one endpoint that takes it.
    #[must_use]
    pub fn endpoint(self) -> S2SEndpoint {
        match self {
            Self::DeliveryService("welcome-info") => S2SEndpoint::WelcomeInformation,
            Self::DeliveryService("external-commit-info") => S2SEndpoint::ExternalCommitInformation,
            Self::DeliveryService(_) => S2SEndpoint::GroupOperation,
            Self::Deliver | Self::DeliverBatch | Self::RecipientsGone => {
                S2SEndpoint::DeliverMessage
            }
            Self::ConnectionRequest => S2SEndpoint::ConnectionRequest,
            Self::Complaint => S2SEndpoint::Complaint,
            Self::ConnectionKeyPackages => S2SEndpoint::ConnectionKeyPackages,
            Self::GroupKeyPackages => S2SEndpoint::GroupKeyPackages,
            Self::MigrationRequest => S2SEndpoint::MigrationRequest,
            Self::MigrationContent | Self::MigrationAbort | Self::MigrationConfirmation => {
                S2SEndpoint::MigrationContent
            }
        }
    }

    /// Its largest body, in bytes: a whole group is more than anything else.
    #[must_use]
    pub fn body_bytes_max(self) -> usize {
        if self == Self::MigrationContent { CONTENT_BYTES_MAX } else { BODY_BYTES_MAX }
    }
}

impl S2SEndpoint {
    /// The path on the federation listener.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::SignatureKey => "/signature_key",
            Self::GroupOperation => "/group_operation",
            Self::WelcomeInformation => "/welcome_information",
            Self::ExternalCommitInformation => "/external_commit_information",
            Self::VerificationKey => "/verification_key",
            Self::ConnectionRequest => "/connection_request",
            Self::DeliverMessage => "/deliver_message",
            Self::ConnectionKeyPackages => "/connection_key_packages",
            Self::GroupKeyPackages => "/group_key_packages",
            Self::MigrationRequest => "/migration_request",
            Self::MigrationContent => "/migration_content",
            Self::Complaint => "/complaint",
        }
    }

    /// Whether it answers with a DSResponse, errors included.
    #[must_use]
    pub fn answers_ds_response(self) -> bool {
        match self {
            Self::GroupOperation | Self::WelcomeInformation | Self::ExternalCommitInformation => {
                true
            }
            Self::SignatureKey
            | Self::VerificationKey
            | Self::ConnectionRequest
            | Self::DeliverMessage
            | Self::ConnectionKeyPackages
            | Self::GroupKeyPackages
            | Self::MigrationRequest
            | Self::MigrationContent
            | Self::Complaint => false,
        }
    }
}

const DELIVERY_SERVICE: &str = "mimi.delivery-service.";

/// Every event that is no Delivery Service request.
const OTHERS: [EventType; 11] = [
    EventType::Deliver,
    EventType::DeliverBatch,
    EventType::RecipientsGone,
    EventType::ConnectionRequest,
    EventType::Complaint,
    EventType::ConnectionKeyPackages,
    EventType::GroupKeyPackages,
    EventType::MigrationRequest,
    EventType::MigrationContent,
    EventType::MigrationAbort,
    EventType::MigrationConfirmation,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_parsed_from_its_own_name_and_no_other() {
        let operations = DsRequest::NAMES.iter().map(|name| EventType::DeliveryService(name));
        for event in operations.chain(OTHERS) {
            assert_eq!(EventType::parse(&event.name()), Some(event));
            assert_eq!(EventType::parse(&format!("{} ", event.name())), None);
            assert!(Text::<96>::new(event.name()).is_ok());
        }
        assert_eq!(EventType::parse("mimi.delivery-service.deliver"), None);
        assert_eq!(EventType::parse(""), None);
    }
}
