//! Arbitrary bytes as any struct of the wire that has no target of its own: the first byte says which. Refused, or encoded
//! again as they came; MLS structs among them parse on their own.
#![no_main]

use mimid::wire::{client::*, ds::*, extensions::*, federation::*, import::*, key_packages::*};
use mimid::wire::{portability::*, queueing::*};
use mimid_fuzz::{DECODING, round_trip, within};

macro_rules! structs {
    ($($name:ident,)*) => {
        &[$(|bytes| { round_trip::<$name>(bytes); },)*]
    };
}

/// A new one goes to the end: the corpus names them by number. `tests/behaviour/samples` reads this list, and a struct of
/// the wire that is not in it fails a test.
const STRUCTS: &[fn(&[u8])] = structs![
    PublishKeyPackages,
    ConnectionKeyPackageResponse,
    GroupKeyPackageRequest,
    GroupKeyPackageResponse,
    ConnectionRequest,
    ConnectionOffer,
    Register,
    GroupPolicy,
    UserKey,
    KeyPackageQueue,
    DsResponse,
    Dequeue,
    MigratedState,
    MigrationContent,
    ClientMessageTbs,
    ClientQueueConfig,
    ClientResponse,
    CommitComplaint,
    CommitComplaintTbs,
    Complain,
    ConnectionKeyPackageRequest,
    ConnectionOfferTbs,
    ConnectionRequestTo,
    Consent,
    DsMessageTbs,
    DeleteDevice,
    DeliverBatchResponse,
    Dequeued,
    FeedAck,
    GroupImport,
    JoinProof,
    JoinProofTbs,
    KeyPackagesLeft,
    MigrationCommitAad,
    MigrationConfirmation,
    MigrationInit,
    MigrationRequest,
    MigrationResponse,
    MintedTokens,
    OpenStream,
    ProviderKeys,
    ProviderKeysAnswer,
    QueueTokens,
    QueueingServiceRequest,
    QueueingServiceResponse,
    RecipientsGone,
    Registered,
    S2SMessageTbs,
    S2SPayload,
    TargetMigrationComplete,
    UserKeyHashInput,
    UserKeyTbs,
    VerificationKeyResponse,
    Event,
    ComplaintResponse,
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let Some(decode) = STRUCTS.get(usize::from(*which)) else { return };
    decode(bytes);
    // MLS structs are kept as bytes: what was let through once is so again
    within(DECODING, bytes.len(), || match which {
        0 => {
            if let Ok(value) = mimid::wire::decode::<PublishKeyPackages>(bytes) {
                assert!(value.key_packages.iter().all(|one| one.parse().is_ok()));
            }
        }
        12 => {
            if let Ok(value) = mimid::wire::decode::<MigratedState>(bytes) {
                assert!(value.commit.parse().is_ok() && value.group_info.parse().is_ok());
                assert!(value.ratchet_tree.parse().is_ok());
            }
        }
        13 => {
            if let Ok(value) = mimid::wire::decode::<MigrationContent>(bytes) {
                assert!(value.migration_response.target_sender.parse().is_ok());
                let _ = mimid::wire::decode::<MigratedState>(value.group_state.as_slice());
            }
        }
        _ => {}
    });
});
