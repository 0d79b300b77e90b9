//! One value of every struct and variant of the wire, from fixed keys, ids and times.

mod clients;
pub mod describe;
mod ds;
pub mod mls;

use std::{collections::BTreeMap, path::PathBuf, sync::LazyLock};

use describe::{Describe, Node, spec_name};
use mimid::{
    crypto::{SigningKey, sha256, user_key_hash},
    migration::proof,
    wire::{
        DecodeError,
        codec::{List, Opaque, Raw},
        decode,
        ds::*,
        encode,
        extensions::*,
        ids::*,
        import::*,
        key_packages::*,
        mls as wire_mls,
        portability::*,
        queueing::*,
    },
};
use serde_json::{Value, json};

/// One vector: its file's name, the value's tree and bytes, and how to read such bytes.
pub struct Sample {
    pub name: String,
    pub about: &'static str,
    pub node: Node,
    pub bytes: Vec<u8>,
    pub read: Read,
}

/// Decodes bytes as the sample's type; gives the tree and the encoding of what was read.
pub type Read = fn(&[u8]) -> Result<(Node, Vec<u8>), DecodeError>;

/// The fuzz target that a vector is a starting point of, and what stands before the bytes there.
pub fn fuzz_input(name: &str) -> Option<(&'static str, Vec<u8>)> {
    let kind = name.split('.').next().unwrap_or_default();
    let whole = |target| Some((target, Vec::new()));
    match kind {
        "DSMessage" => whole("ds_message"),
        "ClientMessage" => whole("client_message"),
        "QueueEntry" => whole("queue_entry"),
        "DeliverBatchRequest" => whole("deliver_batch"),
        "S2SMessage" => whole("s2s_message"),
        _ => {
            // one target for many structs: the first byte says which
            let at = fuzzed_structs().iter().position(|one| one == kind)?;
            Some(("wire_structs", vec![u8::try_from(at).unwrap()]))
        }
    }
}

/// By the names of PROTOCOL.md, in their order there.
pub fn fuzzed_structs() -> Vec<String> {
    let source = include_str!("../../fuzz/fuzz_targets/wire_structs.rs");
    let list = source.split("= structs![").nth(1).expect("the list of structs");
    let list = list.split("];").next().unwrap();
    list.lines().filter_map(|line| line.trim().strip_suffix(',')).map(spec_name).collect()
}

/// Where the vectors are.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// Every vector, in the order of the files of `src/wire`.
pub fn all() -> Vec<Sample> {
    let mut samples = Samples::default();
    extensions(&mut samples);
    ds::ds_messages(&mut samples);
    ds::ds_answers(&mut samples);
    queueing(&mut samples);
    gone(&mut samples);
    clients::clients(&mut samples);
    clients::key_packages(&mut samples);
    clients::federation(&mut samples);
    portability(&mut samples);
    samples.0
}

#[derive(Default)]
struct Samples(Vec<Sample>);

impl Samples {
    fn add<T>(&mut self, variant: &str, about: &'static str, value: &T)
    where
        T: Describe + tls_codec::Serialize + tls_codec::DeserializeBytes,
    {
        let full = std::any::type_name::<T>();
        let name = spec_name(full.rsplit("::").next().unwrap());
        self.0.push(Sample {
            name: if variant.is_empty() { name } else { format!("{name}.{variant}") },
            about,
            node: value.describe(),
            bytes: encode(value),
            read: |bytes| decode::<T>(bytes).map(|value| (value.describe(), encode(&value))),
        });
    }
}

/// The keys that sign in the vectors, by name. All Ed25519; the seed of the n-th is 32 bytes of value n.
pub fn keys() -> BTreeMap<String, SigningKey> {
    KEY_NAMES
        .iter()
        .zip(1u8..)
        .map(|(name, n)| ((*name).to_owned(), SigningKey::from_seed([n; 32]).unwrap()))
        .collect()
}

pub const KEY_NAMES: [&str; 11] = [
    "alice_leaf",
    "alice_user",
    "alice_client",
    "bob_leaf",
    "bob_user",
    "carol_leaf",
    "carol_user",
    "joining_code",
    "hub_external_sender",
    "hub_s2s",
    "target_external_sender",
];

fn extensions(samples: &mut Samples) {
    let key = keys()["alice_user"].clone();
    let leaf = keys()["alice_leaf"].clone();
    samples.add(
        "",
        "extension 0xF1A1 of a leaf: alice's user key vouches for her leaf key",
        &alice_user_key(),
    );
    samples.add(
        "",
        "what the signature of the UserKey vector is over, label UserKeyTBS",
        &UserKeyTbs {
            scheme: key.scheme(),
            user_public_key: key.public().clone(),
            leaf_key: leaf.public().clone(),
            credential: mls_struct("alice_credential"),
        },
    );
    samples.add(
        "",
        "its SHA-256 is alice's user_key_hash",
        &UserKeyHashInput { scheme: key.scheme(), user_public_key: key.public().clone() },
    );
    samples.add("", "where alice's messages go", &queue_config("alice"));
    for (variant, class) in
        [("group", KeyPackageClass::Group), ("connection", KeyPackageClass::Connection)]
    {
        samples.add(
            variant,
            "extension 0xF1A2 of a KeyPackage",
            &KeyPackageQueue { class, config: queue_config("bob") },
        );
    }
    samples.add(
        "",
        "extension 0xF1A3 of a GroupContext, as in the groups of mls.json",
        &policy(&alice_hash()),
    );
    let mut full = policy(&alice_hash());
    let roles =
        [("alice_user", Role::Admin), ("bob_user", Role::Moderator), ("carol_user", Role::Banned)];
    let mut roles: Vec<RoleEntry> = roles
        .map(|(name, role)| {
            let key = &keys()[name];
            RoleEntry { user_key_hash: user_key_hash(key.scheme(), key.public()), role }
        })
        .into();
    roles.sort_by(|a, b| a.user_key_hash.cmp(&b.user_key_hash));
    full.roles = List::new(roles).unwrap();
    full.may_send = Role::Member;
    full.join = JoinPolicy::Code;
    full.credential_types = List::new(vec![1, 2]).unwrap();
    samples.add("roles", "an admin, a moderator, a banned user and a joining code", &full);
    for (variant, join) in [("closed", JoinPolicy::Closed), ("open", JoinPolicy::Open)] {
        let mut one = policy(&alice_hash());
        one.join = join;
        samples.add(variant, "a joining policy", &one);
    }
    samples.add("", "carol proves that she holds the joining code", &join_proof());
    samples.add(
        "",
        "what the signature of the JoinProof vector is over, label JoinProofTBS",
        &join_proof_tbs(),
    );
}

fn queueing(samples: &mut Samples) {
    let token = || queue_config("bob").queue_token;
    samples.add(
        "",
        "DS 6.1: one message for one client",
        &QueueingServiceRequest {
            client_queue_information: token(),
            message: mls_struct("application_message"),
        },
    );
    for (variant, answer) in [
        ("ok", QueueingServiceResponse::Ok),
        (
            "invalid_client_queue_information",
            QueueingServiceResponse::InvalidClientQueueInformation,
        ),
        ("queue_full", QueueingServiceResponse::QueueFull),
        ("blocked", QueueingServiceResponse::Blocked),
    ] {
        samples.add(variant, "DS 6.1", &answer);
    }
    let welcome = || Some(mls_struct("welcome"));
    let events = [
        (
            "mls_message",
            "a commit in a group's feed",
            4,
            QueueEvent::MlsMessage { message: mls_struct("commit_add") },
        ),
        (
            "welcome",
            "in feed 0, with the group it is of",
            0,
            QueueEvent::Welcome { hub_domain: domain(), welcome: mls_struct("welcome") },
        ),
        (
            "connection_request",
            "in feed 0",
            0,
            QueueEvent::ConnectionRequest { sender_domain: domain(), offer: sealed_offer() },
        ),
        ("group_deleted", "a feed's last entry", 4, QueueEvent::GroupDeleted),
        (
            "group_moved",
            "behind the Commit that moved the group",
            4,
            QueueEvent::GroupMoved { confirmation: confirmation() },
        ),
        (
            "removed",
            "a feed's last entry, behind the commit that removed this client",
            4,
            QueueEvent::Removed,
        ),
        ("gap", "older entries expired", 4, QueueEvent::Gap { next_available: Sequence(41) }),
        ("key_packages_low", "in feed 0", 0, QueueEvent::KeyPackagesLow { left: 3 }),
        ("roster_only", "between providers only: reserved", 4, QueueEvent::RosterOnly),
        (
            "epoch_void",
            "the commit at group_sequence is void, and the epoch that it began",
            4,
            QueueEvent::EpochVoid {
                epoch: Epoch(3),
                group_sequence: Sequence(9),
                complaints: List::new(vec![complaint()]).unwrap(),
            },
        ),
    ];
    for (variant, about, feed, event) in events {
        let of_group = feed != 0 || matches!(event, QueueEvent::Welcome { .. });
        let group = if of_group { group_id().as_bytes().to_vec() } else { Vec::new() };
        samples.add(
            variant,
            about,
            &QueueEntry {
                feed: FeedId(feed),
                sequence: Sequence(8),
                previous: Sequence(7),
                accepted_at: NOW,
                group_id: Opaque::new(group).unwrap(),
                event,
            },
        );
    }
    samples.add(
        "",
        "everything of feed 4 up to entry 8 is safe",
        &FeedAck { feed: FeedId(4), sequence: Sequence(8) },
    );

    let add = RosterChange::Add {
        recipient: RecipientId(3),
        client_queue_information: token(),
        filter: FanoutFilter::All,
        welcome: welcome(),
    };
    let renew = RosterChange::Update {
        recipient: RecipientId(2),
        client_queue_information: token(),
        filter: FanoutFilter::HandshakeOnly,
    };
    let roster = || {
        List::new(vec![
            add.clone(),
            RosterChange::Remove { recipient: RecipientId(1) },
            renew.clone(),
        ])
        .unwrap()
    };
    let items = [
        (
            "feed",
            DeliveryItem::Feed {
                group_id: group_id(),
                group_sequence: Sequence(2),
                accepted_at: NOW,
                except: Some(RecipientId(2)),
                event: QueueEvent::MlsMessage { message: mls_struct("commit_add") },
                roster: roster(),
            },
        ),
        (
            "direct",
            DeliveryItem::Direct {
                item_id: [0x5a; 16],
                client_queue_information: token(),
                event: QueueEvent::ConnectionRequest {
                    sender_domain: domain(),
                    offer: sealed_offer(),
                },
            },
        ),
        (
            "snapshot",
            DeliveryItem::Snapshot {
                group_id: group_id(),
                next_sequence: Sequence(7),
                chain: List::default(),
                roster: roster(),
            },
        ),
    ];
    for (variant, item) in items {
        samples.add(
            variant,
            "between providers",
            &DeliverBatchRequest { items: List::new(vec![item]).unwrap() },
        );
    }
    for (item, (variant, problem)) in (0..).zip([
        ("unknown_feed", DeliveryProblem::UnknownFeed),
        ("gap", DeliveryProblem::Gap),
        ("wrong_hub", DeliveryProblem::WrongHub),
        ("invalid_item", DeliveryProblem::InvalidItem),
        ("invalid_client_queue_information", DeliveryProblem::InvalidClientQueueInformation),
        ("queue_full", DeliveryProblem::QueueFull),
    ]) {
        let failure = DeliveryFailure {
            item,
            problem,
            recipient: RecipientId(3),
            next_sequence: Sequence(5),
        };
        samples.add(
            variant,
            "between providers",
            &DeliverBatchResponse { failures: List::new(vec![failure]).unwrap() },
        );
    }
}

fn gone(samples: &mut Samples) {
    samples.add(
        "",
        "between providers: two clients of the guest's have no queue any more",
        &RecipientsGone {
            group_id: group_id(),
            recipients: List::new(vec![RecipientId(3), RecipientId(300)]).unwrap(),
        },
    );
}

fn portability(samples: &mut Samples) {
    let members = ["alice", "bob"].into_iter().zip(0..).map(|(name, leaf)| MemberImport {
        leaf_index: LeafIndex(leaf),
        client_queue_config: queue_config(name),
    });
    let import = GroupImport {
        group_id: group_id(),
        group_info: mls_struct("group_info_1"),
        ratchet_tree: mls_struct("ratchet_tree_1"),
        members: List::new(members.collect()).unwrap(),
    };
    samples.add("", "what `mimid admin import-group` reads", &import);
    samples.add("", "a group is to move from a.example to b.example", &migration_request());
    samples.add("", "b.example agrees; signed by the key in target_sender", &migration_response());
    samples.add("", "alice passes that on, signed by her leaf's key", &migration_init());
    samples.add(
        "",
        "the authenticated_data of the Commit that moves the group",
        &MigrationCommitAad { target_ds_domain: target() },
    );
    samples.add(
        "",
        "the commit in here is an empty one, GroupInfo and tree are of the epoch before: for the encoding only",
        &migrated_state(),
    );
    samples.add(
        "",
        "signed by a.example's key in the group before the Commit; group_state is the MigratedState vector",
        &migration_content(),
    );
    let key = &keys()["target_external_sender"];
    let taken = proof::hash_of_content(&migration_content());
    samples.add(
        "taken",
        "the hash is the MigrationContent vector's",
        &proof::complete(key, taken, false).unwrap(),
    );
    let refused = proof::hash_of_response(&migration_response());
    samples.add(
        "refused",
        "the hash is the MigrationResponse vector's",
        &proof::complete(key, refused, true).unwrap(),
    );
    samples.add("", "signed by a.example's key in the group before the Commit", &confirmation());
}

const NOW: Timestamp = Timestamp(1_767_225_600_000);

fn domain() -> Domain {
    Domain::new("a.example").unwrap()
}

pub fn group_id() -> GroupId {
    GroupId::of(&domain(), [0x6b; 16])
}

fn user(name: &str) -> UserUri {
    UserUri::of(&domain(), name).unwrap()
}

pub fn client(name: &str, device: &str) -> ClientUri {
    ClientUri::of(&user(name), device).unwrap()
}

/// A token as its provider might mint it: nobody else looks inside.
pub fn queue_config(name: &str) -> ClientQueueConfig {
    let token: Vec<u8> = sha256(name.as_bytes()).into_iter().chain(sha256(b"token")).collect();
    ClientQueueConfig { domain: domain(), queue_token: Opaque::new(token).unwrap() }
}

fn alice_hash() -> UserKeyHash {
    let key = &keys()["alice_user"];
    user_key_hash(key.scheme(), key.public())
}

fn alice_user_key() -> UserKey {
    mls::user_key(&keys()["alice_user"], &keys()["alice_leaf"], &mls_struct("alice_credential"))
}

pub fn policy(admin: &UserKeyHash) -> GroupPolicy {
    let code = &keys()["joining_code"];
    GroupPolicy {
        roles: List::new(vec![RoleEntry { user_key_hash: admin.clone(), role: Role::Admin }])
            .unwrap(),
        may_add: Role::Member,
        may_remove: Role::Moderator,
        may_update: Role::Admin,
        may_delete: Role::Admin,
        may_migrate: Role::Admin,
        may_send: Role::Member,
        join: JoinPolicy::OwnClients,
        codes: List::new(vec![JoinCode {
            scheme: code.scheme(),
            public_key: code.public().clone(),
            expires_at: NOW.plus_ms(86_400_000),
        }])
        .unwrap(),
        credential_types: List::new(vec![1]).unwrap(),
        members_max: 1_000,
    }
}

fn join_proof_tbs() -> JoinProofTbs {
    let carol = &keys()["carol_user"];
    JoinProofTbs {
        group_id: group_id(),
        user_key_hash: user_key_hash(carol.scheme(), carol.public()),
        leaf_key: keys()["carol_leaf"].public().clone(),
    }
}

pub fn join_proof() -> JoinProof {
    let code = &keys()["joining_code"];
    JoinProof {
        public_key: code.public().clone(),
        signature: code.sign_with_label("JoinProofTBS", &encode(&join_proof_tbs())).unwrap(),
    }
}

fn sealed_offer() -> SealedOffer {
    SealedOffer {
        client_queue_information: queue_config("bob").queue_token,
        key_package_ref: KeyPackageRef(Opaque::new(mls_bytes("bob_key_package_ref")).unwrap()),
        kem_output: Opaque::new(vec![0x4b; 32]).unwrap(),
        ciphertext: Opaque::new(vec![0x43; 100]).unwrap(),
    }
}

fn complaint() -> CommitComplaint {
    let mut complaint = CommitComplaint {
        group_id: group_id(),
        epoch: Epoch(2),
        leaf_index: LeafIndex(1),
        commit_hash: Opaque::new(sha256(&mls_bytes("commit_update"))).unwrap(),
        reason: ComplaintReason::ConfirmationTag.into(),
        signature: Signature::default(),
    };
    let signed = complaint.to_be_signed();
    complaint.signature =
        keys()["bob_leaf"].sign_with_label(CommitComplaint::LABEL, &signed).unwrap();
    complaint
}

fn target() -> Domain {
    Domain::new("b.example").unwrap()
}

fn migration_request() -> MigrationRequest {
    MigrationRequest {
        source_domain_name: domain(),
        target_domain_name: target(),
        group_id: group_id(),
        epoch: Epoch(1),
        ciphersuite: 1,
    }
}

fn migration_response() -> MigrationResponse {
    let key = &keys()["target_external_sender"];
    let credential = openmls::prelude::BasicCredential::new(target().as_str().into());
    let sender =
        openmls::prelude::ExternalSender::new(key.public().as_slice().into(), credential.into());
    let expires_at = NOW.plus_ms(600_000);
    proof::respond(key, migration_request(), [0x4e; 32], expires_at, Raw::of(&sender)).unwrap()
}

fn migration_init() -> MigrationInit {
    proof::initiate(&keys()["alice_leaf"], migration_response()).unwrap()
}

fn migrated_state() -> MigratedState {
    let member = |leaf: u32, name| MemberState {
        leaf_index: LeafIndex(leaf),
        recipient: RecipientId(u64::from(leaf) + 1),
        config: queue_config(name),
        filter: FanoutFilter::All,
        queue_timestamp: NOW,
        last_active: NOW.plus_ms(1_000),
        since: Sequence(u64::from(leaf) + 1),
    };
    let joiner = JoinerState {
        key_package_ref: KeyPackageRef(Opaque::new(mls_bytes("bob_key_package_ref")).unwrap()),
        leaf_index: LeafIndex(1),
        epoch: Epoch(1),
        not_after: NOW.plus_ms(86_400_000),
    };
    let accepted = Accepted { group_sequence: Sequence(9), accepted_at: NOW, epoch: Epoch(1) };
    let accepted = [(0, 0x52), (1, 0x53)].map(|(commit, byte)| AcceptedState {
        sender_id: DsSenderId::LeafIndex(LeafIndex(0)),
        request_id: RequestId([byte; 16]),
        accepted,
        commit,
    });
    let tail = DeliveryItem::Feed {
        group_id: group_id(),
        group_sequence: Sequence(10),
        accepted_at: NOW,
        except: Some(RecipientId(1)),
        event: QueueEvent::MlsMessage { message: mls_struct("commit_update") },
        roster: List::default(),
    };
    MigratedState {
        init: migration_init(),
        commit: mls_struct("commit_update"),
        group_info: mls_struct("group_info_1"),
        ratchet_tree: mls_struct("ratchet_tree_1"),
        next_sequence: Sequence(12),
        next_recipient: RecipientId(3),
        members: List::new(vec![member(0, "alice"), member(1, "bob")]).unwrap(),
        joiners: List::new(vec![joiner]).unwrap(),
        joiner_infos: List::new(vec![Info {
            group_info: mls_struct("group_info_1"),
            ratchet_tree: mls_struct("ratchet_tree_1"),
            pending: List::default(),
        }])
        .unwrap(),
        accepted: List::new(accepted.into()).unwrap(),
        tail: List::new(vec![tail]).unwrap(),
        chain: List::default(),
    }
}

fn migration_content() -> MigrationContent {
    let key = &keys()["hub_external_sender"];
    proof::sign_content(key, migration_response(), encode(&migrated_state())).unwrap()
}

fn confirmation() -> MigrationConfirmation {
    let response = migration_response();
    let unsigned =
        proof::unsigned_confirmation(&response.migration_request, response.nonce, Sequence(12));
    proof::sign_confirmation(&keys()["hub_external_sender"], unsigned).unwrap()
}

/// `tests/vectors/mls.json`. Made anew only where it is absent and writing is asked for.
static MLS: LazyLock<Value> = LazyLock::new(|| {
    let path = folder().join("mls.json");
    if !path.exists() && writing() {
        let objects: Value = mls::make()
            .into_iter()
            .map(|(name, (kind, bytes))| {
                (name.to_owned(), json!({ "type": kind, "hex": hex::encode(bytes) }))
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
        let file = json!({ "about": "MLS structs made by openmls, suite 0x0001; see README.md", "objects": objects });
        std::fs::write(&path, serde_json::to_string_pretty(&file).unwrap() + "\n").unwrap();
    }
    serde_json::from_str(&std::fs::read_to_string(&path).expect("tests/vectors/mls.json")).unwrap()
});

/// Whether the vectors are to be written instead of compared.
pub fn writing() -> bool {
    std::env::var_os("MIMID_WRITE_VECTORS").is_some()
}

/// The MLS structs of `mls.json`: (name, type, bytes).
pub fn mls_objects() -> Vec<(String, String, Vec<u8>)> {
    let objects = MLS["objects"].as_object().unwrap();
    objects
        .iter()
        .map(|(name, one)| {
            (name.clone(), one["type"].as_str().unwrap().to_owned(), mls_bytes(name))
        })
        .collect()
}

fn mls_bytes(name: &str) -> Vec<u8> {
    let object = MLS["objects"][name]["hex"].as_str();
    hex::decode(object.unwrap_or_else(|| panic!("mls.json has no {name}"))).unwrap()
}

fn mls_struct<T: tls_codec::DeserializeBytes>(name: &str) -> Raw<T> {
    Raw::new(mls_bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Reads one object of `mls.json` as its type and gives what it encodes to.
pub fn read_mls(kind: &str, bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    fn exact<T: tls_codec::DeserializeBytes>(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
        Raw::<T>::new(bytes).map(|raw| encode(&raw))
    }
    match kind {
        "MLSMessage" => decode::<wire_mls::MlsMessage>(bytes).map(|raw| encode(&raw)),
        "KeyPackage" => decode::<wire_mls::KeyPackage>(bytes).map(|raw| encode(&raw)),
        "GroupInfo" => decode::<wire_mls::GroupInfo>(bytes).map(|raw| encode(&raw)),
        "ratchet_tree" => decode::<wire_mls::RatchetTree>(bytes).map(|raw| encode(&raw)),
        "Credential" => decode::<wire_mls::Credential>(bytes).map(|raw| encode(&raw)),
        "Extension" => decode::<wire_mls::Extension>(bytes).map(|raw| encode(&raw)),
        "ExternalSender" => exact::<openmls::prelude::ExternalSender>(bytes),
        "RequiredCapabilities" => exact::<openmls::prelude::RequiredCapabilitiesExtension>(bytes),
        "opaque" => Ok(bytes.to_vec()),
        other => panic!("unknown type {other}"),
    }
}
