//! What a workload does, before any key is made: which clients are in which group, and what happens in it, in order.
//!
//! Pure: the same [`Shape`] gives the same plans, group by group, so none of them has to be kept. Here: who and what. Not here:
//! when ([`super::pace`]), and the messages ([`super::crew`]).

use std::{collections::BTreeSet, fmt, str::FromStr};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::request::Kind;

/// How large a workload is and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub seed: u64,
    pub groups: u32,
    /// Of each group.
    pub members: u32,
    /// Members of a group with a real MLS state; the first creates it. The others are leaves that are signed and registered.
    pub drivers: u32,
    /// Drivers that commit in the same epoch in one race.
    pub racers: u32,
    /// Whether those who lose a race try again until all have had their turn.
    pub losers_retry: bool,
    pub mix: Mix,
    /// Operations of each group.
    pub steps: u32,
    /// Of a message's text.
    pub message_bytes: u32,
    /// Registered clients, one device each; account n is at target n modulo their number.
    pub users: u32,
    pub targets: u32,
}

/// How often each operation is drawn, against the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    pub messages: u32,
    pub updates: u32,
    pub adds: u32,
    pub removes: u32,
    pub joins: u32,
    pub races: u32,
}

/// One thing that happens in a group. Accounts are numbers of the workload, drivers positions in the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Message { by: u32 },
    Update { driver: u32 },
    Add { driver: u32, who: u32 },
    Remove { who: u32 },
    Join { who: u32 },
    Race { drivers: Vec<u32> },
}

/// Whom an operation brings into its group, or takes out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Nobody,
    In(u32),
    Out(u32),
}

impl Op {
    #[must_use]
    pub fn change(&self) -> Change {
        match self {
            Self::Add { who, .. } | Self::Join { who } => Change::In(*who),
            Self::Remove { who } => Change::Out(*who),
            Self::Message { .. } | Self::Update { .. } | Self::Race { .. } => Change::Nobody,
        }
    }

    /// The kind of the request that it begins with.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Message { .. } => Kind::Message,
            Self::Update { .. } => Kind::Update,
            Self::Add { .. } => Kind::Add,
            Self::Remove { .. } => Kind::Remove,
            // which needs what it is made of first
            Self::Join { .. } => Kind::ExternalCommitInfo,
            Self::Race { .. } => Kind::Race,
        }
    }
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlan {
    /// The target that hosts it.
    pub hub: u32,
    /// Accounts; the first are its drivers, the very first creates it.
    pub members: Vec<u32>,
    pub ops: Vec<Op>,
}

impl Shape {
    /// # Errors
    /// What does not go together, and what to say instead.
    pub fn check(&self) -> Result<(), String> {
        let Mix { messages, updates, adds, removes, joins, races } = self.mix;
        let all = [messages, updates, adds, removes, joins, races];
        if all.iter().all(|weight| *weight == 0) || all.iter().any(|it| *it > WEIGHT_MAX) {
            return Err(format!("a mix has something in it, and no weight above {WEIGHT_MAX}"));
        }
        let bounds = [
            ("groups", self.groups, 1, 1_000_000),
            ("members", self.members, 1, 10_000),
            ("drivers", self.drivers, 1, self.members.min(100)),
            ("steps", self.steps, 1, 100_000),
            ("message bytes", self.message_bytes, 1, 200 * 1024),
            ("targets", self.targets, 1, 64),
            ("users", self.users, self.members.max(self.targets), 1_000_000),
        ];
        for (what, is, min, max) in bounds {
            if !(min..=max).contains(&is) {
                return Err(format!("{is} {what}: {min} to {max} can be"));
            }
        }
        if races > 0 && !(2..=self.drivers).contains(&self.racers) {
            return Err(format!(
                "{} racers among {} drivers: 2 or more, and each is a driver",
                self.racers, self.drivers
            ));
        }
        if adds + joins > 0 && self.users == self.members {
            return Err(
                "adds and joins need users who are not in the group: more --users than members"
                    .into(),
            );
        }
        Ok(())
    }

    /// The plan of group `index`.
    #[must_use]
    pub fn group(&self, index: u32) -> GroupPlan {
        let mixed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(index));
        let mut rng = StdRng::seed_from_u64(mixed);
        let hub = index % self.targets;
        let members = self.members(hub, &mut rng);
        let mut inside: Vec<u32> = members.clone();
        let mut present: BTreeSet<u32> = members.iter().copied().collect();
        let mut ops: Vec<Op> =
            (0..self.steps).map(|_| self.draw(&mut rng, &mut inside, &mut present)).collect();
        let talks = ops.iter().rev().take_while(|op| matches!(op, Op::Message { .. })).count();
        if self.mix.messages > 0 && talks < TAIL {
            // a run that is longer than the script goes on with the messages of its last epoch
            ops.extend((talks..TAIL).map(|_| Op::Message { by: pick(&mut rng, &inside) }));
        }
        GroupPlan { hub, members, ops }
    }

    /// How many queue tokens each account needs, for all groups together.
    #[must_use]
    pub fn tokens(&self) -> Vec<u32> {
        let mut tokens = vec![0; self.users as usize];
        for index in 0..self.groups {
            let plan = self.group(index);
            let newcomers = plan.ops.iter().filter_map(|op| match op {
                Op::Add { who, .. } | Op::Join { who } => Some(*who),
                Op::Message { .. } | Op::Update { .. } | Op::Remove { .. } | Op::Race { .. } => {
                    None
                }
            });
            for account in plan.members.iter().copied().chain(newcomers) {
                tokens[account as usize] += 1;
            }
        }
        tokens
    }

    fn members(&self, hub: u32, rng: &mut StdRng) -> Vec<u32> {
        let (users, members) = (self.users as usize, self.members as usize);
        let mut chosen: Vec<u32> = rand::seq::index::sample(rng, users, members)
            .into_iter()
            .filter_map(|account| u32::try_from(account).ok())
            .collect();
        // whoever creates a group does so at its own provider
        let is_of_hub = |account: &u32| account % self.targets == hub;
        match chosen.iter().position(is_of_hub) {
            Some(at) => chosen.swap(0, at),
            None => chosen[0] = hub,
        }
        chosen
    }

    fn draw(&self, rng: &mut StdRng, inside: &mut Vec<u32>, present: &mut BTreeSet<u32>) -> Op {
        let drivers = self.drivers;
        let update = |rng: &mut StdRng| Op::Update { driver: rng.random_range(0..drivers) };
        match self.mix.draw(rng) {
            Drawn::Message => Op::Message { by: pick(rng, inside) },
            Drawn::Update => update(rng),
            Drawn::Remove => {
                // drivers stay: they hold the state that the script goes on with
                let others = inside.len() - drivers as usize;
                if others == 0 {
                    return update(rng);
                }
                let who = inside.swap_remove(drivers as usize + rng.random_range(0..others));
                present.remove(&who);
                Op::Remove { who }
            }
            drawn @ (Drawn::Add | Drawn::Join) => {
                if present.len() == self.users as usize {
                    return update(rng);
                }
                let who = loop {
                    let who = rng.random_range(0..self.users);
                    if !present.contains(&who) {
                        break who;
                    }
                };
                inside.push(who);
                present.insert(who);
                if drawn == Drawn::Join {
                    return Op::Join { who };
                }
                Op::Add { driver: rng.random_range(0..drivers), who }
            }
            Drawn::Race => {
                let racers = rand::seq::index::sample(rng, drivers as usize, self.racers as usize);
                let mut racers: Vec<u32> =
                    racers.into_iter().filter_map(|it| u32::try_from(it).ok()).collect();
                racers.sort_unstable();
                Op::Race { drivers: racers }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Drawn {
    Message,
    Update,
    Add,
    Remove,
    Join,
    Race,
}

impl Mix {
    fn draw(&self, rng: &mut StdRng) -> Drawn {
        let weights = [
            (Drawn::Message, self.messages),
            (Drawn::Update, self.updates),
            (Drawn::Add, self.adds),
            (Drawn::Remove, self.removes),
            (Drawn::Join, self.joins),
            (Drawn::Race, self.races),
        ];
        let mut at = rng.random_range(0..weights.iter().map(|(_, weight)| weight).sum());
        for (drawn, weight) in weights {
            if at < weight {
                return drawn;
            }
            at -= weight;
        }
        Drawn::Message
    }
}

fn pick(rng: &mut StdRng, of: &[u32]) -> u32 {
    of[rng.random_range(0..of.len())]
}

const WEIGHT_MAX: u32 = 1_000_000;
/// Messages behind a script's last commit, at least.
const TAIL: usize = 4;

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix = Self { messages: 0, updates: 0, adds: 0, removes: 0, joins: 0, races: 0 };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || {
                format!(
                    "{part:?} in a mix: one of messages=90, updates=4, adds=2, removes=2, joins=1, races=1 is meant"
                )
            };
            let (name, weight) = part.split_once('=').ok_or_else(wrong)?;
            let place = match name.trim() {
                "messages" => &mut mix.messages,
                "updates" => &mut mix.updates,
                "adds" => &mut mix.adds,
                "removes" => &mut mix.removes,
                "joins" => &mut mix.joins,
                "races" => &mut mix.races,
                _ => return Err(wrong()),
            };
            *place = weight.trim().parse().map_err(|_| wrong())?;
        }
        Ok(mix)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("messages", self.messages),
            ("updates", self.updates),
            ("adds", self.adds),
            ("removes", self.removes),
            ("joins", self.joins),
            ("races", self.races),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(name, weight)| format!("{name}={weight}"))
            .collect();
        f.write_str(&said.join(","))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |number: u32, what: &str| match number {
            1 => format!("1 {what}"),
            number => format!("{number} {what}s"),
        };
        write!(
            f,
            "{} of {}, {} at {}, {} each, {} a message, {}",
            many(self.groups, "group"),
            self.members,
            many(self.users, "user"),
            many(self.targets, "provider"),
            many(self.steps, "step"),
            many(self.message_bytes, "byte"),
            self.mix
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            seed: 7,
            groups: 20,
            members: 6,
            drivers: 3,
            racers: 2,
            losers_retry: false,
            mix: "messages=60,updates=8,adds=8,removes=8,joins=8,races=8".parse().unwrap(),
            steps: 60,
            message_bytes: 100,
            users: 30,
            targets: 2,
        }
    }

    #[test]
    fn the_same_shape_gives_the_same_plans_and_another_seed_others() {
        let plans = |shape: &Shape| (0..20).map(|it| shape.group(it)).collect::<Vec<_>>();
        assert_eq!(plans(&shape()), plans(&shape()));
        assert_ne!(plans(&shape()), plans(&Shape { seed: 8, ..shape() }));
    }

    #[test]
    fn nobody_speaks_or_leaves_who_is_not_in_the_group_and_drivers_stay() {
        for index in 0..20 {
            let plan = shape().group(index);
            assert_eq!(plan.members[0] % 2, plan.hub, "the creator is the hub's client");
            let mut present: BTreeSet<u32> = plan.members.iter().copied().collect();
            assert_eq!(present.len(), 6);
            for op in &plan.ops {
                match op {
                    Op::Message { by } => assert!(present.contains(by)),
                    Op::Update { driver } => assert!(*driver < 3),
                    Op::Add { who, .. } | Op::Join { who } => assert!(present.insert(*who)),
                    Op::Remove { who } => {
                        assert!(!plan.members[..3].contains(who) && present.remove(who));
                    }
                    Op::Race { drivers } => {
                        assert!(drivers.len() == 2 && drivers[0] < drivers[1] && drivers[1] < 3);
                    }
                }
            }
            let tail = &plan.ops[plan.ops.len() - TAIL..];
            assert!(tail.iter().all(|op| matches!(op, Op::Message { .. })));
        }
    }

    #[test]
    fn every_operation_of_a_mix_is_drawn_about_as_often_as_it_says() {
        let shape = Shape { steps: 5000, users: 10_000, ..shape() };
        let ops = shape.group(0).ops;
        let count = |is: fn(&Op) -> bool| ops.iter().filter(|op| is(op)).count();
        let others = [
            count(|op| matches!(op, Op::Update { .. })),
            count(|op| matches!(op, Op::Add { .. })),
            count(|op| matches!(op, Op::Remove { .. })),
            count(|op| matches!(op, Op::Join { .. })),
            count(|op| matches!(op, Op::Race { .. })),
        ];
        assert!(others.iter().all(|it| (300..500).contains(it)), "{others:?}");
        let messages = count(|op| matches!(op, Op::Message { .. }));
        assert!((2800..3200).contains(&messages), "{messages}");
    }

    #[test]
    fn a_token_is_counted_for_every_entry_into_a_group() {
        let shape = shape();
        let entries: usize = (0..shape.groups)
            .map(|index| {
                let plan = shape.group(index);
                let enters = |op: &&Op| matches!(op, Op::Add { .. } | Op::Join { .. });
                plan.members.len() + plan.ops.iter().filter(enters).count()
            })
            .sum();
        let tokens: u32 = shape.tokens().iter().sum();
        assert_eq!(tokens as usize, entries);
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let wrong = |shape: Shape| shape.check().unwrap_err();
        assert_eq!(shape().check(), Ok(()));
        assert!(wrong(Shape { racers: 4, ..shape() }).contains("racers"));
        assert!(wrong(Shape { users: 6, ..shape() }).contains("--users"));
        assert!(wrong(Shape { users: 5, ..shape() }).contains("users"));
        assert!(wrong(Shape { drivers: 7, ..shape() }).contains("drivers"));
        assert!("messages=1,shouts=2".parse::<Mix>().unwrap_err().contains("shouts"));
        assert!("messages".parse::<Mix>().is_err());
        assert!(wrong(Shape { mix: "".parse().unwrap(), ..shape() }).contains("mix"));
        assert_eq!(shape().mix.to_string().parse::<Mix>().unwrap(), shape().mix);
    }
}
