//! One client's state, without a network: what it builds for its hub, and what it makes of what comes back.
//!
//! Here: [`Member`], a client over its [`Home`]. It is synchronous; each of its methods is one transaction, so a
//! process may end between any two of them. Not here: HTTP, retries, waiting ([`super::Client`]).
//! PROTOCOL.md §1, §2, §3, §5; RFC 9420.
//!
//! A request goes [`Member::begin`] → [`Member::outbound`] → (the hub) → [`Member::settle`]; the last two are
//! repeated as long as [`Settled::Again`] says so. What the queue delivers goes into [`Member::handle`]; what
//! became known is in [`Member::events`].

mod answers;
mod behind;
mod build;
mod complain;
mod content;
mod enter;
#[cfg(fuzzing)]
pub mod fuzzing;
mod home;
mod identity;
mod judge;
mod look;
#[cfg(test)]
pub(crate) mod lying;
mod moving;
mod offer;
mod receive;
mod records;
mod settle;
mod untagged;
mod view;

#[cfg(test)]
mod tests;

use openmls::prelude as mls;

use crate::{
    crypto::{self, CryptoError},
    migration::proof::ProofError,
    policy::Denied,
    wire::{
        DecodeError,
        ds::{DsError, DsMessage, FanoutFilter},
        extensions::{ClientQueueConfig, GroupPolicy, KeyPackageClass, PublicKey, QueueToken},
        ids::{ClientUri, Domain, Epoch, FeedId, GroupId, RequestId, Sequence, Timestamp, UserUri},
        mls::KeyPackage,
        queueing::FeedAck,
    },
};

pub use answers::Answer;
pub use complain::Heard;
pub use content::{Body, CONSENT_TOKEN, Content, ContentError, Disposition, Expiration, Part};
pub use home::Home;
pub use identity::{Identity, SUITES};
pub use moving::check_promise;
pub use offer::OfferTarget;
pub use receive::Handled;
pub use records::{
    Contact, Event, GroupState, NewProposal, Operation, PolicyChange, Request, Right,
};
pub use settle::Settled;
pub use view::{GroupView, MemberView};

pub(crate) use build::{group_context, partial};
pub(crate) use enter::join_config;
pub(in crate::client) use identity::{KEY_PACKAGES_LOW, last_resort_setting};
pub(crate) use identity::{capabilities, unknown};

use home::{CborError, Kind};
use identity::StoredKey;
use records::{FeedRecord, GroupRecord, Pending};

/// Why a step was not taken. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    #[error("the client's database: {0}")]
    Store(#[from] rusqlite::Error),
    #[error("the client's database: {0}")]
    File(#[from] std::io::Error),
    #[error("the client's database cannot be prepared: {0}")]
    Migration(String),
    #[error("the client's database was written by a newer version (schema {0}); use that version")]
    NewerHome(i64),
    #[error("this home has no client yet: register one first")]
    NoIdentity,
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    #[error(transparent)]
    Stored(#[from] CborError),
    #[error(transparent)]
    Wire(#[from] DecodeError),
    #[error("MLS: {0}")]
    Mls(String),
    #[error("ciphersuite {suite:#06x} is not spoken here", suite = *.0 as u16)]
    UnsupportedSuite(mls::Ciphersuite),
    #[error("{0} is not a group of this client")]
    NoSuchGroup(GroupId),
    #[error("this client is not an active member of {0}: {word}", word = .1.word())]
    NotActive(GroupId, GroupState),
    #[error("this client is already in {0}")]
    AlreadyIn(GroupId),
    /// Somebody else has added this client, or it has asked already.
    #[error("this client is coming into {0} already: `resume` and `receive` go on with that")]
    ComingIn(GroupId),
    #[error("there is nothing left to do: {0}")]
    NothingToDo(&'static str),
    #[error("proposals are pending in {0}: they must be committed before a message can be sent")]
    MustCommitFirst(GroupId),
    #[error(
        "you have proposed to leave this group ({0}); the next change that another member makes does it"
    )]
    Leaving(GroupId),
    #[error(
        "the hub is about to remove this client from {0}: where that is for having been silent for long, a resync keeps it in"
    )]
    BeingRemoved(GroupId),
    #[error("this request has been answered")]
    Answered,
    #[error(
        "a commit in {0} could not be used: until it is known what comes of that, nothing goes to it"
    )]
    InDoubt(GroupId),
    #[error("another request to the same group is on its way")]
    Busy(RequestId),
    #[error("no queue token is left; ask the provider for more")]
    NoToken { class: KeyPackageClass, last_resort: bool },
    #[error("{0} is not in the group")]
    NotAMember(String),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// What the target agreed to is past: the group has changed since, or the time is over.
    #[error("what {0} agreed to is out of date: ask it again")]
    PromiseOutdated(Domain),
    /// The request stays: a hub that answers rightly later ends it.
    #[error("the hub says that the group has moved, and its word for that is not good: {0}")]
    Confirmation(&'static str),
    #[error(
        "{hub} says that {group} has moved, and what it shows for that leads nowhere ({why}); ask a member which provider hosts the group now"
    )]
    Chain { group: GroupId, hub: Domain, why: String },
    #[error("{0}")]
    Invalid(&'static str),
}

impl CoreError {
    pub(super) fn mls(error: impl std::fmt::Display) -> Self {
        Self::Mls(error.to_string())
    }
}

/// A hub, as far as a new group needs to know it.
#[derive(Debug, Clone)]
pub struct Hub {
    pub domain: Domain,
    /// Its key of purpose `external-sender` for the group's signature scheme.
    pub external_sender: PublicKey,
}

/// What a new group starts with.
#[derive(Debug, Clone)]
pub struct NewGroup {
    pub name: String,
    pub suite: mls::Ciphersuite,
    /// None: the default policy, with the creator as admin.
    pub policy: Option<GroupPolicy>,
}

impl Default for NewGroup {
    fn default() -> Self {
        Self { name: String::new(), suite: SUITES[0], policy: None }
    }
}

/// A signed request, and where it goes.
#[derive(Debug, Clone)]
pub struct Outbound {
    pub request: RequestId,
    pub hub: Domain,
    pub message: DsMessage,
}

/// One client.
#[derive(Debug)]
pub struct Member {
    home: Home,
    identity: Identity,
    /// What its commits lie about.
    #[cfg(test)]
    lie: std::cell::Cell<Option<lying::Lie>>,
}

impl Member {
    /// A new client in an empty home.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] where the home has a client, [`CoreError::Store`]
    pub fn new(home: Home, identity: Identity) -> Result<Self, CoreError> {
        home.step(|| {
            if Self::is_in(&home)? {
                return Err(CoreError::Invalid("this home already belongs to a client"));
            }
            identity.store(&home)
        })?;
        Ok(Self {
            home,
            identity,
            #[cfg(test)]
            lie: std::cell::Cell::default(),
        })
    }

    /// The same client, with all that it knows, in a home of its own in memory: for fuzz targets.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    #[cfg(fuzzing)]
    pub(crate) fn copy(&self) -> Result<Self, CoreError> {
        Ok(Self {
            home: self.home.copy()?,
            identity: self.identity.clone(),
            #[cfg(test)]
            lie: std::cell::Cell::default(),
        })
    }

    /// Whether a client lives in `home`.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn is_in(home: &Home) -> Result<bool, CoreError> {
        Ok(home.find::<serde::de::IgnoredAny>(Kind::Identity, b"")?.is_some())
    }

    /// The client that lives in `home`.
    ///
    /// # Errors
    /// [`CoreError::NoIdentity`], [`CoreError::Store`]
    pub fn open(home: Home) -> Result<Self, CoreError> {
        let identity = Identity::load(&home)?;
        Ok(Self {
            home,
            identity,
            #[cfg(test)]
            lie: std::cell::Cell::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn into_home(self) -> Home {
        self.home
    }

    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    #[must_use]
    pub fn client(&self) -> &ClientUri {
        &self.identity.client
    }

    /// Keeps queue tokens that the provider minted, until they are needed.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn store_tokens(
        &self,
        class: KeyPackageClass,
        last_resort: bool,
        tokens: &[QueueToken],
    ) -> Result<(), CoreError> {
        self.home.step(|| {
            for token in tokens {
                let mut key = vec![token_class(class, last_resort)];
                key.extend(crypto::sha256(token.as_slice()));
                self.home.put(Kind::Token, &key, token)?;
            }
            Ok(())
        })
    }

    /// How many tokens are in stock.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn tokens(&self, class: KeyPackageClass, last_resort: bool) -> Result<usize, CoreError> {
        let prefix = token_class(class, last_resort);
        let found = self.home.list::<QueueToken>(Kind::Token, &[prefix], 10_000)?;
        Ok(found.iter().take_while(|(key, _)| key.first() == Some(&prefix)).count())
    }

    pub(super) fn take_token(
        &self,
        class: KeyPackageClass,
        last_resort: bool,
    ) -> Result<ClientQueueConfig, CoreError> {
        let prefix = token_class(class, last_resort);
        let found = self.home.list::<QueueToken>(Kind::Token, &[prefix], 1)?;
        let (key, queue_token) = found
            .into_iter()
            .find(|(key, _)| key.first() == Some(&prefix))
            .ok_or(CoreError::NoToken { class, last_resort })?;
        self.home.remove(Kind::Token, &key)?;
        Ok(ClientQueueConfig { domain: self.identity.client.domain(), queue_token })
    }

    /// Makes KeyPackages of one class, each with a token of the stock; their private keys are kept here.
    ///
    /// # Errors
    /// [`CoreError::NoToken`], [`CoreError::Store`]
    pub fn key_packages(
        &self,
        class: KeyPackageClass,
        suite: mls::Ciphersuite,
        last_resort: bool,
        count: usize,
        now: Timestamp,
    ) -> Result<Vec<KeyPackage>, CoreError> {
        self.home.step(|| {
            (0..count)
                .map(|_| {
                    let queue = identity::queue_of(class, self.take_token(class, last_resort)?);
                    let key_package =
                        self.identity.key_package(&self.home, suite, queue, last_resort, now)?;
                    Ok(KeyPackage::of(&key_package))
                })
                .collect()
        })
    }

    /// Whose KeyPackage this is, and of which class. It is valid where this is no error.
    ///
    /// # Errors
    /// [`CoreError::Wire`], [`CoreError::Mls`]
    pub fn owner_of(&self, key_package: &[u8]) -> Result<(ClientUri, KeyPackageClass), CoreError> {
        let key_package = self.open_key_package(key_package)?;
        let client = crate::policy::leaf::client_of(key_package.leaf_node().credential())
            .map_err(CoreError::mls)?;
        let queue = offer::own_queue_of(&key_package, &client)?;
        Ok((client, queue.class))
    }

    /// Starts a group: makes it here and keeps the request that creates it at `hub`.
    ///
    /// # Errors
    /// [`CoreError::NoToken`], [`CoreError::Mls`], [`CoreError::Store`]
    pub fn create_group(
        &self,
        hub: &Hub,
        new: &NewGroup,
        now: Timestamp,
    ) -> Result<(GroupId, RequestId), CoreError> {
        let group = GroupId::of(&hub.domain, crypto::random());
        let request = self.home.step(|| {
            self.make_group(&group, hub, new, now)?;
            self.keep_asked(&group, Operation::CreateGroup)
        })?;
        Ok((group, request))
    }

    /// Keeps a request to do `operation`; nothing is built or sent yet.
    ///
    /// # Errors
    /// [`CoreError::NoSuchGroup`], [`CoreError::NotActive`], [`CoreError::Store`]
    pub fn begin(&self, group: &GroupId, operation: Operation) -> Result<RequestId, CoreError> {
        self.home.step(|| {
            let record = self.record(group)?;
            let fits = match operation {
                Operation::Resync => {
                    matches!(record.state, GroupState::Active | GroupState::Lost)
                }
                Operation::CreateGroup
                | Operation::Join { .. }
                | Operation::AskToJoin
                | Operation::Welcome { .. } => false,
                Operation::DeleteGroup
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
                | Operation::UpdateFanoutInfo { .. } => record.state == GroupState::Active,
            };
            if !fits {
                return Err(CoreError::NotActive(group.clone(), record.state));
            }
            self.keep_asked(group, operation)
        })
    }

    /// Keeps a request to join `group` at `hub` from outside, by external commit or by asking to be added.
    ///
    /// # Errors
    /// [`CoreError::AlreadyIn`], [`CoreError::ComingIn`], [`CoreError::Store`]
    pub fn join(
        &self,
        group: &GroupId,
        hub: &Domain,
        name: &str,
        operation: Operation,
        now: Timestamp,
    ) -> Result<RequestId, CoreError> {
        if !matches!(operation, Operation::Join { .. } | Operation::AskToJoin) {
            return Err(CoreError::Invalid("only Join and AskToJoin enter a group"));
        }
        self.home.step(|| {
            // a second way in would begin the record anew under the first, and where it is refused, end what the first makes
            if self.entering(group)? {
                return Err(CoreError::ComingIn(group.clone()));
            }
            self.expect_group(group, hub, name, now)?;
            self.keep_asked(group, operation)
        })
    }

    /// The requests that have not been answered, the oldest first.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn pending(&self) -> Result<Vec<(RequestId, GroupId, Operation)>, CoreError> {
        let all = self.home.list::<Pending>(Kind::Pending, &[], usize::MAX)?;
        Ok(all.into_iter().map(|(_, it)| (it.request, it.group, it.operation)).collect())
    }

    /// Gives up a request. The hub may have accepted it all the same; then the queue or a resync says so.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn give_up(&self, request: RequestId) -> Result<(), CoreError> {
        self.home.step(|| match self.find_pending(request)? {
            Some((key, pending)) => self.abandon(&key, pending),
            None => Ok(()),
        })
    }

    /// What happened after the event numbered `after` (0: from the beginning), oldest first.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn events(&self, after: u64, max: usize) -> Result<Vec<(u64, Event)>, CoreError> {
        let found = self.home.list::<Event>(Kind::Event, &after.to_be_bytes(), max)?;
        Ok(found.into_iter().filter_map(|(key, event)| Some((number(&key)?, event))).collect())
    }

    /// Forgets the events up to the one numbered `until`.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn forget_events(&self, until: u64) -> Result<(), CoreError> {
        self.home.step(|| self.home.remove_until(Kind::Event, &until.to_be_bytes()))
    }

    /// The number of the last event.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn last_event(&self) -> Result<u64, CoreError> {
        Ok(self.home.next_number(Kind::Event)? - 1)
    }

    /// Begins to enter anew every group that this state cannot follow, where that is not under way. States that were left too
    /// long ago go.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn revive(&self, now: Timestamp) -> Result<(), CoreError> {
        self.home.step(|| {
            for (key, mut record) in self.home.list::<GroupRecord>(Kind::Group, &[], usize::MAX)? {
                let Ok(id) = GroupId::from_bytes(&key) else { continue };
                if self.pass_behind(&id, &mut record, Sequence(0), now)? {
                    self.put_record(&id, &record)?;
                }
                if record.state == GroupState::Lost
                    && self.doubt_of(&id)?.is_none()
                    && !self.is_ending(&id)?
                {
                    self.keep_resync(&id)?;
                }
            }
            Ok(())
        })
    }

    /// What can be acknowledged to the provider: everything that is in this state and was not acknowledged.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn acks(&self) -> Result<Vec<FeedAck>, CoreError> {
        let feeds = self.home.list::<FeedRecord>(Kind::Feed, &[], usize::MAX)?;
        Ok(feeds
            .into_iter()
            .filter(|(_, feed)| feed.acknowledged < feed.last)
            .filter_map(|(key, feed)| {
                Some(FeedAck { feed: FeedId(number(&key)?), sequence: feed.last })
            })
            .collect())
    }

    /// Notes that the provider has `acks`.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn acknowledged(&self, acks: &[FeedAck]) -> Result<(), CoreError> {
        if acks.is_empty() {
            return Ok(());
        }
        self.home.step(|| {
            for ack in acks {
                let key = ack.feed.0.to_be_bytes();
                if let Some(mut feed) = self.home.find::<FeedRecord>(Kind::Feed, &key)? {
                    feed.acknowledged = feed.acknowledged.max(ack.sequence);
                    self.home.put(Kind::Feed, &key, &feed)?;
                }
            }
            Ok(())
        })
    }

    /// A value that the application keeps beside the client's state.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn setting<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, CoreError> {
        self.home.find(Kind::Setting, name.as_bytes())
    }

    /// # Errors
    /// [`CoreError::Store`]
    pub fn set<T: serde::Serialize>(&self, name: &str, value: &T) -> Result<(), CoreError> {
        self.home.step(|| self.home.put(Kind::Setting, name.as_bytes(), value))
    }

    /// # Errors
    /// [`CoreError::Store`]
    pub fn contact(&self, user: &UserUri) -> Result<Contact, CoreError> {
        Ok(self.home.find(Kind::Contact, user.as_str().as_bytes())?.unwrap_or_default())
    }

    /// # Errors
    /// [`CoreError::Store`]
    pub fn set_contact(&self, user: &UserUri, contact: &Contact) -> Result<(), CoreError> {
        self.home.step(|| self.home.put(Kind::Contact, user.as_str().as_bytes(), contact))
    }

    /// # Errors
    /// [`CoreError::Store`]
    pub fn contacts(&self) -> Result<Vec<(UserUri, Contact)>, CoreError> {
        let found = self.home.list::<Contact>(Kind::Contact, &[], usize::MAX)?;
        Ok(found.into_iter().filter_map(|(key, contact)| Some((user_key(key)?, contact))).collect())
    }

    /// Connection requests that wait for an answer.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn requests(&self) -> Result<Vec<Request>, CoreError> {
        let found = self.home.list::<Request>(Kind::Request, &[], usize::MAX)?;
        Ok(found.into_iter().map(|(_, request)| request).collect())
    }

    /// # Errors
    /// [`CoreError::Store`]
    pub fn forget_request(&self, from: &UserUri) -> Result<(), CoreError> {
        self.home.step(|| self.home.remove(Kind::Request, from.as_str().as_bytes()))
    }

    fn record(&self, group: &GroupId) -> Result<GroupRecord, CoreError> {
        self.home
            .find(Kind::Group, group.as_bytes())?
            .ok_or_else(|| CoreError::NoSuchGroup(group.clone()))
    }

    fn put_record(&self, group: &GroupId, record: &GroupRecord) -> Result<(), CoreError> {
        self.home.put(Kind::Group, group.as_bytes(), record)
    }

    /// A record for a group that this client is about to enter.
    fn expect_group(
        &self,
        group: &GroupId,
        hub: &Domain,
        name: &str,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        let old = self.home.find::<GroupRecord>(Kind::Group, group.as_bytes())?;
        if let Some(old) = &old
            && matches!(old.state, GroupState::Active | GroupState::Lost)
        {
            return Err(CoreError::AlreadyIn(group.clone()));
        }
        let name = match &old {
            Some(old) if name.is_empty() => old.name.clone(),
            Some(_) | None => name.to_owned(),
        };
        self.put_record(
            group,
            &GroupRecord {
                hub: hub.clone(),
                name,
                state: GroupState::Joining,
                leaf_key: StoredKey::of(self.identity.leaf_key(SUITES[0])?),
                feed: None,
                past_feed: old.and_then(|old| old.feed.max(old.past_feed)),
                entered_at: None,
                entered_epoch: None,
                read_epoch: None,
                queue: None,
                filter: FanoutFilter::All,
                joined_at: now,
                proofs: Vec::new(),
                places: Vec::new(),
                welcome: None,
                left: None,
                resyncs: Vec::new(),
                behind: Vec::new(),
            },
        )
    }

    fn load(&self, group: &GroupId) -> Result<mls::MlsGroup, CoreError> {
        mls::MlsGroup::load(
            mls::OpenMlsProvider::storage(&self.home.provider()),
            &mls::GroupId::from_slice(group.as_bytes()),
        )?
        .ok_or_else(|| CoreError::NoSuchGroup(group.clone()))
    }

    /// Keeps a request that nobody waits for.
    fn keep(&self, group: &GroupId, operation: Operation) -> Result<RequestId, CoreError> {
        self.keep_pending(group, operation, false)
    }

    /// Keeps a request of somebody who waits for what comes of it.
    fn keep_asked(&self, group: &GroupId, operation: Operation) -> Result<RequestId, CoreError> {
        self.keep_pending(group, operation, true)
    }

    fn keep_pending(
        &self,
        group: &GroupId,
        operation: Operation,
        asked: bool,
    ) -> Result<RequestId, CoreError> {
        let request = RequestId(crypto::random());
        let number = self.home.next_number(Kind::Pending)?;
        let pending = Pending {
            request,
            group: group.clone(),
            operation,
            info: None,
            built: None,
            rebuilt: 0,
            redirect: None,
            asked,
        };
        self.home.put(Kind::Pending, &number.to_be_bytes(), &pending)?;
        Ok(request)
    }

    /// Keeps a resync of `group`, unless one is kept already.
    fn keep_resync(&self, group: &GroupId) -> Result<(), CoreError> {
        let begun = self
            .pending()?
            .iter()
            .any(|(_, other, operation)| other == group && *operation == Operation::Resync);
        if !begun {
            self.keep(group, Operation::Resync)?;
        }
        Ok(())
    }

    fn find_pending(&self, request: RequestId) -> Result<Option<(Vec<u8>, Pending)>, CoreError> {
        let all = self.home.list::<Pending>(Kind::Pending, &[], usize::MAX)?;
        Ok(all.into_iter().find(|(_, pending)| pending.request == request))
    }

    /// The request that is on its way to `group`, if there is one.
    fn in_flight(&self, group: &GroupId) -> Result<Option<(Vec<u8>, Pending)>, CoreError> {
        let all = self.home.list::<Pending>(Kind::Pending, &[], usize::MAX)?;
        Ok(all.into_iter().find(|(_, it)| it.group == *group && it.built.is_some()))
    }

    fn push(&self, event: &Event) -> Result<(), CoreError> {
        let number = self.home.next_number(Kind::Event)?;
        self.home.put(Kind::Event, &number.to_be_bytes(), event)
    }
}

/// An error that the hub or provider answered with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub DsError);

fn token_class(class: KeyPackageClass, last_resort: bool) -> u8 {
    (class as u8) << 1 | u8::from(last_resort)
}

fn number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

fn user_key(key: Vec<u8>) -> Option<UserUri> {
    UserUri::new(String::from_utf8(key).ok()?).ok()
}

fn epoch_of(group: &mls::MlsGroup) -> Epoch {
    Epoch(group.epoch().as_u64())
}
