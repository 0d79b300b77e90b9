//! What happens to a queue, to its tokens, and to a copy of a group, from arbitrary bytes, for the fuzz targets
//! (`cfg(fuzzing)`): nothing else builds this.
//!
//! The worlds and what must hold of them are the tests' own (`state_world`, `followed_world`). Here: what no honest client or
//! hub does, and tokens.

mod copy;

use super::{
    state::{OWN, QueueLimits},
    state_world::{LIMITS, Play, ack},
    token::{self, TOKEN_BYTES, Token, TokenClass, TokenKeys, TokenProblem},
};
use crate::{
    crypto::BoxKey,
    store::records::{TokenId, TokenRecord},
    wire::{
        extensions::QueueToken,
        ids::{ClientUri, Domain, GroupId, Timestamp},
    },
};

pub use copy::copy_sequence;

/// Things that happen in one run.
const STEPS_MAX: usize = 400;

/// A queue, of which the first byte says how large it may be.
///
/// # Panics
/// Where something is lost without a word, doubled, reordered or beyond its bound.
pub fn queue_sequence(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let limits = match size % 4 {
        0 => QueueLimits { own_entries_max: 2, own_welcomes_max: 3, subscriptions_max: 2 },
        1 => QueueLimits { own_entries_max: 9, own_welcomes_max: 9, subscriptions_max: 3 },
        _ => LIMITS,
    };
    let mut play = Play::new(limits);
    let mut tokens = Tokens::new();
    for step in bytes.chunks_exact(3).take(STEPS_MAX) {
        let (op, seed, x) = (step[0] % 20, step[1] % 4, step[2]);
        match op {
            0..15 => play.act(op, seed, x),
            15 => play.delete(seed),
            16 | 17 => lie(&mut play, op == 16, x),
            _ => tokens.act(step[1], x),
        }
    }
    play.end();
}

/// A client acknowledges what it was never given, behind something that it was: refused, and nothing has changed.
fn lie(play: &mut Play, is_known: bool, x: u8) {
    let state = &mut play.world.state;
    let feeds: Vec<u64> = play.world.subscriptions.keys().map(|feed| feed.0).collect();
    let lie = match feeds.get(usize::from(x) % (feeds.len() + 1)) {
        Some(feed) if is_known => ack(*feed, u64::MAX - u64::from(x)),
        _ if is_known => ack(OWN.0, play.world.head.next_own.0.max(1) + u64::from(x)),
        _ => ack(play.world.head.next_feed.0.max(1) + u64::from(x), 1),
    };
    let before = format!("{state:?}");
    let truth = feeds.first().map(|feed| ack(*feed, 0));
    let acks: Vec<_> = truth.into_iter().chain([lie]).collect();
    assert!(state.acknowledge(&acks).is_err(), "{acks:?} is taken");
    assert_eq!(format!("{state:?}"), before, "a refusal changes nothing");
}

/// Tokens of three clients, with what became of each.
struct Tokens {
    keys: TokenKeys,
    minted: Vec<(Token, Option<TokenRecord>)>,
}

const GROUPS_MAX: usize = 3;

impl Tokens {
    fn new() -> Self {
        let key = |byte| BoxKey::from_bytes([byte; 32]).expect("32 bytes are a key");
        let keys = TokenKeys::new(vec![(2, key(2)), (1, key(1))]).expect("they differ");
        let class = |at| match at % 3 {
            0 => TokenClass::Group,
            1 => TokenClass::LastResort,
            _ => TokenClass::Connection,
        };
        let minted = (0..6).map(|at| {
            let token = Token {
                queue: [at / 3; 16],
                id: TokenId([at; 16]),
                issued_at: Timestamp(u64::from(at)),
                class: class(at),
            };
            (token, None)
        });
        Self { minted: minted.collect(), keys }
    }

    fn act(&mut self, what: u8, x: u8) {
        self.open(what, x);
        let at = usize::from(x) % self.minted.len();
        let client = |number: u8| {
            let name = format!("mimi://a.example/d/user{number}/phone");
            ClientUri::new(name).expect("a client's name")
        };
        let hub = |number: u8| Domain::new(format!("hub{number}.example")).expect("a domain");
        let (token, record) = &mut self.minted[at];
        let owner = client(token.queue[0]);
        // one in four comes for somebody else's token
        let by = if what & 0x30 == 0 { client(9) } else { owner.clone() };
        let (hub, group) = (hub(what >> 6), GroupId::of(&hub(0), [x >> 4; 16]));
        let before = record.clone();
        let was_revoked = before.as_ref().is_some_and(|record| record.revoked);
        let is_others = before.as_ref().is_some_and(|record| record.client != by);
        let refused = |problem: TokenProblem| {
            let expected = match problem {
                TokenProblem::OtherClient => is_others,
                TokenProblem::Revoked => was_revoked && !is_others,
                _ => !was_revoked && !is_others,
            };
            assert!(expected, "{problem:?} for {before:?}");
        };
        match what % 6 {
            0..=2 => match token::bind(token, before.as_ref(), &by, &hub, &group, GROUPS_MAX) {
                Ok(bound) => {
                    assert!(!was_revoked && !is_others && token.class != TokenClass::Connection);
                    // told again, it is there once
                    let now = bound.or(before.clone()).expect("it was bound, or is");
                    let again = token::bind(token, Some(&now), &by, &hub, &group, GROUPS_MAX);
                    assert_eq!(again, Ok(None));
                    *record = Some(now);
                }
                Err(TokenProblem::WrongClass(class)) => assert_eq!(class, TokenClass::Connection),
                Err(problem) => refused(problem),
            },
            3 => {
                let welcomed = token::welcomed(token, before.as_ref(), &by, &hub);
                let admitted = token::admit_connection(token, before.as_ref(), &by);
                assert!(welcomed.is_err() || admitted.is_err(), "it is good for one of them");
                assert!(!was_revoked || (welcomed.is_err() && admitted.is_err()));
            }
            4 => {
                if let Some(handed) = token::hand_out(before.as_ref(), &owner) {
                    *record = Some(handed);
                }
            }
            _ if x & 8 == 8 => {
                if let Some(revoked) = token::revoke(before.as_ref(), &owner) {
                    *record = Some(revoked);
                }
            }
            _ => {}
        }
        let is_changed = u64::from(before != *record);
        assert!(token::revision(record.as_ref()) == token::revision(before.as_ref()) + is_changed);
        if let Some(record) = record {
            let most = if token.class == TokenClass::Group { 1 } else { GROUPS_MAX };
            assert!(record.bound_to.len() <= most, "{record:?}");
            assert!(before.is_none_or(|it| !it.revoked || record.revoked), "it stays revoked");
        }
    }

    /// What is changed on its way opens no queue.
    fn open(&self, what: u8, x: u8) {
        let minted = self.keys.mint([what; 16], TokenClass::LastResort, Timestamp(7));
        let minted = minted.expect("the key is one");
        let opened = self.keys.open(&minted).expect("it is ours");
        assert_eq!((opened.queue, opened.class), ([what; 16], TokenClass::LastResort));
        let mut bytes = minted.as_slice().to_vec();
        bytes[usize::from(x) % TOKEN_BYTES] ^= 1 << (what % 8);
        bytes.truncate(TOKEN_BYTES - usize::from(what == 0));
        let forged = QueueToken::new(bytes).expect("it is short enough");
        assert_eq!(self.keys.open(&forged), Err(TokenProblem::Unknown));
    }
}
