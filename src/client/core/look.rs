//! Whether who comes in from outside could use what a commit left: a few members look behind each commit of somebody else, so that
//! a wrong `external_pub` is known, complained of and made good before it misleads anybody.
//!
//! Here: who looks and when, what is to be asked, what the answer makes of it. Not here: sending ([`super::super::Client`]); what
//! comes of a complaint about a commit that cannot be used ([`super::complain`]). PROTOCOL.md §2, "When a committer lies".

use openmls::{prelude as mls, prelude::OpenMlsProvider, prelude::tls_codec::Serialize as _};
use serde::{Deserialize, Serialize};

use super::{
    CoreError, Event, GroupState, Kind, Member, Operation, Outbound,
    build::{GroupInfoParts, bounded, is_being_removed, leaves, signed_request},
    complain::signed,
    epoch_of,
    home::bytes,
    records::Pending,
};
use crate::{
    crypto,
    policy::{
        leaf::{client_of, scheme_of},
        roster::Roster,
    },
    wire::{
        client::Complain,
        codec::{append_vector, decode},
        ds::{CommitComplaint, ComplaintReason, DsError, DsResponse, DsResponseBody, Info},
        extensions::Signature,
        ids::{ClientUri, Domain, Epoch, GroupId, LeafIndex, RequestId, Timestamp, UserKeyHash},
        mls::MlsMessage,
    },
};

/// How long after a commit those look who come first, second, and so on in its order, where the epoch still stands then: two at
/// once, and more in case that those are away.
const LOOKS_AFTER_MS: [u64; 4] = [0, 0, 10 * 60 * 1000, 60 * 60 * 1000];
/// What a look downloads grows with the group, so those who look in a large one wait this long more for every hundred leaves: what
/// looks cost its hub in a second is bounded, however often it is committed to.
const LATER_MS_PER_HUNDRED: u64 = 1000;
/// A look that got no answer is tried again after so long, each time twice as long.
const RETRY_MS: u64 = 20_000;
const TRIES_MAX: u32 = 5;
/// How long a complaint is tried before the right keys are committed without it.
const COMPLAIN_MS: u64 = 2 * 60 * 1000;
const COMPLAIN_RETRY_MS: u64 = 2_000;

/// What is to be looked at in a group: one, of the newest epoch.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Look {
    /// That the commit began.
    epoch: Epoch,
    #[serde(with = "bytes")]
    commit_hash: Vec<u8>,
    by: Option<ClientUri>,
    /// From when it is known on.
    wait_ms: u64,
    not_before: Option<Timestamp>,
    tries: u32,
    complaint: Option<Complaint>,
}

/// The lie is seen, and is said before it is made good.
#[derive(Clone, Serialize, Deserialize)]
struct Complaint {
    hub: Domain,
    /// The encoded `CommitComplaint`.
    #[serde(with = "bytes")]
    complaint: Vec<u8>,
    since: Timestamp,
}

/// What an answer shows.
enum Seen {
    Right,
    /// The committer has signed a key that is not this epoch's.
    Wrong,
    /// It is not of this state, or not what its committer signed: that is no committer's doing.
    Foreign(&'static str),
}

/// A commit that is in this client's state, with the roster in front of it.
pub(super) struct Followed<'a> {
    pub roster: &'a Roster,
    pub removed: &'a [LeafIndex],
    pub message: &'a MlsMessage,
    pub by: Option<&'a ClientUri>,
    pub by_user: Option<&'a UserKeyHash>,
}

impl Member {
    /// Notes whether this client looks behind a commit that began `group`'s epoch. What there was to look at before is over.
    pub(super) fn behind_commit(
        &self,
        id: &GroupId,
        group: &mls::MlsGroup,
        commit: &Followed<'_>,
    ) -> Result<(), CoreError> {
        let me = LeafIndex(group.own_leaf_index().u32());
        let chance = u64::from_be_bytes(crypto::random());
        let Some(wait_ms) = looks_after(id, epoch_of(group), me, commit, chance) else {
            return self.home.remove(Kind::Look, id.as_bytes());
        };
        let look = Look {
            epoch: epoch_of(group),
            commit_hash: crypto::sha256(commit.message.as_slice()).to_vec(),
            by: commit.by.cloned(),
            wait_ms,
            not_before: None,
            tries: 0,
            complaint: None,
        };
        self.home.put(Kind::Look, id.as_bytes(), &look)
    }

    /// Whether there is anything to look at or to complain of at `now`.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn has_looks(&self, now: Timestamp) -> Result<bool, CoreError> {
        let looks = self.home.list::<Look>(Kind::Look, &[], usize::MAX)?;
        Ok(looks.iter().any(|(_, look)| look.not_before.is_none_or(|at| at <= now)))
    }

    /// The groups to look at now, each with the question that goes to its hub. A question only reads, and may be asked again.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn looks_due(&self, now: Timestamp) -> Result<Vec<(GroupId, Outbound)>, CoreError> {
        if !self.has_looks(now)? {
            return Ok(Vec::new());
        }
        self.home.step(|| {
            let mut due = Vec::new();
            for (id, look) in self.looks_at(now)? {
                if look.complaint.is_some() {
                    continue;
                }
                let record = self.record(&id)?;
                // what a resync asks for
                let question = Pending {
                    request: RequestId(crypto::random()),
                    group: id.clone(),
                    operation: Operation::Resync,
                    info: None,
                    built: None,
                    rebuilt: 0,
                    redirect: None,
                    asked: false,
                };
                let draft = self.info_draft(&question, &record)?;
                let draft = draft.ok_or(CoreError::Invalid("a resync asks for nothing"))?;
                due.push((id, signed_request(&question, &record, draft, now)?));
            }
            Ok(due)
        })
    }

    /// The complaints about what was seen that are to be sent now.
    pub(super) fn info_complaints_due(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(GroupId, Complain)>, CoreError> {
        let mut due = Vec::new();
        for (id, look) in self.looks_at(now)? {
            let Some(Complaint { hub, complaint, since }) = &look.complaint else { continue };
            // a clock that was set back must not make it try for longer than it says
            if now < *since || now.ms_since(*since) > COMPLAIN_MS {
                self.make_good(&id, &look)?;
                continue;
            }
            due.push((id, Complain { hub_domain: hub.clone(), complaint: decode(complaint)? }));
        }
        Ok(due)
    }

    /// What is due; what is over is forgotten.
    fn looks_at(&self, now: Timestamp) -> Result<Vec<(GroupId, Look)>, CoreError> {
        let mut due = Vec::new();
        for (key, mut look) in self.home.list::<Look>(Kind::Look, &[], usize::MAX)? {
            let Ok(id) = GroupId::from_bytes(&key) else { continue };
            if look.not_before.is_none() {
                look.not_before = Some(now.plus_ms(look.wait_ms));
                self.home.put(Kind::Look, &key, &look)?;
            }
            if look.not_before.is_some_and(|at| now < at) {
                continue;
            }
            let is_active = self.record(&id)?.state == GroupState::Active;
            if is_active && epoch_of(&self.load(&id)?) == look.epoch {
                due.push((id, look));
            } else {
                self.home.remove(Kind::Look, &key)?;
            }
        }
        Ok(due)
    }

    /// Takes in what the hub answered to the question about `id` (none: nothing). It may be told again.
    ///
    /// # Errors
    /// [`CoreError::Store`], [`CoreError::Mls`]
    pub fn looked(
        &self,
        id: &GroupId,
        answer: Option<&DsResponse>,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        self.home.step(|| {
            let look: Option<Look> = self.home.find(Kind::Look, id.as_bytes())?;
            let Some(look) = look.filter(|look| look.complaint.is_none()) else { return Ok(()) };
            let Some(answer) = answer else { return self.look_again(id, look, now, 0) };
            let info = match answer.outcome.clone().into_result() {
                Ok(DsResponseBody::Info(info)) => info,
                Ok(DsResponseBody::Accepted(_) | DsResponseBody::Moving(_)) => {
                    return self.home.remove(Kind::Look, id.as_bytes());
                }
                Err(
                    DsError::RateLimited { retry_after_ms, .. }
                    | DsError::Unavailable { retry_after_ms, .. }
                    | DsError::GroupMigrating { retry_after_ms, .. },
                ) => return self.look_again(id, look, now, retry_after_ms),
                Err(DsError::StaleRequest { .. }) => return self.look_again(id, look, now, 0),
                Err(error) => {
                    // the group has moved or is gone, or this client is out of it: its queue says more
                    tracing::debug!(group = %id, %error, "what a commit left was not looked at");
                    return self.home.remove(Kind::Look, id.as_bytes());
                }
            };
            let (record, group) = (self.record(id)?, self.load(id)?);
            let theirs = info.group_info.parse().map_err(CoreError::mls)?;
            let is_now = epoch_of(&group) == look.epoch && record.state == GroupState::Active;
            if !is_now || theirs.epoch() != group.epoch() {
                // somebody has committed since, and others look behind that
                return self.home.remove(Kind::Look, id.as_bytes());
            }
            match self.judge_info(&group, &look, &info, &record.leaf_key.open()?)? {
                Seen::Right => self.home.remove(Kind::Look, id.as_bytes()),
                Seen::Wrong => self.complain_of_info(id, look, &group, now),
                // the hub may have taken this epoch back: then the queue says so meanwhile
                Seen::Foreign(_) if look.tries < TRIES_MAX => self.look_again(id, look, now, 0),
                Seen::Foreign(what) => {
                    self.push(&Event::Misbehaviour {
                        what: format!("what the hub of {id} shows to who comes in: {what}"),
                    })?;
                    self.home.remove(Kind::Look, id.as_bytes())
                }
            }
        })
    }

    fn look_again(
        &self,
        id: &GroupId,
        mut look: Look,
        now: Timestamp,
        after_ms: u64,
    ) -> Result<(), CoreError> {
        if look.tries >= TRIES_MAX {
            return self.home.remove(Kind::Look, id.as_bytes());
        }
        look.not_before = Some(now.plus_ms(after_ms.max(RETRY_MS << look.tries)));
        look.tries += 1;
        self.home.put(Kind::Look, id.as_bytes(), &look)
    }

    /// Holds what a hub shows to who comes in from outside against this client's own state.
    fn judge_info(
        &self,
        group: &mls::MlsGroup,
        look: &Look,
        info: &Info,
        signer: &crypto::SigningKey,
    ) -> Result<Seen, CoreError> {
        let ours = group
            .export_group_info(self.home.provider().crypto(), signer, false)
            .map_err(CoreError::mls)?;
        let ours = ours.tls_serialize_detached().map_err(CoreError::mls)?;
        let ours = GroupInfoParts::of_message(&ours)?;
        let theirs = GroupInfoParts::of(info.group_info.as_slice())?;
        if theirs.context != ours.context {
            return Ok(Seen::Foreign("another GroupContext than the epoch has"));
        }
        if theirs.tag != ours.tag {
            return Ok(Seen::Foreign("another confirmation tag than the epoch has"));
        }
        let committer = group.member_at(mls::LeafNodeIndex::new(theirs.signer));
        let mut signed = Vec::new();
        append_vector(&mut signed, b"MLS 1.0 GroupInfoTBS");
        append_vector(&mut signed, theirs.signed);
        let scheme = scheme_of(group.ciphersuite());
        let is_signed = committer.is_some_and(|it| {
            let (key, signature) = (&it.signature_key, theirs.signature.as_slice());
            client_of(&it.credential).ok() == look.by
                && crypto::verify_raw(scheme, key, &signed, signature).is_ok()
        });
        Ok(if !is_signed {
            // a committer answers for what it has signed only
            Seen::Foreign("it is not signed by who committed")
        } else if theirs.extensions == ours.extensions {
            Seen::Right
        } else {
            Seen::Wrong
        })
    }

    fn complain_of_info(
        &self,
        id: &GroupId,
        mut look: Look,
        group: &mls::MlsGroup,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        let record = self.record(id)?;
        let complaint = signed(
            CommitComplaint {
                group_id: id.clone(),
                epoch: Epoch(look.epoch.0.saturating_sub(1)),
                leaf_index: LeafIndex(group.own_leaf_index().u32()),
                commit_hash: bounded(look.commit_hash.clone())?,
                reason: ComplaintReason::ExternalPub.into(),
                signature: Signature::default(),
            },
            &record,
        )?;
        self.push(&Event::BadGroupInfo { group: id.clone(), by: look.by.clone() })?;
        look.complaint = Some(Complaint { hub: record.hub, complaint, since: now });
        look.not_before = Some(now);
        self.home.put(Kind::Look, id.as_bytes(), &look)
    }

    /// What came of a complaint about what was seen: whatever the hub thinks of the committer, the next commit brings a right
    /// GroupInfo.
    pub(super) fn info_complaint_heard(
        &self,
        id: &GroupId,
        is_answered: bool,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        let look: Option<Look> = self.home.find(Kind::Look, id.as_bytes())?;
        let Some(mut look) = look.filter(|look| look.complaint.is_some()) else { return Ok(()) };
        if is_answered {
            return self.make_good(id, &look);
        }
        look.not_before = Some(now.plus_ms(COMPLAIN_RETRY_MS));
        self.home.put(Kind::Look, id.as_bytes(), &look)
    }

    fn make_good(&self, id: &GroupId, look: &Look) -> Result<(), CoreError> {
        self.home.remove(Kind::Look, id.as_bytes())?;
        if self.record(id)?.state != GroupState::Active {
            return Ok(());
        }
        let group = self.load(id)?;
        // who is on its way out can commit nothing, and must not come in again by what it has just seen
        if epoch_of(&group) == look.epoch && !leaves(&group) && !is_being_removed(&group) {
            self.keep(id, Operation::UpdateClient { rotate_key: false })?;
        }
        Ok(())
    }
}

/// After how long the member at `me` looks behind a commit, if it does. Everybody knows the order of those who look, so that in any
/// case somebody does; who else looks by `chance` (one more, in the mean) nobody knows beforehand, so that no committer can
/// choose an epoch whose order holds nobody but its friends. Neither the committer's own clients look nor who came by the commit: their
/// complaints do not count.
pub(super) fn looks_after(
    id: &GroupId,
    epoch: Epoch,
    me: LeafIndex,
    commit: &Followed<'_>,
    chance: u64,
) -> Option<u64> {
    let place = |leaf: LeafIndex| {
        let parts = [id.as_bytes(), &epoch.0.to_be_bytes(), &leaf.0.to_be_bytes()];
        crypto::sha256(&parts.concat())
    };
    let may_look = |leaf: &LeafIndex| {
        let user = commit.roster.get(*leaf).map(|identity| &identity.user);
        user.is_some() && user != commit.by_user && !commit.removed.contains(leaf)
    };
    if !may_look(&me) {
        return None;
    }
    let leaves = commit.roster.len().max(1) as u64;
    let later_ms = leaves / 100 * LATER_MS_PER_HUNDRED;
    if chance.is_multiple_of(leaves) {
        return Some(later_ms);
    }
    let mine = place(me);
    let others = commit.roster.leaves().filter(may_look);
    let before = others.filter(|leaf| place(*leaf) < mine).take(LOOKS_AFTER_MS.len()).count();
    LOOKS_AFTER_MS.get(before).map(|after_ms| after_ms + later_ms)
}
