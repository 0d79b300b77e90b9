//! Which KeyPackages a client may publish. PROTOCOL.md §1 ("Extensions"), §2 (add_users), §5.

use std::collections::{BTreeSet, HashMap, HashSet};

use openmls::prelude::{ExtensionType, KeyPackage, OpenMlsCrypto, ProtocolVersion};

use super::pick;
use crate::{
    policy::{
        keys::{LIFE_LEFT_MIN_MS, check_key_package},
        leaf,
    },
    queue::token::{Token, TokenClass, TokenKeys},
    store::records::{StoredKeyPackage, TokenId},
    wire::{
        codec::{Opaque, decode, encode},
        extensions::{
            CLIENT_QUEUE_CONFIG, GROUP_POLICY, KeyPackageClass, KeyPackageQueue, USER_KEY,
        },
        ids::{ClientUri, Domain, KeyPackageRef, Timestamp, UserKeyHash},
        mls,
    },
};

/// Whose KeyPackages they must be.
#[derive(Debug, Clone)]
pub struct Owner {
    pub domain: Domain,
    pub client: ClientUri,
    pub user: UserKeyHash,
    /// The TLS encoding of the credential that it registered with.
    pub credential: Vec<u8>,
    pub queue: [u8; 16],
}

/// A KeyPackage that may be handed out.
#[derive(Debug, Clone)]
pub struct Checked {
    pub stored: StoredKeyPackage,
    pub token: Token,
}

/// Why a KeyPackage is not taken. The texts are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyPackageProblem {
    #[error("the KeyPackage is not valid: {0}")]
    Invalid(String),
    #[error("{0}")]
    Leaf(#[from] leaf::LeafProblem),
    #[error("the leaf is of {0}, not of the client that publishes it")]
    OtherClient(ClientUri),
    #[error("the leaf's credential is not the registered one")]
    OtherCredential,
    #[error("the leaf's user key is not the one on record")]
    OtherUserKey,
    #[error("the leaf's capabilities must list extension {0:#06x}")]
    Capability(u16),
    #[error("the client_queue_config extension (0xF1A2) is missing or malformed")]
    NoQueue,
    #[error("client_queue_config must name this provider, {0}")]
    OtherProvider(Domain),
    #[error("the queue token inside is none of this client's, or of another class; get new ones")]
    BadToken,
    #[error("the queue token inside was used before; each KeyPackage needs one of its own")]
    TokenTwice,
    #[error("the KeyPackage has expired, or expires before it begins")]
    Expired,
    #[error("the KeyPackage expires within {} days: publish one that lives longer", LIFE_LEFT_MIN_MS / 86_400_000)]
    EndsTooSoon,
    #[error("the KeyPackage lives longer than {0} s")]
    LivesTooLong(u64),
}

/// A client has more KeyPackages than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most {limit} KeyPackages of one class may wait to be handed out")]
pub struct TooMany {
    pub limit: usize,
}

/// What publishing changes.
#[derive(Debug, Default)]
pub struct Admitted {
    pub add: Vec<StoredKeyPackage>,
    pub drop: BTreeSet<KeyPackageRef>,
}

/// What a KeyPackage says of itself, its signatures verified.
#[derive(Debug)]
pub struct Parsed {
    pub key_package: KeyPackage,
    pub queue: KeyPackageQueue,
}

/// Verifies a KeyPackage as openmls does and reads its queue.
///
/// # Errors
/// [`KeyPackageProblem::Invalid`], [`KeyPackageProblem::NoQueue`]
pub fn parse(
    crypto: &impl OpenMlsCrypto,
    key_package: &mls::KeyPackage,
) -> Result<Parsed, KeyPackageProblem> {
    let key_package = key_package
        .parse()
        .map_err(|error| KeyPackageProblem::Invalid(error.to_string()))?
        .validate(crypto, ProtocolVersion::Mls10)
        .map_err(|error| KeyPackageProblem::Invalid(error.to_string()))?;
    check_key_package(key_package.ciphersuite(), &key_package)
        .map_err(|problem| KeyPackageProblem::Invalid(problem.to_string()))?;
    let extension =
        key_package.extensions().unknown(CLIENT_QUEUE_CONFIG).ok_or(KeyPackageProblem::NoQueue)?;
    let queue = decode(&extension.0).map_err(|_| KeyPackageProblem::NoQueue)?;
    Ok(Parsed { key_package, queue })
}

/// Checks one KeyPackage of `owner`.
///
/// # Errors
/// [`KeyPackageProblem`]
pub fn check(
    crypto: &impl OpenMlsCrypto,
    bytes: &mls::KeyPackage,
    owner: &Owner,
    tokens: &TokenKeys,
    lifetime_max_s: u64,
    now: Timestamp,
) -> Result<Checked, KeyPackageProblem> {
    let Parsed { key_package, queue } = parse(crypto, bytes)?;
    let leaf_node = key_package.leaf_node();
    let identity = leaf::identify(leaf_node, &ACCEPTED_CREDENTIALS)?;
    if identity.client != owner.client {
        return Err(KeyPackageProblem::OtherClient(identity.client));
    }
    if encode(leaf_node.credential()) != owner.credential {
        return Err(KeyPackageProblem::OtherCredential);
    }
    if identity.user != owner.user {
        return Err(KeyPackageProblem::OtherUserKey);
    }
    let listed = leaf_node.capabilities().extensions();
    if let Some(missing) =
        LISTED.into_iter().find(|needed| !listed.contains(&ExtensionType::from(*needed)))
    {
        return Err(KeyPackageProblem::Capability(missing));
    }
    if queue.config.domain != owner.domain {
        return Err(KeyPackageProblem::OtherProvider(owner.domain.clone()));
    }
    let last_resort = key_package.last_resort();
    let token = tokens.open(&queue.config.queue_token).map_err(|_| KeyPackageProblem::BadToken)?;
    if (token.queue, token.class) != (owner.queue, TokenClass::of(queue.class, last_resort)) {
        return Err(KeyPackageProblem::BadToken);
    }
    let lifetime = key_package.life_time();
    let (from, until) = (lifetime.not_before(), lifetime.not_after());
    if until <= now.0 / 1000 || until <= from {
        return Err(KeyPackageProblem::Expired);
    }
    let is_group = queue.class == KeyPackageClass::Group;
    if is_group && until <= now.plus_ms(LIFE_LEFT_MIN_MS).0 / 1000 {
        return Err(KeyPackageProblem::EndsTooSoon);
    }
    if until - from > lifetime_max_s {
        return Err(KeyPackageProblem::LivesTooLong(lifetime_max_s));
    }
    let reference = key_package
        .hash_ref(crypto)
        .map_err(|error| KeyPackageProblem::Invalid(error.to_string()))?;
    let reference = Opaque::new(reference.as_slice())
        .map_err(|error| KeyPackageProblem::Invalid(error.to_string()))?;
    let stored = StoredKeyPackage {
        reference: KeyPackageRef(reference),
        connection: queue.class == KeyPackageClass::Connection,
        last_resort,
        ciphersuite: u16::from(key_package.ciphersuite()),
        not_after_s: until,
        published_at: now,
        bytes: bytes.as_slice().to_vec(),
    };
    Ok(Checked { stored, token })
}

/// Whether a token comes twice among `new`: the index of the second.
#[must_use]
pub fn token_twice(new: &[Checked]) -> Option<usize> {
    let mut seen: HashSet<TokenId> = HashSet::new();
    new.iter().position(|checked| !seen.insert(checked.token.id))
}

/// What publishing `new` changes, given what the client has waiting. What it has already is not taken again, what is
/// not handed out any more goes, and a last-resort KeyPackage takes the place of the one before it.
///
/// # Errors
/// [`TooMany`]
pub fn admit(
    held: &[StoredKeyPackage],
    new: &[StoredKeyPackage],
    group_max: usize,
    connection_max: usize,
    now: Timestamp,
) -> Result<Admitted, TooMany> {
    // of several last-resort ones in one request the last stands
    let last_resorts: HashMap<(bool, u16), &KeyPackageRef> =
        new.iter().filter_map(|new| Some((stands_in_for(new)?, &new.reference))).collect();
    let is_outdone = |one: &StoredKeyPackage| {
        let last = stands_in_for(one).and_then(|of| last_resorts.get(&of));
        last.is_some_and(|last| **last != one.reference)
    };
    let mut admitted = Admitted::default();
    let (kept, gone): (Vec<_>, Vec<_>) =
        held.iter().partition(|old| pick::is_alive(old, now) && !is_outdone(old));
    admitted.drop = gone.into_iter().map(|old| old.reference.clone()).collect();
    let mut known: HashSet<&KeyPackageRef> = kept.iter().map(|kept| &kept.reference).collect();
    for added in new {
        if !is_outdone(added) && known.insert(&added.reference) {
            admitted.add.push(added.clone());
        }
    }
    for (connection, limit) in [(false, group_max), (true, connection_max)] {
        let of_class =
            |held: &&StoredKeyPackage| !held.last_resort && held.connection == connection;
        let added = admitted.add.iter().filter(of_class).count();
        if added > 0 && kept.iter().copied().filter(of_class).count() + added > limit {
            return Err(TooMany { limit });
        }
    }
    Ok(admitted)
}

/// What a last-resort KeyPackage is the last resort of: class and ciphersuite. None for others.
fn stands_in_for(one: &StoredKeyPackage) -> Option<(bool, u16)> {
    one.last_resort.then_some((one.connection, one.ciphersuite))
}

/// Extension types that every leaf lists in its capabilities: ours, and last_resort.
const LISTED: [u16; 4] = [USER_KEY, CLIENT_QUEUE_CONFIG, GROUP_POLICY, 0x000A];

/// Basic credentials.
const ACCEPTED_CREDENTIALS: [u16; 1] = [1];

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn stored(name: &str, last_resort: bool) -> StoredKeyPackage {
        StoredKeyPackage {
            reference: KeyPackageRef(Opaque::new(name.as_bytes()).unwrap()),
            connection: false,
            last_resort,
            ciphersuite: 1,
            not_after_s: NOW.plus_ms(LIFE_LEFT_MIN_MS).0 / 1000 + 1,
            published_at: NOW,
            bytes: Vec::new(),
        }
    }

    fn name(reference: &KeyPackageRef) -> &str {
        std::str::from_utf8(reference.0.as_slice()).unwrap()
    }

    fn names(admitted: &Admitted) -> (Vec<&str>, Vec<&str>) {
        let added = admitted.add.iter().map(|one| name(&one.reference));
        (added.collect(), admitted.drop.iter().map(name).collect())
    }

    #[test]
    fn each_is_taken_once_and_the_last_of_the_last_resorts_stands() {
        let held = [stored("held", false), stored("old resort", true)];
        let admit = |new: &[StoredKeyPackage]| admit(&held, new, 9, 9, NOW).unwrap();
        let new = [stored("held", false), stored("new", false), stored("new", false)];
        assert_eq!(names(&admit(&new)), (vec!["new"], vec![]));
        let new = [stored("a", true), stored("old resort", true), stored("b", true)];
        assert_eq!(names(&admit(&new)), (vec!["b"], vec!["old resort"]));
        let new = [stored("a", true), stored("b", true), stored("a", true)];
        assert_eq!(names(&admit(&new)), (vec!["a"], vec!["old resort"]));
        assert_eq!(names(&admit(&[stored("old resort", true)])), (vec![], vec![]));
        let mut of_another_suite = stored("other", true);
        of_another_suite.ciphersuite = 2;
        assert_eq!(names(&admit(&[of_another_suite])), (vec!["other"], vec![]));
    }

    #[test]
    fn what_is_published_is_compared_in_time_that_grows_with_it() {
        crate::growth::grows_with("KeyPackages that are there already", 1_000, |n| {
            let all: Vec<_> = (0..n).map(|n| stored(&n.to_string(), n % 2 == 0)).collect();
            let new: Vec<_> = all.iter().rev().cloned().collect();
            move || {
                assert!(
                    admit(&all, &new, 9, 9, NOW)
                        .is_ok_and(|it| it.add.is_empty() || it.add.len() == 1)
                )
            }
        });
    }
}
