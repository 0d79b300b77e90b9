//! MLS's own structs as they stand in ours: exact bytes, delimited by openmls' parsers. RFC 9420.

use openmls::prelude as mls;

use super::codec::Raw;

/// RFC 9420's `MLSMessage`.
pub type MlsMessage = Raw<mls::MlsMessageIn>;
/// RFC 9420's `KeyPackage` (not wrapped in an MLSMessage).
pub type KeyPackage = Raw<mls::KeyPackageIn>;
/// RFC 9420's `GroupInfo` (not wrapped in an MLSMessage).
pub type GroupInfo = Raw<openmls::messages::group_info::VerifiableGroupInfo>;
/// RFC 9420's `optional<Node> ratchet_tree<V>`.
pub type RatchetTree = Raw<mls::RatchetTreeIn>;
/// RFC 9420's `Credential`.
pub type Credential = Raw<mls::Credential>;
/// RFC 9420's `Extension`.
pub type Extension = Raw<mls::Extension>;
/// RFC 9420's `ExternalSender`.
pub type ExternalSender = Raw<mls::ExternalSender>;
/// RFC 9420's `RequiredCapabilities`.
pub type RequiredCapabilities = Raw<mls::RequiredCapabilitiesExtension>;
