//! Groups that move from one provider to another, with real processes and clients: on, on again and home, and with either
//! side killed at every step. PROTOCOL.md §6.

use std::time::{Duration, Instant};

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
                if told == "{\"departures\":[]}" {
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
const STEPS: [(&str, Side); 11] = [
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
    ("source.confirmed", Side::Source),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_killed_at_any_step_ends_in_one_hub_and_loses_nothing() {
    let mut scene = Scene::start("").await;
    let mut hub = 0;
    for (step, side) in STEPS {
        let next = 1 - hub;
        let killed = if side == Side::Source { hub } else { next };
        scene.provider(killed).stop_at(step);
        let team = scene.team.clone();
        let moves = async {
            // who is at the target asks, so that it is not always the same
            let by = if hub == 0 { &scene.alice } else { &scene.bob };
            by.client.migrate(&team, &domain(next)).await
        };
        let kills = async {
            let deadline = Instant::now() + PATIENCE;
            while !scene.provider(killed).has_stopped() {
                assert!(Instant::now() < deadline, "{step} is not come to");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            scene.provider(killed).kill();
            scene.provider(killed).go_on();
            scene.provider(killed).start().await;
        };
        let (moved, ()) = tokio::join!(moves, kills);
        let by = if hub == 0 { &scene.alice } else { &scene.bob };
        match moved {
            Ok(Outcome::Accepted(_) | Outcome::AlreadySo) => {}
            // it is kept, and asked again
            Err(ClientError::Unanswered { .. }) => {
                by.client.resume().await.unwrap();
            }
            Err(error) => panic!("{step}: {error}\n{}", scene.providers.logs()),
        }
        scene.settled().await;
        let at = by.view(&scene.team).hub;
        assert_eq!(at, domain(next), "{step}");
        hub = next;
        scene.talk(step).await;
    }
}
