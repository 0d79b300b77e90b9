//! Three providers, each a process with its own store, and one conversation across them: every operation, any
//! provider killed at any point, and weather on the links between them.
//!
//! Nothing here depends on speed: what goes from one provider to another is waited for. What chance decides comes from
//! one seed, which is printed; TEST_SEED repeats it, and TEST_OUTAGE_S makes the bad weather longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use mimid::{
    client::{
        ClientError, Outcome,
        core::{GroupState, NewProposal, Operation, PolicyChange, SUITES},
    },
    wire::{
        extensions::{JoinPolicy, Role},
        ids::{ClientUri, GroupId},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    providers::{PATIENCE, Player, Providers, accepted, agree, connect},
    proxy::Weather,
};

const DOMAINS: [&str; 3] = ["a.example", "b.example", "c.example"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_three_providers_do_everything_with_each_other() {
    let providers = Providers::start(&DOMAINS, 1).await;
    let alice = providers.client("alice@a.example/phone").await;
    let bob = providers.client("bob@b.example/phone").await;
    let carol = providers.client("carol@c.example/phone").await;
    // each way round, between each two
    connect(&alice, &bob).await;
    connect(&carol, &alice).await;
    connect(&bob, &carol).await;

    let team = alice.client.create_group("team", SUITES[0], None).await.unwrap();
    accepted(alice.client.add_users(&team, std::slice::from_ref(&bob.user)).await);
    bob.until_in(&team).await;
    // a guest adds a user of a third provider
    accepted(bob.client.add_users(&team, std::slice::from_ref(&carol.user)).await);
    carol.until_in(&team).await;
    for (at, player) in [&alice, &bob, &carol].into_iter().enumerate() {
        accepted(player.client.send_text(&team, &format!("round {at}")).await);
    }
    let everyone = [&alice, &bob, &carol];
    for player in everyone {
        for (at, other) in everyone.into_iter().enumerate() {
            if player.uri != other.uri {
                player.until_hears(&team, &format!("round {at}")).await;
            }
        }
        assert_eq!(player.said(&team).len(), 2);
    }
    agree(&team, &everyone).await;

    // a guest's further device comes in by itself, and goes again
    let tablet = providers.further(&bob, "tablet").await;
    tablet.until_in(&team).await;
    accepted(tablet.client.send_text(&team, "from the tablet").await);
    carol.until_hears(&team, "from the tablet").await;
    let uri = tablet.uri.clone();
    bob.until("sees the tablet", |c| c.member().group(&team).unwrap().members.len() == 4).await;
    accepted(bob.client.remove_clients(&team, vec![uri]).await);
    tablet.until_out(&team).await;
    accepted(bob.client.add_own_clients(&team, &[]).await);
    tablet.until_in(&team).await;

    // keys, a lost race, roles, muting, another address, entering anew
    accepted(carol.client.update(&team, true).await);
    accepted(bob.client.update(&team, false).await);
    alice.until("sees everyone", |c| c.member().group(&team).unwrap().members.len() == 4).await;
    let moderator = PolicyChange::Role { user: bob.user.clone(), role: Role::Moderator };
    accepted(alice.client.change_policy(&team, vec![moderator]).await);
    let refused = carol.client.remove_users(&team, vec![bob.user.clone()]).await;
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    accepted(carol.client.mute(&team, true).await);
    accepted(bob.client.send_text(&team, "not for carol").await);
    accepted(bob.client.update(&team, false).await);
    agree(&team, &[&alice, &bob, &carol, &tablet]).await;
    accepted(carol.client.mute(&team, false).await);
    accepted(carol.client.update_queue_info(&team).await);
    accepted(bob.client.send_text(&team, "for carol").await);
    carol.until_hears(&team, "for carol").await;
    assert!(carol.said(&team).iter().all(|(_, text)| text != "not for carol"));
    accepted(carol.client.resync(&team).await);
    accepted(carol.client.send_text(&team, "carol is back").await);
    bob.until_hears(&team, "carol is back").await;

    // proposals of guests, and a newcomer's
    let leave = |proposal| Operation::Propose { proposals: vec![proposal] };
    accepted(carol.client.operate(&team, leave(NewProposal::Update)).await);
    accepted(bob.client.operate(&team, leave(NewProposal::Remove(tablet.uri.clone()))).await);
    accepted(alice.client.update(&team, false).await);
    tablet.until_out(&team).await;
    accepted(tablet.client.ask_to_join(&team, &team.domain(), "team").await);
    alice.until("is asked", |c| c.member().group(&team).unwrap().pending > 0).await;
    accepted(alice.client.update(&team, false).await);
    tablet.until_in(&team).await;
    accepted(carol.client.leave(&team).await);
    bob.until("knows that carol leaves", |c| c.member().group(&team).unwrap().pending > 0).await;
    accepted(bob.client.update(&team, false).await);
    carol.until_out(&team).await;

    // doors: a code, an open group, each at another provider
    let code = alice.client.add_code(&team, 1).await.unwrap();
    let hub = team.domain();
    let wrong = carol.client.join(&team, &hub, "team", Some([9; 32])).await;
    assert!(matches!(wrong, Err(ClientError::Refused(_))), "{wrong:?}");
    accepted(carol.client.join(&team, &hub, "team", Some(code)).await);
    accepted(carol.client.send_text(&team, "by a code").await);
    tablet.until_hears(&team, "by a code").await;
    let open = carol.client.create_group("open", SUITES[1], None).await.unwrap();
    let change = PolicyChange::Join(JoinPolicy::Open);
    accepted(carol.client.change_policy(&open, vec![change]).await);
    accepted(bob.client.join(&open, &open.domain(), "open", None).await);
    accepted(bob.client.send_text(&open, "in an open group").await);
    carol.until_hears(&open, "in an open group").await;
    // a group that another provider hosts for its creator
    let far = alice.client.create_group_at(&carol.user.domain(), "far", SUITES[0], None).await;
    let far = far.unwrap();
    accepted(alice.client.add_users(&far, &[bob.user.clone(), carol.user.clone()]).await);
    for player in [&bob, &tablet, &carol] {
        player.until_in(&far).await;
    }
    accepted(bob.client.send_text(&far, "two guests at a third").await);
    alice.until_hears(&far, "two guests at a third").await;

    // a device is deleted at its own provider: the hub, which is another, removes it
    // it is told with the next thing that it delivers there
    bob.client.delete_device(&tablet.uri).await.unwrap();
    accepted(alice.client.send_text(&team, "who is there?").await);
    alice.until("is told", |c| c.member().group(&team).unwrap().pending > 0).await;
    accepted(alice.client.update(&team, false).await);
    let gone = |members: &[mimid::client::core::MemberView]| {
        members.iter().all(|member| member.client != tablet.uri)
    };
    bob.until("sees it gone", |c| gone(&c.member().group(&team).unwrap().members)).await;

    accepted(bob.client.remove_users(&team, vec![carol.user.clone()]).await);
    carol.until_out(&team).await;
    agree(&team, &[&alice, &bob]).await;
    alice.client.delete_group(&team).await.unwrap();
    bob.until_out(&team).await;
    for player in [&alice, &bob, &carol] {
        assert_eq!(player.complaints(), [], "{}", player.uri);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hub_that_is_out_of_reach_is_said_and_holds_up_no_other_group() {
    let providers = Providers::start(&DOMAINS[..2], 2).await;
    let alice = providers.client("alice@a.example/phone").await;
    let bob = providers.client("bob@b.example/phone").await;
    connect(&alice, &bob).await;
    let far = alice.client.create_group("far", SUITES[0], None).await.unwrap();
    accepted(alice.client.add_users(&far, std::slice::from_ref(&bob.user)).await);
    bob.until_in(&far).await;
    let near = bob.client.create_group("near", SUITES[0], None).await.unwrap();
    providers.all[0].kill();
    let bob = Player { client: bob.client.with_patience(Duration::ZERO), ..bob };
    let far_sent = bob.client.send_text(&far, "later").await;
    let Err(ClientError::Unanswered { request, .. }) = far_sent else { panic!("{far_sent:?}") };
    accepted(bob.client.send_text(&near, "now").await);
    providers.all[0].start().await;
    let bob = Player { client: bob.client.with_patience(PATIENCE), ..bob };
    // the same request goes on, and what was perhaps accepted before is so once
    bob.client.finish(request).await.unwrap();
    alice.until_hears(&far, "later").await;
    assert_eq!(alice.said(&far).len(), 1);
    assert_eq!(bob.complaints(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_when_providers_are_killed_under_traffic() {
    let seed = seed("kill");
    let crowd = Crowd::gather(seed).await;
    let mut random = StdRng::seed_from_u64(seed);
    for round in 1..=setting("TEST_KILLS", 6) {
        let victim = random.random_range(0..DOMAINS.len());
        crowd.traffic_until_killed(&mut random, round, victim).await;
    }
    crowd.everyone_has_everything().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_in_bad_weather() {
    let seed = seed("weather");
    let crowd = Crowd::gather(seed).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut left = Duration::from_secs(setting("TEST_OUTAGE_S", 120));
    let ends = std::sync::atomic::AtomicBool::new(false);
    let weather = async {
        while !left.is_zero() {
            let bad = Duration::from_millis(random.random_range(200..4_000)).min(left);
            left -= bad;
            let links: Vec<(usize, usize)> = crowd.providers.links.keys().copied().collect();
            let count = random.random_range(1..=links.len());
            let hit: Vec<_> = links.choose_multiple(&mut random, count).copied().collect();
            for link in &hit {
                let weather = Weather::bad(&mut random);
                println!("{} -> {}: {weather:?}, {bad:?}", DOMAINS[link.0], DOMAINS[link.1]);
                crowd.providers.links[link].set(weather);
            }
            tokio::time::sleep(bad).await;
            for link in &hit {
                crowd.providers.links[link].set(Weather::Clear);
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..500))).await;
        }
        ends.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let traffic = crowd.traffic_while(seed, || !ends.load(std::sync::atomic::Ordering::SeqCst));
    tokio::join!(weather, traffic);
    crowd.everyone_has_everything().await;
}

/// Users of every provider in groups of every provider, and what they said.
struct Crowd {
    seed: u64,
    providers: Providers,
    players: Vec<Player>,
    groups: Vec<GroupId>,
    said: Mutex<Vec<Said>>,
}

/// One message: where, by whom, and its place in the hub's order where the answer came to who asked.
struct Said {
    group: GroupId,
    by: ClientUri,
    text: String,
    sequence: Option<u64>,
}

impl Crowd {
    async fn gather(seed: u64) -> Self {
        let providers = Providers::start(&DOMAINS, seed).await;
        let mut players = Vec::new();
        for domain in DOMAINS {
            for user in ["one", "two"] {
                players.push(providers.client(&format!("{user}@{domain}/phone")).await);
            }
        }
        // who makes a group knows everyone
        let makers = [0, 2, 4];
        let mut groups = Vec::new();
        for maker in makers {
            for other in 0..players.len() {
                let known = maker == other || (makers.contains(&other) && other < maker);
                if !known {
                    connect(&players[maker], &players[other]).await;
                }
            }
            let group = players[maker].client.create_group("crowd", SUITES[0], None).await.unwrap();
            let others = players.iter().filter(|it| it.uri != players[maker].uri);
            let others: Vec<_> = others.map(|it| it.user.clone()).collect();
            accepted(players[maker].client.add_users(&group, &others).await);
            groups.push(group);
        }
        for player in &players {
            for group in &groups {
                player.until_in(group).await;
            }
        }
        let players = players
            .into_iter()
            .map(|it| Player { client: it.client.with_patience(SHORT), ..it })
            .collect();
        Self { seed, providers, players, groups, said: Mutex::default() }
    }

    /// One thing that one client does; what has no answer is kept for later.
    async fn act(&self, random: &mut StdRng, number: u64) {
        let who = &self.players[random.random_range(0..self.players.len())];
        let group = self.groups.choose(random).unwrap();
        if random.random_range(0..8) == 0 {
            // whatever comes of it: a commit that has no answer is gone on with, too
            let _ = who.client.update(group, random.random()).await;
        }
        let text = format!("{number} by {}", who.uri);
        let sequence = match who.client.send_text(group, &text).await {
            Ok(Outcome::Accepted(accepted)) => Some(accepted.group_sequence.0),
            Ok(Outcome::AlreadySo) | Err(ClientError::Unanswered { .. }) => None,
            Err(error) => panic!("{}: {error} (seed {})", who.uri, self.seed),
        };
        let said = Said { group: group.clone(), by: who.uri.clone(), text, sequence };
        self.said.lock().unwrap().push(said);
        let _ = who.client.receive(0).await;
    }

    /// Some traffic, in the middle of which a provider is killed; it is started again behind it.
    async fn traffic_until_killed(&self, random: &mut StdRng, round: u64, victim: usize) {
        let messages = random.random_range(4..12);
        let after = random.random_range(0..messages);
        println!("round {round}: {} is killed at {after} of {messages}", DOMAINS[victim]);
        for at in 0..messages {
            let number = round * 100 + at;
            if at == after {
                // while a client waits for its answer, not between
                let wait = Duration::from_millis(random.random_range(0..40));
                let killed = async {
                    tokio::time::sleep(wait).await;
                    self.providers.all[victim].kill();
                };
                tokio::join!(self.act(random, number), killed);
            } else {
                self.act(random, number).await;
            }
        }
        self.providers.all[victim].start().await;
    }

    /// Everyone talks at the same time while `so`.
    async fn traffic_while(&self, seed: u64, so: impl Fn() -> bool) {
        let so = &so;
        let talks = (0..4u64).map(|lane| async move {
            let mut random = StdRng::seed_from_u64(seed ^ (lane + 1));
            let mut number = lane * 1_000_000;
            while so() {
                self.act(&mut random, number).await;
                number += 1;
            }
        });
        futures_util::future::join_all(talks).await;
    }

    /// Waits until nothing is on its way, and compares: everyone has every message, once and in the hub's order, and
    /// every group is at one epoch.
    async fn everyone_has_everything(self) {
        let deadline = Instant::now() + PATIENCE;
        for link in self.providers.links.values() {
            link.set(Weather::Clear);
        }
        let said = std::mem::take(&mut *self.said.lock().unwrap());
        loop {
            let problem = match self.go_on().await {
                Ok(()) => self.difference(&said),
                Err(problem) => Some(problem),
            };
            let Some(problem) = problem else { break };
            if Instant::now() > deadline {
                let (seed, logs) = (self.seed, self.providers.logs());
                let clients: String = self.players.iter().map(standing).collect();
                let kept = self.providers.keep();
                panic!(
                    "seed {seed}: {problem}\n{clients}{logs}everything is kept in {}",
                    kept.display()
                );
            }
        }
        println!("{} messages, {} of them answered at once", said.len(), {
            said.iter().filter(|it| it.sequence.is_some()).count()
        });
        for player in &self.players {
            assert_eq!(player.complaints(), [], "{} (seed {})", player.uri, self.seed);
        }
    }

    /// Goes on with what has no answer and takes in what there is.
    async fn go_on(&self) -> Result<(), String> {
        for player in &self.players {
            let refused = player.client.resume().await;
            let refused = refused.map_err(|error| format!("{}: {error}", player.uri))?;
            let sent = |operation: &Operation| matches!(operation, Operation::Send { .. });
            let lost = refused.iter().find(|(operation, _)| sent(operation));
            assert!(lost.is_none(), "{}: {lost:?} (seed {})", player.uri, self.seed);
            let received = player.client.receive(0).await;
            received.map_err(|error| format!("{}: {error}", player.uri))?;
        }
        Ok(())
    }

    /// Where somebody shows something else than what was said, or groups are not at one epoch.
    fn difference(&self, said: &[Said]) -> Option<String> {
        for group in &self.groups {
            let mut order: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            let shown: Vec<Vec<(ClientUri, String)>> =
                self.players.iter().map(|player| player.said(group)).collect();
            for (player, shown) in self.players.iter().zip(&shown) {
                let mut expected: BTreeMap<&str, &ClientUri> = said
                    .iter()
                    .filter(|it| it.group == *group && it.by != player.uri)
                    .map(|it| (it.text.as_str(), &it.by))
                    .collect();
                let mut before: Vec<&str> = Vec::new();
                for (sender, text) in shown {
                    if expected.remove(text.as_str()) != Some(sender) {
                        panic!(
                            "{} shows {text:?} twice, or by another (seed {})",
                            player.uri, self.seed
                        );
                    }
                    for earlier in &before {
                        let contrary =
                            order.get(text.as_str()).is_some_and(|later| later.contains(earlier));
                        assert!(
                            !contrary,
                            "{earlier:?} and {text:?} in two orders (seed {})",
                            self.seed
                        );
                        order.entry(earlier).or_default().insert(text);
                    }
                    before.push(text);
                }
                if let Some((text, by)) = expected.first_key_value() {
                    return Some(format!(
                        "{} has not heard {text:?} of {by} in {group}",
                        player.uri
                    ));
                }
                self.in_hub_order(player, group, shown, said);
            }
            let views: Vec<_> = self.players.iter().map(|player| player.view(group)).collect();
            let together = views.iter().all(|view| {
                view.state == GroupState::Active && view.authenticator == views[0].authenticator
            });
            if !together {
                let epochs: Vec<_> = views.iter().map(|view| view.epoch).collect();
                return Some(format!("{group} is at epochs {epochs:?}"));
            }
        }
        None
    }

    fn in_hub_order(
        &self,
        player: &Player,
        group: &GroupId,
        shown: &[(ClientUri, String)],
        said: &[Said],
    ) {
        let sequences: BTreeMap<&str, u64> = said
            .iter()
            .filter(|it| it.group == *group)
            .filter_map(|it| Some((it.text.as_str(), it.sequence?)))
            .collect();
        let mut last = 0;
        for (_, text) in shown {
            if let Some(sequence) = sequences.get(text.as_str()) {
                assert!(
                    *sequence > last,
                    "{} shows {text:?} ({sequence}) behind {last} (seed {})",
                    player.uri,
                    self.seed
                );
                last = *sequence;
            }
        }
    }
}

/// What a client waits for and complains of, for the message of a test that fails.
fn standing(player: &Player) -> String {
    let pending = player.client.member().pending();
    format!("--- {}: waits for {pending:?}, complains of {:?}\n", player.uri, player.complaints())
}

/// How long a client in a crowd tries before it goes on with something else.
const SHORT: Duration = Duration::from_millis(1_500);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn seed(what: &str) -> u64 {
    let seed = setting("TEST_SEED", rand::rng().random_range(0..1_000_000));
    println!("{what}: TEST_SEED={seed}");
    seed
}
