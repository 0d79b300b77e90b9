//! Vectors of requests to the Delivery Service and its answers.

use mimid::{
    crypto::{SigningKey, sha256, user_key_hash},
    wire::{
        codec::{List, Opaque, ShortOpaque, Text},
        ds::*,
        ids::*,
    },
};

use super::{
    NOW, Samples, complaint, confirmation, domain, group_id, join_proof, keys, migration_init, mls,
    mls_bytes, mls_struct, queue_config,
};

pub fn ds_messages(samples: &mut Samples) {
    let alice = DsSenderId::LeafIndex(LeafIndex(0));
    let alice_leaf = keys()["alice_leaf"].public().clone();
    let bob = DsSenderId::KeyPackageRef(KeyPackageRef(
        Opaque::new(mls_bytes("bob_key_package_ref")).unwrap(),
    ));
    let carol = &keys()["carol_user"];
    let carol = DsSenderId::UserKeyHash(user_key_hash(carol.scheme(), carol.public()));

    let user = &keys()["alice_user"];
    let alice_user = DsSenderId::UserKeyHash(user_key_hash(user.scheme(), user.public()));

    let removal = || update("commit_remove", false);
    let refresh = || update("commit_update", false);
    let add = || Add {
        commit: mls_struct("commit_add"),
        welcome: mls_struct("welcome"),
        group_info: partial("commit_add"),
    };
    let requests: Vec<(&str, &DsSenderId, &str, &'static str, DsRequest)> = vec![
        (
            "create_group",
            &alice,
            "alice_leaf",
            "alice creates the group of mls.json",
            DsRequest::CreateGroup(Box::new(CreateGroup {
                group_id: group_id(),
                key_package: mls_struct("alice_key_package"),
                client_queue_config: queue_config("alice"),
                group_info: mls_struct("group_info_0"),
                ratchet_tree: mls_struct("ratchet_tree_0"),
            })),
        ),
        (
            "delete_group",
            &alice,
            "alice_leaf",
            "with a commit that removes everybody else",
            DsRequest::DeleteGroup(DeleteGroup { group_id: group_id(), update: removal() }),
        ),
        (
            "update_queue_info",
            &alice,
            "alice_leaf",
            "alice's queue gets a new token",
            DsRequest::UpdateQueueInfo(UpdateQueueInfo {
                group_id: group_id(),
                client_queue_config: queue_config("alice2"),
            }),
        ),
        (
            "welcome_info",
            &bob,
            "bob_leaf",
            "bob, who has the Welcome, asks for the tree of its epoch",
            DsRequest::WelcomeInfo(WelcomeInfo {
                group_id: group_id(),
                sender: keys()["bob_leaf"].public().clone(),
                epoch: Epoch(1),
            }),
        ),
        (
            "external_commit_info",
            &carol,
            "carol_user",
            "carol wants to join with a code",
            DsRequest::ExternalCommitInfo(ExternalCommitInfo {
                group_id: group_id(),
                sender: keys()["carol_leaf"].public().clone(),
                credential: mls_struct("carol_credential"),
                user_key: Some(mls::user_key(
                    &keys()["carol_user"],
                    &keys()["carol_leaf"],
                    &mls_struct("carol_credential"),
                )),
                join_proof: Some(join_proof()),
            }),
        ),
        (
            "external_commit_info_member",
            &alice_user,
            "alice_user",
            "a member that must resync: the hub knows its user key",
            DsRequest::ExternalCommitInfo(ExternalCommitInfo {
                group_id: group_id(),
                sender: alice_leaf.clone(),
                credential: mls_struct("alice_credential"),
                user_key: None,
                join_proof: None,
            }),
        ),
        (
            "add_users",
            &alice,
            "alice_leaf",
            "alice adds bob: epoch 0 to 1",
            DsRequest::AddUsers(add()),
        ),
        (
            "remove_users",
            &alice,
            "alice_leaf",
            "alice removes bob: epoch 1 to 2",
            DsRequest::RemoveUsers(removal()),
        ),
        (
            "add_clients",
            &alice,
            "alice_leaf",
            "the encoding of add_users under another code",
            DsRequest::AddClients(add()),
        ),
        (
            "remove_clients",
            &alice,
            "alice_leaf",
            "the encoding of remove_users under another code",
            DsRequest::RemoveClients(removal()),
        ),
        (
            "update_client",
            &alice,
            "alice_leaf",
            "alice commits a path and nothing else: epoch 1 to 2",
            DsRequest::UpdateClient(refresh()),
        ),
        (
            "update_client_welcome",
            &alice,
            "alice_leaf",
            "with a Welcome, as a commit has that covers a pending Add",
            DsRequest::UpdateClient(update("commit_add", true)),
        ),
        (
            "resync_client",
            &alice,
            "alice_leaf",
            "the external commit in here is carol's: for the encoding only",
            DsRequest::ResyncClient(ResyncClient {
                group_id: group_id(),
                sender: alice_leaf.clone(),
                update: update("external_commit", false),
                client_queue_config: queue_config("alice"),
            }),
        ),
        (
            "update_client_fanout_info",
            &alice,
            "alice_leaf",
            "alice mutes the group",
            DsRequest::UpdateClientFanoutInfo(UpdateClientFanoutInfo {
                group_id: group_id(),
                sender: alice_leaf.clone(),
                client_queue_config: queue_config("alice"),
                filter: FanoutFilter::HandshakeOnly,
            }),
        ),
        (
            "update_client_fanout_info_all",
            &alice,
            "alice_leaf",
            "and takes it back",
            DsRequest::UpdateClientFanoutInfo(UpdateClientFanoutInfo {
                group_id: group_id(),
                sender: alice_leaf,
                client_queue_config: queue_config("alice"),
                filter: FanoutFilter::All,
            }),
        ),
        (
            "send_message",
            &alice,
            "alice_leaf",
            "an application message of epoch 1",
            DsRequest::SendMessage(SendMessage {
                application_message: mls_struct("application_message"),
            }),
        ),
        (
            "join_group",
            &carol,
            "carol_user",
            "carol joins by external commit, the JoinProof is its authenticated_data: epoch 1 to 2",
            DsRequest::JoinGroup(JoinGroup {
                group_id: group_id(),
                update: update("external_commit", false),
                client_queue_config: queue_config("carol"),
            }),
        ),
        (
            "propose",
            &alice,
            "alice_leaf",
            "alice proposes to remove bob",
            DsRequest::Propose(Propose {
                proposals: List::new(vec![mls_struct("remove_proposal")]).unwrap(),
            }),
        ),
        (
            "update_group",
            &alice,
            "alice_leaf",
            "the commit in here is an empty one: for the encoding only",
            DsRequest::UpdateGroup(UpdateGroup { update: refresh() }),
        ),
        (
            "start_migration",
            &alice,
            "alice_leaf",
            "the commit in here is an empty one: for the encoding only",
            DsRequest::StartMigration(Box::new(StartMigration {
                init: migration_init(),
                update: refresh(),
            })),
        ),
    ];
    for (n, (variant, sender, key, about, request)) in requests.into_iter().enumerate() {
        samples.add(
            variant,
            about,
            &ds_message(sender, &request, &keys()[key], u8::try_from(n).unwrap()),
        );
    }
    let request = DsRequest::SendMessage(SendMessage {
        application_message: mls_struct("application_message"),
    });
    samples.add(
        "",
        "what the signature of a DSMessage is over, label DSMessageTBS",
        &DsMessageTbs { sender_id: alice, request, context: context(0) },
    );
}

pub fn ds_answers(samples: &mut Samples) {
    let bodies = [
        (
            "accepted",
            "accepted as the second entry of the group's feed",
            DsResponseBody::Accepted(Accepted {
                group_sequence: Sequence(2),
                accepted_at: NOW.plus_ms(17),
                epoch: Epoch(1),
            }),
        ),
        (
            "info",
            "what bob needs beside his Welcome; one proposal is pending",
            DsResponseBody::Info(Box::new(Info {
                group_info: mls_struct("group_info_1"),
                ratchet_tree: mls_struct("ratchet_tree_1"),
                pending: List::new(vec![mls_struct("self_remove_proposal")]).unwrap(),
            })),
        ),
        (
            "moving",
            "to start_migration, once the target has the group",
            DsResponseBody::Moving(Box::new(confirmation())),
        ),
    ];
    for (variant, about, body) in bodies {
        samples.add(
            variant,
            about,
            &DsResponse { version: ProtocolVersion::MIMI10, outcome: Outcome::Ok(body) },
        );
    }
    for error in errors() {
        let about = "an error with the facts that it carries";
        samples.add(
            error.name(),
            about,
            &DsResponse { version: ProtocolVersion::MIMI10, outcome: Outcome::Err(error.clone()) },
        );
    }
    let tbs = CommitComplaintTbs {
        group_id: group_id(),
        epoch: Epoch(2),
        leaf_index: LeafIndex(1),
        commit_hash: Opaque::new(sha256(&mls_bytes("commit_update"))).unwrap(),
        reason: ComplaintReason::ConfirmationTag.into(),
    };
    samples.add(
        "",
        "what the signature of a CommitComplaint is over, label CommitComplaintTBS",
        &tbs,
    );
    samples.add("", "what /complaint takes from another provider", &complaint());
    let mut outside = CommitComplaint {
        reason: Grounds::outside(Opaque::new([0x50; 32]).unwrap()),
        ..complaint()
    };
    outside.signature = keys()["bob_leaf"]
        .sign_with_label(CommitComplaint::LABEL, &outside.to_be_signed())
        .unwrap();
    samples.add("outside", "of a commit from outside, with the key of the epoch", &outside);
    for (variant, about, outcome, wait_ms) in [
        ("resync", "go forward now", ComplaintOutcome::Resync, 0),
        ("wait", "ask again: the hub may yet go back", ComplaintOutcome::Wait, 5000),
        ("void", "the epoch is void", ComplaintOutcome::Void, 0),
        ("none", "nothing is known of it, or it is not to be believed", ComplaintOutcome::None, 0),
    ] {
        samples.add(variant, about, &ComplaintResponse { outcome, wait_ms });
    }
}

fn errors() -> Vec<DsError> {
    let detail = || Detail::new("for people: what is wrong").unwrap();
    vec![
        DsError::Malformed { detail: detail() },
        DsError::UnsupportedVersion {
            detail: detail(),
            versions: List::new(vec![ProtocolVersion::MIMI10]).unwrap(),
        },
        DsError::Unauthenticated { detail: detail() },
        DsError::NotAuthorized { detail: detail() },
        DsError::GroupNotFound { detail: detail() },
        DsError::InvalidGroupId { detail: detail() },
        DsError::InvalidKeyPackage { detail: detail(), index: 1 },
        DsError::InvalidGroupInfo { detail: detail() },
        DsError::WrongEpoch {
            detail: detail(),
            current_epoch: Epoch(1),
            missed: List::new(vec![mls_struct("commit_add"), mls_struct("self_remove_proposal")])
                .unwrap(),
        },
        DsError::InvalidCommit { detail: detail() },
        DsError::InvalidProposal {
            detail: detail(),
            refs: List::new(vec![Opaque::new(vec![0xaa; 32]).unwrap()]).unwrap(),
        },
        DsError::PendingProposals {
            detail: detail(),
            pending: List::new(vec![mls_struct("self_remove_proposal")]).unwrap(),
        },
        DsError::InvalidMessage { detail: detail() },
        DsError::GroupMoved { detail: detail(), chain: List::new(vec![confirmation()]).unwrap() },
        DsError::GroupMigrating { detail: detail(), retry_after_ms: 2_000 },
        DsError::TooLarge { detail: detail(), limit: 262_144 },
        DsError::RateLimited { detail: detail(), retry_after_ms: 1_500 },
        DsError::Unavailable { detail: detail(), retry_after_ms: 1_000 },
        DsError::Internal { detail: detail(), reference: Text::new("0f3a91c2").unwrap() },
        DsError::StaleRequest { detail: detail(), server_time: NOW },
    ]
}

fn context(n: u8) -> DsContext {
    DsContext {
        version: ProtocolVersion::MIMI10,
        hub_domain: domain(),
        group_id: group_id(),
        timestamp: NOW,
        request_id: RequestId([n; 16]),
    }
}

fn ds_message(sender: &DsSenderId, request: &DsRequest, key: &SigningKey, n: u8) -> DsMessage {
    let context = context(n);
    let signature =
        key.sign_with_label("DSMessageTBS", &ds_message_tbs(sender, request, &context)).unwrap();
    DsMessage {
        sender_id: sender.clone(),
        request: request.clone(),
        signature: ShortOpaque::new(signature.into_vec()).unwrap(),
        context,
    }
}

fn partial(commit: &str) -> PartialGroupInfo {
    PartialGroupInfo {
        group_info_extensions: List::new(vec![mls_struct(&format!("{commit}_external_pub"))])
            .unwrap(),
        signature: Opaque::new(mls_bytes(&format!("{commit}_group_info_signature"))).unwrap(),
    }
}

fn update(commit: &str, welcome: bool) -> GroupUpdate {
    GroupUpdate {
        commit: mls_struct(commit),
        group_info: partial(commit),
        welcome: welcome.then(|| mls_struct("welcome")),
    }
}
