//! The hub's external-sender keys, and how one takes another's place, group by group. PROTOCOL.md §2, "The hub's key
//! rotates".
//!
//! A group's context names the one key that its hub signs with there. When the hub has a newer one of the same scheme, it
//! proposes, signed by the one in the group, a GroupContextExtensions that holds the newer one in its place and changes
//! nothing else. The old one is needed until the last group has let go of it: which groups still have it is in their heads
//! ([`KeyStand`]). Then it is retired. Deliberately absent: files (`server::sender_keys`).

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
};

use openmls::prelude::{ProcessedMessageContent, Proposal, ProtocolMessage};

use crate::{
    crypto::{SigningKey, sha256},
    migration::proof::AnswerKey,
    policy::change::{Act, Author, What, sender_key},
    store::records::{KeyPrint, KeyStand},
    wire::{
        extensions::{PublicKey, SignatureScheme},
        ids::Timestamp,
    },
};

use super::{GroupState, Step, mls::propose_hub_key, record::Pending};

/// One of the hub's keys.
#[derive(Debug, Clone)]
pub struct HubKey {
    pub key: SigningKey,
    /// Of two of one scheme the later one stands in new groups.
    pub since: Timestamp,
}

impl HubKey {
    #[must_use]
    pub fn print(&self) -> KeyPrint {
        print_of(self.key.public().as_slice())
    }
}

/// One that was, and is in no group any more. PROTOCOL.md §6, "Keys that are retired": its public part verifies where groups
/// went while it signed, and as long as it is told to, it answers for what it has promised.
#[derive(Debug, Clone)]
pub struct RetiredKey {
    scheme: SignatureScheme,
    public: PublicKey,
    since: Timestamp,
    retired_at: Timestamp,
    /// The private part, until when it is kept.
    answers: Option<(SigningKey, Timestamp)>,
}

impl RetiredKey {
    #[must_use]
    pub fn new(key: HubKey, retired_at: Timestamp, answers_until: Timestamp) -> Self {
        let HubKey { key, since } = key;
        let (scheme, public) = (key.scheme(), key.public().clone());
        Self { scheme, public, since, retired_at, answers: Some((key, answers_until)) }
    }

    /// One that answers nothing any more.
    #[must_use]
    pub fn erased(
        scheme: SignatureScheme,
        public: PublicKey,
        since: Timestamp,
        retired_at: Timestamp,
    ) -> Self {
        Self { scheme, public, since, retired_at, answers: None }
    }

    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        self.scheme
    }

    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    #[must_use]
    pub fn print(&self) -> KeyPrint {
        print_of(self.public.as_slice())
    }

    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Nothing that others are to take anew is signed by it from then on.
    #[must_use]
    pub fn retired_at(&self) -> Timestamp {
        self.retired_at
    }

    /// The private part and until when it is kept: to be written down, and for nothing else.
    #[must_use]
    pub fn answers(&self) -> Option<(&SigningKey, Timestamp)> {
        self.answers.as_ref().map(|(key, until)| (key, *until))
    }

    /// Whether the private part is there although its time is over.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.answers.as_ref().is_some_and(|(_, until)| *until <= now)
    }

    pub fn erase(&mut self) {
        self.answers = None;
    }
}

/// All of the hub's keys, which may be others at any time.
#[derive(Debug)]
pub struct HubKeys {
    held: RwLock<Arc<[HubKey]>>,
    retired: RwLock<Arc<[RetiredKey]>>,
}

impl HubKeys {
    #[must_use]
    pub fn new(keys: impl Into<Arc<[HubKey]>>) -> Self {
        Self { held: RwLock::new(keys.into()), retired: RwLock::default() }
    }

    /// Those that sign in groups.
    #[must_use]
    pub fn all(&self) -> Arc<[HubKey]> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on it is these.
    pub fn replace(&self, keys: impl Into<Arc<[HubKey]>>) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
    }

    #[must_use]
    pub fn retired(&self) -> Arc<[RetiredKey]> {
        Arc::clone(&self.retired.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these are retired.
    pub fn replace_retired(&self, keys: impl Into<Arc<[RetiredKey]>>) {
        *self.retired.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
    }

    /// What answers for a promise by the key of `scheme` with this public part, if that is (still) to be had: the key
    /// itself, or what is left of it behind its retirement.
    #[must_use]
    pub fn answer_key(
        &self,
        scheme: SignatureScheme,
        public: &[u8],
        now: Timestamp,
    ) -> Option<AnswerKey> {
        let is_it = |key: &SigningKey| key.scheme() == scheme && key.public().as_slice() == public;
        if let Some(held) = self.all().iter().find(|held| is_it(&held.key)) {
            return Some(AnswerKey::new(held.key.clone(), true));
        }
        let retired = self.retired();
        let mut answering = retired.iter().filter(|key| !key.is_over(now));
        let (key, _) = answering.find_map(|it| it.answers().filter(|(key, _)| is_it(key)))?;
        Some(AnswerKey::new(key.clone(), false))
    }

    /// The keys that new groups have, one of each scheme.
    #[must_use]
    pub fn newest(&self) -> BTreeSet<KeyPrint> {
        let all = self.all();
        all.iter().filter_map(|key| newest(&all, key.key.scheme())).map(HubKey::print).collect()
    }

    /// Whether some key of a scheme is older than another.
    #[must_use]
    pub fn has_old(&self) -> bool {
        self.newest().len() < self.all().len()
    }
}

/// The one of `keys` that new groups of `scheme` have.
#[must_use]
pub fn newest(keys: &[HubKey], scheme: SignatureScheme) -> Option<&HubKey> {
    keys.iter().filter(|key| key.key.scheme() == scheme).max_by_key(|key| key.since)
}

/// How long a group may still be created with a key that has been replaced: whoever asked for the hub's keys keeps the
/// answer for an hour, and may have been told by who had it from us that long.
pub const OLD_KEY_FOUNDS_MS: u64 = 6 * 60 * 60 * 1000;

/// Those of `keys` that a new group may name at `now`, the newest first.
#[must_use]
pub fn founding(keys: &[HubKey], scheme: SignatureScheme, now: Timestamp) -> Vec<&HubKey> {
    let Some(newest) = newest(keys, scheme) else { return Vec::new() };
    let in_time = now < newest.since.plus_ms(OLD_KEY_FOUNDS_MS);
    let old = keys.iter().filter(|key| in_time && key.key.scheme() == scheme);
    std::iter::once(newest).chain(old).collect()
}

/// The ones that can go: replaced so long ago that no group is founded with them any more, and `in_use` by no group.
#[must_use]
pub fn done_with(keys: &[HubKey], in_use: &BTreeSet<KeyPrint>, now: Timestamp) -> Vec<KeyPrint> {
    // a group that was founded at the last moment is in the store by then
    const MARGIN_MS: u64 = 60 * 60 * 1000;
    let is_done = |key: &&HubKey| {
        newest(keys, key.key.scheme()).is_some_and(|newest| {
            newest.print() != key.print()
                && now >= newest.since.plus_ms(OLD_KEY_FOUNDS_MS + MARGIN_MS)
                && !in_use.contains(&key.print())
        })
    };
    keys.iter().filter(is_done).map(HubKey::print).collect()
}

fn print_of(public: &[u8]) -> KeyPrint {
    let mut print = [0; 16];
    print.copy_from_slice(&sha256(public)[..16]);
    KeyPrint(print)
}

impl GroupState {
    /// The hub's key in the group, and the one that is proposed in its place.
    #[must_use]
    pub fn key_stand(&self) -> Option<KeyStand> {
        let key = print_of(&sender_key(self.tree.context().extensions())?);
        let proposed = self.pending.iter().find_map(|pending| {
            match (&pending.act.what, pending.queued.proposal()) {
                (What::HubKey, Proposal::GroupContextExtensions(new)) => {
                    sender_key(new.extensions()).map(|key| print_of(&key))
                }
                _ => None,
            }
        });
        Some(KeyStand { key, proposed })
    }

    /// Whether the hub has a newer key to propose here now.
    #[must_use]
    pub fn wants_key(&self) -> bool {
        self.next_key(&self.hub.keys.all()).is_some()
    }

    /// The one of the hub's `keys` that signs in this group.
    pub(super) fn signing_key<'a>(&self, keys: &'a [HubKey]) -> Option<&'a SigningKey> {
        let public = sender_key(self.tree.context().extensions())?;
        keys.iter().map(|key| &key.key).find(|key| key.public().as_slice() == public)
    }

    /// The key that is to be proposed now in the place of the group's: none while another GroupContextExtensions is
    /// pending, which would not go together with it.
    pub(super) fn next_key<'a>(&self, keys: &'a [HubKey]) -> Option<&'a HubKey> {
        let next = newest(keys, self.tree.scheme())?;
        let here = self.signing_key(keys)?;
        let context =
            |pending: &Pending| matches!(pending.act.what, What::Policy(_) | What::HubKey);
        let other = self.pending.iter().any(context);
        (!self.deleted && !other && here.public() != next.key.public()).then_some(next)
    }

    /// The proposal of [`GroupState::next_key`], if there is one to be made.
    pub(super) fn key_proposal(&self, keys: &[HubKey], now: Timestamp) -> Option<Step> {
        let (next, signs) = (self.next_key(keys)?, self.signing_key(keys)?);
        let hub = &self.hub.settings.hub;
        let new = super::hub::external_sender(hub, &next.key);
        let message = propose_hub_key(self.tree.context(), new, signs).ok()?;
        self.own_proposal(message, What::HubKey, now)
    }

    /// `message`, which the hub has just made, as it is pending. None where a member would not take it.
    pub(super) fn own_proposal(
        &self,
        message: crate::wire::mls::MlsMessage,
        what: What,
        now: Timestamp,
    ) -> Option<Step> {
        let openmls::prelude::MlsMessageBodyIn::PublicMessage(public) =
            message.parse().ok()?.extract()
        else {
            return None;
        };
        let protocol = ProtocolMessage::PublicMessage(Box::new(public));
        let processed = self.tree.process(&self.hub.crypto, protocol).ok()?;
        let ProcessedMessageContent::ProposalMessage(queued) = processed.into_content() else {
            return None;
        };
        let act = Act { author: Author::Hub, what };
        let read = crate::policy::change::of_proposal(
            &queued,
            &self.roster,
            self.tree.context(),
            &self.policy,
        );
        if read.as_ref() != Ok(&act) {
            return None;
        }
        let pending = Pending::new(*queued, act, message, now, Vec::new(), None).ok()?;
        Some(Step::proposal(pending, None, None, None))
    }
}
