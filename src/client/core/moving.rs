//! A group's move to another provider, as its members see it. PROTOCOL.md §6; PO.
//!
//! Here: what the initiator asks for and builds, what a hub's word about a move is checked against, who hosts the group
//! behind a commit, and whom to ask where a hub says that the group has moved. Not here: the two providers
//! ([`crate::migration`]), and waiting ([`super::super::Client`]).
//!
//! **The hub of a group is who its external sender says.** So a member that merges the Commit knows the new hub by the
//! Commit alone; the notice behind it and what the old hub answers are only ever held against that.

use openmls::{messages::proposals::ProposalOrRefType, prelude as mls};
use serde::{Deserialize, Serialize};

use super::{
    CoreError, Event, GroupState, Member, Settled,
    build::leaves,
    epoch_of,
    home::{Kind, bytes},
    records::{GroupRecord, Operation, Pending},
    view::{policy_of, roster_of},
};
use crate::{
    migration::proof::{self, ProofError},
    policy::{
        self,
        change::{Act, Author, What},
        leaf::scheme_of,
    },
    wire::{
        codec::{Raw, decode, encode},
        ds::{Accepted, DsRequest, GroupUpdate, StartMigration},
        extensions::{PublicKey, SignatureScheme},
        ids::{Domain, Epoch, GroupId, LeafIndex, Sequence, Timestamp},
        mls::ExternalSender,
        portability::{
            Chain, MigrationCommitAad, MigrationConfirmation, MigrationRequest, MigrationResponse,
        },
    },
};

/// How often one request is sent on to another hub. A chain names all moves that its teller knows of, so there is more
/// than one step only where the group moves on meanwhile.
const HOPS_MAX: u32 = 8;
/// How long the queue is given to bring the Commit that an answer speaks of.
const QUEUE_MS: u64 = 250;

/// Who hosts a group, by the group itself, in one epoch.
pub(super) struct HubAt {
    pub domain: Domain,
    key: PublicKey,
    scheme: SignatureScheme,
    epoch: Epoch,
}

impl HubAt {
    pub fn of(group: &mls::MlsGroup) -> Result<Self, CoreError> {
        let (key, domain) = hub_in(group.extensions())?;
        let scheme = scheme_of(group.ciphersuite());
        Ok(Self { domain, key, scheme, epoch: epoch_of(group) })
    }

    /// As a GroupInfo says it, whose signature is not checked yet.
    pub fn in_group_info(
        info: &openmls::messages::group_info::VerifiableGroupInfo,
    ) -> Result<Self, CoreError> {
        let (key, domain) = hub_in(info.group_context().extensions())?;
        let scheme = scheme_of(info.ciphersuite());
        Ok(Self { domain, key, scheme, epoch: Epoch(info.epoch().as_u64()) })
    }

    /// Whether a move whose first epoch is `epoch` was made in this one.
    fn ends_with(&self, epoch: Epoch) -> bool {
        self.epoch.0.checked_add(1) == Some(epoch.0)
    }
}

/// The key and the domain of the one external sender that a GroupContext has.
pub(super) fn hub_in(
    extensions: &mls::Extensions<mls::GroupContext>,
) -> Result<(PublicKey, Domain), CoreError> {
    let Some([sender]) = extensions.external_senders().map(Vec::as_slice) else {
        return Err(CoreError::Invalid("the group does not name exactly one hub"));
    };
    Ok(proof::hub_of_sender(&ExternalSender::of(sender))?)
}

/// The hub that this client saw the group leave last: the notice behind the Commit is checked against it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Left {
    hub: Domain,
    #[serde(with = "bytes")]
    key: Vec<u8>,
    to: Domain,
    /// The first epoch at `to`.
    epoch: Epoch,
}

/// Where a request goes in place of the hub that the group's state names: this client cannot follow the move, or
/// comes from outside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Redirect {
    pub hub: Domain,
    /// The first epoch of the group there.
    epoch: Epoch,
    hops: u32,
}

/// Why a commit or a proposal that names another hub is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadMove {
    #[error(transparent)]
    Sender(#[from] CoreError),
    #[error("it moves the group to {0}, and its authenticated_data does not say so")]
    Unsaid(Domain),
    #[error("it moves the group to {0}, which only the commit of who moves it may do, by value")]
    Reference(Domain),
}

/// Judges what `staged` makes of the hub. A new key of the same domain is a rotation; another domain is a move, which
/// its committer brings by value and names in the commit's `aad`. Who may do it is the policy's to say.
pub(super) fn judge_hub(
    staged: &mls::StagedCommit,
    sender: &mls::Sender,
    aad: &[u8],
    hub: &Domain,
) -> Result<(), BadMove> {
    for queued in staged.queued_proposals() {
        let mls::Proposal::GroupContextExtensions(new) = queued.proposal() else { continue };
        let (_, domain) = hub_in(new.extensions())?;
        if domain == *hub {
            continue;
        }
        let by_value = matches!(queued.proposal_or_ref_type(), ProposalOrRefType::Proposal);
        if !by_value || !matches!(sender, mls::Sender::Member(_)) {
            return Err(BadMove::Reference(domain));
        }
        if !proof::names_target(aad, &domain) {
            return Err(BadMove::Unsaid(domain));
        }
    }
    Ok(())
}

/// Judges a proposal by the same rule: by reference no group moves.
pub(super) fn judge_proposed_hub(proposal: &mls::Proposal, hub: &Domain) -> Result<(), BadMove> {
    let mls::Proposal::GroupContextExtensions(new) = proposal else { return Ok(()) };
    let (_, domain) = hub_in(new.extensions())?;
    if domain == *hub { Ok(()) } else { Err(BadMove::Reference(domain)) }
}

/// Checks that `response` is the target's word for `wanted`, and good at `now`.
///
/// # Errors
/// [`CoreError::Proof`], [`CoreError::Invalid`], [`CoreError::PromiseOutdated`]
pub fn check_promise(
    wanted: &MigrationRequest,
    response: &MigrationResponse,
    now: Timestamp,
) -> Result<(), CoreError> {
    if response.migration_request != *wanted {
        return Err(CoreError::Invalid("the target answered something else than it was asked"));
    }
    let suite = mls::Ciphersuite::try_from(wanted.ciphersuite).map_err(CoreError::mls)?;
    proof::check_response(scheme_of(suite), response)?;
    if now >= response.expires_at {
        return Err(CoreError::PromiseOutdated(wanted.target_domain_name.clone()));
    }
    Ok(())
}

/// What the Commit that moves a group is made of.
pub(super) struct MoveDraft {
    pub response: MigrationResponse,
    pub sender: mls::ExternalSender,
    pub aad: Vec<u8>,
}

impl Member {
    /// What `target` is to be asked so that it takes `group`. Asking changes nothing.
    ///
    /// # Errors
    /// [`CoreError::NotActive`], [`CoreError::Denied`] where the group's policy does not let this client's user move it,
    /// [`CoreError::NothingToDo`] where the group is there, [`CoreError::Leaving`], [`CoreError::Store`]
    pub fn wish_to_move(
        &self,
        group: &GroupId,
        target: &Domain,
    ) -> Result<MigrationRequest, CoreError> {
        let record = self.record(group)?;
        if record.state != GroupState::Active {
            return Err(CoreError::NotActive(group.clone(), record.state));
        }
        let mls = self.load(group)?;
        if leaves(&mls) {
            return Err(CoreError::Leaving(group.clone()));
        }
        let me = LeafIndex(mls.own_leaf_index().u32());
        let act = Act { author: Author::Leaf(me), what: What::HubKey };
        policy::judge(&policy_of(&mls)?, &roster_of(&mls)?, group, Some(me), &[act])?;
        wish(group, &mls, target)
    }

    /// Reads what [`Operation::Migrate`] is to be built with, on the group as it is now.
    pub(super) fn move_draft(
        &self,
        id: &GroupId,
        group: &mls::MlsGroup,
        response: &[u8],
        now: Timestamp,
    ) -> Result<MoveDraft, CoreError> {
        let response: MigrationResponse = decode(response)?;
        let asked = &response.migration_request;
        let wanted = wish(id, group, &asked.target_domain_name)?;
        if (asked.epoch, &asked.source_domain_name) != (wanted.epoch, &wanted.source_domain_name) {
            return Err(CoreError::PromiseOutdated(wanted.target_domain_name));
        }
        check_promise(&wanted, &response, now)?;
        let sender = response.target_sender.parse()?;
        let aad = encode(&MigrationCommitAad { target_ds_domain: wanted.target_domain_name });
        Ok(MoveDraft { response, sender, aad })
    }

    /// The request that moves the group, around the Commit that was made for it.
    pub(super) fn move_request(
        record: &GroupRecord,
        response: MigrationResponse,
        update: GroupUpdate,
    ) -> Result<DsRequest, CoreError> {
        let init = proof::initiate(&record.leaf_key.open()?, response)?;
        Ok(DsRequest::StartMigration(Box::new(StartMigration { init, update })))
    }

    /// Who hosts the group behind a commit that was merged. `before` is from the group as it was before.
    pub(super) fn follow_hub(
        &self,
        id: &GroupId,
        record: &mut GroupRecord,
        before: HubAt,
        group: &mls::MlsGroup,
    ) -> Result<(), CoreError> {
        let (_, to) = hub_in(group.extensions())?;
        if to != before.domain {
            let (from, key) = (before.domain, before.key.into_vec());
            let epoch = epoch_of(group);
            record.left = Some(Left { hub: from.clone(), key, to: to.clone(), epoch });
            self.push(&Event::Moved { group: id.clone(), from, to: to.clone() })?;
        }
        record.hub = to;
        Ok(())
    }

    /// Who hosts the group that this client has entered (anew).
    pub(super) fn find_hub(
        &self,
        id: &GroupId,
        record: &mut GroupRecord,
        group: &mls::MlsGroup,
    ) -> Result<(), CoreError> {
        let (_, to) = hub_in(group.extensions())?;
        if record.state != GroupState::Joining && record.hub != to {
            let from = record.hub.clone();
            self.push(&Event::Moved { group: id.clone(), from, to: to.clone() })?;
        }
        record.hub = to;
        Ok(())
    }

    /// The hub says that this client's Commit has moved the group.
    pub(super) fn moving(
        &self,
        key: &[u8],
        pending: &Pending,
        confirmation: &MigrationConfirmation,
        now: Timestamp,
    ) -> Result<Settled, CoreError> {
        let (Operation::Migrate { response }, Some(_)) = (&pending.operation, &pending.built)
        else {
            return Err(CoreError::Confirmation("nobody asked for a move"));
        };
        let asked: MigrationResponse = decode(response)?;
        let mut record = self.record(&pending.group)?;
        let mut group = self.load(&pending.group)?;
        let before = HubAt::of(&group)?;
        let wanted = &asked.migration_request;
        if confirmation.group_id != pending.group || confirmation.nonce != asked.nonce {
            return Err(CoreError::Confirmation("it is about another move"));
        }
        if confirmation.domain_name != wanted.target_domain_name {
            return Err(CoreError::Confirmation("it names another target"));
        }
        if confirmation.source_domain != before.domain {
            return Err(CoreError::Confirmation("it is not of the group's hub"));
        }
        if !before.ends_with(confirmation.epoch) {
            return Err(CoreError::Confirmation("it names another epoch"));
        }
        proof::check_confirmation(before.scheme, before.key.as_slice(), confirmation)?;
        // the Commit, the notice of the move, and then what the target orders
        let at = Sequence(confirmation.next_sequence.0.saturating_sub(2));
        self.keep_what_would_go(&pending.group, &mut record, &group, at, now)?;
        group.merge_pending_commit(&self.home.provider()).map_err(CoreError::mls)?;
        record.noted().clear();
        self.follow_hub(&pending.group, &mut record, before, &group)?;
        self.put_record(&pending.group, &record)?;
        self.home.remove(Kind::Pending, key)?;
        Ok(Settled::Done(Accepted {
            group_sequence: at,
            accepted_at: now,
            epoch: confirmation.epoch,
        }))
    }

    /// The notice behind the Commit of a move: it says nothing that the Commit has not said, and must not say other.
    pub(super) fn moved_notice(
        &self,
        id: &GroupId,
        record: &GroupRecord,
        confirmation: &MigrationConfirmation,
    ) -> Result<(), CoreError> {
        let group = self.load(id)?;
        let hub = HubAt::of(&group)?;
        let check = |from: &Domain, key: &[u8]| {
            let by_source = confirmation.source_domain == *from;
            by_source && proof::check_confirmation(hub.scheme, key, confirmation).is_ok()
        };
        let good = match &record.left {
            Some(left) if left.epoch == confirmation.epoch => {
                left.to == confirmation.domain_name && check(&left.hub, &left.key)
            }
            // this client's own Commit, whose answer is still to come
            Some(_) | None if hub.ends_with(confirmation.epoch) => {
                check(&hub.domain, hub.key.as_slice())
            }
            // of an epoch that this client did not see: there is nothing to hold it against
            Some(_) | None => true,
        };
        if good && confirmation.group_id == *id {
            return Ok(());
        }
        self.push(&Event::Misbehaviour {
            what: format!(
                "{} is said to have moved {id} to {}, which is not what the group's members did",
                confirmation.source_domain, confirmation.domain_name
            ),
        })
    }

    /// The hub says that it hosts the group no more.
    ///
    /// An active member believes the Commit, which its queue brings, and nobody's word; the request is made anew behind
    /// it under the same id. A commit of its own is asked about where the chain ends: if it was accepted in front of the move, nothing
    /// else says so, and what the queue brings is built on it. Who cannot follow the Commit, or is not in yet, asks there, too:
    /// what it gets is checked as what every hub shows to who comes from outside.
    pub(super) fn redirected(
        &self,
        key: &[u8],
        mut pending: Pending,
        chain: &Chain,
        now: Timestamp,
    ) -> Result<Settled, CoreError> {
        if let Operation::Migrate { response } = &pending.operation {
            let asked: MigrationResponse = decode(response)?;
            if let Some(own) = chain.iter().find(|link| link.nonce == asked.nonce)
                && pending.built.is_some()
            {
                // it was answered late: the group has come to where it was meant to go
                return self.moving(key, &pending, own, now);
            }
        }
        let record = self.record(&pending.group)?;
        let is_member =
            record.state == GroupState::Active && !pending.operation.comes_from_outside();
        let waits = is_member && !self.queue_rests_on(&pending, &record)?;
        let mut after_ms = 0;
        let moves = matches!(pending.operation, Operation::Migrate { .. });
        if waits && (moves || !pending.commits()) {
            if pending.redirect.take().is_none() {
                return Ok(Settled::Again { after_ms: QUEUE_MS });
            }
            // it was sent on when this client could not follow; by now its own state says who to ask
        } else {
            match self.follow_chain(&pending, &record, chain) {
                Ok(redirect) => pending.redirect = Some(redirect),
                Err(CoreError::Chain { .. }) if is_member => {
                    pending.redirect = None;
                    after_ms = QUEUE_MS;
                }
                Err(error) => return Err(error),
            }
            pending.info = None;
        }
        self.home.put(Kind::Pending, key, &pending)?;
        Ok(Settled::Again { after_ms })
    }

    /// Where a chain leads who asks for `pending`.
    fn follow_chain(
        &self,
        pending: &Pending,
        record: &GroupRecord,
        chain: &Chain,
    ) -> Result<Redirect, CoreError> {
        let asked = pending.hub(record).clone();
        let bad = |why: &dyn std::fmt::Display| CoreError::Chain {
            group: pending.group.clone(),
            hub: asked.clone(),
            why: why.to_string(),
        };
        let (Some(first), Some(last)) = (chain.first(), chain.last()) else {
            return Err(bad(&"it does not say where to"));
        };
        let (from, to) = (&first.source_domain, &last.domain_name);
        proof::follow_chain(&pending.group, from, to, chain).map_err(|error| bad(&error))?;
        let after = pending.redirect.as_ref().map_or(Epoch(0), |it| it.epoch);
        let later = |link: &&MigrationConfirmation| link.epoch > after;
        if !chain.iter().filter(later).any(|link| link.source_domain == asked) || *to == asked {
            return Err(bad(&ProofError::Chain { from: asked.clone(), to: to.clone() }));
        }
        if let Some((known, is_joiner)) = self.last_known(pending, record)? {
            let mut links = chain.iter().filter(|link| link.epoch > known.epoch);
            match links.find(|link| link.source_domain == known.domain) {
                // made in the very epoch that is known here; in a later one the hub may have had another key
                Some(link) if known.ends_with(link.epoch) => {
                    proof::check_confirmation(known.scheme, known.key.as_slice(), link)
                        .map_err(|error| bad(&error))?;
                }
                None if is_joiner => {
                    return Err(bad(&"it does not begin where the invitation was made"));
                }
                Some(_) | None => {}
            }
        }
        let hops = pending.redirect.as_ref().map_or(0, |it| it.hops) + 1;
        if hops > HOPS_MAX {
            return Err(bad(&"one provider names the next, and none has the group"));
        }
        Ok(Redirect { hub: to.clone(), epoch: last.epoch, hops })
    }

    /// Whether the group's feed has come to what lies behind a request that is on its way: it may have been accepted before the
    /// group moved, and nothing more can be read until that is known. Who was told that is the provider that has the group now.
    fn queue_rests_on(&self, pending: &Pending, record: &GroupRecord) -> Result<bool, CoreError> {
        let Some(read) = record.read_epoch.filter(|_| pending.built.is_some()) else {
            return Ok(false);
        };
        Ok(read > epoch_of(&self.load(&pending.group)?))
    }

    /// The hub in the last epoch that this client can be sure of, and whether that is a Welcome's.
    fn last_known(
        &self,
        pending: &Pending,
        record: &GroupRecord,
    ) -> Result<Option<(HubAt, bool)>, CoreError> {
        if let Operation::Welcome { welcome, .. } = &pending.operation {
            let seen = self.peek(&Raw::new(welcome.as_slice())?)?;
            return Ok(Some((seen.hub, true)));
        }
        if matches!(record.state, GroupState::Active | GroupState::Lost) {
            return Ok(Some((HubAt::of(&self.load(&pending.group)?)?, false)));
        }
        Ok(None)
    }
}

fn wish(
    id: &GroupId,
    group: &mls::MlsGroup,
    target: &Domain,
) -> Result<MigrationRequest, CoreError> {
    let (_, source) = hub_in(group.extensions())?;
    if source == *target {
        return Err(CoreError::NothingToDo("the group is hosted there"));
    }
    Ok(MigrationRequest {
        source_domain_name: source,
        target_domain_name: target.clone(),
        group_id: id.clone(),
        epoch: epoch_of(group),
        ciphersuite: group.ciphersuite() as u16,
    })
}
