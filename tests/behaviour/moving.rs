//! Groups that move from one provider to another, with real processes and clients: on, on again and home, and with either
//! side killed at every step. PROTOCOL.md §6.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use mimid::{
    client::{
        ClientError, Outcome,
        core::{Event, PolicyChange, SUITES},
    },
    wire::{
        extensions::Role,
        ids::{Domain, GroupId},
    },
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::providers::{PATIENCE, Player, Provider, Providers, accepted, agree, connect};

const DOMAINS: [&str; 3] = ["a.example", "b.example", "c.example"];

/// alice of a.example, bob of b.example and carol of c.example, all of them admins of one group.
struct Scene {
    providers: Providers,
    alice: Player,
    bob: Player,
    carol: Player,
    team: GroupId,
    /// Everything that was said, in order.
    said: Vec<String>,
}

impl Scene {
    async fn start(settings: &str) -> Self {
        let providers = Providers::start_with(&DOMAINS, 1, settings, &[]).await;
        let alice = providers.client("alice@a.example/phone").await;
        let bob = providers.client("bob@b.example/phone").await;
        let carol = providers.client("carol@c.example/phone").await;
        connect(&alice, &bob).await;
        connect(&alice, &carol).await;
        let team = alice.client.create_group("team", SUITES[0], None).await.unwrap();
        let others = [bob.user.clone(), carol.user.clone()];
        accepted(alice.client.add_users(&team, &others).await);
        let admin =
            |user: &Player| PolicyChange::Role { user: user.user.clone(), role: Role::Admin };
        accepted(alice.client.change_policy(&team, vec![admin(&bob), admin(&carol)]).await);
        bob.until_in(&team).await;
        carol.until_in(&team).await;
        Self { providers, alice, bob, carol, team, said: Vec::new() }
    }

    fn players(&self) -> [&Player; 3] {
        [&self.alice, &self.bob, &self.carol]
    }

    /// Everybody says something, and hears what the others say.
    async fn talk(&mut self, about: &str) {
        for at in 0..3 {
            let text = format!("{about} {at}");
            accepted(self.players()[at].client.send_text(&self.team, &text).await);
            self.said.push(text);
        }
        for (at, player) in self.players().into_iter().enumerate() {
            for text in self.said.iter().filter(|text| !text.ends_with(&at.to_string())) {
                player.until_hears(&self.team, text).await;
            }
        }
        agree(&self.team, &self.players()).await;
        self.check();
    }

    /// Nothing was lost, doubled, reordered or forged.
    fn check(&self) {
        for (at, player) in self.players().into_iter().enumerate() {
            let heard: Vec<String> =
                player.said(&self.team).into_iter().map(|(_, text)| text).collect();
            let own = at.to_string();
            let others = self.said.iter().filter(|text| !text.ends_with(&own));
            assert!(heard.iter().eq(others), "{} heard {heard:?}", player.uri);
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
            loop {
                let told = provider.ops("/v1/migrations").await;
                if told == NOTHING {
                    break;
                }
                assert!(Instant::now() < deadline, "{}: {told}", provider.domain);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn domain(at: usize) -> Domain {
    Domain::new(DOMAINS[at]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_moves_on_and_on_again_and_home_and_everyone_goes_on() {
    let mut scene = Scene::start("").await;
    scene.talk("at a").await;
    accepted(scene.alice.client.migrate(&scene.team, &domain(1)).await);
    scene.talk("at b").await;
    for player in scene.players() {
        assert_eq!(player.view(&scene.team).hub, domain(1), "{}", player.uri);
    }
    // a member who was away for it is sent on; a further device comes in at the new hub
    accepted(scene.bob.client.migrate(&scene.team, &domain(2)).await);
    accepted(scene.alice.client.send_text(&scene.team, "from afar 0").await);
    scene.said.push("from afar 0".to_owned());
    scene.talk("at c").await;
    let tablet = scene.providers.further(&scene.alice, "tablet").await;
    tablet.until_in(&scene.team).await;
    accepted(tablet.client.send_text(&scene.team, "from the tablet").await);
    for player in scene.players() {
        player.until_hears(&scene.team, "from the tablet").await;
    }
    scene.said.push("from the tablet".to_owned());
    // and home, with commits behind it
    accepted(scene.carol.client.migrate(&scene.team, &domain(0)).await);
    scene.talk("home").await;
    accepted(scene.bob.client.update(&scene.team, true).await);
    scene.talk("with new keys").await;
    accepted(scene.alice.client.remove_clients(&scene.team, vec![tablet.uri.clone()]).await);
    tablet.until_out(&scene.team).await;
    scene.talk("without the tablet").await;
    scene.settled().await;
}

/// Every step of a move at which something is written down, sent or taken, and the side that it is a step of.
const STEPS: [(&str, Side); 14] = [
    ("source.frozen", Side::Source),
    ("source.before-sent", Side::Source),
    ("source.sent-durable", Side::Source),
    ("source.before-send", Side::Source),
    ("target.received", Side::Target),
    ("target.before-durable", Side::Target),
    ("target.durable", Side::Target),
    ("source.answered", Side::Source),
    ("source.before-gone", Side::Source),
    ("source.gone-durable", Side::Source),
    ("source.before-confirm", Side::Source),
    ("target.before-confirmed", Side::Target),
    ("target.confirmed", Side::Target),
    ("source.confirmed", Side::Source),
];

/// The same of a move that the target refuses because an operator of the source wants the group back.
const STEPS_BACK: [(&str, Side); 4] = [
    ("target.before-refusal", Side::Target),
    ("target.refused", Side::Target),
    ("source.before-thaw", Side::Source),
    ("source.thawed", Side::Source),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

impl Scene {
    /// A member of the hub's moves the group from `hub` to `next` while whoever comes to a step is killed there and started
    /// again, one after the other. A step that is not come to any more is left out. How many were come to.
    async fn move_through(&mut self, hub: usize, next: usize, kills: &[(&str, Side)]) -> usize {
        let over = AtomicBool::new(false);
        let by = self.players()[hub];
        let moves = async {
            let moved = by.client.migrate(&self.team, &domain(next)).await;
            over.store(true, Ordering::SeqCst);
            moved
        };
        let killer = async {
            let mut killed = 0;
            for (step, side) in kills {
                let provider = self.provider(if *side == Side::Source { hub } else { next });
                provider.stop_at(step);
                while !provider.has_stopped() && !self.is_over(&over).await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                if provider.has_stopped() {
                    provider.kill();
                    provider.go_on();
                    provider.start().await;
                    killed += 1;
                }
                provider.go_on();
            }
            killed
        };
        let (moved, killed) = tokio::join!(moves, killer);
        match moved {
            Ok(Outcome::Accepted(_) | Outcome::AlreadySo) => {}
            // it is kept, and asked again
            Err(ClientError::Unanswered { .. }) => by.client.resume().await.map(|_| ()).unwrap(),
            Err(error) => panic!("{kills:?}: {error}\n{}", self.providers.logs()),
        }
        self.settled().await;
        let hub = by.view(&self.team).hub;
        assert_eq!(hub, domain(next), "{kills:?}\n{}", self.providers.logs());
        killed
    }

    /// The initiator has its answer, and no provider has anything left to do.
    async fn is_over(&self, over: &AtomicBool) -> bool {
        if !over.load(Ordering::SeqCst) {
            return false;
        }
        for provider in &self.providers.all {
            if provider.ops("/v1/migrations").await != NOTHING {
                return false;
            }
        }
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_killed_at_any_step_ends_in_one_hub_and_loses_nothing() {
    let mut scene = Scene::start("").await;
    let mut hub = 0;
    // what was said before is heard already: each round says something else
    for round in ["one", "two"] {
        for kill in STEPS {
            let killed = scene.move_through(hub, 1 - hub, &[kill]).await;
            assert_eq!(killed, 1, "it does not come to {}", kill.0);
            hub = 1 - hub;
            scene.talk(&format!("{round} {}", kill.0)).await;
        }
        // and each of them in the other direction: a group that comes home is another matter
        scene.move_through(hub, 1 - hub, &[]).await;
        hub = 1 - hub;
        scene.talk(&format!("{round} the other way")).await;
    }
}

/// TEST_SEED repeats a run, TEST_MOVES makes it longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_kills_in_one_move_end_in_one_hub_and_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TEST_SEED").unwrap_or_else(rand::random);
    println!("TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::start("").await;
    let mut hub = 2;
    scene.move_through(0, hub, &[]).await;
    for at in 0..number("TEST_MOVES").unwrap_or(10) {
        let next = (hub + random.random_range(1..3)) % 3;
        let kills: Vec<_> = (0..2).map(|_| STEPS[random.random_range(0..STEPS.len())]).collect();
        scene.move_through(hub, next, &kills).await;
        hub = next;
        scene.talk(&format!("{at} {kills:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_an_operator_ends_leaves_the_group_where_it_was_whoever_is_killed() {
    let mut scene = Scene::start("").await;
    for (step, side) in STEPS_BACK {
        let (source, target) = (scene.provider(0), scene.provider(1));
        let to = domain(1);
        let moves = scene.alice.client.migrate(&scene.team, &to);
        let ends = async {
            // the content is on its way to a target that does not answer
            target.stop_at("target.received");
            until(|| target.has_stopped()).await;
            target.kill();
            target.go_on();
            let aborted = source.ops_post("/v1/migrations/abort", scene.team.to_string()).await;
            assert_eq!(aborted.0, 200, "{aborted:?}");
            let killed = if side == Side::Source { source } else { target };
            killed.stop_at(step);
            target.start().await;
            until(|| killed.has_stopped()).await;
            killed.kill();
            killed.go_on();
            killed.start().await;
        };
        let (moved, ()) = tokio::join!(moves, ends);
        match moved {
            Err(ClientError::Refused(_)) => {}
            Err(ClientError::Unanswered { .. }) => {
                let _ = scene.alice.client.resume().await;
            }
            moved => panic!("{step}: {moved:?}\n{}", scene.providers.logs()),
        }
        scene.settled().await;
        for player in scene.players() {
            assert_eq!(player.view(&scene.team).hub, domain(0), "{step}");
        }
        scene.talk(step).await;
    }
    // and when nobody is in the way it moves
    scene.move_through(0, 1, &[]).await;
    scene.talk("moved after all").await;
}

async fn until(so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "it does not come to that");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const NOTHING: &str = "{\"departures\":[],\"arrivals\":[]}";
