//! A valid, fully populated group of any size without a join: leaves and parents are made here, in RFC 9420's own
//! encoding, and one GroupInfo is signed over them. Nobody has its secrets, so none of its members can follow it;
//! real clients come in by external commit and use it among themselves.
//!
//! Also what is wrong with such a group where a test wants it wrong. RFC 9420 §7, §12.4.3.

use std::time::{SystemTime, UNIX_EPOCH};

use mimid::{
    crypto::{self, SigningKey},
    policy,
    wire::{
        client::Register,
        codec::{List, Opaque, Raw, Secret, Text, append_vector, encode},
        extensions::{
            ClientQueueConfig, GROUP_POLICY, GroupPolicy, PublicKey, QueueToken, USER_KEY, UserKey,
            UserKeyTbs,
        },
        ids::{ClientUri, Domain, GroupId, LeafIndex, Timestamp, UserKeyHash},
        import::{GroupImport, MemberImport},
        mls::Credential,
    },
};
use openmls_traits::signatures::Signer as _;

/// One member as whoever made the group knows it.
#[derive(Clone)]
pub struct SynthMember {
    pub client: ClientUri,
    pub user_key: SigningKey,
    pub leaf_key: SigningKey,
}

/// What the group is made of. Changed fields make a group that is wrong.
pub struct Synth {
    pub id: GroupId,
    pub domain: Domain,
    pub epoch: u64,
    pub now: Timestamp,
    /// In the order of their leaves; the first is the admin and signs the GroupInfo.
    pub members: Vec<SynthMember>,
    pub policy: GroupPolicy,
    /// The value of external_senders, if it is there at all.
    pub external_senders: Option<Vec<u8>>,
    /// Leaves whose KeyPackage has expired long ago. Only such as never committed: even ones with a right neighbour.
    pub expired: Vec<usize>,
    /// A leaf that carries no user_key.
    pub without_user_key: Option<usize>,
    /// A further extension of the GroupInfo.
    pub info_extension: Option<(u16, Vec<u8>)>,
    pub spoil: Option<Spoil>,
}

/// What is changed without being signed or hashed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    TreeHash,
    InfoSignature,
    LeafSignature,
    ParentHash,
}

impl Synth {
    /// `size` users of `domain` with one client each, `mimi://<domain>/d/u0000/phone` and so on, in a group that
    /// `hub_key` is the external sender of.
    pub fn new(domain: &Domain, hub_key: &PublicKey, size: usize) -> Self {
        let members: Vec<SynthMember> = (0..size).map(|index| member(domain, index)).collect();
        let mut sender = Vec::new();
        append_vector(&mut sender, hub_key.as_slice());
        sender.extend(u16s(&[BASIC]));
        append_vector(&mut sender, domain.as_str().as_bytes());
        let mut external_senders = Vec::new();
        append_vector(&mut external_senders, &sender);
        let members_max = u32::try_from(size + 1000).unwrap();
        let policy = GroupPolicy { members_max, ..policy::default_policy(&members[0].user()) };
        Self {
            id: GroupId::of(domain, crypto::random()),
            domain: domain.clone(),
            epoch: 7,
            now: system_now(),
            members,
            policy,
            external_senders: Some(external_senders),
            expired: Vec::new(),
            without_user_key: None,
            info_extension: None,
            spoil: None,
        }
    }

    /// The group as an operator's file, with `token` as each member's queue.
    pub fn import(&self, token: impl Fn(usize) -> QueueToken) -> GroupImport {
        let width = self.members.len().next_power_of_two();
        let mut nodes: Vec<Option<Vec<u8>>> = vec![None; 2 * width - 1];
        let mut tree_hash = self.subtree(0, width, Above::Root, &mut nodes);
        if self.spoil == Some(Spoil::TreeHash) {
            tree_hash[0] ^= 1;
        }
        while nodes.last().is_some_and(Option::is_none) {
            nodes.pop();
        }
        let mut all = Vec::new();
        for node in nodes {
            match node {
                Some(node) => {
                    all.push(1);
                    all.extend(node);
                }
                None => all.push(0),
            }
        }
        let mut ratchet_tree = Vec::new();
        append_vector(&mut ratchet_tree, &all);
        let members = (0..self.members.len()).map(|index| MemberImport {
            leaf_index: LeafIndex(u32::try_from(index).unwrap()),
            client_queue_config: ClientQueueConfig {
                domain: self.members[index].client.domain(),
                queue_token: token(index),
            },
        });
        GroupImport {
            group_id: self.id.clone(),
            group_info: Raw::new(self.group_info(&tree_hash)).expect("a GroupInfo"),
            ratchet_tree: Raw::new(ratchet_tree).expect("a ratchet tree"),
            members: List::new(members.collect()).unwrap(),
        }
    }

    fn group_info(&self, tree_hash: &[u8]) -> Vec<u8> {
        let mut context = u16s(&[MLS10, SUITE]);
        append_vector(&mut context, self.id.as_bytes());
        context.extend(self.epoch.to_be_bytes());
        append_vector(&mut context, tree_hash);
        append_vector(&mut context, &derived("confirmed transcript", 0));
        append_vector(&mut context, &self.context_extensions());

        let mut external_pub = Vec::new();
        append_vector(&mut external_pub, &derived("external pub", 0));
        let mut extensions = extension(EXTERNAL_PUB, &external_pub);
        if let Some((kind, value)) = &self.info_extension {
            extensions.extend(extension(*kind, value));
        }
        let mut info = context;
        append_vector(&mut info, &extensions);
        append_vector(&mut info, &derived("confirmation tag", 0));
        info.extend(0u32.to_be_bytes());
        let mut signature = mls_sign(&self.members[0].leaf_key, "GroupInfoTBS", &info);
        if self.spoil == Some(Spoil::InfoSignature) {
            signature[5] ^= 1;
        }
        append_vector(&mut info, &signature);
        info
    }

    fn context_extensions(&self) -> Vec<u8> {
        let mut required = Vec::new();
        append_vector(&mut required, &u16s(&[USER_KEY, GROUP_POLICY]));
        append_vector(&mut required, &u16s(&[SELF_REMOVE]));
        append_vector(&mut required, &[]);
        let mut all = extension(REQUIRED_CAPABILITIES, &required);
        if let Some(senders) = &self.external_senders {
            all.extend(extension(EXTERNAL_SENDERS, senders));
        }
        all.extend(extension(GROUP_POLICY, &encode(&self.policy)));
        all
    }

    /// Makes the nodes over the leaves `from..to` and gives their tree hash. Every parent was last set by the
    /// rightmost leaf below it, so its hash is in the next filled node on its right side.
    fn subtree(
        &self,
        from: usize,
        to: usize,
        above: Above,
        nodes: &mut [Option<Vec<u8>>],
    ) -> Vec<u8> {
        let count = self.members.len();
        if to - from == 1 {
            let leaf = (from < count).then(|| self.leaf(from, above));
            let mut input = vec![1];
            input.extend(u32::try_from(from).unwrap().to_be_bytes());
            append_optional(&mut input, leaf.as_deref());
            nodes[2 * from] = leaf.map(|leaf| [&[1], leaf.as_slice()].concat());
            return crypto::sha256(&input).to_vec();
        }
        let middle = from.midpoint(to);
        let (parent, left, right) = if middle < count {
            let index = from + to;
            let key = derived("parent", index);
            let own_hash = match above {
                Above::Root => Vec::new(),
                Above::Apart => derived("an older parent", index),
                Above::Linked(hash) => hash,
            };
            let left = self.subtree(from, middle, Above::Apart, nodes);
            let mut link = Vec::new();
            append_vector(&mut link, &key);
            append_vector(&mut link, &own_hash);
            append_vector(&mut link, &left);
            let mut hash = crypto::sha256(&link).to_vec();
            if self.spoil == Some(Spoil::ParentHash) {
                hash[0] ^= 1;
            }
            let right = self.subtree(middle, to, Above::Linked(hash), nodes);
            let mut parent = Vec::new();
            append_vector(&mut parent, &key);
            append_vector(&mut parent, &own_hash);
            append_vector(&mut parent, &[]);
            (Some(parent), left, right)
        } else {
            // nobody is on the right: the filtered direct path leaves this node out
            let left = self.subtree(from, middle, above, nodes);
            let right = self.subtree(middle, to, Above::Apart, nodes);
            (None, left, right)
        };
        let mut input = vec![2];
        append_optional(&mut input, parent.as_deref());
        append_vector(&mut input, &left);
        append_vector(&mut input, &right);
        nodes[from + to - 1] = parent.map(|parent| [&[2], parent.as_slice()].concat());
        crypto::sha256(&input).to_vec()
    }

    fn leaf(&self, index: usize, above: Above) -> Vec<u8> {
        let member = &self.members[index];
        let mut leaf = Vec::new();
        append_vector(&mut leaf, &derived("leaf", index));
        append_vector(&mut leaf, member.leaf_key.public().as_slice());
        leaf.extend(u16s(&[BASIC]));
        append_vector(&mut leaf, member.client.as_str().as_bytes());
        append_vector(&mut leaf, &u16s(&[MLS10]));
        append_vector(&mut leaf, &u16s(&[1, 2, 3]));
        append_vector(&mut leaf, &u16s(&[0xF1A1, 0xF1A2, 0xF1A3, LAST_RESORT]));
        append_vector(&mut leaf, &u16s(&[SELF_REMOVE]));
        append_vector(&mut leaf, &u16s(&[BASIC]));
        let committed = matches!(above, Above::Linked(_));
        if let Above::Linked(hash) = above {
            assert!(!self.expired.contains(&index), "leaf {index} has committed: no lifetime");
            leaf.push(3);
            append_vector(&mut leaf, &hash);
        } else {
            let seconds = self.now.0 / 1000;
            let (from, to) = if self.expired.contains(&index) {
                (seconds - 100 * DAY_S, seconds - 20 * DAY_S)
            } else {
                (seconds - 3600, seconds + 84 * DAY_S)
            };
            leaf.push(1);
            leaf.extend(from.to_be_bytes());
            leaf.extend(to.to_be_bytes());
        }
        let user_key = match self.without_user_key {
            Some(without) if without == index => Vec::new(),
            _ => extension(USER_KEY, &encode(&member.vouch())),
        };
        append_vector(&mut leaf, &user_key);
        let mut signed = leaf.clone();
        if committed {
            append_vector(&mut signed, self.id.as_bytes());
            signed.extend(u32::try_from(index).unwrap().to_be_bytes());
        }
        let mut signature = mls_sign(&member.leaf_key, "LeafNodeTBS", &signed);
        if self.spoil == Some(Spoil::LeafSignature) && index == self.members.len() / 2 {
            signature[7] ^= 1;
        }
        append_vector(&mut leaf, &signature);
        leaf
    }
}

/// What a subtree's top node says of the node above it.
enum Above {
    Root,
    /// It was set by an earlier commit than the node above.
    Apart,
    /// It was set by the same commit as the node above, whose parent hash this is.
    Linked(Vec<u8>),
}

impl SynthMember {
    pub fn user(&self) -> UserKeyHash {
        crypto::user_key_hash(self.user_key.scheme(), self.user_key.public())
    }

    /// The user key's word for the leaf key.
    pub fn vouch(&self) -> UserKey {
        let (scheme, user_public_key) = (self.user_key.scheme(), self.user_key.public().clone());
        let tbs = UserKeyTbs {
            scheme,
            user_public_key: user_public_key.clone(),
            leaf_key: PublicKey::clone(self.leaf_key.public()),
            credential: self.credential(),
        };
        let signature = self.user_key.sign_with_label("UserKeyTBS", &encode(&tbs)).unwrap();
        UserKey { scheme, user_public_key, signature }
    }

    /// What the client is registered with at its provider. Its leaf key is its client key, too.
    pub fn register(&self) -> Register {
        Register {
            user: self.client.user(),
            device: Text::new(self.client.device()).unwrap(),
            credential: self.credential(),
            user_key: self.vouch(),
            scheme: self.leaf_key.scheme(),
            client_key: self.leaf_key.public().clone(),
            token: Secret::default(),
            csr: Opaque::default(),
        }
    }

    pub fn credential(&self) -> Credential {
        let basic =
            openmls::prelude::BasicCredential::new(self.client.as_str().as_bytes().to_vec());
        Raw::of(&openmls::prelude::Credential::from(basic))
    }
}

/// The machine's time: openmls looks at it when it judges a leaf's lifetime.
pub fn system_now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

/// A token that no queueing service made: for groups whose queues nobody binds.
pub fn any_token(index: usize) -> QueueToken {
    Opaque::new(derived("token", index)).unwrap()
}

/// The client that has leaf `index` in a group at `domain`; the same in every group and run.
pub fn member(domain: &Domain, index: usize) -> SynthMember {
    let seed = |label| SigningKey::from_seed(derived(label, index).try_into().unwrap()).unwrap();
    SynthMember {
        client: ClientUri::new(format!("mimi://{domain}/d/u{index:04}/phone")).unwrap(),
        user_key: seed("user key"),
        leaf_key: seed("leaf key"),
    }
}

fn mls_sign(key: &SigningKey, label: &str, content: &[u8]) -> Vec<u8> {
    let mut signed = Vec::new();
    append_vector(&mut signed, format!("MLS 1.0 {label}").as_bytes());
    append_vector(&mut signed, content);
    key.sign(&signed).unwrap()
}

/// 32 bytes that are the same in every run. Any 32 bytes are an X25519 public key.
fn derived(label: &str, index: usize) -> Vec<u8> {
    crypto::sha256(format!("synth {label} {index}").as_bytes()).to_vec()
}

fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16s(&[kind]);
    append_vector(&mut bytes, value);
    bytes
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn append_optional(bytes: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => {
            bytes.push(1);
            bytes.extend_from_slice(value);
        }
        None => bytes.push(0),
    }
}

const MLS10: u16 = 1;
/// MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
const SUITE: u16 = 1;
const BASIC: u16 = 1;
const REQUIRED_CAPABILITIES: u16 = 3;
const EXTERNAL_PUB: u16 = 4;
const EXTERNAL_SENDERS: u16 = 5;
const LAST_RESORT: u16 = 10;
const SELF_REMOVE: u16 = 10;
const DAY_S: u64 = 24 * 60 * 60;
