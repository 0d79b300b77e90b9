//! Arbitrary bytes as what a client asks of a hub: refused, or encoded again as they came. What is read by hand in its commits,
//! proposals and trees, before anything of them is verified, is read here as well.
#![no_main]

use mimid::{
    client::core::SUITES,
    policy::{
        incoming,
        keys::{check_path, check_tree, is_one_leaf},
    },
    wire::{
        ds::{DsMessage, DsRequest},
        mls::MlsMessage,
    },
};
use mimid_fuzz::{DECODING, round_trip, within};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(message) = round_trip::<DsMessage>(bytes) else { return };
    within(DECODING, bytes.len(), || match &message.request {
        DsRequest::CreateGroup(create) => {
            let _ = incoming::of_key_package(&create.key_package);
            if is_one_leaf(&create.ratchet_tree) {
                assert_eq!(create.ratchet_tree.parse().map(|_| ()).ok(), Some(()));
            }
            for suite in SUITES {
                let _ = check_tree(suite, &create.ratchet_tree);
            }
        }
        DsRequest::AddUsers(add) | DsRequest::AddClients(add) => commit(&add.commit),
        DsRequest::RemoveUsers(update)
        | DsRequest::RemoveClients(update)
        | DsRequest::UpdateClient(update) => commit(&update.commit),
        DsRequest::DeleteGroup(it) => commit(&it.update.commit),
        DsRequest::ResyncClient(it) => commit(&it.update.commit),
        DsRequest::JoinGroup(it) => commit(&it.update.commit),
        DsRequest::UpdateGroup(it) => commit(&it.update.commit),
        DsRequest::Propose(propose) => {
            for proposal in propose.proposals.iter() {
                if let Some(key_package) = incoming::added(proposal) {
                    let _ = incoming::of_key_package(&key_package);
                }
            }
        }
        DsRequest::StartMigration(it) => commit(&it.update.commit),
        // nothing in them is read by hand
        DsRequest::UpdateQueueInfo(_)
        | DsRequest::WelcomeInfo(_)
        | DsRequest::ExternalCommitInfo(_)
        | DsRequest::UpdateClientFanoutInfo(_)
        | DsRequest::SendMessage(_) => {}
    });
});

fn commit(commit: &MlsMessage) {
    let _ = (incoming::of_commit(commit), incoming::adds_by_value(commit));
    for suite in SUITES {
        let _ = check_path(suite, commit);
    }
}
