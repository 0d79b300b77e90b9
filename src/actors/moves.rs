//! Moves of groups, as far as both sides share: their bounds, what a group's chain of moves proves, and what is said of a
//! group that is not here any more. PROTOCOL.md §6.

use super::{
    arrivals::{RefusedCounts, arrival_here},
    errors::{detail, rate_limited, unavailable},
    node::Node,
};
use crate::{
    federation::{Anew, DomainPattern, schedule::Backoff},
    migration::{
        memory::{CameAt, Keep, Memory, is_refusal_forgotten},
        proof::{check_confirmation, follow_chain},
    },
    store::{
        StoreError,
        records::{Arrival, Moves, RefusedNonce},
    },
    wire::{
        client::{VerificationKey, VerificationKeyResponse},
        codec::decode,
        ds::DsError,
        ids::{Domain, GroupId, Timestamp},
        portability::{Chain, MigrationConfirmation},
    },
};

/// Which groups may come here, and how patient both sides are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveLimits {
    /// Whether groups may come here at all.
    pub accept: bool,
    /// Providers that they may come from; none: all that this provider speaks with.
    pub sources: Option<Vec<DomainPattern>>,
    /// Groups that came from elsewhere and are here; beyond: not_authorized.
    pub groups_max: usize,
    /// Nonces that are remembered as refused to one source; beyond: not_authorized to new moves, rate_limited to those that
    /// are under way.
    pub refused_per_source_max: usize,
    /// The same, of those that came from one provider.
    pub groups_per_source_max: usize,
    /// Groups on their way elsewhere that are worked on at once, a quarter of them for one target: so many contents are in
    /// memory. Others wait their turn, frozen, which does not count against [`Self::freeze_ms`].
    pub departures_max: usize,
    /// How long a target's word is good.
    pub response_ms: u64,
    /// A group that nothing was sent of goes on here after this.
    pub freeze_ms: u64,
    /// How long it is told where a group has gone.
    pub forward_ms: u64,
    /// For sending a group and the answer.
    pub content_timeout_ms: u64,
    /// How long a content is put off whose group's feed still comes here from a hub before its source.
    pub feed_wait_ms: u64,
    /// How long the initiator's request is held open for its answer.
    pub answer_wait_ms: u64,
    pub retry: Backoff,
}

impl Default for MoveLimits {
    fn default() -> Self {
        const MINUTE_MS: u64 = 60 * 1000;
        Self {
            accept: true,
            sources: None,
            groups_max: 10_000,
            refused_per_source_max: 1_000,
            groups_per_source_max: 2_000,
            departures_max: 8,
            response_ms: 10 * MINUTE_MS,
            freeze_ms: MINUTE_MS,
            forward_ms: 30 * 24 * 60 * MINUTE_MS,
            content_timeout_ms: 2 * MINUTE_MS,
            feed_wait_ms: MINUTE_MS / 2,
            answer_wait_ms: 8_000,
            retry: Backoff { first_ms: 250, max_ms: MINUTE_MS },
        }
    }
}

/// The moves that `moves` holds, oldest first.
pub(super) fn chain_of(moves: &Moves) -> Result<Chain, StoreError> {
    if moves.chain.is_empty() {
        return Ok(Chain::default());
    }
    decode(&moves.chain).map_err(|error| StoreError::Corrupt { what: format!("moves: {error}") })
}

/// For a group that has been on its way for so long. Most are gone in a moment, some have to wait for a target: whoever comes
/// again after as long as it has taken already waits little too long, and does not come often.
pub(super) fn migrating(frozen_ms: u64) -> DsError {
    DsError::GroupMigrating {
        detail: detail("the group is moving to another provider; try again in a moment"),
        retry_after_ms: frozen_ms.clamp(RETRY_MIN_MS, RETRY_MAX_MS),
    }
}

impl Node {
    /// The chain of a group's moves up to this provider; empty for one that never moved.
    pub(super) async fn chain_to_here(&self, group: &GroupId) -> Result<Chain, StoreError> {
        match self.store.moves(group).await? {
            Some(moves) => chain_of(&moves),
            None => Ok(Chain::default()),
        }
    }

    /// Whether `group`, which is deleted, was hosted here then. What is here of one that was not is a copy.
    pub(super) async fn was_hosted_here(&self, group: &GroupId) -> Result<bool, StoreError> {
        let Some(moves) = self.store.moves(group).await? else {
            return Ok(group.domain() == self.domain);
        };
        let chain = chain_of(&moves)?;
        let last = chain.iter().last().map(|last| last.domain_name.clone());
        // of a move that was not confirmed yet the chain says nothing
        let is_here = moves.arrived.is_some_and(|arrived| arrived.here);
        Ok(is_here || last.unwrap_or_else(|| group.domain()) == self.domain)
    }

    /// What is said of a group that is hosted elsewhere: where it has gone, if it left from here and that is still told.
    pub(super) async fn moved_away(&self, group: &GroupId) -> Result<Option<DsError>, StoreError> {
        let Some(moves) = self.store.moves(group).await? else { return Ok(None) };
        let is_told = moves
            .left
            .as_ref()
            .is_some_and(|left| self.clock.now().ms_since(left.at) < self.limits.moves.forward_ms);
        let chain = chain_of(&moves)?;
        let goes_on = chain.iter().last().is_some_and(|last| last.domain_name != self.domain);
        Ok((is_told && goes_on).then(|| DsError::GroupMoved {
            detail: detail("the group has moved: ask the provider that the last link names"),
            chain,
        }))
    }

    /// Whether `chain` proves that `group` went from `from` to `to`: its links hang together, and each is signed by a
    /// key that its source publishes, be it retired.
    ///
    /// # Errors
    /// unavailable or rate_limited, where keys cannot be had now.
    pub(super) async fn proves(
        &self,
        group: &GroupId,
        from: &Domain,
        to: &Domain,
        chain: &Chain,
    ) -> Result<bool, DsError> {
        if follow_chain(group, from, to, chain).is_err() {
            return Ok(false);
        }
        for link in chain.iter() {
            if !self.is_confirmed(link).await? {
                tracing::warn!(%group, source = %link.source_domain, "a link of a group's moves is not signed by its source");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a confirmation is signed by its source.
    pub(super) async fn is_confirmed(
        &self,
        confirmation: &MigrationConfirmation,
    ) -> Result<bool, DsError> {
        let is_by = |key: &VerificationKey| {
            check_confirmation(key.scheme, key.public_key.as_slice(), confirmation).is_ok()
        };
        self.lists_sender_key(&confirmation.source_domain, is_by).await
    }

    /// Whether one of the external-sender keys that a provider signs with is such a one. Keys that have ended say nothing new.
    ///
    /// # Errors
    /// unavailable or rate_limited, where keys cannot be had now.
    pub(super) async fn has_sender_key(
        &self,
        domain: &Domain,
        is_it: impl Fn(&VerificationKey) -> bool,
    ) -> Result<bool, DsError> {
        let now = self.clock.now();
        self.lists_sender_key(domain, |key| now <= key.not_after && is_it(key)).await
    }

    /// Whether one of the external-sender keys that a provider publishes, or has retired, is such a one. Where none is that
    /// is known, its list is fetched anew: it may have new ones.
    ///
    /// # Errors
    /// rate_limited, where it was fetched a moment ago; unavailable. Both say nothing of the key.
    async fn lists_sender_key(
        &self,
        domain: &Domain,
        is_it: impl Fn(&VerificationKey) -> bool,
    ) -> Result<bool, DsError> {
        let asked_at = self.clock.now();
        let known = self.sender_keys_of(domain).await?;
        if known.keys.iter().any(&is_it) {
            return Ok(true);
        }
        let Some(federation) = &self.federation else { return Ok(false) };
        match federation.newer_external_senders_of(domain, &known, asked_at).await {
            Anew::Keys(newer) => Ok(newer.domain == *domain && newer.keys.iter().any(is_it)),
            Anew::Known => Ok(false),
            Anew::Later { retry_after_ms } => {
                let why =
                    format!("{domain} was asked for its keys a moment ago; it may have newer ones");
                Err(rate_limited(&why, retry_after_ms))
            }
            Anew::Failed(error) => {
                tracing::warn!(peer = %domain, %error, "the keys of a provider in a move cannot be had anew now");
                Err(unavailable("the keys of the other provider cannot be had now; try again"))
            }
        }
    }

    /// The external-sender keys that a provider publishes.
    async fn sender_keys_of(&self, domain: &Domain) -> Result<VerificationKeyResponse, DsError> {
        let federation = self.federation.as_ref();
        let federation =
            federation.ok_or_else(|| unavailable("this provider does not federate"))?;
        if *domain == self.domain {
            return Ok(federation.signature_keys());
        }
        match federation.external_senders_of(domain).await {
            Ok(keys) if keys.domain == *domain => Ok(keys),
            Ok(_) => Err(unavailable("a provider gives the keys of another; try again later")),
            Err(error) => {
                tracing::warn!(peer = %domain, %error, "the keys of a provider in a move cannot be had now");
                Err(unavailable("the keys of the other provider cannot be had now; try again"))
            }
        }
    }

    /// Whether nothing of a group's moves needs to be known any more.
    async fn is_forgotten(
        &self,
        group: &GroupId,
        moves: &Moves,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let limits = &self.limits.moves;
        let keep = Keep { forward_ms: limits.forward_ms, response_ms: limits.response_ms };
        let came = |it: &Arrival| CameAt { at: it.at, here: it.here, confirmed: it.confirmed };
        let memory = Memory {
            left_at: moves.left.as_ref().map(|left| left.at),
            came: moves.arrived.as_ref().map(came),
            confirms: false,
        };
        if !memory.is_forgotten(&keep, now) {
            return Ok(false);
        }
        // asked of few, for it is read for each
        let confirms = self.store.departure(group).await?.is_some();
        Ok(Memory { confirms, ..memory }.is_forgotten(&keep, now))
    }

    /// Reads which groups came from elsewhere and are here, before requests are answered by that.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn load_arrivals(&self) -> Result<(), StoreError> {
        self.arrivals.load(&self.store, &self.domain).await
    }

    /// Counts a group as it is stored: it may have come or gone since it was looked at, and a write whose outcome was not
    /// known may have been done.
    async fn count_arrival(&self, group: &GroupId) -> Result<(), StoreError> {
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        let moves = self.store.moves(group).await?.unwrap_or_default();
        let arrived = arrival_here(&self.store, group, moves).await?;
        self.arrivals.put(group, arrived.as_ref().map(|arrived| &arrived.source));
        Ok(())
    }

    /// Lets go of what need not be known of moves any longer: where groups went that left long ago, nonces that have
    /// expired. Counts the groups that came from elsewhere and are here, and gives their number.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn sweep_moves(&self) -> Result<usize, StoreError> {
        use crate::store::{Batch, Write, unless_damaged};
        let now = self.clock.now();
        let (mut unconfirmed, mut after) = (0, None);
        self.arrivals.load(&self.store, &self.domain).await?;
        loop {
            let page = self.store.all_moves(after.as_ref(), PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (group, moves) in page {
                let arrived = moves.arrived.as_ref();
                unconfirmed += i64::from(arrived.is_some_and(|it| it.here && !it.confirmed));
                let is_counted = arrived.is_some_and(|it| it.here) && group.domain() != self.domain;
                if is_counted != self.arrivals.has(&group) {
                    unless_damaged(self.count_arrival(&group).await)?;
                }
                if !unless_damaged(self.is_forgotten(&group, &moves, now).await)? {
                    continue;
                }
                // it may come back at this moment
                let turn = self.copies.turn(&group);
                let _turn = turn.lock().await;
                let Some(moves) = self.store.moves(&group).await? else { continue };
                if self.is_forgotten(&group, &moves, now).await? {
                    self.store.write(Batch::new().and(Write::DropMoves(group.clone()))).await?;
                }
            }
        }
        let here = self.arrivals.count();
        self.metrics.groups_from_elsewhere.set(i64::try_from(here).unwrap_or(i64::MAX));
        self.metrics.arrivals_unconfirmed.set(unconfirmed);
        let mut after: Option<[u8; 32]> = None;
        let (before, mut refused) = (self.arrivals.refusals.counts(), RefusedCounts::new());
        loop {
            let page = self.store.refused_nonces(after.as_ref(), PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let mut batch = Batch::new();
            for (nonce, RefusedNonce { until, source }) in page {
                if is_refusal_forgotten(until, now) {
                    batch.push(Write::DropRefusedNonce(nonce));
                } else if let Some(source) = source {
                    *refused.entry(source).or_default() += 1;
                }
            }
            if !batch.writes.is_empty() {
                self.store.write(batch).await?;
            }
        }
        self.arrivals.refusals.recount(&before, refused);
        Ok(here)
    }
}

/// A place in the code where a test may end the process, to see that what is written down is enough: the file that
/// `TEST_STOP_AT_FILE` names says where (`step`, or `step 2` for the second time that it is come to), and gets `stopped` behind
/// it; the process then waits to be killed. Built without debug assertions it is nothing.
pub(super) async fn step(name: &'static str) {
    #[cfg(debug_assertions)]
    {
        use std::io::Write as _;
        let Some(path) = std::env::var_os("TEST_STOP_AT_FILE") else { return };
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        let (wanted, times) = wanted.trim().split_once(' ').unwrap_or((wanted.trim(), "1"));
        if wanted != name || times.contains("stopped") {
            return;
        }
        if let Some(left) = times.parse::<u32>().ok().filter(|times| *times > 1) {
            let _ = std::fs::write(&path, format!("{name} {}", left - 1));
            return;
        }
        tracing::warn!(name, "stopping here, as asked");
        if let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(&path) {
            let _ = writeln!(file, "\nstopped");
        }
        std::future::pending::<()>().await;
    }
    let _ = name;
}

const RETRY_MIN_MS: u64 = 50;
const RETRY_MAX_MS: u64 = 2_000;
const PAGE: usize = 256;
