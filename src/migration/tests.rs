//! Both sides of a move together, in every state that they can come to: each durable write, message sent and message taken is a
//! step of its own, so a crash between any two of them is a path that does not take the second. Messages stay in the
//! network for ever: they come late, twice, or never. The two clocks go on independently.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    source::{Heard, Next, Phase, Terms},
    target::{Known, Verdict, judge_abort, judge_content},
};
use crate::wire::ids::Timestamp;

/// How often the members try to move the group: a late message of the first try meets the second.
const TRIES: u8 = 2;
const END: u64 = 4;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    source: Source,
    /// What the target has of each try.
    target: [Known; TRIES as usize],
    network: Network,
    source_time: u64,
    target_time: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    /// It takes commits; so many tries were made.
    Hosts {
        tried: u8,
    },
    Leaves {
        attempt: u8,
        frozen_at: u64,
        phase: Phase,
    },
}

/// What was ever sent, for each try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Network {
    content: [bool; TRIES as usize],
    abort: [bool; TRIES as usize],
    complete: [bool; TRIES as usize],
    refusal: [bool; TRIES as usize],
}

fn terms(attempt: u8, frozen_at: u64) -> Terms {
    Terms {
        response: [attempt + 100; 32],
        // the second try's nonce outlives the first's
        expires_at: Timestamp(2 + u64::from(attempt)),
        frozen_at: Timestamp(frozen_at),
        freeze_ms: 1,
    }
}

fn content_hash(attempt: u8) -> [u8; 32] {
    [attempt; 32]
}

impl World {
    fn start() -> Self {
        let known = Known { taken: false, arrived: None, refused: false };
        Self {
            source: Source::Hosts { tried: 0 },
            target: [known; TRIES as usize],
            network: Network::default(),
            source_time: 0,
            target_time: 0,
        }
    }

    fn source_serves(&self) -> bool {
        matches!(self.source, Source::Hosts { .. })
    }

    fn target_serves(&self) -> bool {
        self.target.iter().any(|known| known.arrived.is_some())
    }

    fn known(&self, attempt: usize) -> Known {
        Known { taken: self.target_serves(), ..self.target[attempt] }
    }

    /// Everything that can happen next.
    fn steps(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            if world != *self {
                next.push(world);
            }
        };
        if self.source_time < END {
            step(&|world| world.source_time += 1);
        }
        if self.target_time < END {
            step(&|world| world.target_time += 1);
        }
        match &self.source {
            Source::Hosts { tried } if *tried < TRIES => step(&|world| {
                let (attempt, frozen_at) = (*tried, world.source_time);
                world.source = Source::Leaves { attempt, frozen_at, phase: Phase::Frozen };
            }),
            Source::Hosts { .. } => {}
            Source::Leaves { attempt, frozen_at, phase } => {
                let (attempt, frozen_at) = (*attempt, *frozen_at);
                let hosts = Source::Hosts { tried: attempt + 1 };
                let terms = terms(attempt, frozen_at);
                match phase.next(&terms, Timestamp(self.source_time)) {
                    Next::Prepare => {
                        let sending = phase.sending(content_hash(attempt));
                        step(&|world| {
                            if let Some(phase) = &sending {
                                let phase = phase.clone();
                                world.source = Source::Leaves { attempt, frozen_at, phase };
                            }
                        });
                    }
                    Next::Thaw => step(&|world| world.source = hosts.clone()),
                    Next::Send => step(&|world| world.network.content[attempt as usize] = true),
                    Next::Confirm => {}
                }
                // an operator
                if phase.may_thaw() {
                    step(&|world| world.source = hosts.clone());
                } else {
                    step(&|world| world.network.abort[attempt as usize] = true);
                }
                // words of the target, of any try
                for said in 0..TRIES {
                    let at = said as usize;
                    let words = [
                        (self.network.complete[at], content_hash(said), false),
                        (self.network.refusal[at], [said + 100; 32], true),
                    ];
                    for (was_said, hash, refused) in words {
                        match phase.heard(&terms, &hash, refused) {
                            Heard::Gone if was_said => step(&|world| {
                                let phase = Phase::Gone;
                                world.source = Source::Leaves { attempt, frozen_at, phase };
                            }),
                            Heard::Thaw if was_said => step(&|world| world.source = hosts.clone()),
                            Heard::Gone | Heard::Thaw | Heard::Nothing => {}
                        }
                    }
                }
            }
        }
        for attempt in 0..TRIES as usize {
            let expires_at = terms(attempt as u8, 0).expires_at;
            let now = Timestamp(self.target_time);
            let known = self.known(attempt);
            let mut verdicts = Vec::new();
            if self.network.content[attempt] {
                for fits in [true, false] {
                    verdicts.push(judge_content(&known, expires_at, now, fits));
                }
            }
            if self.network.abort[attempt] {
                verdicts.push(judge_abort(&known));
            }
            for verdict in verdicts {
                match verdict {
                    Verdict::Take => step(&|world| {
                        world.target[attempt].arrived = Some(content_hash(attempt as u8));
                    }),
                    Verdict::Taken { .. } => step(&|world| world.network.complete[attempt] = true),
                    // written down, and then said
                    Verdict::Refuse if known.refused => {
                        step(&|world| world.network.refusal[attempt] = true);
                    }
                    Verdict::Refuse => step(&|world| world.target[attempt].refused = true),
                }
            }
        }
        next
    }
}

#[test]
fn at_no_time_are_there_two_hubs_and_from_every_state_there_will_be_one() {
    let start = World::start();
    let mut ids: HashMap<World, usize> = HashMap::from([(start.clone(), 0)]);
    let mut before: Vec<Vec<usize>> = vec![Vec::new()];
    let mut served = vec![true];
    let mut todo = VecDeque::from([start]);
    let (mut moved, mut aborted_late) = (0, 0);
    while let Some(world) = todo.pop_front() {
        let id = ids[&world];
        let both = world.source_serves() && world.target_serves();
        assert!(!both, "two hubs: {world:?}");
        moved += usize::from(world.target_serves());
        let contents = world.network.content.contains(&true);
        aborted_late += usize::from(contents && world.source_serves());
        for next in world.steps() {
            let fresh = ids.len();
            let next_id = *ids.entry(next.clone()).or_insert(fresh);
            if next_id == fresh {
                served.push(next.source_serves() || next.target_serves());
                before.push(Vec::new());
                todo.push_back(next);
            }
            before[next_id].push(id);
        }
    }
    // from where somebody serves, back to all states that lead there
    let mut good: HashSet<usize> =
        served.iter().enumerate().filter(|(_, yes)| **yes).map(|(id, _)| id).collect();
    let mut todo: Vec<usize> = good.iter().copied().collect();
    while let Some(id) = todo.pop() {
        for earlier in &before[id] {
            if good.insert(*earlier) {
                todo.push(*earlier);
            }
        }
    }
    assert_eq!(good.len(), ids.len(), "a state from which there is never a hub again");
    assert!(ids.len() > 2_000, "{} states are not all that there are", ids.len());
    assert!(moved > 0 && aborted_late > 0, "the explorer saw moves and late aborts");
}

#[test]
fn a_source_that_sent_something_does_not_take_the_group_back_by_itself() {
    let terms = terms(0, 0);
    let sent = Phase::Frozen.sending([7; 32]).unwrap();
    assert!(!sent.may_thaw());
    assert_eq!(sent.next(&terms, Timestamp(1_000_000)), Next::Send);
    assert_eq!(sent.sending([8; 32]), None, "what was written down is not made anew");
    assert_eq!(sent.heard(&terms, &[8; 32], false), Heard::Nothing, "of another content");
    assert_eq!(sent.heard(&terms, &[7; 32], true), Heard::Nothing, "a refusal names the response");
    assert_eq!(sent.heard(&terms, &[7; 32], false), Heard::Gone);
    assert_eq!(sent.heard(&terms, &terms.response, true), Heard::Thaw);
}
