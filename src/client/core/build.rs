//! Building requests: from what is wanted to the messages that a hub takes, on the state as it is now.
//!
//! Here: groups, commits, proposals, external commits, application messages, and the signature around them.
//! Not here: what becomes of them ([`super::settle`]). PROTOCOL.md §2; RFC 9420 §11, §12.

use openmls::{
    group::{PURE_PLAINTEXT_WIRE_FORMAT_POLICY, PastEpochDeletionPolicy},
    prelude as mls,
    prelude::{OpenMlsProvider, tls_codec::Serialize as _},
};

use super::{
    CoreError, GroupState, Hub, Kind, Member, NewGroup, Outbound,
    identity::{self, StoredKey, capabilities, unknown},
    moving::MoveDraft,
    records::{Built, Effect, GroupRecord, NewProposal, Operation, Pending, PolicyChange, Right},
    view::{policy_of, roster_of},
};
use crate::{
    crypto::{self, SigningKey},
    policy::{self, keys::check_key_package, leaf::LeafIdentity, roster::Roster},
    wire::{
        codec::{List, Opaque, Raw, ShortOpaque, decode, encode},
        ds::{
            Add, CreateGroup, DeleteGroup, DsContext, DsMessage, DsRequest, DsSenderId,
            ExternalCommitInfo, GroupUpdate, PartialGroupInfo, Propose, ProtocolVersion,
            SendMessage, UpdateClientFanoutInfo, UpdateGroup, UpdateQueueInfo, WelcomeInfo,
            ds_message_tbs,
        },
        extensions::{
            GROUP_POLICY, GroupPolicy, JoinCode, KeyPackageClass, PublicKey, Signature,
            SignatureScheme, USER_KEY,
        },
        ids::{ClientUri, GroupId, KeyPackageRef, LeafIndex, RequestId, Timestamp},
        mls::{Extension, KeyPackage, MlsMessage},
    },
};

/// Past epochs whose messages can still be read: a client that caught up from a `wrong_epoch` answer reads the
/// messages in between afterwards.
pub(super) const PAST_EPOCHS_MAX: usize = 16;

/// A request before it is signed.
pub(super) struct Draft {
    pub sender: DsSenderId,
    pub request: DsRequest,
    pub signer: SigningKey,
    pub effect: Effect,
}

/// Whether a commit may change the GroupContext: it holds one GroupContextExtensions at the most, and one that is pending
/// is committed first.
fn context_is_free(group: &mls::MlsGroup, id: &GroupId) -> Result<(), CoreError> {
    let is_context = |it: &mls::QueuedProposal| {
        matches!(it.proposal(), mls::Proposal::GroupContextExtensions(_))
    };
    if group.pending_proposals().any(is_context) {
        return Err(CoreError::MustCommitFirst(id.clone()));
    }
    Ok(())
}

/// A commit and what goes with it.
struct Committed {
    commit: MlsMessage,
    welcome: Option<MlsMessage>,
    group_info: PartialGroupInfo,
}

impl Committed {
    fn update(self) -> GroupUpdate {
        GroupUpdate { commit: self.commit, group_info: self.group_info, welcome: self.welcome }
    }

    fn add(self) -> Result<Add, CoreError> {
        let welcome = self.welcome.ok_or(CoreError::NothingToDo("everyone is in the group"))?;
        Ok(Add { commit: self.commit, welcome, group_info: self.group_info })
    }
}

impl Member {
    /// The message to send for `request` now. It is built at the first call, and again where an answer made that
    /// necessary; in between it is the same request with a fresh timestamp and signature.
    ///
    /// # Errors
    /// [`CoreError::Busy`] where another request to the group has to be answered first, [`CoreError::InDoubt`],
    /// [`CoreError::MustCommitFirst`], [`CoreError::NoToken`], [`CoreError::NothingToDo`] where the group is by now
    /// as was wanted, [`CoreError::Mls`], [`CoreError::Store`]
    pub fn outbound(&self, request: RequestId, now: Timestamp) -> Result<Outbound, CoreError> {
        self.home.step(|| {
            let (key, mut pending) = self.find_pending(request)?.ok_or(CoreError::Answered)?;
            let mut record = self.record(&pending.group)?;
            if !pending.operation.comes_from_outside() && self.doubt_of(&pending.group)?.is_some() {
                return Err(CoreError::InDoubt(pending.group));
            }
            if let Some(built) = &pending.built {
                let (sender, body) = (decode(&built.sender)?, decode(&built.request)?);
                return sign(&pending, &record, sender, body, &built.signer.open()?, request, now);
            }
            if pending.info.is_none()
                && let Some(draft) = self.info_draft(&pending, &record)?
            {
                return signed_request(&pending, &record, draft, now);
            }
            if let Some((_, other)) = self.in_flight(&pending.group)? {
                return Err(CoreError::Busy(other.request));
            }
            let draft = self.draft(&mut pending, &mut record, now)?;
            pending.built = Some(Built {
                sender: encode(&draft.sender),
                request: encode(&draft.request),
                signer: StoredKey::of(&draft.signer),
                effect: draft.effect,
            });
            self.put_record(&pending.group, &record)?;
            self.home.put(Kind::Pending, &key, &pending)?;
            sign(&pending, &record, draft.sender, draft.request, &draft.signer, request, now)
        })
    }

    /// A request for the information that an operation from outside is built on.
    pub(super) fn info_draft(
        &self,
        pending: &Pending,
        record: &GroupRecord,
    ) -> Result<Option<Draft>, CoreError> {
        let group_id = pending.group.clone();
        match &pending.operation {
            Operation::Welcome { key_package_ref, epoch, .. } => {
                let signer = record.leaf_key.open()?;
                let reference = KeyPackageRef(bounded(key_package_ref.clone())?);
                Ok(Some(Draft {
                    sender: DsSenderId::KeyPackageRef(reference),
                    request: DsRequest::WelcomeInfo(WelcomeInfo {
                        group_id,
                        sender: signer.public().clone(),
                        epoch: *epoch,
                    }),
                    signer,
                    effect: Effect::Nothing,
                }))
            }
            Operation::Resync | Operation::Join { .. } | Operation::AskToJoin => {
                let leaf_key = record.leaf_key.open()?;
                let mut join_proof = None;
                if let Operation::Join { code: Some(code) } = &pending.operation {
                    join_proof = Some(self.join_proof(&group_id, *code, leaf_key.public())?);
                }
                Ok(Some(Draft {
                    sender: DsSenderId::UserKeyHash(self.identity.user_key_hash()),
                    request: DsRequest::ExternalCommitInfo(ExternalCommitInfo {
                        group_id,
                        sender: leaf_key.public().clone(),
                        credential: Raw::of(&self.identity.credential()),
                        user_key: Some(self.identity.vouch(leaf_key.public())?),
                        join_proof,
                    }),
                    signer: self.identity.user_key.clone(),
                    effect: Effect::Nothing,
                }))
            }
            Operation::CreateGroup
            | Operation::DeleteGroup
            | Operation::AddUsers { .. }
            | Operation::AddClients { .. }
            | Operation::RemoveUsers { .. }
            | Operation::RemoveClients { .. }
            | Operation::UpdateClient { .. }
            | Operation::UpdateGroup { .. }
            | Operation::Migrate { .. }
            | Operation::Propose { .. }
            | Operation::Send { .. }
            | Operation::UpdateQueueInfo
            | Operation::UpdateFanoutInfo { .. } => Ok(None),
        }
    }

    fn draft(
        &self,
        pending: &mut Pending,
        record: &mut GroupRecord,
        now: Timestamp,
    ) -> Result<Draft, CoreError> {
        let operation = pending.operation.clone();
        if operation == Operation::Resync {
            return self.resync(pending, record);
        }
        if let Operation::Join { code } = &operation {
            return self.enter(pending, record, *code);
        }
        if operation == Operation::AskToJoin {
            return self.ask_to_join(pending, record, now);
        }
        let mut group = self.load(&pending.group)?;
        if needs_staying(&operation) && leaves(&group) {
            return Err(CoreError::Leaving(pending.group.clone()));
        }
        if needs_staying(&operation) && is_being_removed(&group) {
            // whoever is removed by a commit cannot make it
            return Err(CoreError::BeingRemoved(pending.group.clone()));
        }
        let signer = record.leaf_key.open()?;
        let sender = DsSenderId::LeafIndex(LeafIndex(group.own_leaf_index().u32()));
        let draft = |request, effect| Draft { sender: sender.clone(), request, signer, effect };
        let merge = Effect::Merge { leaf_key: None };
        match operation {
            Operation::CreateGroup => {
                let request = self.create_request(pending, record, &group, now)?;
                Ok(draft(DsRequest::CreateGroup(Box::new(request)), Effect::Nothing))
            }
            Operation::DeleteGroup => {
                let roster = roster_of(&group)?;
                let me = LeafIndex(group.own_leaf_index().u32());
                let others = roster.leaves().filter(|leaf| *leaf != me).collect();
                let update = self.commit(&mut group, record, others, Change::default())?.update();
                let request = DeleteGroup { group_id: pending.group.clone(), update };
                Ok(draft(DsRequest::DeleteGroup(request), Effect::Delete))
            }
            Operation::AddUsers { key_packages } => {
                // a user who has come in by another commit adds its other clients by itself
                let is_there = |roster: &Roster, it: &LeafIdentity| roster.has_user(&it.user);
                let adds = self.newcomers(&group, &key_packages, is_there)?;
                let change = Change { adds, ..Change::default() };
                let add = self.commit(&mut group, record, Vec::new(), change)?.add()?;
                Ok(draft(DsRequest::AddUsers(add), merge))
            }
            Operation::AddClients { key_packages } => {
                let is_there =
                    |roster: &Roster, it: &LeafIdentity| roster.leaf_of(&it.client).is_some();
                let adds = self.newcomers(&group, &key_packages, is_there)?;
                let change = Change { adds, ..Change::default() };
                let add = self.commit(&mut group, record, Vec::new(), change)?.add()?;
                Ok(draft(DsRequest::AddClients(add), merge))
            }
            Operation::RemoveUsers { users } => {
                let roster = roster_of(&group)?;
                let leaves = roster
                    .iter()
                    .filter(|(_, identity)| users.contains(&identity.client.user()))
                    .map(|(leaf, _)| leaf)
                    .collect();
                let (update, by_value) = self.removal(&mut group, record, leaves)?;
                let request = if by_value {
                    DsRequest::RemoveUsers(update)
                } else {
                    DsRequest::UpdateClient(update)
                };
                Ok(draft(request, merge))
            }
            Operation::RemoveClients { clients } => {
                let roster = roster_of(&group)?;
                let leaves = clients.iter().filter_map(|client| roster.leaf_of(client)).collect();
                let (update, by_value) = self.removal(&mut group, record, leaves)?;
                let request = if by_value {
                    DsRequest::RemoveClients(update)
                } else {
                    DsRequest::UpdateClient(update)
                };
                Ok(draft(request, merge))
            }
            Operation::UpdateClient { rotate_key } => {
                let new_key = if rotate_key {
                    Some(SigningKey::generate(record.leaf_key.open()?.scheme())?)
                } else {
                    None
                };
                let leaf_key = new_key.as_ref().map(StoredKey::of);
                let change = Change { new_key, ..Change::default() };
                let update = self.commit(&mut group, record, Vec::new(), change)?.update();
                Ok(draft(DsRequest::UpdateClient(update), Effect::Merge { leaf_key }))
            }
            Operation::UpdateGroup { changes } => {
                context_is_free(&group, &pending.group)?;
                let old = policy_of(&group)?;
                let new = changed_policy(&old, &roster_of(&group)?, &changes)?;
                if new == old {
                    return Err(CoreError::NothingToDo("the policy is as wanted"));
                }
                let change = Change { policy: Some(new), ..Change::default() };
                let update = self.commit(&mut group, record, Vec::new(), change)?.update();
                Ok(draft(DsRequest::UpdateGroup(UpdateGroup { update }), merge))
            }
            Operation::Migrate { response } => {
                context_is_free(&group, &pending.group)?;
                let MoveDraft { response, sender, aad } =
                    self.move_draft(&pending.group, &group, &response, now)?;
                group.set_aad(aad);
                let change = Change { hub: Some(sender), ..Change::default() };
                let update = self.commit(&mut group, record, Vec::new(), change)?.update();
                Ok(draft(Self::move_request(record, response, update)?, merge))
            }
            Operation::Propose { proposals } => {
                let (messages, references) = self.propose(&mut group, record, &proposals)?;
                let request = Propose { proposals: list(messages)? };
                Ok(draft(DsRequest::Propose(request), Effect::Proposed { references }))
            }
            Operation::Send { content } => {
                if group.has_pending_proposals() {
                    return Err(CoreError::MustCommitFirst(pending.group.clone()));
                }
                let message = group
                    .create_message(&self.home.provider(), &record.leaf_key.open()?, &content)
                    .map_err(CoreError::mls)?;
                let request = SendMessage { application_message: Raw::of(&message) };
                Ok(draft(DsRequest::SendMessage(request), Effect::Nothing))
            }
            Operation::UpdateQueueInfo => {
                let config = self.take_token(KeyPackageClass::Group, false)?;
                let request = UpdateQueueInfo {
                    group_id: pending.group.clone(),
                    client_queue_config: config.clone(),
                };
                let effect = Effect::Queue { config, filter: None };
                Ok(draft(DsRequest::UpdateQueueInfo(request), effect))
            }
            Operation::UpdateFanoutInfo { filter } => {
                let config = self.take_token(KeyPackageClass::Group, false)?;
                let request = UpdateClientFanoutInfo {
                    group_id: pending.group.clone(),
                    sender: signer_key(record)?,
                    client_queue_config: config.clone(),
                    filter,
                };
                let effect = Effect::Queue { config, filter: Some(filter) };
                Ok(draft(DsRequest::UpdateClientFanoutInfo(request), effect))
            }
            Operation::Resync
            | Operation::Join { .. }
            | Operation::AskToJoin
            | Operation::Welcome { .. } => {
                Err(CoreError::Invalid("a Welcome is taken up and not sent"))
            }
        }
    }

    /// Makes a group of one member here. The hub does not know of it before the request is accepted.
    pub(super) fn make_group(
        &self,
        id: &GroupId,
        hub: &Hub,
        new: &NewGroup,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        let key = self.identity.leaf_key(new.suite)?;
        let policy = new
            .policy
            .clone()
            .unwrap_or_else(|| policy::default_policy(&self.identity.user_key_hash()));
        policy::check_form(&policy).map_err(CoreError::mls)?;
        let context = group_context(hub, &policy)?;
        mls::MlsGroup::builder()
            .with_group_id(mls::GroupId::from_slice(id.as_bytes()))
            .ciphersuite(new.suite)
            .with_wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
            .use_ratchet_tree_extension(false)
            .set_past_epoch_deletion_policy(PastEpochDeletionPolicy::MaxEpochs(PAST_EPOCHS_MAX))
            .with_group_context_extensions(context)
            .with_capabilities(capabilities())
            .with_leaf_node_extensions(self.identity.leaf_extensions(key)?)
            .map_err(CoreError::mls)?
            .build(&self.home.provider(), key, self.identity.credential_with_key(key))
            .map_err(CoreError::mls)?;
        let record = GroupRecord {
            hub: hub.domain.clone(),
            name: new.name.clone(),
            state: GroupState::Joining,
            leaf_key: StoredKey::of(key),
            feed: None,
            past_feed: None,
            entered_at: None,
            entered_epoch: None,
            read_epoch: None,
            queue: None,
            filter: crate::wire::ds::FanoutFilter::All,
            joined_at: now,
            proofs: Vec::new(),
            places: Vec::new(),
            welcome: None,
            left: None,
            resyncs: Vec::new(),
            behind: Vec::new(),
        };
        self.put_record(id, &record)
    }

    fn create_request(
        &self,
        pending: &Pending,
        record: &mut GroupRecord,
        group: &mls::MlsGroup,
        now: Timestamp,
    ) -> Result<CreateGroup, CoreError> {
        let config = self.take_token(KeyPackageClass::Group, false)?;
        let queue = identity::queue_of(KeyPackageClass::Group, config.clone());
        let key_package =
            self.identity.key_package(&self.home, group.ciphersuite(), queue, false, now)?;
        // nobody is to add this client by it: its private keys are not kept
        let reference = key_package.hash_ref(self.home.crypto()).map_err(CoreError::mls)?;
        openmls_traits::storage::StorageProvider::delete_key_package(
            self.home.provider().storage(),
            &reference,
        )?;
        record.queue = Some(config.clone());
        let signer = record.leaf_key.open()?;
        let message =
            group.export_group_info(self.home.crypto(), &signer, false).map_err(CoreError::mls)?;
        let bytes = message.tls_serialize_detached().map_err(CoreError::mls)?;
        Ok(CreateGroup {
            group_id: pending.group.clone(),
            key_package: KeyPackage::of(&key_package),
            client_queue_config: config,
            group_info: Raw::new(&bytes[MLS_MESSAGE_HEADER_LEN..])?,
            ratchet_tree: Raw::of(&group.export_ratchet_tree()),
        })
    }

    /// A commit of everything that is pending, of `removed` as far as it is not pending, and of `change`.
    fn commit(
        &self,
        group: &mut mls::MlsGroup,
        record: &GroupRecord,
        removed: Vec<LeafIndex>,
        change: Change,
    ) -> Result<Committed, CoreError> {
        let provider = self.home.provider();
        let me = group.own_leaf_index();
        group.clear_pending_commit(provider.storage())?;
        let leaving: Vec<LeafIndex> =
            group.pending_proposals().filter_map(leaf_taken_out).collect();
        let removals: Vec<mls::LeafNodeIndex> = removed
            .into_iter()
            .filter(|leaf| !leaving.contains(leaf))
            .map(|leaf| mls::LeafNodeIndex::new(leaf.0))
            .collect();
        let only_adds = !change.adds.is_empty()
            && group.pending_proposals().all(|it| matches!(it.proposal(), mls::Proposal::Add(_)));
        let signer = record.leaf_key.open()?;
        let mut extensions = None;
        let policy = change.policy.map(|policy| unknown(GROUP_POLICY, encode(&policy)));
        let hub = change.hub.map(|sender| mls::Extension::ExternalSenders(vec![sender]));
        if let Some(replaced) = policy.or(hub) {
            let mut new = group.extensions().clone();
            new.add_or_replace(replaced).map_err(CoreError::mls)?;
            extensions = Some(new);
        }
        let suite = group.ciphersuite();
        let mut builder = group
            .commit_builder()
            .consume_proposal_store(true)
            .force_self_update(!only_adds)
            .propose_adds(change.adds)
            .propose_removals(removals);
        if let Some(extensions) = extensions {
            builder =
                builder.propose_group_context_extensions(extensions).map_err(CoreError::mls)?;
        }
        if let Some(key) = &change.new_key {
            builder = builder.leaf_node_parameters(
                mls::LeafNodeParameters::builder()
                    .with_capabilities(capabilities())
                    .with_extensions(self.identity.leaf_extensions(key)?)
                    .build(),
            );
        }
        let builder = builder
            .load_psks(provider.storage())
            .map_err(CoreError::mls)?
            .create_group_info(true)
            .use_ratchet_tree_extension(false);
        // this client's own Update is replaced by the path; an Add that came too late the hub has voided
        let committable = |it: &mls::QueuedProposal| {
            let mine = *it.sender() == mls::Sender::Member(me);
            if let mls::Proposal::Add(add) = it.proposal() {
                return add.key_package().life_time().validate().is_ok();
            }
            !(mine && matches!(it.proposal(), mls::Proposal::Update(_)))
        };
        #[cfg(not(test))]
        let crypto = provider.crypto();
        #[cfg(test)]
        let crypto = &self.crypto_of_commits();
        let builder = match &change.new_key {
            None => builder.build(provider.rand(), crypto, &signer, committable),
            Some(key) => builder.build_with_new_signer(
                provider.rand(),
                crypto,
                &signer,
                mls::NewSignerBundle {
                    signer: key,
                    credential_with_key: self.identity.credential_with_key(key),
                },
                committable,
            ),
        }
        .map_err(CoreError::mls)?;
        let bundle = builder.stage_commit(&provider).map_err(CoreError::mls)?;
        let (commit, welcome, group_info) = bundle.into_messages();
        let group_info = group_info.ok_or(CoreError::Invalid("openmls made no GroupInfo"))?;
        let (commit, partial) = (Raw::of(&commit), partial(&group_info, suite)?);
        #[cfg(test)]
        let (commit, partial) = {
            let signer = change.new_key.as_ref().unwrap_or(&signer);
            self.as_told(commit, partial, (&group_info, signer))?
        };
        Ok(Committed { commit, welcome: welcome.as_ref().map(Raw::of), group_info: partial })
    }

    /// A commit that removes `leaves`, and whether any of them is removed by value.
    fn removal(
        &self,
        group: &mut mls::MlsGroup,
        record: &GroupRecord,
        leaves: Vec<LeafIndex>,
    ) -> Result<(GroupUpdate, bool), CoreError> {
        if leaves.is_empty() {
            return Err(CoreError::NothingToDo("none of them is in the group"));
        }
        let leaving: Vec<LeafIndex> =
            group.pending_proposals().filter_map(leaf_taken_out).collect();
        let by_value = leaves.iter().any(|leaf| !leaving.contains(leaf));
        Ok((self.commit(group, record, leaves, Change::default())?.update(), by_value))
    }

    /// Those of `key_packages` who are not in the group, by `is_there`, and whose clients are not about to be.
    fn newcomers(
        &self,
        group: &mls::MlsGroup,
        key_packages: &[Vec<u8>],
        is_there: impl Fn(&Roster, &LeafIdentity) -> bool,
    ) -> Result<Vec<mls::KeyPackage>, CoreError> {
        let roster = roster_of(group)?;
        let added: Vec<ClientUri> = group.pending_proposals().filter_map(client_added).collect();
        let mut found = Vec::new();
        for bytes in key_packages {
            let key_package = self.open_key_package(bytes)?;
            let identity =
                policy::leaf::trusted(key_package.leaf_node()).map_err(CoreError::mls)?;
            if !is_there(&roster, &identity) && !added.contains(&identity.client) {
                found.push(key_package);
            }
        }
        if found.is_empty() {
            return Err(CoreError::NothingToDo("everyone is in the group"));
        }
        Ok(found)
    }

    pub(super) fn open_key_package(&self, bytes: &[u8]) -> Result<mls::KeyPackage, CoreError> {
        let key_package = decode::<mls::KeyPackageIn>(bytes)?
            .validate(self.home.crypto(), mls::ProtocolVersion::Mls10)
            .map_err(CoreError::mls)?;
        check_key_package(key_package.ciphersuite(), &key_package).map_err(CoreError::mls)?;
        Ok(key_package)
    }

    fn propose(
        &self,
        group: &mut mls::MlsGroup,
        record: &GroupRecord,
        proposals: &[NewProposal],
    ) -> Result<(Vec<MlsMessage>, Vec<Vec<u8>>), CoreError> {
        let provider = self.home.provider();
        let signer = record.leaf_key.open()?;
        let roster = roster_of(group)?;
        let known: Vec<Vec<u8>> = references(group);
        let mut messages = Vec::new();
        for proposal in proposals {
            let message = match proposal {
                NewProposal::Leave => {
                    group.leave_group_via_self_remove(&provider, &signer).map_err(CoreError::mls)?
                }
                NewProposal::Update => {
                    group
                        .propose_self_update(&provider, &signer, mls::LeafNodeParameters::default())
                        .map_err(CoreError::mls)?
                        .0
                }
                NewProposal::Remove(client) => {
                    let leaf = roster
                        .leaf_of(client)
                        .ok_or_else(|| CoreError::NotAMember(client.to_string()))?;
                    group
                        .propose_remove_member(&provider, &signer, mls::LeafNodeIndex::new(leaf.0))
                        .map_err(CoreError::mls)?
                        .0
                }
                NewProposal::Add(key_package) => {
                    let key_package = self.open_key_package(key_package)?;
                    group
                        .propose_add_member(&provider, &signer, &key_package)
                        .map_err(CoreError::mls)?
                        .0
                }
            };
            messages.push(Raw::of(&message));
        }
        let new = references(group).into_iter().filter(|it| !known.contains(it)).collect();
        Ok((messages, new))
    }
}

/// What a commit brings by value beside removals. The policy and the hub change each in a commit of its own.
#[derive(Default)]
struct Change {
    adds: Vec<mls::KeyPackage>,
    policy: Option<GroupPolicy>,
    hub: Option<mls::ExternalSender>,
    new_key: Option<SigningKey>,
}

/// The version and wire format before an MLSMessage's body.
const MLS_MESSAGE_HEADER_LEN: usize = 4;

fn sign(
    pending: &Pending,
    record: &GroupRecord,
    sender_id: DsSenderId,
    request: DsRequest,
    signer: &SigningKey,
    request_id: RequestId,
    now: Timestamp,
) -> Result<Outbound, CoreError> {
    let hub = pending.hub(record).clone();
    let context = DsContext {
        version: ProtocolVersion::MIMI10,
        hub_domain: hub.clone(),
        group_id: pending.group.clone(),
        timestamp: now,
        request_id,
    };
    let tbs = ds_message_tbs(&sender_id, &request, &context);
    let signature = signer.sign_with_label("DSMessageTBS", &tbs)?;
    let signature = ShortOpaque::new(signature.as_slice())
        .map_err(|_| CoreError::Invalid("the signature is too long"))?;
    Ok(Outbound {
        request: pending.request,
        hub,
        message: DsMessage { sender_id, request, signature, context },
    })
}

/// A request that only reads: each try is one of its own, and nothing of it needs to be kept.
pub(super) fn signed_request(
    pending: &Pending,
    record: &GroupRecord,
    draft: Draft,
    now: Timestamp,
) -> Result<Outbound, CoreError> {
    let read = RequestId(crypto::random());
    sign(pending, record, draft.sender, draft.request, &draft.signer, read, now)
}

/// What a new group at `hub` agrees on.
pub(crate) fn group_context(
    hub: &Hub,
    policy: &GroupPolicy,
) -> Result<mls::Extensions<mls::GroupContext>, CoreError> {
    let hub_credential = mls::BasicCredential::new(hub.domain.as_str().as_bytes().to_vec());
    mls::Extensions::from_vec(vec![
        mls::Extension::RequiredCapabilities(mls::RequiredCapabilitiesExtension::new(
            &[mls::ExtensionType::Unknown(USER_KEY), mls::ExtensionType::Unknown(GROUP_POLICY)],
            &[mls::ProposalType::SelfRemove],
            &[],
        )),
        mls::Extension::ExternalSenders(vec![mls::ExternalSender::new(
            hub.external_sender.as_slice().into(),
            hub_credential.into(),
        )]),
        unknown(GROUP_POLICY, encode(policy)),
    ])
    .map_err(CoreError::mls)
}

/// The part of a GroupInfo that its epoch's state does not say: extensions and signature.
pub(crate) fn partial(
    message: &mls::MlsMessageOut,
    suite: mls::Ciphersuite,
) -> Result<PartialGroupInfo, CoreError> {
    let bytes = message.tls_serialize_detached().map_err(CoreError::mls)?;
    let parts = GroupInfoParts::of_message(&bytes)?;
    if parts.suite != suite {
        return Err(CoreError::Invalid("openmls made a GroupInfo of another form"));
    }
    Ok(PartialGroupInfo { group_info_extensions: parts.extensions, signature: parts.signature })
}

/// What a GroupInfo is made of.
pub(super) struct GroupInfoParts<'a> {
    suite: mls::Ciphersuite,
    pub context: &'a [u8],
    pub extensions: List<Extension, 1024>,
    pub tag: Opaque<255>,
    pub signer: u32,
    /// All that the signature is over.
    pub signed: &'a [u8],
    pub signature: Signature,
}

impl<'a> GroupInfoParts<'a> {
    /// Of an encoded `MLSMessage`.
    pub fn of_message(bytes: &'a [u8]) -> Result<Self, CoreError> {
        Self::of(bytes.get(MLS_MESSAGE_HEADER_LEN..).unwrap_or_default())
    }

    /// Of an encoded `GroupInfo`.
    pub fn of(body: &'a [u8]) -> Result<Self, CoreError> {
        let info: openmls::messages::group_info::VerifiableGroupInfo = decode(body)?;
        let context = info.group_context().tls_serialize_detached().map_err(CoreError::mls)?.len();
        // GroupContext, extensions<V>, confirmation_tag<V>, uint32 signer, signature<V>
        let (context, rest) =
            body.split_at_checked(context).ok_or(CoreError::Invalid("the GroupInfo is cut off"))?;
        let (extensions, rest): (List<Extension, 1024>, _) = read(rest)?;
        let (tag, rest): (Opaque<255>, _) = read(rest)?;
        let (signer, rest): (u32, _) = read(rest)?;
        let signed = &body[..body.len() - rest.len()];
        let (signature, rest): (Signature, _) = read(rest)?;
        if !rest.is_empty() {
            return Err(CoreError::Invalid("something stands behind the GroupInfo"));
        }
        let suite = info.ciphersuite();
        Ok(Self { suite, context, extensions, tag, signer, signed, signature })
    }
}

fn read<T: tls_codec::DeserializeBytes>(bytes: &[u8]) -> Result<(T, &[u8]), CoreError> {
    T::tls_deserialize_bytes(bytes).map_err(CoreError::mls)
}

fn signer_key(record: &GroupRecord) -> Result<PublicKey, CoreError> {
    Ok(record.leaf_key.open()?.public().clone())
}

fn leaf_taken_out(proposal: &mls::QueuedProposal) -> Option<LeafIndex> {
    if let mls::Proposal::Remove(remove) = proposal.proposal() {
        return Some(LeafIndex(remove.removed().u32()));
    }
    if let (mls::Proposal::SelfRemove, mls::Sender::Member(leaf)) =
        (proposal.proposal(), proposal.sender())
    {
        return Some(LeafIndex(leaf.u32()));
    }
    None
}

/// Whether this client has proposed to leave: it can commit nothing then.
pub(super) fn leaves(group: &mls::MlsGroup) -> bool {
    let me = group.own_leaf_index();
    group.pending_proposals().any(|it| {
        matches!(it.proposal(), mls::Proposal::SelfRemove)
            && *it.sender() == mls::Sender::Member(me)
    })
}

/// Whether the hub has proposed to remove this client.
pub(super) fn is_being_removed(group: &mls::MlsGroup) -> bool {
    let me = group.own_leaf_index();
    group.pending_proposals().any(|it| {
        matches!(it.proposal(), mls::Proposal::Remove(remove) if remove.removed() == me)
            && matches!(it.sender(), mls::Sender::External(_))
    })
}

/// Whether an operation is a commit or needs one before it.
fn needs_staying(operation: &Operation) -> bool {
    match operation {
        Operation::DeleteGroup
        | Operation::AddUsers { .. }
        | Operation::AddClients { .. }
        | Operation::RemoveUsers { .. }
        | Operation::RemoveClients { .. }
        | Operation::UpdateClient { .. }
        | Operation::UpdateGroup { .. }
        | Operation::Migrate { .. }
        | Operation::Send { .. } => true,
        Operation::CreateGroup
        | Operation::Propose { .. }
        | Operation::UpdateQueueInfo
        | Operation::UpdateFanoutInfo { .. }
        | Operation::Resync
        | Operation::Join { .. }
        | Operation::AskToJoin
        | Operation::Welcome { .. } => false,
    }
}

fn client_added(proposal: &mls::QueuedProposal) -> Option<ClientUri> {
    let mls::Proposal::Add(add) = proposal.proposal() else { return None };
    policy::leaf::client_of(add.key_package().leaf_node().credential()).ok()
}

pub(super) fn references(group: &mls::MlsGroup) -> Vec<Vec<u8>> {
    group.pending_proposals().map(|it| it.proposal_reference_ref().as_slice().to_vec()).collect()
}

fn changed_policy(
    old: &GroupPolicy,
    roster: &Roster,
    changes: &[PolicyChange],
) -> Result<GroupPolicy, CoreError> {
    let mut policy = old.clone();
    for change in changes {
        match change {
            PolicyChange::Role { user, role } => {
                let hash = roster
                    .iter()
                    .find(|(_, identity)| identity.client.user() == *user)
                    .map(|(_, identity)| identity.user.clone())
                    .ok_or_else(|| CoreError::NotAMember(user.to_string()))?;
                policy::set_role(&mut policy, &hash, *role).map_err(CoreError::mls)?;
            }
            PolicyChange::Join(join) => policy.join = *join,
            PolicyChange::AddCode { public, expires_at } => {
                let code = JoinCode {
                    scheme: SignatureScheme::ED25519,
                    public_key: bounded(public.clone())?,
                    expires_at: *expires_at,
                };
                let mut codes = policy.codes.to_vec();
                codes.push(code);
                policy.codes = list(codes)?;
            }
            PolicyChange::RemoveCode { public } => {
                let mut codes = policy.codes.to_vec();
                codes.retain(|code| code.public_key.as_slice() != public);
                policy.codes = list(codes)?;
            }
            PolicyChange::May { what, role } => {
                let right = match what {
                    Right::Add => &mut policy.may_add,
                    Right::Remove => &mut policy.may_remove,
                    Right::Update => &mut policy.may_update,
                    Right::Delete => &mut policy.may_delete,
                    Right::Migrate => &mut policy.may_migrate,
                    Right::Send => &mut policy.may_send,
                };
                *right = *role;
            }
            PolicyChange::MembersMax(max) => policy.members_max = *max,
        }
    }
    policy::check_form(&policy).map_err(CoreError::mls)?;
    Ok(policy)
}

pub(super) fn bounded<const MAX: usize, const MIN: usize>(
    bytes: Vec<u8>,
) -> Result<Opaque<MAX, MIN>, CoreError> {
    Opaque::new(bytes).map_err(|_| CoreError::Invalid("a value is too long"))
}

pub(super) fn list<T: tls_codec::Size, const MAX: usize, const COUNT: usize>(
    items: Vec<T>,
) -> Result<List<T, MAX, COUNT>, CoreError> {
    List::new(items).map_err(|_| CoreError::Invalid("a request is too large"))
}
