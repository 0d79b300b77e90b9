//! Wire values as trees of named fields, and an encoder of such trees that shares nothing with `mimid::wire`.
//!
//! A test vector is a tree beside the bytes. The field orders and code points are written down here a second
//! time, by hand, from PROTOCOL.md: a slip in a derive shows up as a difference.

use mimid::wire::{
    client::*,
    codec::{List, Opaque, Raw, Secret, ShortOpaque, Text},
    ds::*,
    extensions::*,
    federation::*,
    ids::*,
    import::*,
    key_packages::*,
    portability::*,
    queueing::*,
};
use serde_json::{Value, json};

/// One value of the presentation language.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    Uint8(u8),
    Uint16(u16),
    Uint32(u32),
    Uint64(u64),
    /// `opaque x[N]`
    Fixed(Vec<u8>),
    /// `opaque x<V>`
    Opaque(Vec<u8>),
    /// `opaque x<0..255>`
    Short(Vec<u8>),
    /// UTF-8 in an `opaque<V>`
    Text(String),
    /// A one-byte value of an enum: the enum, the value, its name.
    Code(&'static str, u8, &'static str),
    /// A struct of RFC 9420, as its bytes.
    Mls(&'static str, Vec<u8>),
    Optional(Option<Box<Node>>),
    /// `T x<V>`
    Vector(Vec<Node>),
    Struct(String, Vec<(&'static str, Node)>),
}

impl Node {
    /// The tree as it stands in a vector file.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Uint8(value) => json!({ "type": "uint8", "value": value }),
            Self::Uint16(value) => json!({ "type": "uint16", "value": value }),
            Self::Uint32(value) => json!({ "type": "uint32", "value": value }),
            Self::Uint64(value) => json!({ "type": "uint64", "value": value }),
            Self::Fixed(bytes) => json!({ "type": "opaque[N]", "value": hex::encode(bytes) }),
            Self::Opaque(bytes) => json!({ "type": "opaque<V>", "value": hex::encode(bytes) }),
            Self::Short(bytes) => json!({ "type": "opaque<0..255>", "value": hex::encode(bytes) }),
            Self::Text(text) => json!({ "type": "string", "value": text }),
            Self::Code(kind, code, name) => {
                json!({ "type": format!("enum {kind}"), "meaning": name, "value": code })
            }
            Self::Mls(kind, bytes) => {
                json!({ "type": format!("MLS {kind}"), "value": hex::encode(bytes) })
            }
            Self::Optional(None) => json!({ "type": "optional", "value": null }),
            Self::Optional(Some(node)) => json!({ "type": "optional", "value": node.to_json() }),
            Self::Vector(nodes) => {
                let items: Vec<Value> = nodes.iter().map(Self::to_json).collect();
                json!({ "type": "vector<V>", "value": items })
            }
            Self::Struct(name, fields) => {
                let fields: Vec<Value> = fields
                    .iter()
                    .map(|(name, node)| {
                        let mut value = node.to_json();
                        value["name"] = json!(name);
                        value
                    })
                    .collect();
                json!({ "type": name, "value": fields })
            }
        }
    }
}

/// Encodes a tree of a vector file. Knows the presentation language and nothing of mimid.
pub fn encode_json(node: &Value) -> Vec<u8> {
    let value = &node["value"];
    let number = || value.as_u64().expect("a number");
    let bytes = || hex::decode(value.as_str().expect("hex")).expect("hex");
    match node["type"].as_str().expect("a type") {
        "uint8" => vec![u8::try_from(number()).expect("uint8")],
        "uint16" => u16::try_from(number()).expect("uint16").to_be_bytes().to_vec(),
        "uint32" => u32::try_from(number()).expect("uint32").to_be_bytes().to_vec(),
        "uint64" => number().to_be_bytes().to_vec(),
        "opaque[N]" => bytes(),
        "opaque<V>" => with_length(&bytes()),
        "opaque<0..255>" => {
            let body = bytes();
            [vec![u8::try_from(body.len()).expect("a short vector")], body].concat()
        }
        "string" => with_length(value.as_str().expect("text").as_bytes()),
        "optional" if value.is_null() => vec![0],
        "optional" => [vec![1], encode_json(value)].concat(),
        "vector<V>" => {
            let items: Vec<u8> =
                value.as_array().expect("items").iter().flat_map(encode_json).collect();
            with_length(&items)
        }
        code if code.starts_with("enum ") => vec![u8::try_from(number()).expect("an enum")],
        mls if mls.starts_with("MLS ") => bytes(),
        _ => value.as_array().expect("fields").iter().flat_map(encode_json).collect(),
    }
}

/// RFC 9420 §2.1.2.
fn with_length(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("below 2^30");
    let prefix = match len {
        0..64 => len.to_be_bytes()[3..].to_vec(),
        64..16384 => (len | 0x4000).to_be_bytes()[2..].to_vec(),
        _ => (len | 0x8000_0000).to_be_bytes().to_vec(),
    };
    [prefix, body.to_vec()].concat()
}

/// A wire value that can say what it consists of.
pub trait Describe {
    fn describe(&self) -> Node;
}

macro_rules! numbers {
    ($($id:ty => $node:ident;)*) => {$(
        impl Describe for $id {
            fn describe(&self) -> Node {
                Node::$node((*self).into_number())
            }
        }
    )*};
}

trait IntoNumber<T> {
    fn into_number(self) -> T;
}
macro_rules! into_number {
    ($($inner:ty: $($id:ident)*;)*) => {$($(
        impl IntoNumber<$inner> for $id {
            fn into_number(self) -> $inner {
                self.0
            }
        }
    )*)*};
}
into_number! {
    u16: ProtocolVersion SignatureScheme;
    u32: LeafIndex;
    u64: Sequence Epoch RecipientId FeedId Timestamp;
}
macro_rules! own_number {
    ($($inner:ident)*) => {$(
        impl IntoNumber<$inner> for $inner {
            fn into_number(self) -> $inner {
                self
            }
        }
    )*};
}
own_number! { u8 u16 u32 u64 }

numbers! {
    u8 => Uint8; u16 => Uint16; u32 => Uint32; u64 => Uint64;
    ProtocolVersion => Uint16; SignatureScheme => Uint16; LeafIndex => Uint32;
    Sequence => Uint64; Epoch => Uint64; RecipientId => Uint64; FeedId => Uint64; Timestamp => Uint64;
}

macro_rules! texts {
    ($($id:ident)*) => {$(
        impl Describe for $id {
            fn describe(&self) -> Node {
                Node::Text(self.as_str().to_owned())
            }
        }
    )*};
}
texts! { Domain UserUri ClientUri GroupId }

impl<const MAX: usize> Describe for Text<MAX> {
    fn describe(&self) -> Node {
        Node::Text(self.as_str().to_owned())
    }
}
impl<const MAX: usize, const MIN: usize> Describe for Opaque<MAX, MIN> {
    fn describe(&self) -> Node {
        Node::Opaque(self.as_slice().to_vec())
    }
}
impl<const MAX: usize, const MIN: usize> Describe for Secret<MAX, MIN> {
    fn describe(&self) -> Node {
        Node::Opaque(self.as_slice().to_vec())
    }
}
impl Describe for ShortOpaque {
    fn describe(&self) -> Node {
        Node::Short(self.as_slice().to_vec())
    }
}
impl<const N: usize> Describe for [u8; N] {
    fn describe(&self) -> Node {
        Node::Fixed(self.to_vec())
    }
}
impl Describe for RequestId {
    fn describe(&self) -> Node {
        self.0.describe()
    }
}
impl Describe for UserKeyHash {
    fn describe(&self) -> Node {
        self.0.describe()
    }
}
impl Describe for KeyPackageRef {
    fn describe(&self) -> Node {
        self.0.describe()
    }
}
impl<T: Describe, const MAX: usize, const COUNT: usize> Describe for List<T, MAX, COUNT> {
    fn describe(&self) -> Node {
        Node::Vector(self.iter().map(Describe::describe).collect())
    }
}
impl<T: Describe> Describe for Option<T> {
    fn describe(&self) -> Node {
        Node::Optional(self.as_ref().map(|value| Box::new(value.describe())))
    }
}
impl<T: Describe> Describe for Box<T> {
    fn describe(&self) -> Node {
        (**self).describe()
    }
}
impl<T> Describe for Raw<T> {
    fn describe(&self) -> Node {
        let full = std::any::type_name::<T>();
        let name = full.rsplit("::").next().unwrap_or(full);
        let kind = match name {
            "MlsMessageIn" => "MLSMessage",
            "KeyPackageIn" => "KeyPackage",
            "VerifiableGroupInfo" => "GroupInfo",
            "RatchetTreeIn" => "ratchet_tree",
            "Credential" => "Credential",
            "Extension" => "Extension",
            "ExternalSender" => "ExternalSender",
            "RequiredCapabilitiesExtension" => "RequiredCapabilities",
            other => panic!("no name for {other}"),
        };
        Node::Mls(kind, self.as_slice().to_vec())
    }
}

/// Fields in the order of PROTOCOL.md. The pattern is exhaustive: a new field does not compile until it is here.
macro_rules! structs {
    ($($id:ident { $($field:ident),* $(,)? })*) => {$(
        impl Describe for $id {
            fn describe(&self) -> Node {
                let Self { $($field),* } = self;
                Node::Struct(spec_name(stringify!($id)), vec![$((stringify!($field), $field.describe())),*])
            }
        }
    )*};
}

structs! {
    UserKey { scheme, user_public_key, signature }
    UserKeyTbs { scheme, user_public_key, leaf_key, credential }
    UserKeyHashInput { scheme, user_public_key }
    ClientQueueConfig { domain, queue_token }
    KeyPackageQueue { class, config }
    RoleEntry { user_key_hash, role }
    JoinCode { scheme, public_key, expires_at }
    GroupPolicy {
        roles, may_add, may_remove, may_update, may_delete, may_migrate, may_send, join, codes,
        credential_types, members_max,
    }
    JoinProof { public_key, signature }
    JoinProofTbs { group_id, user_key_hash, leaf_key }
    DsContext { version, hub_domain, group_id, timestamp, request_id }
    DsMessage { sender_id, request, signature, context }
    DsMessageTbs { sender_id, request, context }
    PartialGroupInfo { group_info_extensions, signature }
    GroupUpdate { commit, group_info, welcome }
    CreateGroup { group_id, key_package, client_queue_config, group_info, ratchet_tree }
    DeleteGroup { group_id, update }
    UpdateQueueInfo { group_id, client_queue_config }
    WelcomeInfo { group_id, sender, epoch }
    ExternalCommitInfo { group_id, sender, credential, user_key, join_proof }
    Add { commit, welcome, group_info }
    ResyncClient { group_id, sender, update, client_queue_config }
    UpdateClientFanoutInfo { group_id, sender, client_queue_config, filter }
    SendMessage { application_message }
    JoinGroup { group_id, update, client_queue_config }
    Propose { proposals }
    UpdateGroup { update }
    StartMigration { init, update }
    Accepted { group_sequence, accepted_at, epoch }
    Info { group_info, ratchet_tree, pending }
    CommitComplaint { group_id, epoch, leaf_index, commit_hash, reason, signature }
    CommitComplaintTbs { group_id, epoch, leaf_index, commit_hash, reason }
    ComplaintResponse { outcome, wait_ms }
    MigrationRequest { source_domain_name, target_domain_name, group_id, epoch, ciphersuite }
    MigrationResponse { migration_request, nonce, signature, expires_at, target_sender }
    MigrationInit { migration_response, signature }
    MigrationCommitAad { target_ds_domain }
    MigrationContent { migration_response, group_state, signature }
    TargetMigrationComplete { migration_content_hash, signature, refused }
    MemberState { leaf_index, recipient, config, filter, queue_timestamp, last_active, since }
    JoinerState { key_package_ref, leaf_index, epoch, not_after }
    AcceptedState { sender_id, request_id, accepted, commit }
    MigratedState {
        init, commit, group_info, ratchet_tree, next_sequence, next_recipient, members, joiners, joiner_infos,
        accepted, tail, chain,
    }
    MigrationConfirmation { domain_name, nonce, group_id, signature, source_domain, epoch, next_sequence }
    ClientMessage { version, client, endpoint, timestamp, nonce, body, signature }
    ClientMessageTbs { version, client, endpoint, timestamp, nonce, body }
    Register { user, device, credential, user_key, scheme, client_key, token, csr }
    Registered { client, credential, chain }
    PublishKeyPackages { key_packages }
    KeyPackagesLeft { group_left, connection_left }
    QueueTokens { class, last_resort, count, revoke }
    MintedTokens { tokens }
    Dequeue { acks, max, wait_ms }
    Dequeued { entries }
    OpenStream { window }
    ProviderKeys { domain }
    ProviderKeysAnswer { verification, signature }
    VerificationKey { scheme, public_key, not_before, not_after, purpose }
    VerificationKeyResponse { version, domain, keys, cache_until }
    Complain { hub_domain, complaint }
    ConnectionRequestTo { recipient_domain, request }
    Event { event_type, event_payload }
    S2SMessage { version, sender_domain, recipient_domain, event, signature }
    S2SMessageTbs { version, sender_domain, recipient_domain, event }
    S2SPayload { timestamp, request_id, body }
    DeleteDevice { client }
    Consent { add, revoke }
    ConnectionKeyPackageRequest { target_user, requester }
    ConnectionKeyPackageResponse { key_packages }
    GroupKeyPackageRequest { target_user, consent_token, ciphersuites, required }
    ClientKeyPackage { client, status, key_package }
    GroupKeyPackageResponse { status, clients }
    SealedOffer { client_queue_information, key_package_ref, kem_output, ciphertext }
    ConnectionRequest { offers }
    ConnectionOffer {
        sender_user, recipient_user, group_id, hub_domain, join_code, consent_token, credential, user_key,
        leaf_key, signature,
    }
    ConnectionOfferTbs {
        sender_user, recipient_user, group_id, hub_domain, join_code, consent_token, credential, user_key,
        leaf_key,
    }
    QueueingServiceRequest { client_queue_information, message }
    DeliverBatchRequest { items }
    DeliveryFailure { item, problem, recipient, next_sequence }
    DeliverBatchResponse { failures }
    RecipientsGone { group_id, recipients }
    GroupImport { group_id, group_info, ratchet_tree, members }
    MemberImport { leaf_index, client_queue_config }
    QueueEntry { feed, sequence, previous, accepted_at, group_id, event }
    FeedAck { feed, sequence }
}

/// Enums that are a code and nothing else.
macro_rules! codes {
    ($($id:ident { $($variant:ident = $code:literal $name:literal),* $(,)? })*) => {$(
        impl Describe for $id {
            fn describe(&self) -> Node {
                match self { $(Self::$variant => Node::Code(stringify!($id), $code, $name)),* }
            }
        }
    )*};
}

codes! {
    KeyPackageClass { Group = 0 "group", Connection = 1 "connection" }
    Role { Banned = 0 "banned", Member = 1 "member", Moderator = 2 "moderator", Admin = 3 "admin" }
    JoinPolicy { Closed = 0 "closed", OwnClients = 1 "own_clients", Code = 2 "code", Open = 3 "open" }
    FanoutFilter { All = 0 "all", HandshakeOnly = 1 "handshake_only" }
    Flag { No = 0 "false", Yes = 1 "true" }
    KeyPackageStatus { Ok = 0 "ok", NoConsent = 1 "no_consent", Incompatible = 2 "incompatible", NoneLeft = 3 "none_left" }
    ComplaintOutcome { Resync = 0 "resync", Wait = 1 "wait", Void = 2 "void", None = 3 "none" }
    QueueingServiceResponse {
        Ok = 0 "ok", InvalidClientQueueInformation = 1 "invalid_client_queue_information", QueueFull = 2 "queue_full",
        Blocked = 3 "blocked",
    }
    DeliveryProblem {
        UnknownFeed = 0 "unknown_feed", Gap = 1 "gap", WrongHub = 2 "wrong_hub", InvalidItem = 3 "invalid_item",
        InvalidClientQueueInformation = 4 "invalid_client_queue_information", QueueFull = 5 "queue_full",
    }
}

/// A struct with a `select`: the code, then what belongs to it.
macro_rules! selects {
    ($($id:ident $select:literal $kind:literal {
        $($variant:ident $(($body:ident))? $({ $($field:ident),* })? = $code:literal $name:literal),* $(,)?
    })*) => {$(
        impl Describe for $id {
            fn describe(&self) -> Node {
                match self {
                    $(Self::$variant $(($body))? $({ $($field),* })? => {
                        #[allow(unused_mut)]
                        let mut fields = vec![($select, Node::Code($kind, $code, $name))];
                        $(fields.push((stringify!($body), $body.describe()));)?
                        $($(fields.push((stringify!($field), $field.describe()));)*)?
                        Node::Struct(spec_name(stringify!($id)), fields)
                    })*
                }
            }
        }
    )*};
}

selects! {
    DsSenderId "sender_type" "DSSenderType" {
        LeafIndex(leaf_index) = 0 "leaf_index",
        KeyPackageRef(key_package_ref) = 1 "key_package_ref",
        UserKeyHash(user_key_hash) = 2 "user_key_hash",
    }
    DsRequest "request_type" "DSRequestType" {
        CreateGroup(body) = 0 "ds_create_group",
        DeleteGroup(body) = 1 "ds_delete_group",
        UpdateQueueInfo(body) = 2 "ds_update_queue_info",
        WelcomeInfo(body) = 3 "ds_welcome_info",
        ExternalCommitInfo(body) = 4 "ds_external_commit_info",
        AddUsers(body) = 5 "ds_add_users",
        RemoveUsers(body) = 6 "ds_remove_users",
        AddClients(body) = 7 "ds_add_clients",
        RemoveClients(body) = 8 "ds_remove_clients",
        UpdateClient(body) = 9 "ds_update_client",
        ResyncClient(body) = 10 "ds_resync_client",
        UpdateClientFanoutInfo(body) = 11 "ds_update_client_fanout_info",
        SendMessage(body) = 12 "ds_send_message",
        JoinGroup(body) = 13 "ds_join_group",
        Propose(body) = 14 "ds_propose",
        UpdateGroup(body) = 15 "ds_update_group",
        StartMigration(body) = 16 "ds_start_migration",
    }
    DsResponseBody "type" "DSResponseType" {
        Accepted(accepted) = 0 "accepted",
        Info(info) = 1 "info",
        Moving(confirmation) = 2 "moving",
    }
    DsError "status" "DSStatus" {
        Malformed { detail } = 1 "malformed",
        UnsupportedVersion { detail, versions } = 2 "unsupported_version",
        Unauthenticated { detail } = 3 "unauthenticated",
        NotAuthorized { detail } = 4 "not_authorized",
        GroupNotFound { detail } = 5 "group_not_found",
        InvalidGroupId { detail } = 6 "invalid_group_id",
        InvalidKeyPackage { detail, index } = 7 "invalid_key_package",
        InvalidGroupInfo { detail } = 8 "invalid_group_info",
        WrongEpoch { detail, current_epoch, missed } = 9 "wrong_epoch",
        InvalidCommit { detail } = 10 "invalid_commit",
        InvalidProposal { detail, refs } = 11 "invalid_proposal",
        PendingProposals { detail, pending } = 12 "pending_proposals",
        InvalidMessage { detail } = 13 "invalid_message",
        GroupMoved { detail, chain } = 14 "group_moved",
        GroupMigrating { detail, retry_after_ms } = 15 "group_migrating",
        TooLarge { detail, limit } = 16 "too_large",
        RateLimited { detail, retry_after_ms } = 17 "rate_limited",
        Unavailable { detail, retry_after_ms } = 18 "unavailable",
        Internal { detail, reference } = 19 "internal",
        StaleRequest { detail, server_time } = 20 "stale_request",
    }
    DeliveryItem "type" "DeliveryItemType" {
        Feed { group_id, group_sequence, accepted_at, except, event, roster } = 0 "feed",
        Direct { item_id, client_queue_information, event } = 1 "direct",
        Snapshot { group_id, next_sequence, chain, roster } = 2 "snapshot",
    }
    RosterChange "action" "RosterAction" {
        Add { recipient, client_queue_information, filter, welcome } = 0 "add",
        Remove { recipient } = 1 "remove",
        Update { recipient, client_queue_information, filter } = 2 "update",
    }
    QueueEvent "type" "QueueEventType" {
        MlsMessage { message } = 0 "mls_message",
        Welcome { hub_domain, welcome } = 1 "welcome",
        ConnectionRequest { sender_domain, offer } = 2 "connection_request",
        GroupDeleted = 3 "group_deleted",
        GroupMoved { confirmation } = 4 "group_moved",
        Removed = 5 "removed",
        Gap { next_available } = 6 "gap",
        KeyPackagesLow { left } = 7 "key_packages_low",
        RosterOnly = 8 "roster_only",
        EpochVoid { epoch, group_sequence, complaints } = 9 "epoch_void",
    }
}

/// A status byte, then the body or the error's fields.
fn outcome<T: Describe>(outcome: &Outcome<T>, body: &'static str) -> Vec<(&'static str, Node)> {
    match outcome {
        Outcome::Ok(value) => {
            vec![("status", Node::Code("DSStatus", 0, "ok")), (body, value.describe())]
        }
        Outcome::Err(error) => {
            let Node::Struct(_, fields) = error.describe() else { panic!("an error is a struct") };
            fields
        }
    }
}

/// A code, and what belongs to one of them.
impl Describe for Grounds {
    fn describe(&self) -> Node {
        let Some(external_pub) = self.external_pub() else { return self.code().describe() };
        let external_pub = Node::Opaque(external_pub.to_vec());
        let fields = vec![("reason", self.code().describe()), ("external_pub", external_pub)];
        Node::Struct("Grounds".into(), fields)
    }
}

impl Describe for DsResponse {
    fn describe(&self) -> Node {
        let Self { version, outcome: answer } = self;
        let mut fields = vec![("version", version.describe())];
        fields.extend(outcome(answer, "body"));
        Node::Struct("DSResponse".into(), fields)
    }
}

impl Describe for ClientResponse {
    fn describe(&self) -> Node {
        let Self { outcome: answer } = self;
        Node::Struct("ClientResponse".into(), outcome(answer, "body"))
    }
}

/// PROTOCOL.md writes `DSMessage` and `UserKeyTBS` where Rust has `DsMessage` and `UserKeyTbs`.
pub fn spec_name(rust: &str) -> String {
    let name = rust.strip_prefix("Ds").map_or_else(|| rust.to_owned(), |rest| format!("DS{rest}"));
    name.strip_suffix("Tbs").map_or_else(|| name.clone(), |head| format!("{head}TBS"))
}
