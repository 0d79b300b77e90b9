//! What of a group moves to another provider: judged and packed where it leaves, exported, and judged where it comes.
//! PROTOCOL.md §6; PO.
//!
//! The Commit that moves a group is judged on the state before it and merged into a copy: the group itself stays as it
//! was, for where it does not leave. Deliberately absent: who may do what next (`migration`), and the reading of logs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use openmls::prelude::{ExtensionType, StagedCommit};
use serde::{Deserialize, Serialize};

use crate::{
    migration::proof,
    policy::leaf::{identify, scheme_of},
    store::records::{InboxItem, LogRecord, RequestKey},
    wire::{
        codec::{List, decode, encode},
        ds::{Info, StartMigration},
        ids::{ClientUri, Domain, Epoch, GroupId, LeafIndex, RecipientId, Sequence, Timestamp},
        mls::{ExternalSender, MlsMessage},
        portability::{
            AcceptedState, Chain, JoinerState, MemberState, MigratedState, MigrationInit,
            MigrationResponse,
        },
        queueing::{DeliveryItem, QueueEvent, RosterChange},
    },
};

use super::{
    Bind, Effects, GroupState, Hub, Outbound, Reject, Staged,
    hub::check_group,
    memory::RequestMemory,
    mls::{InfoParts, MlsProblem, Tree, from_record, info_parts, to_record},
    record::{Joiner, Member, Remembered},
};

/// A frozen group: what the Commit that moves it will do, and the group behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    pub request: RequestKey,
    /// TLS encodings of the MigrationInit and of the Commit.
    init: Vec<u8>,
    commit: Vec<u8>,
    pub records: Vec<LogRecord>,
    pub inbox: Vec<(ClientUri, Sequence, InboxItem)>,
    outbound: Vec<PackedOutbound>,
    /// A snapshot of the group behind the Commit.
    state: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PackedOutbound {
    peer: Domain,
    sequence: Sequence,
    opens: bool,
    changes: Vec<Vec<u8>>,
}

impl Parcel {
    /// # Errors
    /// [`Reject::Broken`]
    pub fn to_bytes(&self) -> Result<Vec<u8>, Reject> {
        to_record(self).map_err(super::broken)
    }

    /// # Errors
    /// [`Reject::Broken`]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Reject> {
        from_record(bytes).map_err(super::broken)
    }

    /// What the Commit leaves to be written and told, once the target has the group.
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn effects(&self) -> Result<Effects, Reject> {
        let mut outbound = Vec::with_capacity(self.outbound.len());
        for packed in &self.outbound {
            let changes: Result<Vec<RosterChange>, _> =
                packed.changes.iter().map(|change| decode(change)).collect();
            outbound.push(Outbound {
                peer: packed.peer.clone(),
                sequence: packed.sequence,
                opens: packed.opens,
                changes: changes.map_err(|error| Reject::Broken(error.to_string()))?,
            });
        }
        Ok(Effects {
            records: self.records.clone(),
            inbox: self.inbox.clone(),
            outbound,
            committed: true,
            ..Effects::default()
        })
    }

    /// The group behind the Commit.
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn state(&self, hub: &Arc<Hub>, id: &GroupId) -> Result<GroupState, Reject> {
        GroupState::load(Arc::clone(hub), id.clone(), &self.state)
    }
}

impl GroupState {
    /// Whether the initiator's word and the target's are such that the group may leave. PROTOCOL.md §6, step 2.
    pub(super) fn may_start_migration(
        &self,
        leaf: LeafIndex,
        init: &MigrationInit,
        now: Timestamp,
    ) -> Result<(), Reject> {
        let response = &init.migration_response;
        let request = &response.migration_request;
        let own = &self.hub.settings.hub;
        let bad = |why: &str| Reject::NotAuthorized(format!("the target's response {why}"));
        if request.source_domain_name != *own || request.group_id != self.id {
            return Err(bad("is about another group or source; ask the target anew"));
        }
        if request.target_domain_name == *own {
            return Err(bad("names this provider: the group is here already"));
        }
        if request.ciphersuite != u16::from(self.tree.ciphersuite()) {
            return Err(bad("is about another ciphersuite; ask the target anew"));
        }
        if request.epoch != self.epoch() {
            // the Commit is as old: its own check shows what was missed
            return self.is_current(request.epoch, true);
        }
        if response.expires_at <= now {
            return Err(bad("has expired; ask the target anew"));
        }
        let scheme = self.tree.scheme();
        proof::check_response(scheme, response)
            .map_err(|problem| bad(&format!("proves nothing: {problem}")))?;
        let key = self.roster.get(leaf).map(|identity| identity.signature_key.clone());
        proof::check_init(scheme, &key.unwrap_or_default(), init)
            .map_err(|_| Reject::Unauthenticated("the MigrationInit is not the sender's"))
    }

    /// Check 10 of start_migration: the Commit names the target in its AAD and puts its external sender into the place of
    /// this hub's; nothing else changes.
    pub(super) fn moves_to_target(
        &self,
        leaf: Option<LeafIndex>,
        response: &MigrationResponse,
        staged: &StagedCommit,
        aad: &[u8],
    ) -> Result<(), Reject> {
        let bad = |why: &str| Reject::InvalidCommit(why.to_owned());
        if !proof::names_target(aad, &response.migration_request.target_domain_name) {
            return Err(bad("the Commit's authenticated_data must be the MigrationCommitAAD"));
        }
        let after = staged.group_context().extensions();
        let senders = after.external_senders().map(Vec::as_slice).unwrap_or_default();
        let is_target = |sender| ExternalSender::of(sender) == response.target_sender;
        if !matches!(senders, [sender] if is_target(sender)) {
            return Err(bad("external_senders must become the response's target_sender alone"));
        }
        let others = |extensions: &openmls::prelude::Extensions<_>| -> BTreeSet<Vec<u8>> {
            let rest = extensions.iter();
            let rest = rest.filter(|it| it.extension_type() != ExtensionType::ExternalSenders);
            rest.map(encode).collect()
        };
        if others(after) != others(self.tree.context().extensions()) {
            return Err(bad("a Commit that moves the group changes nothing but the hub"));
        }
        let key = leaf.and_then(|leaf| self.roster.get(leaf)).map(|it| &it.signature_key);
        let path = staged.update_path_leaf_node().map(|node| node.signature_key().as_slice());
        if path != key.map(Vec::as_slice) {
            return Err(bad("a Commit that moves the group keeps the sender's signature key"));
        }
        Ok(())
    }

    /// Packs the group as it will be behind the Commit that [`GroupState::stage`] decided on. This state stays as it is.
    /// O(members).
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn pack(
        &self,
        staged: Staged,
        start: &StartMigration,
        request: RequestKey,
    ) -> Result<Parcel, Reject> {
        let mut after = Self::load(Arc::clone(&self.hub), self.id.clone(), &self.snapshot()?)?;
        let effects = after.merge(staged)?;
        let outbound = effects.outbound.iter().map(|owed| PackedOutbound {
            peer: owed.peer.clone(),
            sequence: owed.sequence,
            opens: owed.opens,
            changes: owed.changes.iter().map(encode).collect(),
        });
        Ok(Parcel {
            request,
            init: encode(&start.init),
            commit: encode(&start.update.commit),
            outbound: outbound.collect(),
            records: effects.records,
            inbox: effects.inbox,
            state: after.snapshot()?,
        })
    }

    /// What a request is remembered by.
    #[must_use]
    pub fn key_of(message: &crate::wire::ds::DsMessage) -> RequestKey {
        Self::request_key(message)
    }

    /// Exports the group for its next hub; `self` is the state behind the Commit ([`Parcel::state`]), and `infos` are of
    /// the epochs before that joiners wait in.
    ///
    /// # Errors
    /// [`Reject::Broken`]; [`Reject::TooLarge`] where the group is more than one content can hold.
    pub fn export(
        &self,
        parcel: &Parcel,
        infos: Vec<Info>,
        tail: Vec<DeliveryItem>,
        chain: Chain,
    ) -> Result<MigratedState, Reject> {
        let broken = |error: &dyn std::fmt::Display| Reject::Broken(error.to_string());
        let limit = crate::wire::portability::GROUP_STATE_BYTES_MAX;
        let large = |_| Reject::TooLarge { what: "the group with what moves beside it", limit };
        let members = self.members.iter().map(|(leaf, member)| MemberState {
            leaf_index: *leaf,
            recipient: member.recipient,
            config: member.config.clone(),
            filter: member.filter,
            queue_timestamp: member.queue_timestamp,
            last_active: member.last_active,
            since: member.since,
        });
        let joiners = self.joiners.iter().map(|(reference, joiner)| JoinerState {
            key_package_ref: reference.clone(),
            leaf_index: joiner.leaf,
            epoch: joiner.epoch,
            not_after: joiner.not_after,
        });
        let mut accepted = Vec::new();
        for remembered in self.remembered.to_list() {
            accepted.push(AcceptedState {
                sender_id: decode(&remembered.request.sender).map_err(|error| broken(&error))?,
                request_id: remembered.request.request_id,
                accepted: remembered.accepted,
                commit: u8::from(remembered.commit),
            });
        }
        let Info { group_info, ratchet_tree, .. } = self.info()?;
        Ok(MigratedState {
            init: decode(&parcel.init).map_err(|error| broken(&error))?,
            commit: decode(&parcel.commit).map_err(|error| broken(&error))?,
            group_info,
            ratchet_tree,
            // group_moved is the source's last
            next_sequence: self.next_sequence.next(),
            next_recipient: self.next_recipient,
            members: List::new(members.collect()).map_err(large)?,
            joiners: List::new(joiners.collect()).map_err(large)?,
            joiner_infos: List::new(infos).map_err(large)?,
            accepted: List::new(accepted).map_err(large)?,
            tail: List::new(tail).map_err(large)?,
            chain,
        })
    }
}

/// A group that may come in.
#[derive(Debug)]
pub struct Arrived {
    pub state: GroupState,
    /// Of earlier epochs that joiners wait in.
    pub infos: Vec<(Epoch, Vec<u8>)>,
    /// Queues of this provider's own clients.
    pub binds: Vec<Bind>,
}

/// Judges a group that comes from another provider: as an import, and by the word of its initiator, whose GroupInfo names
/// this hub. PROTOCOL.md §6, step 3. `response` is this provider's own, its signature checked.
///
/// # Errors
/// [`Reject`] with what is wrong.
pub fn judge_arrival(
    hub: &Arc<Hub>,
    response: &MigrationResponse,
    moved: &MigratedState,
    now: Timestamp,
) -> Result<Arrived, Reject> {
    let invalid = |problem: MlsProblem| Reject::InvalidGroupInfo(problem.to_string());
    let wrong = |why: &str| Reject::InvalidGroupInfo(why.to_owned());
    let request = &response.migration_request;
    let id = &request.group_id;
    if moved.init.migration_response != *response {
        return Err(wrong("the MigrationInit is about another response"));
    }
    let info = info_parts(&moved.group_info).map_err(invalid)?;
    // validated whole, the GroupInfo's signature included, but for the lifetimes of leaves
    let tree = Tree::import(&moved.ratchet_tree, &moved.group_info).map_err(invalid)?;
    if tree.context().group_id().as_slice() != id.as_bytes() {
        return Err(wrong("the GroupInfo is of another group"));
    }
    if u16::from(tree.ciphersuite()) != request.ciphersuite {
        return Err(wrong("the group has another ciphersuite than was asked for"));
    }
    if tree.epoch() != request.epoch.next() {
        return Err(wrong("the group is not in the epoch behind the one that was asked for"));
    }
    if moved.next_sequence >= Sequence::END || moved.next_recipient.0 >= Sequence::END.0 {
        return Err(wrong("its numbers go beyond what any group has"));
    }
    let policy = check_group(hub, &tree, now)?;
    let initiator = tree.leaf(info.signer).ok_or_else(|| wrong("its committer is not in it"))?;
    proof::check_init(tree.scheme(), initiator.signature_key().as_slice(), &moved.init)
        .map_err(|problem| wrong(&problem.to_string()))?;
    check_commit(&moved.commit, &tree, &info, request.epoch, &hub.settings.hub)?;

    let mut kept: BTreeMap<LeafIndex, &MemberState> = BTreeMap::new();
    let mut recipients = BTreeSet::new();
    for member in moved.members.iter() {
        let fresh = recipients.insert(member.recipient)
            && member.recipient < moved.next_recipient
            && member.since < moved.next_sequence;
        if kept.insert(member.leaf_index, member).is_some() || !fresh {
            return Err(wrong("two members share a leaf or a number, or one is from the future"));
        }
    }
    let committer = kept.get(&info.signer).map(|member| member.recipient);
    check_tail(moved, id, request.epoch, committer)?;
    let (mut members, mut binds) = (BTreeMap::new(), Vec::new());
    for (leaf, node) in tree.leaves() {
        let identity = identify(node, &policy.credential_types)
            .map_err(|problem| Reject::InvalidGroupInfo(problem.to_string()))?;
        let member = kept.remove(&leaf).ok_or_else(|| wrong("a leaf has no member"))?;
        if member.config.domain != identity.client.domain() {
            return Err(wrong("a member's queue is not at its own provider"));
        }
        if member.config.domain == hub.settings.hub {
            binds.push(Bind {
                client: identity.client.clone(),
                user: identity.user.clone(),
                config: member.config.clone(),
                key_package: None,
                // who has no good queue comes in and is proposed for removal
                pending: true,
            });
        }
        let member = Member {
            recipient: member.recipient,
            client: identity.client,
            config: member.config.clone(),
            filter: member.filter,
            queue_timestamp: member.queue_timestamp.min(now),
            last_active: member.last_active.min(now),
            since: member.since,
        };
        members.insert(leaf, member);
    }
    if !kept.is_empty() {
        return Err(wrong("a member has no leaf"));
    }
    if members.len() > hub.settings.members_max {
        return Err(Reject::TooMany { what: "members", limit: hub.settings.members_max });
    }
    let infos = infos_of(moved, &tree)?;
    let joiners = joiners_of(moved, &tree, &infos)?;
    let next = moved.next_sequence;
    let remembered: Vec<Remembered> = moved
        .accepted
        .iter()
        .filter(|it| it.accepted.group_sequence < next && it.accepted.epoch <= tree.epoch())
        .map(|it| Remembered {
            request: RequestKey { sender: encode(&it.sender_id), request_id: it.request_id },
            accepted: it.accepted,
            commit: it.commit == 1,
        })
        .collect();
    let mut state = GroupState::found(hub, id.clone(), tree, info, Vec::new(), now)?;
    state.guests = super::guests::guests_of(hub, members.values());
    state.members = members;
    state.joining = joiners.iter().map(|(reference, it)| (it.leaf, reference.clone())).collect();
    state.joiners = joiners;
    state.remembered = RequestMemory::of(remembered);
    state.next_sequence = next;
    state.next_recipient = moved.next_recipient;
    Ok(Arrived { state, infos, binds })
}

/// The Commit that came with the group is the one that made this epoch.
fn check_commit(
    commit: &MlsMessage,
    tree: &Tree,
    info: &InfoParts,
    epoch: Epoch,
    own: &Domain,
) -> Result<(), Reject> {
    let wrong = |why: &str| Reject::InvalidCommit(why.to_owned());
    let head = proof::commit_head(commit).map_err(|problem| wrong(&problem.to_string()))?;
    let id = tree.context().group_id().as_slice();
    if head.group != id || head.epoch != epoch || head.sender != info.signer {
        return Err(wrong("the Commit is of another group, epoch or sender than the GroupInfo"));
    }
    if !proof::names_target(&head.aad, own) {
        return Err(wrong("the Commit does not name this provider as the target"));
    }
    let parsed = commit.parse().map_err(|error| Reject::Malformed(error.to_string()))?;
    let openmls::prelude::MlsMessageBodyIn::PublicMessage(public) = parsed.extract() else {
        return Err(wrong("the Commit is no PublicMessage"));
    };
    if super::mls::confirmation_tag(&public)? != *tree.confirmation_tag() {
        return Err(wrong("the Commit did not make the epoch that the GroupInfo is of"));
    }
    Ok(())
}

/// What this provider's own clients are still to get of the feed ends with the Commit that came with the group, or before it,
/// and holds no other of its epoch: they see none but the one that the group was built from. `committer`: who may be left out.
fn check_tail(
    moved: &MigratedState,
    id: &GroupId,
    epoch: Epoch,
    committer: Option<RecipientId>,
) -> Result<(), Reject> {
    let wrong = |why: &str| Reject::InvalidCommit(format!("the feed that came with it {why}"));
    // group_moved is the source's last
    let commit_at = Sequence(moved.next_sequence.0.saturating_sub(2));
    let void = moved.tail.iter().filter_map(|item| match item {
        DeliveryItem::Feed { event: QueueEvent::EpochVoid { group_sequence, .. }, .. } => {
            Some(*group_sequence)
        }
        DeliveryItem::Feed { .. } | DeliveryItem::Snapshot { .. } | DeliveryItem::Direct { .. } => {
            None
        }
    });
    let void: BTreeSet<Sequence> = void.collect();
    for item in moved.tail.iter() {
        let (sequence, except, event) = match item {
            DeliveryItem::Feed { group_id, group_sequence, except, event, .. }
                if group_id == id =>
            {
                (*group_sequence, except, event)
            }
            DeliveryItem::Snapshot { group_id, next_sequence, .. } if group_id == id => {
                if *next_sequence > commit_at.next() {
                    return Err(wrong("goes on behind the Commit"));
                }
                continue;
            }
            DeliveryItem::Feed { .. }
            | DeliveryItem::Snapshot { .. }
            | DeliveryItem::Direct { .. } => return Err(wrong("is not of it")),
        };
        if sequence > commit_at {
            return Err(wrong("goes on behind the Commit"));
        }
        if *event == QueueEvent::GroupDeleted {
            return Err(wrong("says that it has ended"));
        }
        let QueueEvent::MlsMessage { message } = event else {
            if sequence == commit_at {
                return Err(wrong("has something else in the Commit's place"));
            }
            // of earlier moves, where it is not known to the last what its clients have: a copy takes what fits
            continue;
        };
        if sequence == commit_at {
            if *message != moved.commit || (except.is_some() && *except != committer) {
                return Err(wrong("has another Commit than the group"));
            }
        } else if !void.contains(&sequence) && is_commit_since(message, epoch)? {
            return Err(wrong("has a further Commit of the same epoch"));
        }
    }
    Ok(())
}

fn is_commit_since(message: &MlsMessage, epoch: Epoch) -> Result<bool, Reject> {
    let malformed = |error: String| Reject::Malformed(error);
    let parsed = message.parse().map_err(|error| malformed(error.to_string()))?;
    let parsed =
        parsed.try_into_protocol_message().map_err(|error| malformed(error.to_string()))?;
    let is_commit = parsed.content_type() == openmls::framing::ContentType::Commit;
    Ok(is_commit && parsed.epoch().as_u64() >= epoch.0)
}

fn infos_of(moved: &MigratedState, tree: &Tree) -> Result<Vec<(Epoch, Vec<u8>)>, Reject> {
    let mut infos: BTreeMap<Epoch, Vec<u8>> = BTreeMap::new();
    for info in moved.joiner_infos.iter() {
        let parsed = info.group_info.parse();
        let parsed = parsed.map_err(|error| Reject::InvalidGroupInfo(error.to_string()))?;
        let context = parsed.group_context();
        let epoch = Epoch(context.epoch().as_u64());
        let fits = context.group_id() == tree.context().group_id() && epoch < tree.epoch();
        if !fits || infos.insert(epoch, encode(info)).is_some() {
            return Err(Reject::InvalidGroupInfo("a joiner's information is not of it".into()));
        }
        // once it is here nobody can give the joiner another
        Tree::import(&info.ratchet_tree, &info.group_info).map_err(|problem| {
            Reject::InvalidGroupInfo(format!("a joiner's information is not good: {problem}"))
        })?;
    }
    Ok(infos.into_iter().collect())
}

fn joiners_of(
    moved: &MigratedState,
    tree: &Tree,
    infos: &[(Epoch, Vec<u8>)],
) -> Result<BTreeMap<crate::wire::ids::KeyPackageRef, Joiner>, Reject> {
    let mut joiners = BTreeMap::new();
    let mut leaves = BTreeSet::new();
    for joiner in moved.joiners.iter() {
        let key = tree.leaf(joiner.leaf_index).map(|leaf| leaf.signature_key().as_slice().to_vec());
        let known = joiner.epoch == tree.epoch() || infos.iter().any(|(at, _)| *at == joiner.epoch);
        let (Some(key), true, true) = (key, known, leaves.insert(joiner.leaf_index)) else {
            return Err(Reject::InvalidGroupInfo("a joiner is not in the group".into()));
        };
        let (leaf, epoch, not_after) = (joiner.leaf_index, joiner.epoch, joiner.not_after);
        let waits = Joiner { leaf, epoch, key, not_after };
        if joiners.insert(joiner.key_package_ref.clone(), waits).is_some() {
            return Err(Reject::InvalidGroupInfo("two joiners have one KeyPackage".into()));
        }
    }
    Ok(joiners)
}

/// The scheme of a group's leaves and hub keys, by the number of its ciphersuite; none for one that is not known.
#[must_use]
pub fn scheme_of_suite(ciphersuite: u16) -> Option<crate::wire::extensions::SignatureScheme> {
    openmls::prelude::Ciphersuite::try_from(ciphersuite).ok().map(scheme_of)
}
