//! How a hub judges a commit, in PROTOCOL.md §2's order (checks 8 to 12): what it does, whether its operation and the
//! policy allow that, who comes in, that it covers what is pending, and the GroupInfo of its epoch. Nothing here
//! changes anything.

use std::collections::{BTreeMap, BTreeSet};

use openmls::{
    framing::ContentType,
    key_packages::KeyPackage as MlsKeyPackage,
    prelude::{
        LeafNode, ProcessedMessageContent, Proposal, ProposalOrRefType, ProtocolMessage,
        PublicMessageIn, Sender, StagedCommit,
    },
};

use crate::{
    policy::{
        self, Denied,
        capabilities::Required,
        change::{Act, Author, ChangeProblem, CommitChange, What, of_commit},
        keys::{LIFE_LEFT_MIN_MS, check_path},
        leaf::user_key_of,
        pending::{goes, must_cover},
    },
    store::records::GoneReason,
    wire::{
        codec::{Opaque, decode, encode},
        ds::{DsRequest, DsSenderId, GroupUpdate},
        extensions::{
            CLIENT_QUEUE_CONFIG, ClientQueueConfig, JoinProof, KeyPackageClass, KeyPackageQueue,
        },
        ids::{KeyPackageRef, LeafIndex, Timestamp, UserKeyHash},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

use super::{
    Bind, Decision, GroupState, Reject, Request, Staged, Step,
    mls::{InfoParts, MlsProblem, confirmation_tag, split_welcome, to_record, verify_group_info},
    record::{AddedRecord, Change, CommitRecord, JoinedRecord, Kind, PendingAdd},
    stage::{acts_of, verify_request},
};

/// Whose commit it is, and what its operation lets it hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    AddUsers,
    RemoveUsers,
    AddClients,
    RemoveClients,
    UpdateClient,
    UpdateGroup,
    DeleteGroup,
    Resync,
    Join,
    Migrate,
}

/// A commit that was parsed and not yet judged.
struct Parsed {
    public: PublicMessageIn,
    sender: Sender,
}

impl GroupState {
    pub(super) fn stage_commit(
        &self,
        request: &Request,
        leaf: Option<LeafIndex>,
        operation: Operation,
        update: &GroupUpdate,
        config: Option<&ClientQueueConfig>,
        now: Timestamp,
    ) -> Result<Decision, Reject> {
        let settings = &self.hub.settings;
        let limit = settings.handshake_bytes_max;
        let welcome_bytes = update.welcome.as_ref().map_or(0, |w| w.as_slice().len());
        if update.commit.as_slice().len() > limit || welcome_bytes > limit {
            return Err(Reject::TooLarge { what: "the commit or the Welcome", limit });
        }
        let (public, sender) =
            self.parse_handshake(&update.commit, ContentType::Commit, leaf.is_some())?;
        let external = matches!(operation, Operation::Join | Operation::Resync);
        let by_sender = match (&sender, leaf) {
            (Sender::Member(index), Some(leaf)) => !external && index.u32() == leaf.0,
            (Sender::NewMemberCommit, _) => external,
            _ => false,
        };
        if !by_sender {
            return Err(Reject::Unauthenticated("the commit is not the sender's own"));
        }
        if external && self.info_is_bad() {
            return Err(Reject::BadInfo);
        }
        // those that come with it are counted before openmls looks at each
        let max = settings.adds_per_commit_max;
        if policy::incoming::adds_by_value(&update.commit) > max {
            return Err(Reject::TooMany { what: "Adds", limit: max });
        }
        let parsed = Parsed { public, sender };
        self.judge_commit(request, leaf, operation, update, config, parsed, now)
    }

    #[expect(clippy::too_many_arguments, reason = "one commit, everything that it comes with")]
    fn judge_commit(
        &self,
        request: &Request,
        leaf: Option<LeafIndex>,
        operation: Operation,
        update: &GroupUpdate,
        config: Option<&ClientQueueConfig>,
        parsed: Parsed,
        now: Timestamp,
    ) -> Result<Decision, Reject> {
        // 8. what a receiving client would check, and what every leaf must be
        let tag = confirmation_tag(&parsed.public)?;
        check_path(self.tree.ciphersuite(), &update.commit).map_err(ChangeProblem::Key)?;
        let message = ProtocolMessage::PublicMessage(Box::new(parsed.public));
        let processed = match self.tree.process(&self.hub.crypto, message) {
            Ok(processed) => processed,
            // the sender is told what is pending, so that it can hold the same
            Err(MlsProblem::NotPending) if leaf.is_some() => {
                return Err(self.pending_reject("the commit covers what is not pending", false));
            }
            Err(problem) => return Err(problem.into()),
        };
        let aad = processed.aad().to_vec();
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            return Err(Reject::InvalidMessage("the message is no commit".into()));
        };
        let staged = *staged;
        let proof = if operation == Operation::Join && !aad.is_empty() {
            let proof: JoinProof = decode(&aad).map_err(|_| {
                Reject::InvalidCommit("authenticated_data is not a JoinProof".into())
            })?;
            Some(proof)
        } else {
            None
        };
        let context = self.tree.context();
        let sender = &parsed.sender;
        let mut change =
            of_commit(&staged, sender, proof.clone(), &self.roster, context, &self.policy)?;
        self.fill_in_proofs(&mut change);
        if operation == Operation::Join {
            self.authenticate_newcomer(request, &staged, &change)?;
            self.count(request, now)?;
        }
        self.roster.check(&change.for_check())?;

        // 10. the content matches the operation
        if let (Operation::Migrate, DsRequest::StartMigration(start)) =
            (operation, &request.message.request)
        {
            self.moves_to_target(leaf, &start.init.migration_response, &staged, &aad)?;
        }
        let committer = if operation == Operation::Join { None } else { leaf };
        self.matches(operation, leaf, &staged, &change)?;
        if let Some(committer) = committer.filter(|_| operation != Operation::Resync)
            && change.removed.contains(&committer)
        {
            return Err(Reject::InvalidCommit("who is to be removed cannot commit".into()));
        }
        let judged_as = if operation == Operation::Resync { None } else { committer };
        // a newcomer's own Add was judged, with its proof, when it was proposed in this epoch
        let newcomers = |act: &&Act| {
            !matches!((&act.author, &act.what), (Author::Newcomer { .. }, What::Add(_)))
        };
        let acts: Vec<Act> = change.acts.iter().filter(newcomers).cloned().collect();
        let judge = match operation {
            Operation::DeleteGroup => policy::judge,
            Operation::AddUsers
            | Operation::RemoveUsers
            | Operation::AddClients
            | Operation::RemoveClients
            | Operation::UpdateClient
            | Operation::UpdateGroup
            | Operation::Resync
            | Operation::Join
            | Operation::Migrate => policy::judge_staying,
        };
        judge(&self.policy, &self.roster, &self.id, judged_as, &acts)?;
        self.leaves_an_admin(judged_as, &change.acts)?;
        let grows = change.added.len() + usize::from(change.joined.is_some());
        let after = self.roster.len() + grows - change.removed.len();
        if grows > 0 && after > self.hub.settings.members_max {
            return Err(Reject::NotAuthorized(format!(
                "a group here may have {} members",
                self.hub.settings.members_max
            )));
        }
        match &change.joined {
            Some(_) if operation == Operation::Resync => self.may_resync(leaf)?,
            Some(joined) => self.code_is_good(&joined.user, proof.as_ref(), now)?,
            None => {}
        }
        let (added, binds) = self.additions(&staged, &change, config, now)?;

        // 11. what is pending is covered
        self.covers_pending(judged_as, &staged, &change)?;

        // 12. the new GroupInfo
        let signer = match (&change.joined, leaf) {
            (Some(_), _) => self.tree.newcomer_leaf(&staged)?,
            (None, Some(leaf)) => leaf,
            (None, None) => return Err(Reject::Broken("a commit of nobody".into())),
        };
        let signer_key = match staged.update_path_leaf_node() {
            Some(node) => node.signature_key().as_slice().to_vec(),
            None => self.roster.get(signer).map(|id| id.signature_key.clone()).unwrap_or_default(),
        };
        let parts = InfoParts { partial: update.group_info.clone(), signer };
        verify_group_info(staged.group_context(), &tag, &parts, &signer_key)?;
        let welcomes = welcomes(update.welcome.as_ref(), &added)?;
        self.fits_guests(update.commit.as_slice().len(), &added, &welcomes)?;

        let joined = change.joined.as_ref().zip(config).map(|(_, config)| JoinedRecord {
            leaf: signer,
            config: config.clone(),
            timestamp: request.message.context.timestamp,
            replaces: change.resynced,
        });
        let record = CommitRecord {
            staged: to_record(&staged)?,
            partial: encode(&update.group_info),
            signer,
            removed: change.removed.clone(),
            renewed: change.updated.iter().map(|(leaf, _)| *leaf).collect(),
            added,
            joined,
            policy_changed: change.policy.is_some(),
            dissolves: operation == Operation::DeleteGroup,
        };
        Ok(self.commit_decision(
            request, leaf, operation, update, staged, record, welcomes, binds, now,
        ))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one accepted commit")]
    fn commit_decision(
        &self,
        request: &Request,
        leaf: Option<LeafIndex>,
        operation: Operation,
        update: &GroupUpdate,
        staged: StagedCommit,
        record: CommitRecord,
        welcomes: BTreeMap<KeyPackageRef, MlsMessage>,
        binds: Vec<Bind>,
        now: Timestamp,
    ) -> Decision {
        // a resync changes the leaf's index: its activity is recorded with the new one
        let sender = record.joined.as_ref().map_or(leaf, |joined| Some(joined.leaf));
        let request_key = Self::request_key(&request.message);
        let except = leaf.and_then(|leaf| self.members.get(&leaf)).map(|m| m.recipient);
        let commit = Step {
            change: Change {
                request: Some(request_key),
                sender,
                kind: Kind::Commit(Box::new(record)),
            },
            event: Some(QueueEvent::MlsMessage { message: update.commit.clone() }),
            handshake: true,
            except,
            commit: Some(staged),
            pending: None,
            welcomes,
        };
        let mut steps = vec![commit];
        if operation == Operation::DeleteGroup {
            let change = Change { request: None, sender: None, kind: Kind::Deleted };
            let mut step = Step::quiet(change);
            step.event = Some(QueueEvent::GroupDeleted);
            step.handshake = true;
            steps.push(step);
        }
        // behind an external commit all of them; behind another what could not stand in the epoch before
        let renew_hub_proposals = operation != Operation::DeleteGroup;
        let staged = Staged { at: now, steps, binds, renew_hub_proposals, answered: true };
        Decision::Write(Box::new(staged))
    }

    /// A newcomer by external commit: the user key in the commit's path signs the request.
    fn authenticate_newcomer(
        &self,
        request: &Request,
        staged: &StagedCommit,
        change: &CommitChange,
    ) -> Result<(), Reject> {
        let DsSenderId::UserKeyHash(hash) = &request.message.sender_id else {
            return Err(Reject::Unauthenticated("join_group takes a user_key_hash sender"));
        };
        let (Some(joined), Some(node)) = (&change.joined, staged.update_path_leaf_node()) else {
            return Err(Reject::InvalidCommit("an external commit has a path".into()));
        };
        if joined.user != *hash {
            return Err(Reject::Unauthenticated("the commit's user key is not the sender's"));
        }
        if joined.client.domain() != request.relay {
            return Err(Reject::Unauthenticated("the request comes through another provider"));
        }
        let user_key =
            user_key_of(node).map_err(|_| Reject::Unauthenticated("the leaf has no user key"))?;
        verify_request(&request.message, user_key.scheme, user_key.user_public_key.as_slice())
    }

    fn may_resync(&self, leaf: Option<LeafIndex>) -> Result<(), Reject> {
        let going = leaf.and_then(|leaf| self.going.get(&leaf));
        match going {
            Some((GoneReason::Inactive, _)) | None => {}
            Some(_) => {
                return Err(Reject::NotAuthorized(
                    "this client is being removed from the group: it was deleted, or has lied"
                        .into(),
                ));
            }
        }
        let leaves = self
            .pending
            .iter()
            .any(|pending| matches!(pending.act.what, What::Leave(left) if Some(left) == leaf));
        if leaves {
            return Err(Reject::InvalidCommit("this client has proposed to leave".into()));
        }
        Ok(())
    }

    /// A newcomer's JoinProof came with its proposal and is not repeated in the commit that covers it.
    fn fill_in_proofs(&self, change: &mut CommitChange) {
        for act in &mut change.acts {
            let (Author::Newcomer { proof }, What::Add(added)) = (&mut act.author, &act.what)
            else {
                continue;
            };
            *proof = self.pending.iter().find_map(|pending| match &pending.act {
                Act { author: Author::Newcomer { proof }, what: What::Add(identity) }
                    if identity == added =>
                {
                    proof.clone()
                }
                _ => None,
            });
        }
    }

    /// Check 10: the by-value proposals are the operation's, and it does what it says.
    fn matches(
        &self,
        operation: Operation,
        leaf: Option<LeafIndex>,
        staged: &StagedCommit,
        change: &CommitChange,
    ) -> Result<(), Reject> {
        let by_value: Vec<&Proposal> = staged
            .queued_proposals()
            .filter(|queued| queued.proposal_or_ref_type() == ProposalOrRefType::Proposal)
            .map(|queued| queued.proposal())
            .collect();
        let adds = by_value.iter().filter(|p| matches!(p, Proposal::Add(_))).count();
        let removes: Vec<LeafIndex> = by_value
            .iter()
            .filter_map(|proposal| {
                let Proposal::Remove(remove) = proposal else { return None };
                Some(LeafIndex(remove.removed().u32()))
            })
            .collect();
        let inits = by_value.iter().filter(|p| matches!(p, Proposal::ExternalInit(_))).count();
        let contexts =
            by_value.iter().filter(|p| matches!(p, Proposal::GroupContextExtensions(_))).count();
        let only = |count: usize| by_value.len() == count;
        let fits = match operation {
            Operation::AddUsers | Operation::AddClients => adds >= 1 && only(adds),
            Operation::RemoveUsers | Operation::DeleteGroup => only(removes.len()),
            Operation::RemoveClients => !removes.is_empty() && only(removes.len()),
            Operation::UpdateClient => by_value.is_empty(),
            Operation::UpdateGroup | Operation::Migrate => contexts == 1 && only(1),
            Operation::Join => inits == 1 && only(1),
            Operation::Resync => inits == 1 && removes.len() == 1 && only(2),
        };
        if !fits {
            return Err(Reject::InvalidCommit(format!(
                "the by-value proposals are not those of {operation:?}; see PROTOCOL.md, check 10"
            )));
        }
        let max = self.hub.settings.adds_per_commit_max;
        if change.added.len() > max {
            return Err(Reject::TooMany { what: "Adds", limit: max });
        }
        let own_user = leaf.and_then(|leaf| self.roster.get(leaf)).map(|id| &id.user);
        let removed: BTreeSet<LeafIndex> = change.removed.iter().copied().collect();
        match operation {
            Operation::AddUsers | Operation::AddClients => {
                let own = operation == Operation::AddClients;
                for proposal in &by_value {
                    let Proposal::Add(add) = proposal else { continue };
                    let user = policy::leaf::trusted(add.key_package().leaf_node())?.user;
                    if own && Some(&user) != own_user {
                        return Err(Reject::InvalidCommit(
                            "add_clients adds clients of the sender's own user; use add_users"
                                .into(),
                        ));
                    }
                    if !own && self.roster.has_user(&user) {
                        return Err(Reject::InvalidCommit(
                            "add_users adds users who are new to the group; they add their clients themselves"
                                .into(),
                        ));
                    }
                }
                Ok(())
            }
            Operation::RemoveUsers => {
                if removed.is_empty() {
                    return Err(Reject::InvalidCommit("remove_users removes nobody".into()));
                }
                let users: BTreeSet<&UserKeyHash> =
                    removes.iter().filter_map(|leaf| Some(&self.roster.get(*leaf)?.user)).collect();
                for user in users {
                    if self.roster.leaves_of(user).any(|l| !removed.contains(&l)) {
                        return Err(Reject::InvalidCommit(
                            "remove_users removes every client of a user; use remove_clients for your own".into(),
                        ));
                    }
                }
                Ok(())
            }
            Operation::RemoveClients => {
                let own = |leaf: &LeafIndex| {
                    self.roster.get(*leaf).map(|identity| &identity.user) == own_user
                };
                if removes.iter().all(own) {
                    Ok(())
                } else {
                    Err(Reject::InvalidCommit(
                        "remove_clients removes clients of the sender's own user; use remove_users"
                            .into(),
                    ))
                }
            }
            Operation::DeleteGroup => {
                if self.roster.leaves().any(|l| Some(l) != leaf && !removed.contains(&l)) {
                    return Err(Reject::InvalidCommit(
                        "delete_group removes everyone but the sender".into(),
                    ));
                }
                let role = own_user.map(|user| policy::role_of(&self.policy, user));
                if role < Some(self.policy.may_delete) {
                    return Err(Reject::NotAuthorized(format!(
                        "deleting the group takes the role {:?}",
                        self.policy.may_delete
                    )));
                }
                Ok(())
            }
            Operation::UpdateGroup => {
                let hub_key = change.acts.iter().any(|act| matches!(act.what, What::HubKey));
                if hub_key {
                    return Err(Reject::InvalidCommit(
                        "the hub's key in external_senders is not for members to change".into(),
                    ));
                }
                self.everyone_supports(staged, &removed)
            }
            Operation::Resync => {
                if change.resynced == leaf {
                    Ok(())
                } else {
                    Err(Reject::InvalidCommit("a resync replaces the sender's own leaf".into()))
                }
            }
            // its target is judged apart (`portability`)
            Operation::UpdateClient | Operation::Join | Operation::Migrate => Ok(()),
        }
    }

    /// What a committer adds to what is pending must not be what takes the last admin away.
    fn leaves_an_admin(&self, committer: Option<LeafIndex>, acts: &[Act]) -> Result<(), Reject> {
        if !self.pending.iter().any(|pending| pending.record.hub) {
            return Ok(());
        }
        let pending = acts_of(self.pending.iter());
        let stays = |acts: &[Act]| policy::an_admin_stays(&self.policy, &self.roster, acts);
        if stays(&pending)
            && !stays(acts)
            && !policy::dissolves(&self.policy, &self.roster, committer, acts)
        {
            return Err(Denied::NoAdminLeft.into());
        }
        Ok(())
    }

    /// RFC 9420 §12.1.7: openmls looks at the extension types of the new required_capabilities only.
    fn everyone_supports(
        &self,
        staged: &StagedCommit,
        removed: &BTreeSet<LeafIndex>,
    ) -> Result<(), Reject> {
        let required = Required::of(staged.group_context().extensions());
        let meets = |leaf: &LeafNode| required.are_met_by(leaf.capabilities());
        let mut stay = self.tree.leaves().filter(|(leaf, _)| !removed.contains(leaf));
        let mut come = staged.add_proposals();
        if stay.all(|(_, leaf)| meets(leaf))
            && come.all(|queued| meets(queued.add_proposal().key_package().leaf_node()))
        {
            Ok(())
        } else {
            Err(Reject::InvalidCommit(
                "a member does not support what the new GroupContext requires".into(),
            ))
        }
    }

    /// Who comes in, at which leaf, and which queues are to be bound for it.
    fn additions(
        &self,
        staged: &StagedCommit,
        change: &CommitChange,
        config: Option<&ClientQueueConfig>,
        now: Timestamp,
    ) -> Result<(Vec<AddedRecord>, Vec<Bind>), Reject> {
        let mut occupied: BTreeSet<LeafIndex> = BTreeSet::new();
        if !change.added.is_empty() {
            let removed: BTreeSet<LeafIndex> = change.removed.iter().copied().collect();
            occupied.extend(self.roster.leaves().filter(|leaf| !removed.contains(leaf)));
        }
        let (mut added, mut binds) = (Vec::new(), Vec::new());
        let mut next = LeafIndex(0);
        for (index, queued) in staged.add_proposals().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let key_package = queued.add_proposal().key_package();
            let pending = self.pending.iter().find(|pending| {
                matches!((&pending.act.what, pending.queued.proposal()), (What::Add(_), Proposal::Add(add))
                    if add.key_package() == key_package)
            });
            let facts = match pending.and_then(|pending| pending.record.added.clone()) {
                Some(facts) => facts,
                None => {
                    let invalid = |why: String| Reject::InvalidKeyPackage { index, why };
                    self.key_package(key_package, now).map_err(invalid)?
                }
            };
            let identity = policy::leaf::trusted(key_package.leaf_node())?;
            let client = identity.client;
            // MLS puts each Add at the leftmost blank leaf (RFC 9420 §7.7)
            while occupied.contains(&next) {
                next = LeafIndex(next.0 + 1);
            }
            occupied.insert(next);
            binds.push(Bind {
                client: client.clone(),
                user: identity.user,
                config: facts.config.clone(),
                key_package: Some(index),
                pending: pending.is_some(),
            });
            added.push(AddedRecord {
                leaf: next,
                client,
                reference: facts.reference,
                config: facts.config,
                not_after: facts.not_after,
            });
        }
        if let Some(joined) = &change.joined {
            let config =
                config.ok_or_else(|| Reject::Malformed("the queue config is missing".into()))?;
            if config.domain != joined.client.domain() {
                return Err(Reject::NotAuthorized(
                    "a client's queue must be at its own provider".into(),
                ));
            }
            binds.push(Bind {
                client: joined.client.clone(),
                user: joined.user.clone(),
                config: config.clone(),
                key_package: None,
                pending: false,
            });
        }
        Ok((added, binds))
    }

    /// What makes a KeyPackage one that may be added here, beside what openmls checks.
    pub(super) fn key_package(
        &self,
        key_package: &MlsKeyPackage,
        now: Timestamp,
    ) -> Result<PendingAdd, String> {
        let settings = &self.hub.settings;
        let extension = key_package
            .extensions()
            .unknown(CLIENT_QUEUE_CONFIG)
            .ok_or("it lacks client_queue_config (0xF1A2)")?;
        let queue: KeyPackageQueue =
            decode(&extension.0).map_err(|_| "its client_queue_config is malformed")?;
        if queue.class != KeyPackageClass::Group {
            return Err("it is a connection KeyPackage, which no one can be added with".into());
        }
        let lifetime = key_package.life_time();
        let seconds = lifetime.not_after().saturating_sub(lifetime.not_before());
        if seconds > settings.key_package_lifetime_max_s {
            return Err(format!(
                "it lives longer than {} days",
                settings.key_package_lifetime_max_s / 86_400
            ));
        }
        let not_after = Timestamp(lifetime.not_after().saturating_mul(1000));
        if not_after < now.plus_ms(LIFE_LEFT_MIN_MS) {
            return Err(format!(
                "it expires within {} days, and not everybody would read of it in time: get another one",
                LIFE_LEFT_MIN_MS / 86_400_000
            ));
        }
        let client = policy::leaf::trusted(key_package.leaf_node())
            .map_err(|problem| problem.to_string())?
            .client;
        if queue.config.domain != client.domain() {
            return Err("its queue is not at its client's own provider".into());
        }
        let reference =
            key_package.hash_ref(&self.hub.crypto).map_err(|error| error.to_string())?;
        let reference = Opaque::new(reference.as_slice()).map_err(|error| error.to_string())?;
        Ok(PendingAdd { reference: KeyPackageRef(reference), config: queue.config, not_after })
    }

    /// Check 11.
    fn covers_pending(
        &self,
        committer: Option<LeafIndex>,
        staged: &StagedCommit,
        change: &CommitChange,
    ) -> Result<(), Reject> {
        let covered: BTreeSet<&[u8]> = staged
            .queued_proposals()
            .filter(|queued| queued.proposal_or_ref_type() == ProposalOrRefType::Reference)
            .map(|queued| queued.proposal_reference_ref().as_slice())
            .collect();
        let uncovered = self.pending.iter().any(|pending| {
            must_cover(&pending.act, committer, &change.removed)
                && !covered.contains(pending.reference())
        });
        if uncovered {
            return Err(
                self.pending_reject("the commit does not cover every pending proposal", true)
            );
        }
        if committer.is_none() {
            // the one Remove of an external commit is that of the leaf which it replaces
            return Ok(());
        }
        let by_value: Vec<&Proposal> = staged
            .queued_proposals()
            .filter(|queued| queued.proposal_or_ref_type() == ProposalOrRefType::Proposal)
            .map(|queued| queued.proposal())
            .collect();
        let going: BTreeSet<LeafIndex> =
            self.pending.iter().filter_map(|pending| goes(&pending.act)).collect();
        let repeats = by_value.iter().any(|proposal| {
            matches!(proposal, Proposal::Remove(remove)
                if going.contains(&LeafIndex(remove.removed().u32())))
        });
        if repeats {
            return Err(Reject::InvalidCommit(
                "a by-value Remove repeats a pending one: leave it out, the reference is enough"
                    .into(),
            ));
        }
        Ok(())
    }
}

/// The Welcome is there exactly when somebody is added, and its secrets are exactly the added KeyPackages'.
fn welcomes(
    welcome: Option<&MlsMessage>,
    added: &[AddedRecord],
) -> Result<BTreeMap<KeyPackageRef, MlsMessage>, Reject> {
    let Some(welcome) = welcome else {
        return if added.is_empty() {
            Ok(BTreeMap::new())
        } else {
            Err(Reject::InvalidCommit("the commit adds somebody and comes without Welcome".into()))
        };
    };
    let parts = split_welcome(welcome)?;
    let count = parts.len();
    let split: BTreeMap<KeyPackageRef, MlsMessage> = parts.into_iter().collect();
    let exact = count == added.len()
        && split.len() == added.len()
        && added.iter().all(|added| split.contains_key(&added.reference));
    if exact {
        Ok(split)
    } else {
        Err(Reject::InvalidCommit(
            "the Welcome's secrets are not those of the added KeyPackages".into(),
        ))
    }
}
