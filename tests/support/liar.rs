//! A member who lies: a real client's openmls state, used to make commits that say what is not so, in ways that a server
//! cannot see.

use std::path::Path;

use mimid::{
    client::{
        Client, Server,
        core::SUITES,
        http::{Caller, Http, HttpError},
    },
    crypto::{self, MlsCrypto, MlsProvider, SigningKey, sha256},
    wire::{
        client::{Complain, Flag, MintedTokens, QueueTokens},
        codec::{List, Opaque, Raw, ShortOpaque, append_vector, decode, encode},
        ds::{
            Add, CommitComplaint, ComplaintReason, ComplaintResponse, DsContext, DsMessage,
            DsRequest, DsResponse, DsResponseBody, DsSenderId, ExternalCommitInfo, GroupUpdate,
            Info, PartialGroupInfo, ProtocolVersion, ResyncClient, ds_message_tbs,
        },
        extensions::{ClientQueueConfig, KeyPackageClass, Signature},
        ids::{Domain, Epoch, GroupId, LeafIndex, RequestId},
    },
};
use openmls::{
    group::PURE_PLAINTEXT_WIRE_FORMAT_POLICY,
    prelude::{self as mls, OpenMlsProvider as _},
};
use openmls_memory_storage::MemoryStorage;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use serde::{Serialize, de::DeserializeOwned};
use tls_codec::{DeserializeBytes as _, Serialize as _};

use super::{
    crooked::{Crook, Crooked},
    hostile::now,
};

/// What is wrong with a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Nothing is.
    None,
    ConfirmationTag,
    MembershipTag,
    /// The secrets of the path, for everybody.
    Path,
    /// The same, for this leaf only, which is beside the liar's.
    PathFor(LeafIndex),
    /// The same, for everybody but this leaf, which is beside the liar's.
    PathBut(LeafIndex),
    /// The key in the GroupInfo that who comes in from outside encrypts to.
    ExternalPub,
}

/// What a commit does beside telling it.
#[derive(Debug, Clone)]
pub enum Deed {
    Update,
    /// Adds the owner of this KeyPackage.
    Add(Vec<u8>),
    /// Removes the one leaf of a user.
    Remove(LeafIndex),
}

/// A commit as it was sent.
#[derive(Debug, Clone)]
pub struct Told {
    pub epoch: Epoch,
    pub hash: [u8; 32],
}

/// Has `client`, whose home is at `home`, commit to a new path and lie about it. Its own state stays as it is.
pub async fn lie(client: &Client, home: &Path, group: &GroupId, hub: &Domain, lie: Lie) -> Told {
    does(client, home, group, hub, (Deed::Update, lie)).await
}

/// As [`lie`], with a commit that does something else, too.
pub async fn does(
    client: &Client,
    home: &Path,
    group: &GroupId,
    hub: &Domain,
    (deed, lie): (Deed, Lie),
) -> Told {
    let leaf_key = client.member().identity().leaf_key(SUITES[0]).unwrap().clone();
    let (epoch, leaf, update) = commit(home, &leaf_key, group, &deed, lie);
    let hash = sha256(update.commit.as_slice());
    let request = match (deed, update) {
        (Deed::Update, update) => DsRequest::UpdateClient(update),
        (Deed::Remove(_), update) => DsRequest::RemoveUsers(update),
        (Deed::Add(_), GroupUpdate { commit, group_info, welcome }) => {
            DsRequest::AddUsers(Add { commit, welcome: welcome.expect("a Welcome"), group_info })
        }
    };
    asks(client, group, hub, (DsSenderId::LeafIndex(leaf), request, &leaf_key)).await;
    Told { epoch, hash }
}

/// Has `client`, whose home is at `home`, come in again from outside with a confirmation tag that is none. Its own state stays as
/// it is.
pub async fn lie_from_outside(client: &Client, home: &Path, group: &GroupId, hub: &Domain) -> Told {
    let (leaf_key, user_key, sender, question) = {
        let member = client.member();
        let identity = member.identity();
        let leaf_key = identity.leaf_key(SUITES[0]).unwrap().clone();
        let question = ExternalCommitInfo {
            group_id: group.clone(),
            sender: leaf_key.public().clone(),
            credential: Raw::of(&identity.credential()),
            user_key: None,
            join_proof: None,
        };
        let sender = DsSenderId::UserKeyHash(identity.user_key_hash());
        (leaf_key, identity.user_key.clone(), sender, question)
    };
    let question = DsRequest::ExternalCommitInfo(question);
    let answer = asks(client, group, hub, (sender, question, &user_key)).await;
    let DsResponseBody::Info(info) = answer else { panic!("{answer:?}") };
    let (epoch, leaf, update) = resync(home, &leaf_key, group, &info);
    let hash = sha256(update.commit.as_slice());
    let request = DsRequest::ResyncClient(ResyncClient {
        group_id: group.clone(),
        sender: leaf_key.public().clone(),
        update,
        client_queue_config: queue(client).await,
    });
    asks(client, group, hub, (DsSenderId::LeafIndex(leaf), request, &leaf_key)).await;
    Told { epoch, hash }
}

/// Where `client` may be reached, for one more leaf.
async fn queue(client: &Client) -> ClientQueueConfig {
    let (http, uri, key) = as_caller(client);
    let caller = Caller { client: &uri, key: &key, now: now() };
    let wanted = QueueTokens {
        class: KeyPackageClass::Group,
        last_resort: Flag::No,
        count: 1,
        revoke: List::default(),
    };
    let minted: MintedTokens =
        http.call(&caller, "/v1/queue_tokens", encode(&wanted), 0).await.unwrap();
    let queue_token = minted.tokens.into_vec().pop().expect("one was asked for");
    ClientQueueConfig { domain: uri.domain(), queue_token }
}

async fn asks(
    client: &Client,
    group: &GroupId,
    hub: &Domain,
    (sender_id, request, signer): (DsSenderId, DsRequest, &SigningKey),
) -> DsResponseBody {
    let context = DsContext {
        version: ProtocolVersion::MIMI10,
        hub_domain: hub.clone(),
        group_id: group.clone(),
        timestamp: now(),
        request_id: RequestId(crypto::random()),
    };
    let path = match &request {
        DsRequest::ExternalCommitInfo(_) => "/v1/external_commit_information",
        _ => "/v1/group_operation",
    };
    let tbs = ds_message_tbs(&sender_id, &request, &context);
    let signature = signer.sign_with_label("DSMessageTBS", &tbs).unwrap();
    let signature = ShortOpaque::new(signature.as_slice()).unwrap();
    let message = DsMessage { sender_id, request, signature, context };
    let (http, uri, key) = as_caller(client);
    let caller = Caller { client: &uri, key: &key, now: now() };
    let answer: DsResponse = http.ds(&caller, path, encode(&message)).await.unwrap();
    answer.outcome.into_result().expect("the server cannot see it")
}

/// Has `client`, which is at `leaf` in that epoch, complain of a commit, whatever it is.
pub async fn complain(
    client: &Client,
    leaf: LeafIndex,
    group: &GroupId,
    hub: &Domain,
    (told, reason): (&Told, ComplaintReason),
) -> Result<ComplaintResponse, HttpError> {
    let mut complaint = CommitComplaint {
        group_id: group.clone(),
        epoch: told.epoch,
        leaf_index: leaf,
        commit_hash: Opaque::new(told.hash).unwrap(),
        reason: reason.into(),
        signature: Signature::default(),
    };
    let leaf_key = client.member().identity().leaf_key(SUITES[0]).unwrap().clone();
    let tbs = complaint.to_be_signed();
    complaint.signature = leaf_key.sign_with_label(CommitComplaint::LABEL, &tbs).unwrap();
    let (http, uri, key) = as_caller(client);
    let caller = Caller { client: &uri, key: &key, now: now() };
    let body = encode(&Complain { hub_domain: hub.clone(), complaint });
    http.call(&caller, "/v1/complaint", body, 0).await
}

fn as_caller(client: &Client) -> (Http, mimid::wire::ids::ClientUri, SigningKey) {
    let member = client.member();
    let server: Server = member.setting("server").unwrap().unwrap();
    let http = Http::new(&server.url, server.certificate.as_deref().map(str::as_bytes)).unwrap();
    (http, member.client().clone(), member.identity().client_key.clone())
}

fn commit(
    home: &Path,
    leaf_key: &SigningKey,
    id: &GroupId,
    deed: &Deed,
    lie: Lie,
) -> (Epoch, LeafIndex, GroupUpdate) {
    let database = rusqlite::Connection::open(home).unwrap();
    let provider = MlsProvider::new(SqliteStorageProvider::<AsAtHome, _>::new(&database));
    let id = mls::GroupId::from_slice(id.as_bytes());
    let mut group = mls::MlsGroup::load(provider.storage(), &id).unwrap().expect("it is in");
    let key_of = |leaf: LeafIndex| {
        let leaf = mls::LeafNodeIndex::new(leaf.0);
        group.member_at(leaf).expect("it is in").encryption_key
    };
    let crook = match lie {
        Lie::Path => Crook::SecretsToAll,
        Lie::PathFor(leaf) => Crook::SecretsTo(key_of(leaf)),
        Lie::PathBut(leaf) => Crook::SecretsToAllBut(key_of(leaf)),
        Lie::None | Lie::ConfirmationTag | Lie::MembershipTag | Lie::ExternalPub => Crook::Not,
    };
    let (adds, removals) = match deed {
        Deed::Update => (Vec::new(), Vec::new()),
        Deed::Add(key_package) => {
            let read: mls::KeyPackageIn = decode(key_package).unwrap();
            let valid = read.validate(provider.crypto(), mls::ProtocolVersion::Mls10);
            (vec![valid.unwrap()], Vec::new())
        }
        Deed::Remove(leaf) => (Vec::new(), vec![mls::LeafNodeIndex::new(leaf.0)]),
    };
    let bundle = group
        .commit_builder()
        .force_self_update(true)
        .propose_adds(adds)
        .propose_removals(removals)
        .load_psks(provider.storage())
        .unwrap()
        .create_group_info(true)
        .use_ratchet_tree_extension(false)
        .build(provider.rand(), &Crooked::new(MlsCrypto::default(), crook), leaf_key, |_| true)
        .unwrap()
        .stage_commit(&provider)
        .unwrap();
    let (commit, welcome, info) = bundle.into_messages();
    group.clear_pending_commit(provider.storage()).unwrap();
    let mut commit = commit.tls_serialize_detached().unwrap();
    let (tag, len) = (33, commit.len());
    // signature, confirmation_tag<V>, membership_tag<V>
    match lie {
        Lie::ConfirmationTag => commit[len - tag - 1] ^= 1,
        Lie::MembershipTag => commit[len - 1] ^= 1,
        Lie::None | Lie::Path | Lie::PathFor(_) | Lie::PathBut(_) | Lie::ExternalPub => {}
    }
    let info = info.unwrap().tls_serialize_detached().unwrap();
    let update = GroupUpdate {
        commit: Raw::new(commit).unwrap(),
        group_info: signed_anew(&info[4..], leaf_key, lie),
        welcome: welcome.map(|welcome| Raw::of(&welcome)),
    };
    let leaf = LeafIndex(group.own_leaf_index().u32());
    (Epoch(group.epoch().as_u64()), leaf, update)
}

/// A commit from outside that replaces the leaf that the home has in the group.
fn resync(
    home: &Path,
    leaf_key: &SigningKey,
    id: &GroupId,
    info: &Info,
) -> (Epoch, LeafIndex, GroupUpdate) {
    let database = rusqlite::Connection::open(home).unwrap();
    let at_home = MlsProvider::new(SqliteStorageProvider::<AsAtHome, _>::new(&database));
    let id = mls::GroupId::from_slice(id.as_bytes());
    let before = mls::MlsGroup::load(at_home.storage(), &id).unwrap().expect("it is in");
    let old = before.own_leaf_node().unwrap();
    let parameters = mls::LeafNodeParameters::builder()
        .with_capabilities(old.capabilities().clone())
        .with_extensions(old.extensions().clone())
        .build();
    let credential = mls::CredentialWithKey {
        credential: old.credential().clone(),
        signature_key: leaf_key.public().as_slice().into(),
    };
    let provider = MlsProvider::new(MemoryStorage::default());
    let config = mls::MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
        .build();
    let group_info = info.group_info.parse().unwrap();
    let epoch = group_info.epoch().as_u64();
    let (group, bundle) = mls::MlsGroup::external_commit_builder()
        .with_ratchet_tree(info.ratchet_tree.parse().unwrap())
        .with_config(config)
        .build_group(&provider, group_info, credential)
        .unwrap()
        .leaf_node_parameters(parameters)
        .load_psks(provider.storage())
        .unwrap()
        .build(provider.rand(), provider.crypto(), leaf_key, |_| true)
        .unwrap()
        .finalize(&provider)
        .unwrap();
    let lie = Lie::ConfirmationTag;
    let mut commit = bundle.commit().tls_serialize_detached().unwrap();
    // of who comes from outside there is no membership tag behind it
    *commit.last_mut().unwrap() ^= 1;
    let info = group.export_group_info(provider.crypto(), leaf_key, false).unwrap();
    let info = info.tls_serialize_detached().unwrap();
    let update = GroupUpdate {
        commit: Raw::new(commit).unwrap(),
        group_info: signed_anew(&info[4..], leaf_key, lie),
        welcome: None,
    };
    (Epoch(epoch), LeafIndex(before.own_leaf_index().u32()), update)
}

/// GroupContext, extensions<V>, confirmation_tag<V>, uint32 signer, signature<V>: with the lie in it.
fn signed_anew(info: &[u8], leaf_key: &SigningKey, lie: Lie) -> PartialGroupInfo {
    let parsed: openmls::messages::group_info::VerifiableGroupInfo = decode(info).unwrap();
    let context = parsed.group_context().tls_serialize_detached().unwrap().len();
    let (extensions, rest) = Opaque::<1024>::tls_deserialize_bytes(&info[context..]).unwrap();
    let (tag, _) = Opaque::<255>::tls_deserialize_bytes(rest).unwrap();
    let (mut extensions, mut tag) = (extensions.as_slice().to_vec(), tag.as_slice().to_vec());
    match lie {
        Lie::ConfirmationTag => *tag.last_mut().unwrap() ^= 1,
        // an X25519 key whatever its bytes are
        Lie::ExternalPub => *extensions.last_mut().unwrap() ^= 1,
        Lie::None | Lie::MembershipTag | Lie::Path | Lie::PathFor(_) | Lie::PathBut(_) => {}
    }
    let mut signed = info[..context].to_vec();
    append_vector(&mut signed, &extensions);
    append_vector(&mut signed, &tag);
    signed.extend(parsed_signer(info, context).to_be_bytes());
    let mut labelled = Vec::new();
    append_vector(&mut labelled, b"MLS 1.0 GroupInfoTBS");
    append_vector(&mut labelled, &signed);
    let signature = openmls_traits::signatures::Signer::sign(leaf_key, &labelled).unwrap();
    let mut partial = Vec::new();
    append_vector(&mut partial, &extensions);
    append_vector(&mut partial, &signature);
    decode(&partial).unwrap()
}

fn parsed_signer(info: &[u8], context: usize) -> u32 {
    let (_, rest) = Opaque::<1024>::tls_deserialize_bytes(&info[context..]).unwrap();
    let (_, rest) = Opaque::<255>::tls_deserialize_bytes(rest).unwrap();
    u32::from_be_bytes(rest[..4].try_into().unwrap())
}

/// How a home stores openmls' values.
#[derive(Debug, Default)]
struct AsAtHome;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAsAtHome(String);

impl Codec for AsAtHome {
    type Error = NotAsAtHome;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, NotAsAtHome> {
        // a home reads both ways of writing
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).map_err(|it| NotAsAtHome(it.to_string()))?;
        Ok(bytes)
    }

    fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, NotAsAtHome> {
        match bytes {
            [0xFF, value @ ..] => {
                postcard::from_bytes(value).map_err(|it| NotAsAtHome(it.to_string()))
            }
            _ => ciborium::from_reader(bytes).map_err(|it| NotAsAtHome(it.to_string())),
        }
    }
}
