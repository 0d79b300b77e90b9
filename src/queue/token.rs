//! Queue tokens: minted here, opaque to everybody else, bound at first use. PROTOCOL.md §1.
//!
//! A token is an AEAD box under a key that only this provider has. KeyPackages and Add proposals show tokens to
//! many, so a token is no bearer right: it is bound to the (hub, group) that used it first and refused
//! elsewhere. Deliberately absent: where its record is kept and when that is read.

use crate::{
    crypto::{self, BoxKey, CryptoError},
    store::records::{TokenId, TokenRecord},
    wire::{
        extensions::{KeyPackageClass, QueueToken},
        ids::{ClientUri, Domain, GroupId, Timestamp},
    },
};

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenClass {
    /// One group, for as long as the client is in it.
    Group,
    /// Several groups, up to a limit: of a KeyPackage that is handed out more than once.
    LastResort,
    /// Connection requests only.
    Connection,
}

impl TokenClass {
    /// The class of token that a KeyPackage of `class` carries.
    #[must_use]
    pub fn of(class: KeyPackageClass, last_resort: bool) -> Self {
        match (class, last_resort) {
            (KeyPackageClass::Group, false) => Self::Group,
            (KeyPackageClass::Group, true) => Self::LastResort,
            (KeyPackageClass::Connection, _) => Self::Connection,
        }
    }
}

/// What is inside a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub queue: [u8; 16],
    pub id: TokenId,
    pub issued_at: Timestamp,
    pub class: TokenClass,
}

/// Why a token is not taken. All but [`Self::Full`] are `invalid_client_queue_information` to a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    #[error("the queue token is not one of this provider")]
    Unknown,
    #[error("the queue token belongs to another client")]
    OtherClient,
    #[error("the user key is not the one that this user's account has")]
    OtherUserKey,
    #[error("the queue's client is gone")]
    ClientGone,
    #[error("the queue token was revoked; use a new one")]
    Revoked,
    #[error("the queue token is in use for another group or hub; use a new one")]
    BoundElsewhere,
    #[error("the last-resort queue token is in use for as many groups as it may be; use a new one")]
    Full,
    #[error("the client's queue holds as much as it may; its client must read it first")]
    Backlog,
    #[error("a queue token of class {0:?} is not for this")]
    WrongClass(TokenClass),
}

/// The keys that tokens are boxed with. The first makes new ones, all of them open.
#[derive(Debug)]
pub struct TokenKeys(Vec<(u32, BoxKey)>);

/// Bytes of every token, whatever its class.
pub const TOKEN_BYTES: usize = PREFIX_BYTES + NONCE_BYTES + PLAIN_BYTES + TAG_BYTES;

const VERSION: u8 = 1;
/// Version and key id.
const PREFIX_BYTES: usize = 1 + 4;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const PLAIN_BYTES: usize = 16 + 16 + 8 + 1;

impl TokenKeys {
    /// `keys` with their ids, the one for new tokens first.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] where there is none or an id is there twice.
    pub fn new(keys: Vec<(u32, BoxKey)>) -> Result<Self, CryptoError> {
        let mut ids: Vec<u32> = keys.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        if ids.is_empty() || ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(CryptoError::BadKey);
        }
        Ok(Self(keys))
    }

    /// A new token for `queue`.
    ///
    /// # Errors
    /// [`CryptoError::Library`]
    pub fn mint(
        &self,
        queue: [u8; 16],
        class: TokenClass,
        now: Timestamp,
    ) -> Result<QueueToken, CryptoError> {
        let (id, key) = self.0.first().ok_or(CryptoError::BadKey)?;
        let token = Token { queue, id: TokenId(crypto::random()), issued_at: now, class };
        let mut bytes = prefix(*id).to_vec();
        let boxed = key.seal(&bytes, &token.to_bytes())?;
        bytes.extend(boxed);
        QueueToken::new(bytes).map_err(|_| CryptoError::Library)
    }

    /// What is inside `token`, if this provider minted it.
    ///
    /// # Errors
    /// [`TokenProblem::Unknown`]
    pub fn open(&self, token: &QueueToken) -> Result<Token, TokenProblem> {
        let bytes = token.as_slice();
        if bytes.len() != TOKEN_BYTES {
            return Err(TokenProblem::Unknown);
        }
        let (head, boxed) = bytes.split_at(PREFIX_BYTES);
        let (_, key) =
            self.0.iter().find(|(id, _)| prefix(*id) == head).ok_or(TokenProblem::Unknown)?;
        let plain = key.open(head, boxed).map_err(|_| TokenProblem::Unknown)?;
        Token::from_bytes(&plain).ok_or(TokenProblem::Unknown)
    }
}

impl Token {
    fn to_bytes(self) -> Vec<u8> {
        let class = match self.class {
            TokenClass::Group => 0,
            TokenClass::LastResort => 1,
            TokenClass::Connection => 2,
        };
        let mut bytes = Vec::with_capacity(PLAIN_BYTES);
        bytes.extend(self.queue);
        bytes.extend(self.id.0);
        bytes.extend(self.issued_at.0.to_be_bytes());
        bytes.push(class);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (queue, rest) = bytes.split_first_chunk::<16>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (issued_at, rest) = rest.split_first_chunk::<8>()?;
        let class = match rest {
            [0] => TokenClass::Group,
            [1] => TokenClass::LastResort,
            [2] => TokenClass::Connection,
            _ => return None,
        };
        let issued_at = Timestamp(u64::from_be_bytes(*issued_at));
        Some(Self { queue: *queue, id: TokenId(*id), issued_at, class })
    }
}

/// Binds a token of `client` to `group` at `hub`, which is the group's hub as far as this provider knows. `None`: it is
/// bound there already. `record` is what became of
/// the token so far.
///
/// # Errors
/// [`TokenProblem`]; nothing is to be written then.
pub fn bind(
    token: &Token,
    record: Option<&TokenRecord>,
    client: &ClientUri,
    hub: &Domain,
    group: &GroupId,
    groups_max: usize,
) -> Result<Option<TokenRecord>, TokenProblem> {
    let groups_max = match token.class {
        TokenClass::Group => 1,
        TokenClass::LastResort => groups_max,
        TokenClass::Connection => return Err(TokenProblem::WrongClass(token.class)),
    };
    let mut record = usable(record, client)?;
    // a group has one hub at a time, and who asks here was found to be it: the binding goes with the group
    if let Some(bound) = record.bound_to.iter_mut().find(|bound| bound.1 == *group) {
        if bound.0 == *hub {
            return Ok(None);
        }
        bound.0 = hub.clone();
        record.revision += 1;
        return Ok(Some(record));
    }
    if record.bound_to.len() >= groups_max {
        return Err(match token.class {
            TokenClass::Group | TokenClass::Connection => TokenProblem::BoundElsewhere,
            TokenClass::LastResort => TokenProblem::Full,
        });
    }
    record.revision += 1;
    record.bound_to.push((hub.clone(), group.clone()));
    Ok(Some(record))
}

/// Whether a Welcome from `hub` may come in by a token. It does not name its group, so it binds nothing; but a token
/// that is bound elsewhere is not `hub`'s to use.
///
/// # Errors
/// [`TokenProblem`]
pub fn welcomed(
    token: &Token,
    record: Option<&TokenRecord>,
    client: &ClientUri,
    hub: &Domain,
) -> Result<(), TokenProblem> {
    let record = usable(record, client)?;
    let bound = &record.bound_to;
    match token.class {
        TokenClass::Connection => Err(TokenProblem::WrongClass(token.class)),
        TokenClass::Group if !bound.is_empty() && bound.iter().all(|(other, _)| other != hub) => {
            Err(TokenProblem::BoundElsewhere)
        }
        TokenClass::Group | TokenClass::LastResort => Ok(()),
    }
}

/// Whether a connection request may come in by a token.
///
/// # Errors
/// [`TokenProblem`]
pub fn admit_connection(
    token: &Token,
    record: Option<&TokenRecord>,
    client: &ClientUri,
) -> Result<(), TokenProblem> {
    match token.class {
        TokenClass::Connection => usable(record, client).map(|_| ()),
        TokenClass::Group | TokenClass::LastResort => Err(TokenProblem::WrongClass(token.class)),
    }
}

/// The record of a token that was handed out in a KeyPackage: from here on no KeyPackage with it is taken again.
/// `None`: it has one.
#[must_use]
pub fn hand_out(record: Option<&TokenRecord>, client: &ClientUri) -> Option<TokenRecord> {
    match record {
        Some(_) => None,
        None => Some(TokenRecord { revision: 1, ..unused(client) }),
    }
}

/// The record of a token of `client` that is good for nothing from now on. `None`: it is so already.
#[must_use]
pub fn revoke(record: Option<&TokenRecord>, client: &ClientUri) -> Option<TokenRecord> {
    let record = record.cloned().unwrap_or_else(|| unused(client));
    (!record.revoked).then(|| TokenRecord {
        revision: record.revision + 1,
        revoked: true,
        ..record
    })
}

/// The revision that a batch that rests on `record` asks for.
#[must_use]
pub fn revision(record: Option<&TokenRecord>) -> u64 {
    record.map_or(0, |record| record.revision)
}

fn usable(record: Option<&TokenRecord>, client: &ClientUri) -> Result<TokenRecord, TokenProblem> {
    let record = record.cloned().unwrap_or_else(|| unused(client));
    if &record.client != client {
        return Err(TokenProblem::OtherClient);
    }
    if record.revoked {
        return Err(TokenProblem::Revoked);
    }
    Ok(record)
}

fn unused(client: &ClientUri) -> TokenRecord {
    TokenRecord { revision: 0, client: client.clone(), revoked: false, bound_to: Vec::new() }
}

fn prefix(key: u32) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = key.to_be_bytes();
    [VERSION, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn keys(ids: &[u32]) -> TokenKeys {
        let key = |id: u32| BoxKey::from_bytes([u8::try_from(id).unwrap(); 32]).unwrap();
        TokenKeys::new(ids.iter().map(|id| (*id, key(*id))).collect()).unwrap()
    }

    fn client(device: &str) -> ClientUri {
        ClientUri::new(format!("mimi://a.example/d/alice/{device}")).unwrap()
    }

    fn hub(name: &str) -> Domain {
        Domain::new(name).unwrap()
    }

    fn group(seed: u8) -> GroupId {
        GroupId::of(&hub("a.example"), [seed; 16])
    }

    fn token(class: TokenClass) -> Token {
        Token { queue: [7; 16], id: TokenId([9; 16]), issued_at: NOW, class }
    }

    #[test]
    fn token_says_what_it_was_minted_for() {
        let keys = keys(&[1]);
        for class in [TokenClass::Group, TokenClass::LastResort, TokenClass::Connection] {
            let minted = keys.mint([7; 16], class, NOW).unwrap();
            assert_eq!(minted.as_slice().len(), TOKEN_BYTES, "all tokens have one length");
            let opened = keys.open(&minted).unwrap();
            assert_eq!((opened.queue, opened.class, opened.issued_at), ([7; 16], class, NOW));
        }
    }

    #[test]
    fn two_tokens_of_one_queue_have_nothing_in_common() {
        let keys = keys(&[1]);
        let [a, b] = [0, 1].map(|_| keys.mint([7; 16], TokenClass::Group, NOW).unwrap());
        assert_ne!(a.as_slice()[PREFIX_BYTES..], b.as_slice()[PREFIX_BYTES..]);
        assert_ne!(keys.open(&a).unwrap().id, keys.open(&b).unwrap().id);
    }

    #[test]
    fn token_of_another_key_version_or_length_is_unknown() {
        let minted = keys(&[1]).mint([7; 16], TokenClass::Group, NOW).unwrap();
        assert_eq!(keys(&[2]).open(&minted), Err(TokenProblem::Unknown));
        for at in [0, 1, PREFIX_BYTES, TOKEN_BYTES - 1] {
            let mut bytes = minted.as_slice().to_vec();
            bytes[at] ^= 1;
            let forged = QueueToken::new(bytes).unwrap();
            assert_eq!(keys(&[1]).open(&forged), Err(TokenProblem::Unknown), "byte {at}");
        }
        let short = QueueToken::new(&minted.as_slice()[..TOKEN_BYTES - 1]).unwrap();
        assert_eq!(keys(&[1]).open(&short), Err(TokenProblem::Unknown));
    }

    #[test]
    fn tokens_of_the_last_key_open_after_a_rotation_and_new_ones_use_the_new_key() {
        let old = keys(&[1]).mint([7; 16], TokenClass::Group, NOW).unwrap();
        let rotated = keys(&[2, 1]);
        assert!(rotated.open(&old).is_ok());
        let new = rotated.mint([7; 16], TokenClass::Group, NOW).unwrap();
        assert!(keys(&[2]).open(&new).is_ok());
    }

    #[test]
    fn keys_need_an_id_of_their_own() {
        assert!(TokenKeys::new(Vec::new()).is_err());
        let twice = [0, 1].map(|_| (1, BoxKey::from_bytes([1; 32]).unwrap()));
        assert!(TokenKeys::new(twice.into()).is_err());
    }

    #[test]
    fn group_token_is_bound_at_first_use_and_refused_elsewhere() {
        let (token, alice) = (token(TokenClass::Group), client("phone"));
        let a = hub("a.example");
        let bound = bind(&token, None, &alice, &a, &group(1), 9).unwrap().unwrap();
        assert_eq!((bound.revision, bound.bound_to.len()), (1, 1));
        let again =
            |hub: &Domain, group: &GroupId| bind(&token, Some(&bound), &alice, hub, group, 9);
        assert_eq!(again(&a, &group(1)), Ok(None));
        assert_eq!(again(&a, &group(2)), Err(TokenProblem::BoundElsewhere));
        assert_eq!(again(&hub("b.example"), &group(2)), Err(TokenProblem::BoundElsewhere));
        // the group has moved: what is bound goes with it
        let moved = again(&hub("b.example"), &group(1)).unwrap().unwrap();
        assert_eq!((moved.revision, moved.bound_to), (2, vec![(hub("b.example"), group(1))]));
    }

    #[test]
    fn last_resort_token_is_bound_to_several_groups_up_to_its_limit() {
        let (token, alice, a) = (token(TokenClass::LastResort), client("phone"), hub("a.example"));
        let mut record = None;
        for seed in 1..=3 {
            record = bind(&token, record.as_ref(), &alice, &a, &group(seed), 3).unwrap();
        }
        let bind = |seed| bind(&token, record.as_ref(), &alice, &a, &group(seed), 3);
        assert_eq!(bind(4), Err(TokenProblem::Full));
        assert_eq!(bind(2), Ok(None));
    }

    #[test]
    fn connection_token_never_binds_and_only_it_takes_connection_requests() {
        let alice = client("phone");
        let connection = token(TokenClass::Connection);
        assert_eq!(
            bind(&connection, None, &alice, &hub("a.example"), &group(1), 9),
            Err(TokenProblem::WrongClass(TokenClass::Connection))
        );
        assert_eq!(admit_connection(&connection, None, &alice), Ok(()));
        for class in [TokenClass::Group, TokenClass::LastResort] {
            let refused = admit_connection(&token(class), None, &alice);
            assert_eq!(refused, Err(TokenProblem::WrongClass(class)));
        }
    }

    #[test]
    fn revoked_token_is_good_for_nothing_even_where_it_was_bound() {
        let (group_token, alice, a) = (token(TokenClass::Group), client("phone"), hub("a.example"));
        let bound = bind(&group_token, None, &alice, &a, &group(1), 9).unwrap().unwrap();
        let revoked = revoke(Some(&bound), &alice).unwrap();
        assert_eq!((revoked.revision, revoked.revoked), (2, true));
        let refused = bind(&group_token, Some(&revoked), &alice, &a, &group(1), 9);
        assert_eq!(refused, Err(TokenProblem::Revoked));
        assert_eq!(revoke(Some(&revoked), &alice), None);
        let fresh = revoke(None, &alice).unwrap();
        let refused = admit_connection(&token(TokenClass::Connection), Some(&fresh), &alice);
        assert_eq!(refused, Err(TokenProblem::Revoked));
    }

    #[test]
    fn token_whose_record_names_another_client_is_refused() {
        let record = hand_out(None, &client("laptop")).unwrap();
        let refused = bind(
            &token(TokenClass::Group),
            Some(&record),
            &client("phone"),
            &hub("a.example"),
            &group(1),
            9,
        );
        assert_eq!(refused, Err(TokenProblem::OtherClient));
    }

    #[test]
    fn handed_out_token_has_a_record_and_can_still_be_bound() {
        let alice = client("phone");
        let record = hand_out(None, &alice).unwrap();
        assert_eq!(hand_out(Some(&record), &alice), None);
        let (token, a) = (token(TokenClass::Group), hub("a.example"));
        let bound = bind(&token, Some(&record), &alice, &a, &group(1), 9).unwrap().unwrap();
        assert_eq!(bound.revision, 2);
    }
}
