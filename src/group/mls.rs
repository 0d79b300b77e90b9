//! The only file that touches openmls' `PublicGroup`: a group's public tree and context.
//!
//! Here: creation and import, processing and merging, snapshots, and the GroupInfo of an epoch. Deliberately
//! absent: what a message may do (`policy`, `super::stage`). To replace `PublicGroup` by an incremental tree,
//! replace this file. RFC 9420 §7, §8, §12.

use openmls::{
    group::{
        GroupContext, MlsGroup, PublicGroup, PublicProcessMessageError, StageCommitError,
        StagedCommit,
    },
    messages::{external_proposals::ExternalProposal, group_info::VerifiableGroupInfo},
    prelude::{
        BasicCredential, Ciphersuite, ConfirmationTag, CredentialWithKey, Extension, ExtensionType,
        Extensions, ExternalSender, GroupId as MlsGroupId, LeafNode, LeafNodeIndex,
        MlsMessageBodyIn, ProcessedMessage, ProposalStore, ProtocolMessage, PublicMessageIn,
        QueuedProposal, RatchetTreeIn, SenderExtensionIndex,
    },
    treesync::{Node, ParentNode},
};
use openmls_traits::public_storage::PublicStorageProvider;
use openmls_traits::storage::{CURRENT_VERSION, traits};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tls_codec::DeserializeBytes as _;

use crate::{
    crypto::{self, MlsCrypto, SigningKey},
    policy::keys::check_tree,
    wire::{
        codec::{Opaque, Raw, append_vector, decode, encode},
        ds::PartialGroupInfo,
        extensions::SignatureScheme,
        ids::{Epoch, KeyPackageRef, LeafIndex},
        mls::{GroupInfo, MlsMessage, RatchetTree},
    },
};

/// What openmls refuses, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MlsProblem {
    #[error("{0}")]
    Invalid(String),
    #[error("the GroupInfo does not verify with the committer's new leaf key")]
    GroupInfo,
    #[error("the GroupInfo's extensions must be external_pub and nothing else")]
    GroupInfoExtensions,
    #[error("a snapshot or record of the group cannot be read")]
    Record,
    #[error("the commit covers a proposal that is not pending; it may have been displaced")]
    NotPending,
}

/// The public state of one group's epoch.
pub struct Tree {
    group: PublicGroup,
}

/// What a snapshot of a [`Tree`] holds, each as openmls' serde form in postcard. The versions of openmls and
/// of this struct are pinned together; a new one gets a new record version.
#[derive(Serialize, Deserialize)]
struct Parts {
    group_id: Vec<u8>,
    tree: Vec<u8>,
    context: Vec<u8>,
    confirmation_tag: Vec<u8>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree(epoch {})", self.epoch())
    }
}

impl Tree {
    /// A group from its GroupInfo and tree, fully validated, the lifetimes of its leaves included.
    ///
    /// # Errors
    /// [`MlsProblem::Invalid`]
    pub fn from_external(
        crypto: &MlsCrypto,
        raw: &RatchetTree,
        info: &GroupInfo,
    ) -> Result<Self, MlsProblem> {
        let tree: RatchetTreeIn = raw.parse().map_err(invalid)?;
        let info: VerifiableGroupInfo = info.parse().map_err(invalid)?;
        if info.extensions().ratchet_tree().is_some() {
            return Err(MlsProblem::GroupInfoExtensions);
        }
        check_tree(info.group_context().ciphersuite(), raw).map_err(invalid)?;
        let made = PublicGroup::from_external(crypto, &Nothing, tree, info, ProposalStore::new());
        let (group, _) = made.map_err(invalid)?;
        Ok(Self { group })
    }

    /// A group from its GroupInfo and tree, validated but for the lifetimes of its leaves.
    ///
    /// openmls' `PublicGroup` cannot skip lifetimes; the start of an external commit makes the same checks and
    /// can. The state is then put together in openmls' own stored form, which pins its version.
    ///
    /// # Errors
    /// [`MlsProblem::Invalid`]
    pub fn import(tree: &RatchetTree, info: &GroupInfo) -> Result<Self, MlsProblem> {
        let parsed: VerifiableGroupInfo = info.parse().map_err(invalid)?;
        if parsed.extensions().ratchet_tree().is_some() {
            return Err(MlsProblem::GroupInfoExtensions);
        }
        let nodes: RatchetTreeIn = tree.parse().map_err(invalid)?;
        check_tree(parsed.group_context().ciphersuite(), tree).map_err(invalid)?;
        let provider = crypto::MlsProvider::<openmls_memory_storage::MemoryStorage>::default();
        let nobody = CredentialWithKey {
            credential: BasicCredential::new(b"import".to_vec()).into(),
            signature_key: crypto::random::<32>().to_vec().into(),
        };
        MlsGroup::external_commit_builder()
            .skip_lifetime_validation()
            .with_ratchet_tree(nodes.clone())
            .build_group(&provider, parsed.clone(), nobody)
            .map_err(invalid)?;
        let context = parsed.group_context();
        let head = encode(context).len() + encode(parsed.extensions()).len();
        let (tag, _) =
            ConfirmationTag::tls_deserialize_bytes(&info.as_slice()[head..]).map_err(invalid)?;
        Self::from_parts(Parts {
            group_id: context.group_id().as_slice().to_vec(),
            tree: tree_record(&nodes, context.tree_hash())?,
            context: to_record(context)?,
            confirmation_tag: to_record(&tag)?,
        })
    }

    /// The inverse of [`Tree::snapshot`].
    ///
    /// # Errors
    /// [`MlsProblem::Record`]
    pub fn load(snapshot: &[u8]) -> Result<Self, MlsProblem> {
        Self::from_parts(from_record(snapshot)?)
    }

    /// Everything that [`Tree::load`] needs. O(members).
    ///
    /// # Errors
    /// [`MlsProblem::Record`]
    pub fn snapshot(&self) -> Result<Vec<u8>, MlsProblem> {
        to_record(&Parts {
            group_id: self.group.group_id().as_slice().to_vec(),
            tree: to_record(self.group.treesync())?,
            context: to_record(self.group.group_context())?,
            confirmation_tag: to_record(self.group.confirmation_tag())?,
        })
    }

    fn from_parts(parts: Parts) -> Result<Self, MlsProblem> {
        let context: GroupContext = from_record(&parts.context)?;
        let tag: ConfirmationTag = from_record(&parts.confirmation_tag)?;
        let interim = interim_transcript_hash(&context, &tag)?;
        let id = MlsGroupId::from_slice(&parts.group_id);
        let source = Stored { interim: to_record(&interim)?, parts };
        let group = PublicGroup::load(&source, &id).map_err(|_| MlsProblem::Record)?;
        Ok(Self { group: group.ok_or(MlsProblem::Record)? })
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.group.group_context().epoch().as_u64())
    }

    /// Whether the tree's own hash, which openmls keeps with it (at its end, see `tree_record`), is the context's.
    #[must_use]
    pub fn has_its_hash(&self) -> bool {
        let hash = self.context().tree_hash();
        to_record(self.group.treesync()).is_ok_and(|tree| tree.ends_with(hash))
    }

    #[must_use]
    pub fn context(&self) -> &GroupContext {
        self.group.group_context()
    }

    /// Of the commit that made this epoch.
    #[must_use]
    pub fn confirmation_tag(&self) -> &ConfirmationTag {
        self.group.confirmation_tag()
    }

    #[must_use]
    pub fn ciphersuite(&self) -> Ciphersuite {
        self.group.ciphersuite()
    }

    /// The signature scheme of every leaf.
    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        crate::policy::leaf::scheme_of(self.ciphersuite())
    }

    #[must_use]
    pub fn leaf(&self, leaf: LeafIndex) -> Option<&LeafNode> {
        self.group.leaf(LeafNodeIndex::new(leaf.0))
    }

    pub fn leaves(&self) -> impl Iterator<Item = (LeafIndex, &LeafNode)> {
        self.group.treesync().full_leaves().map(|(index, leaf)| (LeafIndex(index.u32()), leaf))
    }

    /// The tree as joiners get it.
    #[must_use]
    pub fn export(&self) -> RatchetTree {
        Raw::of(&self.group.export_ratchet_tree())
    }

    /// Validates a handshake message as a member would who lacks the group's secrets. Changes nothing.
    ///
    /// # Errors
    /// [`MlsProblem::Invalid`]
    pub fn process(
        &self,
        crypto: &MlsCrypto,
        message: ProtocolMessage,
    ) -> Result<ProcessedMessage, MlsProblem> {
        self.group.process_message(crypto, message).map_err(|error| {
            let missing =
                PublicProcessMessageError::InvalidCommit(StageCommitError::MissingProposal);
            if error == missing { MlsProblem::NotPending } else { invalid(error) }
        })
    }

    /// The leaf that an external commit takes. Only before it is merged.
    ///
    /// # Errors
    /// [`MlsProblem::Invalid`]
    pub fn newcomer_leaf(&self, staged: &StagedCommit) -> Result<LeafIndex, MlsProblem> {
        let index = self.group.ext_commit_sender_index(staged).map_err(invalid)?;
        Ok(LeafIndex(index.u32()))
    }

    /// Moves on to the next epoch; what is pending is gone.
    ///
    /// # Errors
    /// None for a commit that [`Tree::process`] staged on this very state.
    pub fn merge(&mut self, staged: StagedCommit) -> Result<(), MlsProblem> {
        self.group.merge_commit(&Nothing, staged).map_err(invalid)
    }

    pub fn add_pending(&mut self, proposal: QueuedProposal) {
        // `Nothing` cannot fail
        let _ = self.group.add_proposal(&Nothing, proposal);
    }

    pub fn remove_pending(&mut self, proposal: &QueuedProposal) {
        let _ = self.group.remove_proposal(&Nothing, proposal.proposal_reference_ref());
    }

    /// The GroupInfo of this epoch from what its committer sent of it, which was verified then.
    ///
    /// # Errors
    /// [`MlsProblem`] where `parts` are not those of this epoch.
    pub fn group_info(&self, parts: &InfoParts) -> Result<GroupInfo, MlsProblem> {
        build_group_info(self.context(), self.group.confirmation_tag(), parts)
    }
}

/// What turns a group's state into the GroupInfo of its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoParts {
    pub partial: PartialGroupInfo,
    pub signer: LeafIndex,
}

impl InfoParts {
    /// The key in `external_pub`, to which who comes in from outside encrypts.
    #[must_use]
    pub fn external_pub(&self) -> Option<Vec<u8>> {
        let [extension] = self.partial.group_info_extensions.as_ref() else { return None };
        let Extension::ExternalPub(key) = extension.parse().ok()? else { return None };
        Some(key.external_pub().as_slice().to_vec())
    }
}

/// Builds the GroupInfo of the epoch that `context` is of and verifies it with the committer's new leaf key.
///
/// # Errors
/// [`MlsProblem::GroupInfo`], [`MlsProblem::GroupInfoExtensions`]
pub fn verify_group_info(
    context: &GroupContext,
    confirmation_tag: &ConfirmationTag,
    parts: &InfoParts,
    signer_key: &[u8],
) -> Result<GroupInfo, MlsProblem> {
    let info = build_group_info(context, confirmation_tag, parts)?;
    let bytes = info.as_slice();
    let signature_len = encode(&parts.partial.signature).len();
    let content = &bytes[..bytes.len().saturating_sub(signature_len)];
    let mut signed = Vec::with_capacity(content.len() + 32);
    append_vector(&mut signed, b"MLS 1.0 GroupInfoTBS");
    append_vector(&mut signed, content);
    let scheme = crate::policy::leaf::scheme_of(context.ciphersuite());
    crypto::verify_raw(scheme, signer_key, &signed, parts.partial.signature.as_slice())
        .map_err(|_| MlsProblem::GroupInfo)?;
    Ok(info)
}

fn build_group_info(
    context: &GroupContext,
    confirmation_tag: &ConfirmationTag,
    parts: &InfoParts,
) -> Result<GroupInfo, MlsProblem> {
    let [extension] = parts.partial.group_info_extensions.as_ref() else {
        return Err(MlsProblem::GroupInfoExtensions);
    };
    let extension = extension.parse().map_err(invalid)?;
    if extension.extension_type() != ExtensionType::ExternalPub {
        return Err(MlsProblem::GroupInfoExtensions);
    }
    let extensions = Extensions::single(extension).map_err(|_| MlsProblem::GroupInfoExtensions)?;
    let signature = decode(&encode(&parts.partial.signature)).map_err(invalid)?;
    let info = VerifiableGroupInfo::new(
        context.clone(),
        extensions,
        confirmation_tag.clone(),
        LeafNodeIndex::new(parts.signer.0),
        signature,
    );
    Ok(Raw::of(&info))
}

/// openmls' stored form of a tree: leaves and parents apart, padded to the next power of two.
fn tree_record(nodes: &RatchetTreeIn, tree_hash: &[u8]) -> Result<Vec<u8>, MlsProblem> {
    #[derive(Serialize)]
    struct Slot<T> {
        node: Option<T>,
    }
    #[derive(Serialize)]
    struct Nodes {
        leaf_nodes: Vec<Slot<LeafNode>>,
        parent_nodes: Vec<Slot<ParentNode>>,
        default_leaf: Slot<LeafNode>,
        default_parent: Slot<ParentNode>,
    }
    #[derive(Serialize)]
    struct Stored<'a> {
        tree: Nodes,
        tree_hash: &'a [u8],
    }
    // the tree was validated; this reads the same nodes as their verified types
    let nodes: Vec<Option<Node>> = from_record(&to_record(nodes)?)?;
    let width = nodes.len().div_ceil(2).next_power_of_two();
    let mut leaf_nodes: Vec<Slot<LeafNode>> = Vec::with_capacity(width);
    let mut parent_nodes: Vec<Slot<ParentNode>> = Vec::with_capacity(width - 1);
    for (index, node) in nodes.into_iter().enumerate() {
        match (index % 2, node) {
            (0, None) => leaf_nodes.push(Slot { node: None }),
            (0, Some(Node::LeafNode(leaf))) => leaf_nodes.push(Slot { node: Some(*leaf) }),
            (_, None) => parent_nodes.push(Slot { node: None }),
            (1, Some(Node::ParentNode(parent))) => parent_nodes.push(Slot { node: Some(*parent) }),
            _ => return Err(MlsProblem::Record),
        }
    }
    leaf_nodes.resize_with(width, || Slot { node: None });
    parent_nodes.resize_with(width - 1, || Slot { node: None });
    let (default_leaf, default_parent) = (Slot { node: None }, Slot { node: None });
    let tree = Nodes { leaf_nodes, parent_nodes, default_leaf, default_parent };
    to_record(&Stored { tree, tree_hash })
}

/// What a whole GroupInfo adds to the state that it is of.
///
/// # Errors
/// [`MlsProblem::GroupInfoExtensions`], [`MlsProblem::Invalid`]
pub fn info_parts(info: &GroupInfo) -> Result<InfoParts, MlsProblem> {
    let parsed = info.parse().map_err(invalid)?;
    let head = encode(parsed.group_context()).len();
    let extensions = encode(parsed.extensions());
    let tail = &info.as_slice()[head + extensions.len()..];
    let (_tag, tail) = Opaque::<255>::tls_deserialize_bytes(tail).map_err(invalid)?;
    let (signer, tail) = LeafIndex::tls_deserialize_bytes(tail).map_err(invalid)?;
    let signature = decode(tail).map_err(invalid)?;
    let group_info_extensions = decode(&extensions).map_err(invalid)?;
    let partial = PartialGroupInfo { group_info_extensions, signature };
    let external_pub = parsed.extensions().external_pub().is_some();
    if !external_pub || parsed.extensions().iter().count() != 1 {
        return Err(MlsProblem::GroupInfoExtensions);
    }
    Ok(InfoParts { partial, signer })
}

/// What the copies of one Welcome may take together.
const WELCOME_COPIES_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One Welcome per KeyPackage: each joiner gets its own secrets and nobody else's.
///
/// # Errors
/// [`MlsProblem::Invalid`] where `message` is no Welcome.
pub fn split_welcome(message: &MlsMessage) -> Result<Vec<(KeyPackageRef, MlsMessage)>, MlsProblem> {
    let MlsMessageBodyIn::Welcome(welcome) = message.parse().map_err(invalid)?.extract() else {
        return Err(MlsProblem::Invalid("the message is not a Welcome".into()));
    };
    let secrets: Vec<Vec<u8>> = welcome.secrets().iter().map(encode).collect();
    // MLSMessage and Welcome end with the encrypted GroupInfo: behind the header (version, wire format,
    // ciphersuite: 6 bytes) and the vector of secrets
    let mut all = Vec::new();
    append_vector(&mut all, &secrets.concat());
    let bytes = message.as_slice();
    let (header, tail) = (&bytes[..6], &bytes[6 + all.len()..]);
    if secrets.len().saturating_mul(tail.len()) > WELCOME_COPIES_BYTES_MAX {
        return Err(MlsProblem::Invalid(
            "the Welcome is too large for so many joiners: add fewer at a time".into(),
        ));
    }
    welcome
        .secrets()
        .iter()
        .zip(secrets)
        .map(|(secret, encoded)| {
            let mut own = header.to_vec();
            append_vector(&mut own, &encoded);
            own.extend_from_slice(tail);
            let reference =
                KeyPackageRef(Opaque::new(secret.new_member().as_slice()).map_err(invalid)?);
            Ok((reference, Raw::new(own).map_err(invalid)?))
        })
        .collect()
}

/// The hub's own Remove of `leaf`, as external sender 0.
///
/// # Errors
/// [`MlsProblem::Invalid`]
pub fn propose_removal(
    context: &GroupContext,
    leaf: LeafIndex,
    key: &SigningKey,
) -> Result<MlsMessage, MlsProblem> {
    let message =
        ExternalProposal::new_remove::<crypto::MlsProvider<openmls_memory_storage::MemoryStorage>>(
            LeafNodeIndex::new(leaf.0),
            context.group_id().clone(),
            context.epoch(),
            key,
            SenderExtensionIndex::new(0),
        )
        .map_err(invalid)?;
    Ok(Raw::of(&message))
}

/// The hub's own GroupContextExtensions, as external sender 0: `new` in the place of the senders, all else as it is.
/// `key` is the one in the group.
///
/// # Errors
/// [`MlsProblem::Invalid`]
pub fn propose_hub_key(
    context: &GroupContext,
    new: ExternalSender,
    key: &SigningKey,
) -> Result<MlsMessage, MlsProblem> {
    let replaced = context.extensions().iter().map(|extension| {
        if matches!(extension, Extension::ExternalSenders(_)) {
            Extension::ExternalSenders(vec![new.clone()])
        } else {
            extension.clone()
        }
    });
    let extensions = Extensions::from_vec(replaced.collect()).map_err(invalid)?;
    let message = ExternalProposal::new_group_context_extensions::<
        crypto::MlsProvider<openmls_memory_storage::MemoryStorage>,
    >(
        extensions,
        context.group_id().clone(),
        context.epoch(),
        key,
        SenderExtensionIndex::new(0),
    )
    .map_err(invalid)?;
    Ok(Raw::of(&message))
}

/// The confirmation tag of a commit.
///
/// # Errors
/// [`MlsProblem::Invalid`] where there is none.
pub fn confirmation_tag(message: &PublicMessageIn) -> Result<ConfirmationTag, MlsProblem> {
    let tag = message.confirmation_tag();
    tag.cloned().ok_or_else(|| MlsProblem::Invalid("the commit lacks a confirmation tag".into()))
}

/// serde form of openmls' own types in postcard.
///
/// # Errors
/// [`MlsProblem::Record`]
pub fn to_record<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, MlsProblem> {
    postcard::to_stdvec(value).map_err(|_| MlsProblem::Record)
}

/// # Errors
/// [`MlsProblem::Record`]
pub fn from_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MlsProblem> {
    postcard::from_bytes(bytes).map_err(|_| MlsProblem::Record)
}

/// RFC 9420 §8.2: the hash of the confirmed transcript hash and the confirmation tag.
fn interim_transcript_hash(
    context: &GroupContext,
    tag: &ConfirmationTag,
) -> Result<Vec<u8>, MlsProblem> {
    use openmls_traits::crypto::OpenMlsCrypto as _;
    let mut input = context.confirmed_transcript_hash().to_vec();
    input.extend(encode(tag));
    MlsCrypto::default()
        .hash(context.ciphersuite().hash_algorithm(), &input)
        .map_err(|_| MlsProblem::Record)
}

fn invalid(error: impl std::fmt::Display) -> MlsProblem {
    MlsProblem::Invalid(error.to_string())
}

/// A storage that keeps nothing: the log is the record, a merge writes nothing.
struct Nothing;

/// A storage that gives back one snapshot.
struct Stored {
    parts: Parts,
    interim: Vec<u8>,
}

/// Never made: [`Nothing`] cannot fail and [`Stored`] says so by `None`.
#[derive(Debug, thiserror::Error)]
#[error("storage")]
struct StorageProblem;

macro_rules! forgets {
    ($($name:ident<$($kind:ident: $bound:ident),*>($($arg:ident: $type:ty),*);)*) => {$(
        fn $name<$($kind: traits::$bound<CURRENT_VERSION>),*>(
            &self, $($arg: $type),*
        ) -> Result<(), StorageProblem> {
            $(let _ = $arg;)*
            Ok(())
        }
    )*};
}

macro_rules! storage {
    ($storage:ident) => {
        impl PublicStorageProvider<CURRENT_VERSION> for $storage {
            type PublicError = StorageProblem;

            forgets! {
                write_tree<G: GroupId, T: TreeSync>(id: &G, tree: &T);
                write_interim_transcript_hash<G: GroupId, H: InterimTranscriptHash>(id: &G, hash: &H);
                write_context<G: GroupId, C: GroupContext>(id: &G, context: &C);
                write_confirmation_tag<G: GroupId, C: ConfirmationTag>(id: &G, tag: &C);
                queue_proposal<G: GroupId, R: ProposalRef, Q: QueuedProposal>(id: &G, reference: &R, proposal: &Q);
                delete_tree<G: GroupId>(id: &G);
                delete_confirmation_tag<G: GroupId>(id: &G);
                delete_context<G: GroupId>(id: &G);
                delete_interim_transcript_hash<G: GroupId>(id: &G);
                remove_proposal<G: GroupId, R: ProposalRef>(id: &G, reference: &R);
                clear_proposal_queue<G: GroupId, R: ProposalRef>(id: &G);
            }

            fn queued_proposals<
                G: traits::GroupId<CURRENT_VERSION>,
                R: traits::ProposalRef<CURRENT_VERSION>,
                Q: traits::QueuedProposal<CURRENT_VERSION>,
            >(
                &self,
                _: &G,
            ) -> Result<Vec<(R, Q)>, StorageProblem> {
                Ok(Vec::new())
            }

            fn tree<G: traits::GroupId<CURRENT_VERSION>, T: traits::TreeSync<CURRENT_VERSION>>(
                &self,
                _: &G,
            ) -> Result<Option<T>, StorageProblem> {
                read(self.part(Part::Tree))
            }

            fn group_context<
                G: traits::GroupId<CURRENT_VERSION>,
                C: traits::GroupContext<CURRENT_VERSION>,
            >(
                &self,
                _: &G,
            ) -> Result<Option<C>, StorageProblem> {
                read(self.part(Part::Context))
            }

            fn interim_transcript_hash<
                G: traits::GroupId<CURRENT_VERSION>,
                H: traits::InterimTranscriptHash<CURRENT_VERSION>,
            >(
                &self,
                _: &G,
            ) -> Result<Option<H>, StorageProblem> {
                read(self.part(Part::InterimHash))
            }

            fn confirmation_tag<
                G: traits::GroupId<CURRENT_VERSION>,
                C: traits::ConfirmationTag<CURRENT_VERSION>,
            >(
                &self,
                _: &G,
            ) -> Result<Option<C>, StorageProblem> {
                read(self.part(Part::ConfirmationTag))
            }
        }
    };
}

fn read<T: DeserializeOwned>(bytes: Option<&[u8]>) -> Result<Option<T>, StorageProblem> {
    bytes.map(postcard::from_bytes).transpose().map_err(|_| StorageProblem)
}

impl Nothing {
    fn part(&self, _: Part) -> Option<&[u8]> {
        None
    }
}

impl Stored {
    fn part(&self, part: Part) -> Option<&[u8]> {
        Some(match part {
            Part::Tree => &self.parts.tree,
            Part::Context => &self.parts.context,
            Part::ConfirmationTag => &self.parts.confirmation_tag,
            Part::InterimHash => &self.interim,
        })
    }
}

#[derive(Clone, Copy)]
enum Part {
    Tree,
    Context,
    ConfirmationTag,
    InterimHash,
}

storage!(Nothing);
storage!(Stored);
