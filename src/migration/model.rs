//! Providers that one group moves between, as a state space: what is durable at each, and what was ever said.
//!
//! A step is one durable write of one provider, or time passing for it. What is in memory does not exist, so a crash is a path that
//! does not take the next step. Sending is no step: what may be sent is said as soon as what it rests on is durable, and
//! what was said stays in the network for ever. So it comes late, twice, or never. The clocks go on independently.
//!
//! A step is **fair** when it comes by itself: time passes, a sweep runs, or somebody takes what the other would say **now**,
//! if everything said before was lost. What a member or an operator does, a late or doubled message, and a target that refuses
//! a good content are not fair: nothing may rest on them.

use std::{cell::RefCell, collections::HashMap};

use super::{
    memory::{CLOCK_BACK_MS, CameAt, Keep, Memory, is_refusal_forgotten, refused_until},
    source::{Heard, Next, Phase, Terms, Told},
    target::{Came, Fit, Known, Verdict, judge_abort, judge_confirmation, judge_content},
};
use crate::wire::{
    codec::{List, Opaque},
    ids::{Domain, Epoch, GroupId, Sequence, Timestamp},
    portability::{Chain, MigrationConfirmation},
};

/// Providers. The group's id is of the first one, which hosts it at the beginning.
const PLACES: usize = 3;
/// Moves that a world has room for; one may be begun anew by the same nonce.
const MOVES_MAX: usize = 4;

/// What the model goes by: the crate's rules, or others to see what becomes of a group then.
#[derive(Clone, Copy)]
pub struct Rules {
    pub next: fn(&Phase, &Terms, Timestamp) -> Next,
    pub heard: fn(&Phase, &Terms, &[u8], bool) -> Heard,
    pub may_thaw: fn(&Phase) -> bool,
    pub is_enough: fn(Told) -> bool,
    pub judge_content: fn(&Known, Timestamp, Timestamp, bool) -> Verdict,
    pub judge_abort: fn(&Known) -> Verdict,
    pub judge_confirmation: fn(&Domain, Option<&Came>, &Chain, &MigrationConfirmation) -> Fit,
    pub is_forgotten: fn(&Memory, &Keep, Timestamp) -> bool,
    pub is_refusal_forgotten: fn(Timestamp, Timestamp) -> bool,
    /// A refusal is durable before it is said.
    pub refuses_durably: bool,
    /// The answer to a confirmation ends the move that it is about, however late it comes, and no later one.
    pub ends_its_own: bool,
}

impl Rules {
    pub const REAL: Self = Self {
        next: Phase::next,
        heard: Phase::heard,
        may_thaw: Phase::may_thaw,
        is_enough: Told::is_enough,
        judge_content,
        judge_abort,
        judge_confirmation,
        is_forgotten: Memory::is_forgotten,
        is_refusal_forgotten,
        refuses_durably: true,
        ends_its_own: true,
    };
}

pub const TWO_HUBS: &str = "two hubs";

#[derive(Debug, Clone, Copy, Default)]
pub struct World {
    begun: usize,
    moves: [Move; MOVES_MAX],
    places: [Place; PLACES],
}

/// A move that members began: what was ever said of it, and whether its nonce has expired at its target.
#[derive(Debug, Clone, Copy, Default)]
struct Move {
    source: usize,
    target: usize,
    expired: bool,
    /// The source's content, and its wish to have it refused.
    sent: bool,
    /// The target's signed words.
    taken: bool,
    refused: bool,
    /// The source's confirmation.
    confirmed: bool,
    /// The target's answers to that.
    knows: bool,
    forgot: bool,
}

/// What a provider has written down.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// It takes commits.
    hosts: bool,
    leaving: Option<Leaving>,
    came: Option<Arrival>,
    left: Option<Left>,
    refused: [bool; MOVES_MAX],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaving {
    by: usize,
    stage: Stage,
    /// The time for a target that nothing was sent to is over.
    late: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Frozen,
    Sent,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arrival {
    by: usize,
    here: bool,
    confirmed: bool,
    age: Age,
}

/// How long ago something is, by the clock of who remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    /// As long as it is told where a group has gone.
    Old,
    /// And as long as nonces can be used.
    Older,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    by: usize,
    old: bool,
}

// times that come out as the model says
const KEEP: Keep = Keep { forward_ms: 10, response_ms: 20 };
const NOW: Timestamp = Timestamp(10 * CLOCK_BACK_MS);
const EXPIRES_AT: Timestamp = NOW;
const EXPIRED: Timestamp = Timestamp(12 * CLOCK_BACK_MS);
const BEFORE: Timestamp = Timestamp(NOW.0 - 1);
const FREEZE_MS: u64 = 5;

fn content_of(by: usize) -> [u8; 32] {
    [by as u8 + 1; 32]
}

fn response_of(by: usize) -> [u8; 32] {
    [by as u8 + 101; 32]
}

impl Leaving {
    fn phase(self) -> Phase {
        match self.stage {
            Stage::Frozen => Phase::Frozen,
            Stage::Sent => Phase::Sent { hash: content_of(self.by) },
            Stage::Gone => Phase::Gone,
        }
    }

    fn holds_back(self) -> bool {
        self.stage != Stage::Gone
    }
}

/// What can happen next, with whether it is fair.
pub type Step = (World, bool);

impl World {
    pub fn start() -> Self {
        let mut world = Self::default();
        world.places[0].hosts = true;
        world
    }

    /// The group has gone to the second provider and come home, and all that was said of it is in the network.
    pub fn home_again() -> Self {
        let gone = |source, target| Move {
            source,
            target,
            expired: true,
            sent: true,
            taken: true,
            confirmed: true,
            knows: true,
            ..Move::default()
        };
        let came = |by, here| Some(Arrival { by, here, confirmed: true, age: Age::New });
        let mut world = Self { begun: 2, ..Self::default() };
        (world.moves[0], world.moves[1]) = (gone(0, 1), gone(1, 0));
        world.places[0] = Place { hosts: true, came: came(1, true), ..Place::default() };
        let left = Some(Left { by: 1, old: false });
        world.places[1] = Place { came: came(0, false), left, ..Place::default() };
        world
    }

    /// Different for different worlds.
    pub fn key(&self) -> u128 {
        let mut bits = Bits(1);
        bits.push(self.begun, MOVES_MAX + 1);
        for it in &self.moves {
            bits.push(it.source, PLACES);
            bits.push(it.target, PLACES);
            for flag in
                [it.expired, it.sent, it.taken, it.refused, it.confirmed, it.knows, it.forgot]
            {
                bits.push(usize::from(flag), 2);
            }
        }
        for it in &self.places {
            bits.push(usize::from(it.hosts), 2);
            bits.push(it.leaving.map_or(0, |it| it.by + 1), MOVES_MAX + 1);
            bits.push(it.leaving.map_or(0, |it| it.stage as usize), 3);
            bits.push(usize::from(it.leaving.is_some_and(|it| it.late)), 2);
            bits.push(it.came.map_or(0, |it| it.by + 1), MOVES_MAX + 1);
            bits.push(usize::from(it.came.is_some_and(|it| it.here)), 2);
            bits.push(usize::from(it.came.is_some_and(|it| it.confirmed)), 2);
            bits.push(it.came.map_or(0, |it| it.age as usize), 3);
            bits.push(it.left.map_or(0, |it| it.by + 1), MOVES_MAX + 1);
            bits.push(usize::from(it.left.is_some_and(|it| it.old)), 2);
            for refused in it.refused {
                bits.push(usize::from(refused), 2);
            }
        }
        bits.0
    }

    /// What may never be, of what is so here.
    pub fn violations(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        if self.places.iter().filter(|place| place.hosts).count() > 1 {
            found.push(TWO_HUBS);
        }
        for (by, it) in self.moves[..self.begun].iter().enumerate() {
            let awaits = |leaving: Leaving| leaving.by == by && leaving.holds_back();
            if it.taken && it.refused && self.places[it.source].leaving.is_some_and(awaits) {
                found.push("a target took the group and refused it, and its source hears both");
            }
            let target = &self.places[it.target];
            if target.refused[by] && target.came.is_some_and(|came| came.by == by) {
                found.push("a target knows that it took the group and that it refused it");
            }
        }
        found
    }

    /// One provider takes commits, can hand the group on, and nobody has anything left to do.
    pub fn is_settled(&self) -> bool {
        let mut hubs = self.places.iter().filter(|place| place.hosts);
        let free = |place: &Place| place.came.is_none_or(|came| came.confirmed);
        hubs.next().is_some_and(free)
            && hubs.next().is_none()
            && self.places.iter().all(|place| place.leaving.is_none())
    }

    /// What shows that the model does what it is there for.
    pub fn sights(&self) -> Sights {
        let moves = &self.moves[..self.begun];
        let taken = moves.iter().filter(|it| it.taken).count();
        Sights {
            moved_on: taken > 2,
            came_back: self.places[0].hosts && taken > 1,
            refused_late: moves.iter().any(|it| it.sent && it.refused && !it.taken),
            lost_nonce: moves.iter().any(|it| it.expired && it.sent && it.refused && !it.taken),
            forgotten: moves.iter().any(|it| {
                it.taken && self.places[it.target].came.is_none() && !self.places[it.target].hosts
            }),
            forgot_and_asked: moves.iter().any(|it| it.taken && it.refused),
            told_again: moves.iter().any(|it| it.knows && it.forgot),
        }
    }

    /// Everything that can happen next.
    pub fn steps(&self, rules: &Rules, words: &Words, moves_max: usize, out: &mut Vec<Step>) {
        out.clear();
        for at in 0..PLACES {
            self.members(at, moves_max, out);
            self.source(at, rules, words, out);
            self.sweeps(at, rules, out);
        }
        for by in 0..self.begun {
            self.target(by, rules, out);
            self.confirmation(by, rules, words, out);
            if !self.moves[by].expired {
                self.change(out, true, |world| world.moves[by].expired = true);
            }
        }
    }

    fn change(&self, out: &mut Vec<Step>, fair: bool, change: impl FnOnce(&mut Self)) {
        let mut world = *self;
        change(&mut world);
        out.push((world, fair));
    }

    /// Members begin a move where the group is; or one that came to nothing again, with the same nonce.
    fn members(&self, at: usize, moves_max: usize, out: &mut Vec<Step>) {
        if !self.places[at].hosts {
            return;
        }
        let mut begin = |by: usize, to: usize| {
            self.change(out, false, |world| {
                world.begun = world.begun.max(by + 1);
                (world.moves[by].source, world.moves[by].target) = (at, to);
                let leaving = Leaving { by, stage: Stage::Frozen, late: false };
                world.places[at] =
                    Place { hosts: false, leaving: Some(leaving), ..world.places[at] };
            });
        };
        if let Some(last) = self.begun.checked_sub(1) {
            let it = &self.moves[last];
            if it.source == at && !it.taken {
                begin(last, it.target);
            }
        }
        if self.begun < moves_max {
            for to in (0..PLACES).filter(|to| *to != at) {
                // the other two are alike before the first move
                if self.begun > 0 || to == 1 {
                    begin(self.begun, to);
                }
            }
        }
    }

    fn known(&self, by: usize) -> Known {
        let place = &self.places[self.moves[by].target];
        let came = place.came.filter(|came| came.by == by);
        Known {
            taken: place.hosts || place.leaving.is_some_and(Leaving::holds_back),
            arrived: came.map(|came| content_of(came.by)),
            refused: place.refused[by],
        }
    }

    fn target_time(&self, by: usize) -> Timestamp {
        if self.moves[by].expired { EXPIRED } else { BEFORE }
    }

    /// Whether a source tells the target of that move of it now, in this stage.
    fn tells(&self, by: usize, stage: Stage) -> bool {
        let leaving = self.places[self.moves[by].source].leaving;
        leaving.is_some_and(|leaving| leaving.by == by && leaving.stage == stage)
    }

    fn source(&self, at: usize, rules: &Rules, words: &Words, out: &mut Vec<Step>) {
        let place = &self.places[at];
        let Some(leaving) = place.leaving else { return };
        let by = leaving.by;
        let stage = |stage| {
            move |world: &mut Self| {
                world.places[at].leaving = Some(Leaving { by, stage, late: false });
            }
        };
        let thaw = |world: &mut Self| {
            world.places[at] = Place { hosts: true, leaving: None, ..world.places[at] };
        };
        let over = |world: &mut Self| world.places[at].leaving = None;
        let terms = Terms {
            response: response_of(by),
            expires_at: EXPIRED,
            frozen_at: BEFORE,
            freeze_ms: FREEZE_MS,
            settled: place.came.is_none_or(|came| came.confirmed),
        };
        let phase = leaving.phase();
        let now = if leaving.late { BEFORE.plus_ms(FREEZE_MS) } else { BEFORE };
        if leaving.stage == Stage::Frozen && !leaving.late {
            self.change(out, true, |world| {
                world.places[at].leaving = Some(Leaving { late: true, ..leaving });
            });
        }
        match (rules.next)(&phase, &terms, now) {
            Next::Wait => {}
            Next::Prepare => {
                if phase.sending(content_of(by)).is_some() {
                    self.change(out, true, |world| {
                        stage(Stage::Sent)(world);
                        world.moves[by].sent = true;
                    });
                }
            }
            Next::Thaw => self.change(out, true, thaw),
            Next::Send => {}
            Next::Confirm => {
                let its = self.moves[by];
                let now = words.fit(self, by, rules);
                if place.left.is_none_or(|left| left.by != by) {
                    // the confirmation is not there any more
                    self.change(out, true, over);
                }
                let told = [
                    (Told::Knows, its.knows, matches!(now, Fit::Known)),
                    (Told::Forgot, its.forgot, matches!(now, Fit::Unknown)),
                    (Told::Nothing, true, true),
                ];
                for (told, was_said, fair) in told {
                    if was_said && (rules.is_enough)(told) {
                        self.change(out, fair, over);
                    }
                }
            }
        }
        // an operator, or a target that does not want the group when it is asked once more
        if (rules.may_thaw)(&phase) {
            self.change(out, false, thaw);
        }
        // what waited for the answer to an earlier confirmation hears it
        let earlier = |(said, its): (usize, &Move)| said != by && its.source == at && its.knows;
        if !rules.ends_its_own && self.moves[..self.begun].iter().enumerate().any(earlier) {
            self.change(out, false, over);
        }
        // words of targets, of any move
        for (said, its) in self.moves[..self.begun].iter().enumerate() {
            let answers = said == by && leaving.stage == Stage::Sent;
            let known = self.known(said);
            let answers_taken = answers && known.arrived.is_some();
            // of one that is long expired nothing is written down: its age refuses it
            let is_old =
                (rules.is_refusal_forgotten)(refused_until(EXPIRES_AT), self.target_time(said));
            let answers_refused = answers && known.arrived.is_none() && (known.refused || is_old);
            let heard = [
                (its.taken, content_of(said), false, answers_taken),
                (its.refused, response_of(said), true, answers_refused),
            ];
            for (was_said, hash, refused, fair) in heard {
                if !was_said {
                    continue;
                }
                match (rules.heard)(&phase, &terms, &hash, refused) {
                    Heard::Gone => self.change(out, fair, |world| {
                        stage(Stage::Gone)(world);
                        world.moves[by].confirmed = true;
                        let place = &mut world.places[at];
                        place.left = Some(Left { by, old: false });
                        place.came = place.came.map(|came| Arrival { here: false, ..came });
                    }),
                    Heard::Thaw => self.change(out, fair, thaw),
                    Heard::Nothing => {}
                }
            }
        }
    }

    /// The target gets a content, or the wish to have it refused.
    fn target(&self, by: usize, rules: &Rules, out: &mut Vec<Step>) {
        let its = self.moves[by];
        if !its.sent {
            return;
        }
        let (known, now) = (self.known(by), self.target_time(by));
        let asked = self.tells(by, Stage::Sent);
        let verdicts = [
            ((rules.judge_content)(&known, EXPIRES_AT, now, true), asked),
            ((rules.judge_content)(&known, EXPIRES_AT, now, false), false),
            ((rules.judge_abort)(&known), asked),
        ];
        for (verdict, fair) in verdicts {
            match verdict {
                Verdict::Take => self.change(out, fair, |world| {
                    world.moves[by].taken = true;
                    let arrival = Arrival { by, here: true, confirmed: false, age: Age::New };
                    world.places[its.target] = Place {
                        hosts: true,
                        leaving: None,
                        came: Some(arrival),
                        left: None,
                        refused: world.places[its.target].refused,
                    };
                }),
                Verdict::Refuse if !known.refused || !its.refused => {
                    let old = (rules.is_refusal_forgotten)(refused_until(EXPIRES_AT), now);
                    self.change(out, fair, |world| {
                        world.moves[by].refused = true;
                        world.places[its.target].refused[by] = rules.refuses_durably && !old;
                    });
                }
                Verdict::Refuse | Verdict::Taken { .. } => {}
            }
        }
    }

    /// The target gets the confirmation.
    fn confirmation(&self, by: usize, rules: &Rules, words: &Words, out: &mut Vec<Step>) {
        let its = self.moves[by];
        if !its.confirmed {
            return;
        }
        let left = self.places[its.source].left;
        let fair = self.tells(by, Stage::Gone) && left.is_some_and(|left| left.by == by);
        match words.fit(self, by, rules) {
            Fit::Take { .. } => self.change(out, fair, |world| {
                let place = &mut world.places[its.target];
                place.came = place.came.map(|came| Arrival { confirmed: true, ..came });
                world.moves[by].knows = true;
            }),
            Fit::Known if !its.knows => {
                self.change(out, fair, |world| world.moves[by].knows = true);
            }
            Fit::Unknown if !its.forgot => {
                self.change(out, fair, |world| world.moves[by].forgot = true);
            }
            Fit::Known | Fit::Unknown | Fit::Misfit => {}
        }
    }

    /// What is remembered gets old, and is let go of.
    fn sweeps(&self, at: usize, rules: &Rules, out: &mut Vec<Step>) {
        let place = &self.places[at];
        if let Some(came) = place.came.filter(|came| came.age != Age::Older) {
            self.change(out, true, |world| {
                let age = if came.age == Age::New { Age::Old } else { Age::Older };
                world.places[at].came = Some(Arrival { age, ..came });
                world.moves[came.by].expired |= age == Age::Older;
            });
        }
        if let Some(left) = place.left.filter(|left| !left.old) {
            self.change(out, true, |world| {
                world.places[at].left = Some(Left { old: true, ..left });
            });
        }
        let at_of = |age: Age| match age {
            Age::New => NOW,
            Age::Old => Timestamp(NOW.0 - KEEP.forward_ms),
            Age::Older => Timestamp(NOW.0 - KEEP.response_ms - CLOCK_BACK_MS),
        };
        let memory = Memory {
            left_at: place.left.map(|left| at_of(if left.old { Age::Old } else { Age::New })),
            came: place.came.map(|came| CameAt {
                at: at_of(came.age),
                here: came.here,
                confirmed: came.confirmed,
            }),
            confirms: place.leaving.is_some_and(|leaving| leaving.stage == Stage::Gone),
        };
        let some = place.came.is_some() || place.left.is_some();
        if some && (rules.is_forgotten)(&memory, &KEEP, NOW) {
            self.change(out, true, |world| {
                (world.places[at].came, world.places[at].left) = (None, None);
            });
        }
        for by in 0..self.begun {
            let until = refused_until(EXPIRES_AT);
            let now = self.target_time(by);
            if place.refused[by] && (rules.is_refusal_forgotten)(until, now) {
                self.change(out, true, |world| world.places[at].refused[by] = false);
            }
        }
    }
}

/// A number that grows by digits of different bases.
struct Bits(u128);

impl Bits {
    fn push(&mut self, digit: usize, base: usize) {
        debug_assert!(digit < base);
        self.0 = self.0 * base as u128 + digit as u128;
    }
}

/// States in which something of note can be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sights {
    pub moved_on: bool,
    pub came_back: bool,
    pub refused_late: bool,
    pub lost_nonce: bool,
    pub forgotten: bool,
    /// A content comes once more when nobody knows of it: it is refused, and its source listens no more.
    pub forgot_and_asked: bool,
    pub told_again: bool,
}

impl Sights {
    pub fn add(&mut self, other: Self) {
        self.moved_on |= other.moved_on;
        self.came_back |= other.came_back;
        self.refused_late |= other.refused_late;
        self.lost_nonce |= other.lost_nonce;
        self.forgotten |= other.forgotten;
        self.forgot_and_asked |= other.forgot_and_asked;
        self.told_again |= other.told_again;
    }

    pub fn all() -> Self {
        Self {
            moved_on: true,
            came_back: true,
            refused_late: true,
            lost_nonce: true,
            forgotten: true,
            forgot_and_asked: true,
            told_again: true,
        }
    }
}

/// The confirmations that sources give. Judging one builds chains: what was judged once is kept.
pub struct Words {
    domains: [Domain; PLACES],
    group: GroupId,
    judged: RefCell<HashMap<u128, Fit>>,
}

impl Words {
    pub fn new() -> Self {
        let domains = ["a.example", "b.example", "c.example"];
        let domains = domains.map(|domain| Domain::new(domain).unwrap());
        let group = GroupId::of(&domains[0], [7; 16]);
        Self { domains, group, judged: RefCell::default() }
    }

    fn of(&self, world: &World, by: usize) -> MigrationConfirmation {
        let its = &world.moves[by];
        MigrationConfirmation {
            domain_name: self.domains[its.target].clone(),
            nonce: response_of(by),
            group_id: self.group.clone(),
            signature: Opaque::default(),
            source_domain: self.domains[its.source].clone(),
            epoch: Epoch(by as u64 + 1),
            next_sequence: Sequence(by as u64 * 10 + 10),
        }
    }

    /// What the target of a move makes of its confirmation.
    fn fit(&self, world: &World, by: usize, rules: &Rules) -> Fit {
        let at = world.moves[by].target;
        let came = world.places[at].came;
        let mut key = Bits(1);
        key.push(by, MOVES_MAX);
        key.push(came.map_or(0, |it| it.by + 1), MOVES_MAX + 1);
        key.push(usize::from(came.is_some_and(|it| it.confirmed)), 2);
        for it in &world.moves {
            key.push(it.source, PLACES);
            key.push(it.target, PLACES);
            key.push(usize::from(it.taken), 2);
        }
        if let Some(fit) = self.judged.borrow().get(&key.0) {
            return fit.clone();
        }
        let before = came.map_or(0, |came| came.by);
        let mut links = Vec::new();
        for (by, it) in world.moves[..before].iter().enumerate().filter(|(_, it)| it.taken) {
            links.push(self.of(world, by));
            if it.target == 0 {
                links.clear();
            }
        }
        let came = came.map(|came| {
            let MigrationConfirmation { nonce, source_domain, epoch, next_sequence, .. } =
                self.of(world, came.by);
            Came { nonce, source: source_domain, epoch, next_sequence, confirmed: came.confirmed }
        });
        let chain: Chain = List::new(links).unwrap();
        let said = self.of(world, by);
        let fit = match (rules.judge_confirmation)(&self.domains[at], came.as_ref(), &chain, &said)
        {
            // what the chain is then is not part of the world
            Fit::Take { .. } => Fit::Take { chain: Chain::default() },
            fit @ (Fit::Unknown | Fit::Known | Fit::Misfit) => fit,
        };
        self.judged.borrow_mut().insert(key.0, fit.clone());
        fit
    }
}
