//! KeyPackages at work: published, handed out once by the store's conditions, with the user's consent.
//! PROTOCOL.md §5; TR §5.8, §5.9. The rules are in [`crate::key_package`].

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, MutexGuard},
};

use super::{
    arbiters::blocking,
    deliver::Sender,
    errors::{
        internal, not_authorized, of_key_package, of_store, of_too_many, rate_limited, too_large,
        unavailable,
    },
    hints::locked,
    limits::Limits,
    node::Node,
    tokens::user_key_hash,
};
use crate::{
    crypto::{self, MlsCrypto},
    key_package::{
        pick,
        publish::{self, Checked, KeyPackageProblem, Owner, Parsed},
    },
    policy::capabilities::Required,
    queue::token::{self, TokenClass},
    store::{
        Batch, Condition, StoreError, Write,
        records::{ConsentHash, InboxItem, InboxKey, StoredKeyPackage},
    },
    wire::{
        client::{KeyPackagesLeft, PublishKeyPackages},
        codec::{List, encode},
        ds::DsError,
        extensions::KeyPackageClass,
        ids::{ClientUri, Timestamp, UserUri},
        key_packages::{
            ClientKeyPackage, ConnectionKeyPackageRequest, ConnectionKeyPackageResponse,
            GroupKeyPackageRequest, GroupKeyPackageResponse, KeyPackageStatus,
        },
        mls::{self, KeyPackage},
        queueing::QueueEvent,
    },
};

/// Who fetched KeyPackages, and whose, in this hour.
pub struct Fetches {
    hour: Mutex<Hour>,
    by_requester_max: u32,
    by_peer_max: u32,
    of_target_max: u32,
}

#[derive(Default)]
struct Hour {
    began_at: Timestamp,
    by: HashMap<Sender, u32>,
    of: Places,
    /// Of one user by another, and by another provider. Apart, so that the larger shares of these use up none of those.
    shares_of_users: Places,
    shares_of_peers: Places,
}

/// How often each user was asked for, and by whom, whether or not there is such a one. Names cost nothing to invent, so none has a
/// place of its own: each counts in one of a fixed number of places, which one nobody outside can tell. Two that share one share
/// their measure for that hour; whoever wants to use up everybody's needs thousands of requesters at their own bounds.
#[derive(Default)]
struct Places {
    counts: Vec<u32>,
    hasher: RandomState,
}

impl Places {
    fn count_of(&mut self, what: impl Hash, places: usize) -> &mut u32 {
        if self.counts.is_empty() {
            self.counts = vec![0; places];
        }
        let place = self.hasher.hash_one(what) % places as u64;
        &mut self.counts[usize::try_from(place).unwrap_or_default()]
    }
}

impl Fetches {
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            hour: Mutex::new(Hour::default()),
            by_requester_max: limits.key_package_fetches_per_hour,
            by_peer_max: limits.key_package_fetches_per_peer_per_hour,
            of_target_max: limits.key_package_targets_per_hour,
        }
    }

    /// Counts a fetch for who asks, whomever it is of.
    ///
    /// # Errors
    /// rate_limited
    fn count_by(&self, by: &Sender, now: Timestamp) -> Result<(), DsError> {
        let (mut hour, left_ms) = self.hour(now);
        let by_max = match by {
            Sender::User(_) => self.by_requester_max,
            Sender::Peer(_) => self.by_peer_max,
        };
        if hour.by.len() >= FETCH_USERS_MAX && !hour.by.contains_key(by) {
            return Err(rate_limited("too many users fetch KeyPackages", left_ms));
        }
        count_one(hour.by.entry(by.clone()).or_default(), by_max, left_ms)
    }

    /// Counts a fetch for its target and for the requester's share of that, or for neither; whether or not there is such a
    /// target.
    ///
    /// # Errors
    /// rate_limited
    fn count_of(&self, by: &Sender, of: &UserUri, now: Timestamp) -> Result<(), DsError> {
        let (mut hour, left_ms) = self.hour(now);
        if *hour.of.count_of(of, TARGETS) >= self.of_target_max {
            return Err(too_many(left_ms));
        }
        self.count_share_in(&mut hour, by, of, left_ms)?;
        *hour.of.count_of(of, TARGETS) += 1;
        Ok(())
    }

    /// Counts a fetch for the requester's share of its target alone: where the target's provider is to say whether
    /// it consents, nobody else may lose anything by it.
    ///
    /// # Errors
    /// rate_limited
    fn count_share(&self, by: &Sender, of: &UserUri, now: Timestamp) -> Result<(), DsError> {
        let (mut hour, left_ms) = self.hour(now);
        self.count_share_in(&mut hour, by, of, left_ms)
    }

    fn count_share_in(
        &self,
        hour: &mut Hour,
        by: &Sender,
        of: &UserUri,
        left_ms: u64,
    ) -> Result<(), DsError> {
        let (shares, parts) = match by {
            Sender::User(_) => (&mut hour.shares_of_users, USER_SHARE),
            Sender::Peer(_) => (&mut hour.shares_of_peers, PEER_SHARE),
        };
        let share_max = (self.of_target_max / parts).max(1);
        count_one(shares.count_of((by, of), SHARES), share_max, left_ms)
    }

    /// The hour that `now` is in, and what is left of it.
    fn hour(&self, now: Timestamp) -> (MutexGuard<'_, Hour>, u64) {
        let mut hour = locked(&self.hour);
        if now.ms_since(hour.began_at) >= HOUR_MS || hour.began_at > now {
            *hour = Hour { began_at: now, ..Hour::default() };
        }
        let left_ms = HOUR_MS - now.ms_since(hour.began_at);
        (hour, left_ms)
    }
}

fn count_one(count: &mut u32, max: u32, left_ms: u64) -> Result<(), DsError> {
    if *count >= max {
        return Err(too_many(left_ms));
    }
    *count += 1;
    Ok(())
}

fn too_many(left_ms: u64) -> DsError {
    rate_limited("too many KeyPackages fetched in this hour", left_ms)
}

/// What one client of a user has to offer.
struct Wanted<'a> {
    class: KeyPackageClass,
    ciphersuites: &'a [u16],
    required: Required,
}

impl Node {
    /// Takes KeyPackages of the sender. All or none are taken; what it has published before is not taken twice, also
    /// where it was handed out since, so a request whose answer was lost may be repeated.
    ///
    /// # Errors
    /// invalid_key_package with its index, too_large, unavailable.
    pub async fn publish_key_packages(
        &self,
        from: &ClientUri,
        publish: PublishKeyPackages,
    ) -> Result<KeyPackagesLeft, DsError> {
        let max = self.limits.key_packages_per_request_max;
        let key_packages = publish.key_packages.into_vec();
        if key_packages.len() > max {
            return Err(too_large("too many KeyPackages at once", max));
        }
        let owner = self.owner(from).await?;
        let node = self.clone();
        let checked = blocking(move || node.check_all(&key_packages, &owner));
        let checked = checked.await.map_err(internal)??;
        for _ in 0..CONFLICTS_MAX {
            match self.try_publish(from, &checked).await? {
                Ok(left) => return Ok(left),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(of_store(error)),
            }
        }
        Err(unavailable("too many changes at a time; try again"))
    }

    fn check_all(
        &self,
        key_packages: &[KeyPackage],
        owner: &Owner,
    ) -> Result<Vec<Checked>, DsError> {
        let (crypto, now) = (MlsCrypto::default(), self.clock.now());
        let lifetime_max_s = self.limits.key_package_lifetime_max_s;
        let mut checked = Vec::with_capacity(key_packages.len());
        for (index, bytes) in key_packages.iter().enumerate() {
            let one = publish::check(&crypto, bytes, owner, &self.token_keys, lifetime_max_s, now)
                .map_err(|problem| of_key_package(index, &problem))?;
            checked.push(one);
        }
        match publish::token_twice(&checked) {
            Some(index) => Err(of_key_package(index, &KeyPackageProblem::TokenTwice)),
            None => Ok(checked),
        }
    }

    async fn try_publish(
        &self,
        from: &ClientUri,
        checked: &[Checked],
    ) -> Result<Result<KeyPackagesLeft, StoreError>, DsError> {
        let now = self.clock.now();
        let limits = &self.limits;
        let held = self.held(from).await.map_err(of_store)?;
        let mut batch = Batch::new();
        let mut new = Vec::with_capacity(checked.len());
        for Checked { stored, token } in checked {
            let record = self.store.token(&token.id).await.map_err(of_store)?;
            let revoked = record.as_ref().is_some_and(|record| record.revoked);
            // from the hand-out on the token has a record: a repeat does not bring the KeyPackage back
            if !revoked && (record.is_none() || stored.last_resort) {
                let revision = token::revision(record.as_ref());
                batch = batch.when(Condition::TokenAt { token: token.id, revision });
                new.push(stored.clone());
            }
        }
        let (group_max, connection_max) =
            (limits.group_key_packages_max, limits.connection_key_packages_max);
        let admitted =
            publish::admit(&held, &new, group_max, connection_max, now).map_err(of_too_many)?;
        let mut kept = held;
        kept.retain(|held| !admitted.drop.contains(&held.reference));
        kept.extend(admitted.add.iter().cloned());
        let published = admitted.add.len() as u64;
        for key_package in admitted.drop {
            batch.push(Write::DropKeyPackage { client: from.clone(), key_package });
        }
        for key_package in admitted.add {
            batch.push(Write::KeyPackage { client: from.clone(), key_package });
        }
        if !batch.writes.is_empty()
            && let Err(error) = self.store.write(batch).await
        {
            return Ok(Err(error));
        }
        self.metrics.key_packages_published.inc_by(published);
        Ok(Ok(pick::left(&kept, now)))
    }

    /// One KeyPackage of class connection per client of the user, from whichever provider that is of; none for a user
    /// that does not exist.
    ///
    /// # Errors
    /// not_authorized, rate_limited, unavailable.
    pub async fn connection_key_packages(
        &self,
        from: &ClientUri,
        request: ConnectionKeyPackageRequest,
    ) -> Result<ConnectionKeyPackageResponse, DsError> {
        if request.requester != from.user() {
            return Err(not_authorized("the requester is not the sender's user"));
        }
        let sender = Sender::User(from.user());
        if request.target_user.domain() == self.domain {
            return self.hand_out_for_connection(&sender, request).await;
        }
        let now = self.clock.now();
        self.fetches.count_by(&sender, now)?;
        self.fetches.count_of(&sender, &request.target_user, now)?;
        self.relay_connection_key_packages(request).await
    }

    /// As [`Node::connection_key_packages`], of a user of this provider, for `by`.
    ///
    /// # Errors
    /// not_authorized (a user of another provider), rate_limited, unavailable.
    pub(super) async fn hand_out_for_connection(
        &self,
        by: &Sender,
        request: ConnectionKeyPackageRequest,
    ) -> Result<ConnectionKeyPackageResponse, DsError> {
        let target = &request.target_user;
        self.count_fetch(by, target)?;
        self.fetches.count_of(by, target, self.clock.now())?;
        let wanted = Wanted {
            class: KeyPackageClass::Connection,
            ciphersuites: &[],
            required: Required::default(),
        };
        let mut key_packages = Vec::new();
        for client in self.devices(target).await.map_err(of_store)? {
            let (_, key_package) = self.claim(&client, &wanted).await?;
            key_packages.extend(key_package);
        }
        let key_packages = List::new(key_packages).map_err(internal)?;
        Ok(ConnectionKeyPackageResponse { key_packages })
    }

    /// One KeyPackage of class group per client of a user who consents, from whichever provider that is of. Without
    /// consent the answer is the same as for a user that does not exist.
    ///
    /// # Errors
    /// not_authorized (a provider that this one does not speak with), rate_limited, unavailable.
    pub async fn group_key_packages(
        &self,
        from: &ClientUri,
        request: GroupKeyPackageRequest,
    ) -> Result<GroupKeyPackageResponse, DsError> {
        let sender = Sender::User(from.user());
        if request.target_user.domain() == self.domain {
            return self.hand_out_for_group(&sender, request).await;
        }
        let now = self.clock.now();
        self.fetches.count_by(&sender, now)?;
        self.fetches.count_share(&sender, &request.target_user, now)?;
        self.relay_group_key_packages(request).await
    }

    /// As [`Node::group_key_packages`], of a user of this provider, for `by`.
    ///
    /// # Errors
    /// not_authorized (a user of another provider), rate_limited, unavailable.
    pub(super) async fn hand_out_for_group(
        &self,
        by: &Sender,
        request: GroupKeyPackageRequest,
    ) -> Result<GroupKeyPackageResponse, DsError> {
        let target = &request.target_user;
        self.count_fetch(by, target)?;
        // the same reads whether there is such a user or not
        let consent = ConsentHash(crypto::sha256(request.consent_token.as_slice()));
        let has_consent = self.store.has_consent(target, &consent).await.map_err(of_store)?;
        let devices = self.devices(target).await.map_err(of_store)?;
        if !has_consent || devices.is_empty() {
            let status = KeyPackageStatus::NoConsent;
            return Ok(GroupKeyPackageResponse { status, clients: List::default() });
        }
        // a made-up token uses up nobody's fetches
        self.fetches.count_of(by, target, self.clock.now())?;
        let required = request.required.as_ref().map(mls::RequiredCapabilities::parse);
        let required = required.transpose().map_err(super::errors::malformed)?;
        let wanted = Wanted {
            class: KeyPackageClass::Group,
            ciphersuites: &request.ciphersuites,
            required: required.as_ref().map(Required::from).unwrap_or_default(),
        };
        let mut clients = Vec::with_capacity(devices.len());
        for client in devices {
            let (status, key_package) = self.claim(&client, &wanted).await?;
            clients.push(ClientKeyPackage { client, status, key_package });
        }
        let found =
            |wanted| clients.iter().any(|client: &ClientKeyPackage| client.status == wanted);
        let status = [KeyPackageStatus::Ok, KeyPackageStatus::Incompatible]
            .into_iter()
            .find(|status| found(*status))
            .unwrap_or(KeyPackageStatus::NoneLeft);
        let clients = List::new(clients).map_err(internal)?;
        Ok(GroupKeyPackageResponse { status, clients })
    }

    /// Hands out one KeyPackage of `client`: whoever asks at the same time gets another one.
    async fn claim(
        &self,
        client: &ClientUri,
        wanted: &Wanted<'_>,
    ) -> Result<(KeyPackageStatus, Option<KeyPackage>), DsError> {
        for _ in 0..CONFLICTS_MAX {
            match self.try_claim(client, wanted).await {
                Ok((status, key_package, kind)) => {
                    let class = match wanted.class {
                        KeyPackageClass::Group => "group",
                        KeyPackageClass::Connection => "connection",
                    };
                    self.metrics.key_packages_claimed.with_label_values(&[class, kind]).inc();
                    return Ok((status, key_package));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(of_store(error)),
            }
        }
        Err(unavailable("too many requests for the same KeyPackages; try again"))
    }

    async fn try_claim(
        &self,
        client: &ClientUri,
        wanted: &Wanted<'_>,
    ) -> Result<(KeyPackageStatus, Option<KeyPackage>, &'static str), StoreError> {
        let now = self.clock.now();
        let held = self.held(client).await?;
        let crypto = MlsCrypto::default();
        let candidates = pick::candidates(&held, wanted.class, wanted.ciphersuites, now);
        for candidate in candidates.into_iter().take(CANDIDATES_MAX) {
            let Ok(bytes) = KeyPackage::new(candidate.bytes.clone()) else { continue };
            let Ok(Parsed { key_package, queue }) = publish::parse(&crypto, &bytes) else {
                continue;
            };
            let capabilities = key_package.leaf_node().capabilities();
            if !wanted.required.are_met_by(capabilities) {
                continue;
            }
            let Ok(token) = self.token_keys.open(&queue.config.queue_token) else { continue };
            let record = self.store.token(&token.id).await?;
            let is_spent = record.as_ref().is_some_and(|record| {
                record.revoked || (token.class == TokenClass::Group && !record.bound_to.is_empty())
            });
            if is_spent {
                continue;
            }
            let revision = token::revision(record.as_ref());
            let mut batch = Batch::new()
                .when(Condition::KeyPackageHeld {
                    client: client.clone(),
                    key_package: candidate.reference.clone(),
                })
                .when(Condition::TokenAt { token: token.id, revision });
            let before = pick::left(&held, now).group_left;
            let mut left = before;
            if !candidate.last_resort {
                batch.push(Write::DropKeyPackage {
                    client: client.clone(),
                    key_package: candidate.reference.clone(),
                });
                if let Some(record) = token::hand_out(record.as_ref(), client) {
                    batch.push(Write::Token { token: token.id, record });
                }
                left = before.saturating_sub(u32::from(!candidate.connection));
            }
            // the last-resort one goes out where those of its ciphersuite are used up, whatever else is left
            let is_low = !candidate.connection
                && (candidate.last_resort
                    || pick::is_low(before, left, self.limits.key_packages_low_at));
            if is_low {
                batch.push(low_notice(client, left, now));
            }
            if !batch.writes.is_empty() {
                self.store.write(batch).await?;
            }
            if is_low {
                self.metrics.key_packages_low.inc();
                self.hints.inbox(client);
            }
            let kind = if candidate.last_resort { "last_resort" } else { "single" };
            return Ok((KeyPackageStatus::Ok, Some(bytes), kind));
        }
        let status = pick::status_without(&held, wanted.class, now);
        if wanted.class == KeyPackageClass::Group && status == KeyPackageStatus::NoneLeft {
            // those that it had are over, and nobody has told it; where that fails whoever asks next has it told
            match self.store.write(Batch::new().and(low_notice(client, 0, now))).await {
                Ok(()) => {
                    self.metrics.key_packages_low.inc();
                    self.hints.inbox(client);
                }
                Err(error) => tracing::debug!(%error, %client, "it is not told that it has none"),
            }
        }
        Ok((status, None, "none"))
    }

    fn count_fetch(&self, by: &Sender, target: &UserUri) -> Result<(), DsError> {
        if target.domain() != self.domain {
            return Err(not_authorized("that is no user of this provider"));
        }
        self.fetches.count_by(by, self.clock.now())
    }

    async fn devices(&self, user: &UserUri) -> Result<Vec<ClientUri>, StoreError> {
        let account = self.store.account(user).await?;
        Ok(account
            .filter(|account| account.deleted_at.is_none())
            .map(|account| account.devices)
            .unwrap_or_default())
    }

    async fn held(&self, client: &ClientUri) -> Result<Vec<StoredKeyPackage>, StoreError> {
        let limits = &self.limits;
        let max =
            limits.group_key_packages_max + limits.connection_key_packages_max + LAST_RESORTS_MAX;
        self.store.key_packages(client, max).await
    }

    async fn owner(&self, client: &ClientUri) -> Result<Owner, DsError> {
        let device = self.device_of(client).await?;
        let account = self.store.account(&client.user()).await.map_err(of_store)?;
        let account = account.ok_or_else(|| internal("a device without an account"))?;
        Ok(Owner {
            domain: self.domain.clone(),
            client: client.clone(),
            user: user_key_hash(&account).map_err(of_store)?,
            credential: device.credential,
            queue: device.queue,
        })
    }
}

/// Of each number one notice in an hour, however often it is due.
fn low_notice(client: &ClientUri, left: u32, now: Timestamp) -> Write {
    let name = format!("key_packages_low {client} {left} {}", now.0 / HOUR_MS);
    let mut id = [0; 16];
    id.copy_from_slice(&crypto::sha256(name.as_bytes())[..16]);
    let event = encode(&QueueEvent::KeyPackagesLow { left });
    Write::Inbox {
        client: client.clone(),
        key: InboxKey::Item(id),
        item: InboxItem::Event { group: None, event },
    }
}

const HOUR_MS: u64 = 3_600_000;
const CONFLICTS_MAX: usize = 16;
/// KeyPackages that are tried for one request.
const CANDIDATES_MAX: usize = 8;
/// Of two classes and the ciphersuites that there are.
const LAST_RESORTS_MAX: usize = 32;
/// Requesters that are counted in an hour, users of this provider and other providers; beyond, newcomers wait for the next one.
const FETCH_USERS_MAX: usize = 1_000_000;
/// Places in which fetches of users are counted: 1 MiB.
const TARGETS: usize = 1 << 18;
/// Places in which the shares of requesters are counted: 2 MiB for users, and for other providers.
const SHARES: usize = 1 << 19;
/// A user has a tenth of the fetches that there may be of another one.
const USER_SHARE: u32 = 10;
/// Another provider stands for all its users, which it is to tell apart by itself: it has half, and what is left is for the users
/// of this provider and of all others.
const PEER_SHARE: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn user(name: &str) -> UserUri {
        UserUri::new(format!("mimi://a.example/u/{name}")).unwrap()
    }

    #[test]
    fn requesters_beyond_those_that_are_counted_wait_for_the_next_hour() {
        let fetches = Fetches::new(&Limits::default());
        let requester = |number: usize| Sender::User(user(&number.to_string()));
        {
            let mut hour = locked(&fetches.hour);
            hour.began_at = NOW;
            hour.by = (0..FETCH_USERS_MAX).map(|number| (requester(number), 0)).collect();
        }
        let newcomer = requester(FETCH_USERS_MAX);
        let refused = fetches.count_by(&newcomer, NOW).unwrap_err();
        assert_eq!(refused.name(), "rate_limited");
        assert_eq!(locked(&fetches.hour).by.len(), FETCH_USERS_MAX);
        fetches.count_by(&requester(0), NOW).unwrap();
        fetches.count_by(&newcomer, NOW.plus_ms(HOUR_MS)).unwrap();
    }

    #[test]
    fn invented_names_use_up_nobody_s_fetches_and_take_no_room() {
        let limits = Limits { key_package_targets_per_hour: 100, ..Limits::default() };
        let fetches = Fetches::new(&limits);
        let peers: Vec<_> = (0..20)
            .map(|number| {
                Sender::Peer(crate::wire::ids::Domain::new(format!("x{number}.example")).unwrap())
            })
            .collect();
        for number in 0..1_000_000 {
            let of = user(&format!("invented{number}"));
            let by = &peers[number % peers.len()];
            fetches.count_by(by, NOW).unwrap();
            fetches.count_of(by, &of, NOW).unwrap();
        }
        let alice = user("alice");
        let taken = |by: &Sender| {
            (0..=100).find(|_| fetches.count_of(by, &alice, NOW).is_err()).unwrap_or(101)
        };
        let users: Vec<_> =
            (0..5).map(|number| Sender::User(user(&format!("user{number}")))).collect();
        for by in &users {
            assert_eq!(taken(by), 10, "a user's share");
        }
        // some of the invented ones are counted in her place, and in those of the shares
        assert!((20..=50).contains(&taken(&peers[0])), "a peer's share");
        taken(&peers[1]);
        let late = Sender::User(user("late"));
        let refused = fetches.count_of(&late, &alice, NOW).unwrap_err();
        assert_eq!(refused.name(), "rate_limited", "hers are hers");
        fetches.count_of(&users[0], &user("carol"), NOW).unwrap();
        let hour = locked(&fetches.hour);
        let places =
            [&hour.of, &hour.shares_of_users, &hour.shares_of_peers].map(|it| it.counts.len());
        assert_eq!((places, hour.by.len()), ([TARGETS, SHARES, SHARES], 20));
    }
}
