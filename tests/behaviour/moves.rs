//! Groups that move between providers, as their members' clients live through it: each provider is a process, each client
//! speaks to its own one only.

use mimid::{
    client::{
        ClientError, Outcome,
        core::{Event, GroupState, PolicyChange, SUITES},
    },
    wire::{
        extensions::JoinPolicy,
        ids::{Domain, GroupId},
    },
};

use crate::providers::{Player, Providers, UNHURRIED, accepted, agree, connect};

pub const DOMAINS: [&str; 3] = ["a.example", "b.example", "c.example"];

pub fn named(domain: &str) -> Domain {
    Domain::new(domain).unwrap()
}

/// alice, bob and carol, each of a provider of their own, in a group that a.example hosts.
pub async fn team(providers: &Providers) -> (Player, Player, Player, GroupId) {
    let alice = providers.client("alice@a.example/phone").await;
    let bob = providers.client("bob@b.example/phone").await;
    let carol = providers.client("carol@c.example/phone").await;
    connect(&alice, &bob).await;
    connect(&alice, &carol).await;
    let team = alice.client.create_group("team", SUITES[0], None).await.unwrap();
    let users = [bob.user.clone(), carol.user.clone()];
    accepted(alice.client.add_users(&team, &users).await);
    bob.until_in(&team).await;
    carol.until_in(&team).await;
    (alice, bob, carol, team)
}

/// Each says something that all others hear, once and in this order.
async fn all_talk(team: &GroupId, players: &[&Player], about: &str) {
    for player in players {
        accepted(player.client.send_text(team, &format!("{} {about}", player.uri)).await);
    }
    let said: Vec<String> = players.iter().map(|it| format!("{} {about}", it.uri)).collect();
    for player in players {
        let others: Vec<&String> =
            said.iter().filter(|text| !text.starts_with(player.uri.as_str())).collect();
        for text in &others {
            player.until_hears(team, text).await;
        }
        let heard = player.said(team);
        let heard: Vec<&String> =
            heard.iter().map(|(_, text)| text).filter(|text| text.ends_with(about)).collect();
        assert_eq!(heard, others, "{}", player.uri);
    }
}

fn moves(player: &Player) -> Vec<(Domain, Domain)> {
    let moved = |event| match event {
        Event::Moved { from, to, .. } => Some((from, to)),
        _ => None,
    };
    player.events().into_iter().filter_map(moved).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_moves_on_and_back_and_its_members_only_talk() {
    let providers = Providers::start_with(&DOMAINS, 1, UNHURRIED, &[]).await;
    let (alice, bob, carol, team) = team(&providers).await;
    let everyone = [&alice, &bob, &carol];
    all_talk(&team, &everyone, "at first").await;
    let way = ["b.example", "c.example", "a.example"];
    for target in way {
        accepted(alice.client.migrate(&team, &named(target)).await);
        // who has not read of it yet sends to the hub that was
        all_talk(&team, &everyone, target).await;
        accepted(bob.client.update(&team, true).await);
        agree(&team, &everyone).await;
        for player in everyone {
            assert_eq!(player.view(&team).hub, named(target), "{}", player.uri);
        }
    }
    let already = alice.client.migrate(&team, &named("a.example")).await.unwrap();
    assert_eq!(already, Outcome::AlreadySo);
    let expected: Vec<(Domain, Domain)> = ["a.example", "b.example", "c.example"]
        .into_iter()
        .zip(way)
        .map(|(from, to)| (named(from), named(to)))
        .collect();
    for player in everyone {
        assert_eq!(moves(player), expected, "{}", player.uri);
        assert_eq!(player.complaints(), [], "{}", player.uri);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mover_that_others_came_before_asks_the_target_anew() {
    let providers = Providers::start_with(&DOMAINS, 2, UNHURRIED, &[]).await;
    let (alice, bob, carol, team) = team(&providers).await;
    let error = bob.client.migrate(&team, &named("b.example")).await.unwrap_err();
    assert!(matches!(error, ClientError::Core(_)), "{error}");
    // alice reads nothing of this before she moves the group
    accepted(carol.client.update(&team, false).await);
    accepted(alice.client.migrate(&team, &named("b.example")).await);
    agree(&team, &[&alice, &bob, &carol]).await;
    for player in [&alice, &bob, &carol] {
        assert_eq!(player.view(&team).hub, named("b.example"));
        assert_eq!(player.complaints(), [], "{}", player.uri);
    }
    assert_eq!(alice.client.member().pending().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_late_or_comes_back_finds_the_group_where_it_is() {
    let providers = Providers::start_with(&DOMAINS, 3, UNHURRIED, &[]).await;
    let (alice, bob, carol, team) = team(&providers).await;
    let changes = vec![PolicyChange::Join(JoinPolicy::Open)];
    accepted(alice.client.change_policy(&team, changes).await);
    // dave is added and does not look before the group has gone
    let dave = providers.client("dave@c.example/phone").await;
    connect(&alice, &dave).await;
    accepted(alice.client.add_users(&team, std::slice::from_ref(&dave.user)).await);
    accepted(alice.client.migrate(&team, &named("b.example")).await);
    dave.until_in(&team).await;
    // erin asks where the group's id says, bob enters anew where it was
    let erin = providers.client("erin@a.example/phone").await;
    accepted(erin.client.join(&team, &team.domain(), "team", None).await);
    accepted(bob.client.resync(&team).await);
    let everyone = [&alice, &bob, &carol, &dave, &erin];
    agree(&team, &everyone).await;
    all_talk(&team, &everyone, "together").await;
    for player in everyone {
        let view = player.view(&team);
        assert_eq!((view.hub, view.state), (named("b.example"), GroupState::Active));
        assert_eq!(player.complaints(), [], "{}", player.uri);
    }
}
