//! The endpoints of PROTOCOL.md §3, each with its path, its largest body and the form of its answer.

use super::front::OTHER_PATH;
use crate::rate::Class;

/// An endpoint of the client listener, or none that we know: what metrics and logs call a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Register,
    KeyPackages,
    QueueTokens,
    Dequeue,
    Stream,
    GroupOperation,
    WelcomeInformation,
    ExternalCommitInformation,
    ConnectionKeyPackages,
    GroupKeyPackages,
    ConnectionRequest,
    ProviderKeys,
    DeleteDevice,
    DeleteAccount,
    Consent,
    MigrationRequest,
    Complaint,
    /// Any other path: one name, so that strangers cannot make metrics grow.
    Unknown,
}

/// What an answer's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    DsResponse,
    ClientResponse,
}

impl Endpoint {
    /// All that are served by POST with a `ClientMessage`.
    pub const POSTED: [Self; 16] = [
        Self::Register,
        Self::KeyPackages,
        Self::QueueTokens,
        Self::Dequeue,
        Self::GroupOperation,
        Self::WelcomeInformation,
        Self::ExternalCommitInformation,
        Self::ConnectionKeyPackages,
        Self::GroupKeyPackages,
        Self::ConnectionRequest,
        Self::ProviderKeys,
        Self::DeleteDevice,
        Self::DeleteAccount,
        Self::Consent,
        Self::MigrationRequest,
        Self::Complaint,
    ];

    /// The path, as it stands in the signed `ClientMessage.endpoint`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Register => "/v1/register",
            Self::KeyPackages => "/v1/key_packages",
            Self::QueueTokens => "/v1/queue_tokens",
            Self::Dequeue => "/v1/dequeue",
            Self::Stream => "/v1/stream",
            Self::GroupOperation => "/v1/group_operation",
            Self::WelcomeInformation => "/v1/welcome_information",
            Self::ExternalCommitInformation => "/v1/external_commit_information",
            Self::ConnectionKeyPackages => "/v1/connection_key_packages",
            Self::GroupKeyPackages => "/v1/group_key_packages",
            Self::ConnectionRequest => "/v1/connection_request",
            Self::ProviderKeys => "/v1/provider_keys",
            Self::DeleteDevice => "/v1/devices/delete",
            Self::DeleteAccount => "/v1/account/delete",
            Self::Consent => "/v1/consent",
            Self::MigrationRequest => "/v1/migration_request",
            Self::Complaint => "/v1/complaint",
            Self::Unknown => OTHER_PATH,
        }
    }

    /// The largest body, in bytes; the listener's own limit may be lower.
    #[must_use]
    pub fn body_bytes_max(self) -> usize {
        match self {
            Self::GroupOperation | Self::KeyPackages | Self::ConnectionRequest => {
                4 * MIB + 128 * KIB
            }
            Self::Dequeue => MIB,
            Self::Register
            | Self::QueueTokens
            | Self::ExternalCommitInformation
            | Self::GroupKeyPackages
            | Self::Consent => 256 * KIB,
            Self::WelcomeInformation
            | Self::ConnectionKeyPackages
            | Self::ProviderKeys
            | Self::MigrationRequest
            | Self::Complaint
            | Self::DeleteDevice
            | Self::DeleteAccount => 16 * KIB,
            Self::Stream | Self::Unknown => 0,
        }
    }

    /// Whether its body is a request to a group.
    #[must_use]
    pub fn takes_ds_message(self) -> bool {
        self.form() == Form::DsResponse
    }

    /// What its requests are worth where not all can be served; those to groups have one each.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Dequeue | Self::Stream | Self::DeleteDevice | Self::DeleteAccount => {
                Class::Relief
            }
            Self::WelcomeInformation
            | Self::ExternalCommitInformation
            | Self::Complaint
            | Self::MigrationRequest => Class::Commit,
            Self::GroupOperation => Class::Message,
            Self::Register
            | Self::KeyPackages
            | Self::QueueTokens
            | Self::ConnectionKeyPackages
            | Self::GroupKeyPackages
            | Self::ConnectionRequest
            | Self::ProviderKeys
            | Self::Consent
            | Self::Unknown => Class::Account,
        }
    }

    #[must_use]
    pub fn form(self) -> Form {
        match self {
            Self::GroupOperation | Self::WelcomeInformation | Self::ExternalCommitInformation => {
                Form::DsResponse
            }
            Self::Register
            | Self::KeyPackages
            | Self::QueueTokens
            | Self::Dequeue
            | Self::Stream
            | Self::ConnectionKeyPackages
            | Self::GroupKeyPackages
            | Self::ConnectionRequest
            | Self::ProviderKeys
            | Self::DeleteDevice
            | Self::DeleteAccount
            | Self::Consent
            | Self::MigrationRequest
            | Self::Complaint
            | Self::Unknown => Form::ClientResponse,
        }
    }
}

const KIB: usize = 1024;
const MIB: usize = 1024 * 1024;
