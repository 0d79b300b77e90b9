//! What a group keeps of its latest commits, so that it can judge what members complain of: who was in the epoch before,
//! by which key, whose commit it was, and who has complained. PROTOCOL.md §2, "When a committer lies".
//!
//! Deliberately absent: what the group does about it (`super::complaint`, `super::void`).
//!
//! Bounds. Commits of the last day are kept: the newest [`CASES_MAX`] of them, and older ones only down to the oldest that
//! somebody complains of; never more than [`LEAVES_MAX`] leaves that they changed and [`COMPLAINTS_MAX`] complaints. Beyond, the
//! oldest commits are forgotten, and complaints of them get `none`: whoever cannot process one resyncs by itself.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    crypto::sha256,
    policy::{leaf::LeafIdentity, roster::Roster},
    wire::{
        codec::decode,
        ds::{ComplaintReason, Grounds},
        ids::{ClientUri, Epoch, LeafIndex, Sequence, Timestamp, UserKeyHash},
        queueing::QueueEvent,
    },
};

use super::{
    complainants::{Complainants, Count, Said},
    mls::InfoParts,
    record::CommitRecord,
};

/// Commits that are kept although nobody complains of them.
const CASES_MAX: usize = 8;
/// Leaves that the kept commits changed.
const LEAVES_MAX: usize = 1024;
const COMPLAINTS_MAX: usize = 16_384;
const KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// A commit can be taken back for so long.
pub(super) const BACK_MS: u64 = 10 * 60 * 1000;
/// Users who must complain, however few there are.
const QUORUM_MIN: u32 = 2;
/// Commits that were taken back and are still answered with `void`.
const VOIDED_MAX: usize = 4;
/// Users for whom a group has gone back; from there on it goes back for nobody.
const WENT_BACK_MAX: usize = 64;

/// What is known of liars, and of commits that may turn out to be lies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lies {
    /// In order: each began the epoch that the next one ended.
    pub(super) cases: VecDeque<Case>,
    /// Commits that are void, by their epoch and hash.
    voided: VecDeque<(Epoch, [u8; 32])>,
    /// Users for whose commit the group went back: never again.
    went_back: BTreeSet<UserKeyHash>,
}

/// One commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Case {
    /// The epoch that it was sent in.
    pub(super) epoch: Epoch,
    pub(super) hash: [u8; 32],
    pub(super) sequence: Sequence,
    pub(super) at: Timestamp,
    pub(super) committer: ClientUri,
    pub(super) user: UserKeyHash,
    /// It came from outside, by the GroupInfo of the commit before.
    pub(super) is_external: bool,
    /// SHA-256 of the `external_pub` in that GroupInfo; none: it did not come from outside, or is not known any more.
    #[serde(skip)]
    built_on: Option<[u8; 32]>,
    removes: bool,
    /// Users in both epochs but for the committer's.
    pub(super) users: u32,
    /// Users whom it removed, in order.
    departed: Vec<UserKeyHash>,
    /// What it changed or removed, as it was, in order of leaves.
    former: Vec<Former>,
    /// Leaves that were free before, in order.
    pub(super) added: Vec<LeafIndex>,
    /// A request of another user than the committer's was accepted behind it.
    pub(super) others_went_on: bool,
    /// What there was to be done about it has been done.
    pub(super) is_settled: bool,
    first_complaint_at: Option<Timestamp>,
    complaints: Complainants,
}

/// A leaf that is not any more what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Former {
    leaf: LeafIndex,
    pub(super) client: ClientUri,
    pub(super) user: UserKeyHash,
    pub(super) key: Vec<u8>,
}

/// What must be known of a group before a commit changes it.
pub(super) struct Earlier {
    former: Vec<Former>,
    users: usize,
    has_user: BTreeSet<UserKeyHash>,
    /// SHA-256 of the `external_pub` that who came in from outside was given.
    external_pub: Option<[u8; 32]>,
}

/// What a complaint says that can be held against somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charge {
    /// The commit whose committer it is held against, which is not always the one that is complained of.
    pub(super) index: usize,
    /// The commit is good, and its GroupInfo is not.
    pub(super) of_info: bool,
}

impl Former {
    fn of(leaf: LeafIndex, identity: &LeafIdentity) -> Self {
        Self {
            leaf,
            client: identity.client.clone(),
            user: identity.user.clone(),
            key: identity.signature_key.clone(),
        }
    }
}

impl Earlier {
    pub(super) fn of(roster: &Roster, info: &InfoParts, commit: &CommitRecord) -> Self {
        let changed: BTreeSet<LeafIndex> =
            commit.removed.iter().chain(&commit.renewed).copied().collect();
        let former: Vec<Former> = changed
            .into_iter()
            .filter_map(|leaf| roster.get(leaf).map(|identity| Former::of(leaf, identity)))
            .collect();
        Self {
            has_user: former.iter().map(|former| former.user.clone()).collect(),
            former,
            users: roster.user_count(),
            external_pub: commit
                .joined
                .as_ref()
                .and_then(|_| info.external_pub())
                .map(|key| sha256(&key)),
        }
    }
}

impl Lies {
    /// Notes an accepted commit, with the roster that it left.
    pub(super) fn committed(
        &mut self,
        commit: &CommitRecord,
        event: &[u8],
        earlier: Earlier,
        roster: &Roster,
        (epoch, sequence, at): (Epoch, Sequence, Timestamp),
    ) {
        if let Some(last) = self.cases.back_mut() {
            // the group has gone on: nobody will be asked for evidence
            last.complaints.drop_evidence();
        }
        let Earlier { former, users, has_user, external_pub } = earlier;
        let Ok(QueueEvent::MlsMessage { message }) = decode(event) else {
            return self.cases.clear();
        };
        let Some(committer) = roster.get(commit.signer) else { return self.cases.clear() };
        let mut added: Vec<LeafIndex> = commit
            .added
            .iter()
            .map(|added| added.leaf)
            .chain(commit.joined.as_ref().map(|joined| joined.leaf))
            .collect();
        // as the leftmost free leaf is taken first, they are
        added.sort_unstable();
        let departed: Vec<UserKeyHash> =
            has_user.iter().filter(|user| !roster.has_user(user)).cloned().collect();
        let mut moved = has_user;
        moved.extend(added.iter().filter_map(|leaf| Some(roster.get(*leaf)?.user.clone())));
        let is_new = |user: &UserKeyHash| {
            // all of its leaves are new, and none of them took the place of one of its own
            roster.leaves_of(user).all(|leaf| added.binary_search(&leaf).is_ok())
                && !former.iter().any(|former| former.user == *user)
        };
        let own = usize::from(!is_new(&committer.user));
        let stayed = users.saturating_sub(departed.len() + own);
        self.cases.push_back(Case {
            epoch,
            hash: sha256(message.as_slice()),
            sequence,
            at,
            committer: committer.client.clone(),
            user: committer.user.clone(),
            is_external: commit.joined.is_some(),
            built_on: external_pub,
            removes: !commit.removed.is_empty(),
            users: u32::try_from(stayed).unwrap_or(u32::MAX),
            departed,
            former,
            added,
            others_went_on: false,
            is_settled: false,
            first_complaint_at: None,
            complaints: Complainants::default(),
        });
        self.forget(at);
        for case in &mut self.cases {
            case.complaints.moved(moved.iter(), roster);
        }
    }

    /// The roster has changed otherwise than by a commit that was noted.
    pub(super) fn sort_out(&mut self, roster: &Roster) {
        for case in &mut self.cases {
            case.complaints.sort_out(roster);
        }
    }

    fn forget(&mut self, now: Timestamp) {
        let mut leaves: usize = self.cases.iter().map(Case::leaves).sum();
        let mut complaints: usize = self.cases.iter().map(|case| case.complaints.len()).sum();
        while let Some(oldest) = self.cases.front() {
            let is_open = !oldest.is_settled && !oldest.complaints.is_empty();
            let goes = now.ms_since(oldest.at) > KEPT_MS
                || leaves > LEAVES_MAX
                || complaints > COMPLAINTS_MAX
                || (self.cases.len() > CASES_MAX && !is_open);
            if !goes {
                return;
            }
            leaves -= oldest.leaves();
            complaints -= oldest.complaints.len();
            self.cases.pop_front();
        }
    }

    /// Notes that a request of `user` (none: of somebody who is not in the group) was accepted.
    pub(super) fn went_on(&mut self, user: Option<&UserKeyHash>) {
        if let Some(last) = self.cases.back_mut()
            && user != Some(&last.user)
        {
            last.others_went_on = true;
        }
    }

    pub(super) fn find(&self, epoch: Epoch, hash: &[u8]) -> Option<usize> {
        let index = self.cases.binary_search_by_key(&epoch, |case| case.epoch).ok()?;
        self.cases.get(index).filter(|case| case.hash == hash).map(|_| index)
    }

    pub(super) fn is_void(&self, epoch: Epoch, hash: &[u8]) -> bool {
        self.voided.iter().any(|(of, known)| *of == epoch && known == hash)
    }

    /// Who `leaf` was in the epoch that the commit `index` was sent in; `roster` is of now.
    pub(super) fn leaf_in(&self, index: usize, leaf: LeafIndex, roster: &Roster) -> Option<Former> {
        for case in self.cases.iter().skip(index) {
            if let Ok(at) = case.former.binary_search_by_key(&leaf, |former| former.leaf) {
                return case.former.get(at).cloned();
            }
            if case.added.binary_search(&leaf).is_ok() {
                return None;
            }
        }
        roster.get(leaf).map(|identity| Former::of(leaf, identity))
    }

    /// Notes a complaint that counts; `roster` is of now.
    pub(super) fn complained(
        &mut self,
        index: usize,
        user: &UserKeyHash,
        mut said: Said,
        roster: &Roster,
        at: Timestamp,
    ) {
        let is_last = index + 1 == self.cases.len();
        let Some(case) = self.cases.get_mut(index) else { return };
        case.first_complaint_at.get_or_insert(at);
        if !is_last {
            said.complaint = Vec::new();
        }
        case.complaints.put(user.clone(), said, roster.has_user(user));
        self.forget(at);
    }

    /// What there was to be done about `committer`'s commits has been done.
    pub(super) fn settle(&mut self, committer: &ClientUri) {
        for case in self.cases.iter_mut().filter(|case| case.committer == *committer) {
            case.is_settled = true;
        }
    }

    /// Takes the last commit back.
    pub(super) fn go_back(&mut self) -> Option<Case> {
        let case = self.cases.pop_back()?;
        self.voided.push_back((case.epoch, case.hash));
        if self.voided.len() > VOIDED_MAX {
            self.voided.pop_front();
        }
        self.went_back.insert(case.user.clone());
        Some(case)
    }

    /// Until when the group may yet go back behind its last commit; none: it does not. `epoch` is the group's, and complainants
    /// wait for others for `wait_ms`.
    pub(super) fn back_until(&self, epoch: Epoch, wait_ms: u64) -> Option<Timestamp> {
        let last = self.cases.back()?;
        let first = last.first_complaint_at?;
        let may = last.epoch.next() == epoch
            && !last.others_went_on
            && !last.removes
            && !last.is_settled
            // one alone can do nothing but come in again
            && last.users >= QUORUM_MIN
            && self.went_back.len() < WENT_BACK_MAX
            && !self.went_back.contains(&last.user);
        may.then(|| last.at.plus_ms(BACK_MS).min(first.plus_ms(wait_ms)))
    }

    /// Whom a complaint of the commit `index` is held against; none: nobody.
    ///
    /// Who cannot process a commit from outside says which `external_pub` that epoch had. Where it is the one that the hub gave, the
    /// committer lies; where it is not, the committer was misled by who gave it, whose commit began that epoch.
    pub(super) fn charge(&self, index: usize, reason: &Grounds) -> Option<Charge> {
        let case = self.cases.get(index)?;
        if reason.reason() == ComplaintReason::ExternalPub {
            return Some(Charge { index, of_info: true });
        }
        if !case.is_external {
            return Some(Charge { index, of_info: false });
        }
        if sha256(reason.external_pub()?) == case.built_on? {
            return Some(Charge { index, of_info: false });
        }
        let before = index.checked_sub(1)?;
        let gave = self.cases.get(before).filter(|gave| gave.epoch.next() == case.epoch);
        gave.map(|_| Charge { index: before, of_info: true })
    }

    /// What the part of a snapshot does not hold that every version reads: on which keys commits from outside were built, by
    /// their epochs.
    pub(super) fn keys_built_on(&self) -> Vec<(Epoch, [u8; 32])> {
        self.cases.iter().filter_map(|case| Some((case.epoch, case.built_on?))).collect()
    }

    pub(super) fn put_keys_built_on(&mut self, keys: Vec<(Epoch, [u8; 32])>) {
        for (epoch, key) in keys {
            if let Ok(index) = self.cases.binary_search_by_key(&epoch, |case| case.epoch)
                && let Some(case) = self.cases.get_mut(index)
            {
                case.built_on = Some(key);
            }
        }
    }
}

impl Case {
    fn leaves(&self) -> usize {
        self.former.len() + self.added.len() + 1
    }

    /// Whether a complaint of `user` can count: it is in both epochs, still in the group, and not the committer's.
    pub(super) fn may_complain(&self, user: &UserKeyHash, roster: &Roster) -> bool {
        *user != self.user && self.departed.binary_search(user).is_err() && roster.has_user(user)
    }

    /// Whether a complaint of `user` is counted already, as one that weighs as much.
    pub(super) fn has_complaint(&self, user: &UserKeyHash, of_info: bool) -> bool {
        self.complaints.of(user).is_some_and(|known| of_info || !known.of_info)
    }

    /// Whether more than half of the users in both epochs, and at least two, complain.
    pub(super) fn is_lie(&self, count: Count) -> bool {
        let complaints = self.complaints.count(count);
        complaints >= QUORUM_MIN as usize && 2 * complaints > self.users as usize
    }

    /// What proves that the commit could not be processed, as it came.
    pub(super) fn evidence(&self) -> impl Iterator<Item = &[u8]> {
        self.complaints.evidence()
    }
}
