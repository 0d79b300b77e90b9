//! Groups that move from one provider to another, with real processes and clients: on, on again and home, and with either
//! side, or both, killed at every step. PROTOCOL.md §6.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use mimid::{
    client::{
        ClientError,
        core::{Event, PolicyChange, Refusal},
    },
    store::{self, StoreConfig, records::GroupStatus, verify::verify},
    wire::{
        extensions::Role,
        ids::{Domain, GroupId},
    },
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::moves::{DOMAINS, named, team};
use crate::providers::{PATIENCE, Player, Provider, Providers, UNHURRIED, accepted, agree};

/// alice of a.example, bob of b.example and carol of c.example, all of them admins of one group.
struct Scene {
    providers: Providers,
    players: [Player; 3],
    team: GroupId,
    /// Everything that was said, in order, and who said it.
    said: Vec<(usize, String)>,
}

impl Scene {
    async fn start() -> Self {
        let providers = Providers::start_with(&DOMAINS, 1, UNHURRIED, &[]).await;
        let (alice, bob, carol, team) = team(&providers).await;
        let admin =
            |user: &Player| PolicyChange::Role { user: user.user.clone(), role: Role::Admin };
        accepted(alice.client.change_policy(&team, vec![admin(&bob), admin(&carol)]).await);
        agree(&team, &[&alice, &bob, &carol]).await;
        Self { providers, players: [alice, bob, carol], team, said: Vec::new() }
    }

    /// Everybody says something, and hears what the others say.
    async fn talk(&mut self, about: &str) {
        for at in 0..3 {
            self.say(at, &format!("{about} {at}")).await;
        }
        for (at, player) in self.players.iter().enumerate() {
            let others = self.said.iter().filter(|(by, _)| *by != at).count();
            let heard_all = |_: &_| player.said(&self.team).len() >= others;
            player.until(&format!("hears all about {about}"), heard_all).await;
        }
        agree(&self.team, &self.players.each_ref()).await;
        self.check();
    }

    async fn say(&mut self, at: usize, text: &str) {
        accepted(self.players[at].client.send_text(&self.team, text).await);
        self.said.push((at, text.to_owned()));
    }

    /// Nothing was lost, doubled, reordered or forged.
    fn check(&self) {
        for (at, player) in self.players.iter().enumerate() {
            let heard = player.said(&self.team);
            let others = self.said.iter().filter(|(by, _)| *by != at).map(|(_, text)| text);
            assert!(
                heard.iter().map(|(_, text)| text).eq(others),
                "{} heard {heard:?}",
                player.uri
            );
            let bad: Vec<Event> = player
                .events()
                .into_iter()
                .filter(|it| matches!(it, Event::Misbehaviour { .. } | Event::Unreadable { .. }))
                .collect();
            assert!(bad.is_empty(), "{}: {bad:#?}", player.uri);
        }
    }

    fn provider(&self, at: usize) -> &Provider {
        &self.providers.all[at]
    }

    /// No provider has a move that is not over.
    async fn settled(&self) {
        let deadline = Instant::now() + PATIENCE;
        for provider in &self.providers.all {
            while !provider.moves_nothing().await {
                let told = provider.ops("/v1/migrations").await;
                assert!(Instant::now() < deadline, "{}: {told}", provider.domain);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Everybody takes `hub` for the group's, and by what is written down it alone is.
    async fn ends(self, hub: usize) {
        self.settled().await;
        for player in &self.players {
            assert_eq!(player.view(&self.team).hub, domain(hub), "{}", player.uri);
        }
        for provider in &self.providers.all {
            provider.kill();
        }
        for (at, provider) in self.providers.all.iter().enumerate() {
            let (engine, folder) = ("sled".to_owned(), provider.store());
            let config = StoreConfig { engine, folder, cache_bytes: 16 * 1024 * 1024 };
            let store = store::open(&config).unwrap();
            let head = store.group_head(&self.team).await.unwrap().unwrap();
            let is_hub = at == hub;
            let expected = if is_hub { GroupStatus::Active } else { GroupStatus::Followed };
            assert_eq!(head.status, expected, "{}", provider.domain);
            drop(store);
            // the chain of its log goes on over every move
            let mut problems = Vec::new();
            let looked = verify(&provider.store(), &mut |problem| problems.push(problem)).unwrap();
            assert!(problems.is_empty(), "{}: {problems:#?}", provider.domain);
            assert!(looked.chains.keys().all(|chain| *chain == "whole"), "{:?}", looked.chains);
        }
    }
}

fn domain(at: usize) -> Domain {
    named(DOMAINS[at])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_moves_on_and_on_again_and_home_and_everyone_goes_on() {
    let mut scene = Scene::start().await;
    scene.talk("at a").await;
    accepted(scene.players[0].client.migrate(&scene.team, &domain(1)).await);
    scene.talk("at b").await;
    for player in &scene.players {
        assert_eq!(player.view(&scene.team).hub, domain(1), "{}", player.uri);
    }
    // a member who was away for it is sent on; a further device comes in at the new hub
    accepted(scene.players[1].client.migrate(&scene.team, &domain(2)).await);
    scene.say(0, "from afar").await;
    scene.talk("at c").await;
    let tablet = scene.providers.further(&scene.players[0], "tablet").await;
    tablet.until_in(&scene.team).await;
    accepted(tablet.client.send_text(&scene.team, "from the tablet").await);
    scene.said.push((3, "from the tablet".to_owned()));
    // and home, with commits behind it
    accepted(scene.players[2].client.migrate(&scene.team, &domain(0)).await);
    scene.talk("home").await;
    accepted(scene.players[1].client.update(&scene.team, true).await);
    scene.talk("with new keys").await;
    let client = tablet.uri.clone();
    accepted(scene.players[0].client.remove_clients(&scene.team, vec![client]).await);
    tablet.until_out(&scene.team).await;
    scene.talk("without the tablet").await;
    scene.ends(0).await;
}

/// Every step of a move by a client of the source, and the side that it is a step of: each message of PROTOCOL.md §6 before it is
/// sent, where it came, before its answer and where that came; each write before and after. The freeze is written by the group's
/// actor, which has nothing that lasts before that: start-received is before, frozen behind it.
const STEPS: [(&str, Side); 28] = [
    ("initiator.before-request", Side::Source),
    ("target.request-received", Side::Target),
    ("target.request-answering", Side::Target),
    ("initiator.promised", Side::Source),
    ("source.start-received", Side::Source),
    ("source.frozen", Side::Source),
    ("source.before-asked", Side::Source),
    ("target.request-received 2", Side::Target),
    ("target.request-answering 2", Side::Target),
    ("source.asked", Side::Source),
    ("source.before-sent", Side::Source),
    ("source.sent-durable", Side::Source),
    ("source.before-send", Side::Source),
    ("target.content-received", Side::Target),
    ("target.before-durable", Side::Target),
    ("target.durable", Side::Target),
    ("target.content-answering", Side::Target),
    ("source.answered", Side::Source),
    ("source.before-gone", Side::Source),
    ("source.gone-durable", Side::Source),
    ("source.start-answering", Side::Source),
    ("source.before-confirm", Side::Source),
    ("target.confirmation-received", Side::Target),
    ("target.before-confirmed", Side::Target),
    ("target.confirmed", Side::Target),
    ("target.confirmation-answering", Side::Target),
    ("source.confirmed", Side::Source),
    ("source.over", Side::Source),
];

/// The same of a move that the target refuses because an operator of the source wants the group back. Who gets to know of the
/// operator's wish is only the source while it runs, so whether the group stays where that is killed before the target's refusal
/// is written down is another matter.
const STEPS_BACK: [(&str, Side); 8] = [
    ("source.before-abort", Side::Source),
    ("target.abort-received", Side::Target),
    ("target.before-refusal", Side::Target),
    ("target.refused", Side::Target),
    ("target.abort-answering", Side::Target),
    ("source.abort-answered", Side::Source),
    ("source.before-thaw", Side::Source),
    ("source.thawed", Side::Source),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// What becomes of the other side when one is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Stays,
    Falls,
}

/// Who comes to the step is killed there.
type Kill = ((&'static str, Side), Other);

impl Scene {
    /// The sides of a move, the one that `side` says first.
    fn sides(&self, [hub, next]: [usize; 2], side: Side) -> [&Provider; 2] {
        let at = if side == Side::Source { [hub, next] } else { [next, hub] };
        at.map(|at| self.provider(at))
    }

    /// Player `by` moves the group from `hub` to `next` while whoever comes to a step is killed there and started again, one
    /// after the other, alone or with the other side. A step that is not come to any more is left out. How many were come to.
    async fn move_through(&self, by: usize, [hub, next]: [usize; 2], kills: &[Kill]) -> usize {
        let over = AtomicBool::new(false);
        let moves = async {
            let moved = self.insists(by, next).await;
            over.store(true, Ordering::SeqCst);
            moved
        };
        let killer = async {
            let mut killed = 0;
            for ((step, side), other) in kills {
                let sides = self.sides([hub, next], *side);
                sides[0].stop_at(step);
                while !sides[0].has_stopped() && !self.is_over(&over).await {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if sides[0].has_stopped() {
                    killed += 1;
                    fall(sides, *other).await;
                }
                sides[0].go_on();
            }
            killed
        };
        // the first step is told before anything begins
        let (killed, moved) = tokio::join!(killer, moves);
        if let Err(error) = moved {
            panic!("{kills:?}: {error}\n{}", self.providers.logs());
        }
        self.settled().await;
        let hub = self.players[by].view(&self.team).hub;
        assert_eq!(hub, domain(next), "{kills:?}\n{}", self.providers.logs());
        killed
    }

    /// Moves the group, until there is an answer: a request without one is kept, and asked again.
    async fn insists(&self, by: usize, next: usize) -> Result<(), ClientError> {
        let deadline = Instant::now() + PATIENCE;
        let client = &self.players[by].client;
        let mut outcome = client.migrate(&self.team, &domain(next)).await.map(|_| ());
        while outcome.as_ref().is_err_and(ClientError::passes) && Instant::now() < deadline {
            outcome = match outcome {
                Err(ClientError::Unanswered { .. }) => match client.resume().await {
                    Ok(mut refused) => match refused.pop() {
                        Some((_, error)) => Err(error),
                        None => Ok(()),
                    },
                    Err(error) => Err(error),
                },
                // the target's word was not to be had: nothing has begun
                _ => client.migrate(&self.team, &domain(next)).await.map(|_| ()),
            };
        }
        outcome
    }

    /// The initiator has its answer, and no provider has anything left to do.
    async fn is_over(&self, over: &AtomicBool) -> bool {
        if !over.load(Ordering::SeqCst) {
            return false;
        }
        for provider in &self.providers.all {
            // who comes to a step behind its last write is under way still
            if !provider.moves_nothing().await
                || provider.metric("mimid_migrations_under_way").await != 0.0
            {
                return false;
            }
        }
        true
    }

    /// Every step of a move from either of two providers to the other.
    async fn falls_everywhere(mut self, other: Other) {
        let mut hub = 0;
        for first in 0..2 {
            for (at, kill) in STEPS.into_iter().enumerate() {
                // each of them in the other direction, too: a group that comes home is another matter
                if hub != (first + at) % 2 {
                    self.move_through(hub, [hub, 1 - hub], &[]).await;
                    hub = 1 - hub;
                    self.talk("the other way").await;
                }
                let killed = self.move_through(hub, [hub, 1 - hub], &[(kill, other)]).await;
                assert_eq!(killed, 1, "it does not come to {}", kill.0);
                hub = 1 - hub;
                self.talk(kill.0).await;
            }
        }
        self.ends(hub).await;
    }
}

/// Kills the first side where it stands, with the other one or without, and starts again what fell.
async fn fall([stopped, beside]: [&Provider; 2], other: Other) {
    stopped.kill();
    stopped.go_on();
    match other {
        Other::Stays => stopped.start().await,
        Other::Falls => {
            beside.kill();
            tokio::join!(beside.start(), stopped.start());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_killed_at_any_step_ends_in_one_hub_and_loses_nothing() {
    Scene::start().await.falls_everywhere(Other::Stays).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_killed_at_any_step_end_in_one_hub_and_lose_nothing() {
    Scene::start().await.falls_everywhere(Other::Falls).await;
}

/// `TEST_SEED` repeats a run. `TEST_MOVES` says how many moves it has: `TEST_MOVES=300` takes about ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_kills_in_one_move_end_in_one_hub_and_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TEST_SEED").unwrap_or_else(rand::random);
    println!("TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::start().await;
    let (mut hub, mut killed) = (0, [0; 3]);
    let moves = number("TEST_MOVES").unwrap_or(40);
    for at in 0..moves {
        let next = (hub + random.random_range(1..3)) % 3;
        // who moves it from another provider than its hub waits for seconds whenever that was away
        let mover = if random.random_bool(0.25) { random.random_range(0..3) } else { hub };
        let kills = [(); 2].map(|()| {
            let step = STEPS[random.random_range(0..STEPS.len())];
            (step, [Other::Stays, Other::Falls][random.random_range(0..2)])
        });
        let began = Instant::now();
        killed[scene.move_through(mover, [hub, next], &kills).await] += 1;
        hub = next;
        scene.talk(&format!("{at} {kills:?}")).await;
        let ms = began.elapsed().as_millis();
        println!("{at}: {mover} moves it to {next} through {kills:?}: {ms} ms");
    }
    println!("TEST_SEED={seed}: {moves} moves, with 0, 1 and 2 kills: {killed:?}");
    scene.ends(hub).await;
}

impl Scene {
    /// The group is moved and an operator of the source wants it back, once its content was sent or before; whoever comes to
    /// `step` then is killed.
    async fn taken_back(&self, [hub, next]: [usize; 2], is_sent: bool, kill: Kill) {
        let ((step, side), other) = kill;
        let [source, target] = self.sides([hub, next], Side::Source);
        let ends = async {
            // it is on its way to a target that does not answer
            let where_to =
                if is_sent { "target.content-received" } else { "target.request-received 2" };
            target.stop_at(where_to);
            until(where_to, || target.has_stopped()).await;
            target.kill();
            target.go_on();
            let sides = self.sides([hub, next], side);
            sides[0].stop_at(step);
            let aborted = source.ops_post("/v1/migrations/abort", self.team.to_string()).await;
            assert_eq!(aborted.0, 200, "{aborted:?}");
            target.start().await;
            until(step, || sides[0].has_stopped()).await;
            fall(sides, other).await;
        };
        let ((), moved) = tokio::join!(ends, self.insists(hub, next));
        self.settled().await;
        // the source forgets the operator's word when it falls, and what was only taken back here is begun anew by an initiator
        // that has not heard of it
        let refused_at = STEPS_BACK.iter().position(|(it, _)| *it == "target.refused");
        let is_refused = is_sent && STEPS_BACK.iter().position(|(it, _)| *it == step) >= refused_at;
        let source_falls = side == Side::Source || other == Other::Falls;
        let stays = is_refused || !source_falls;
        match &moved {
            Err(ClientError::Refused(Refusal(_))) if stays => {}
            Ok(()) if !stays => {}
            moved => panic!("{kill:?}: {moved:?}\n{}", self.providers.logs()),
        }
        let at = self.players[hub].view(&self.team).hub;
        assert_eq!(at, domain(if stays { hub } else { next }), "{kill:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_an_operator_ends_has_one_hub_and_loses_nothing_whoever_is_killed() {
    let mut scene = Scene::start().await;
    let mut hub = 0;
    let sent = STEPS_BACK.into_iter().map(|step| (true, step));
    let frozen = STEPS_BACK.into_iter().map(|step| (false, step)).skip(6);
    for (is_sent, step) in sent.chain(frozen) {
        for other in [Other::Stays, Other::Falls] {
            scene.taken_back([hub, 1 - hub], is_sent, (step, other)).await;
            hub = usize::from(scene.players[hub].view(&scene.team).hub == domain(1));
            scene.talk(step.0).await;
        }
    }
    // and when nobody is in the way it moves
    scene.move_through(hub, [hub, 1 - hub], &[]).await;
    scene.talk("moved after all").await;
    scene.ends(1 - hub).await;
}

async fn until(step: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "it does not come to {step}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
