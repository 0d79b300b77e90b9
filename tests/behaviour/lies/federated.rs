//! A member who lies, where others are at another provider, and where the hub is killed in the middle of it.

use mimid::{
    client::{Client, core::Event},
    wire::ids::{Epoch, GroupId},
};

use super::{LONG, Lie, SUITES, hub_of, liar};
use crate::providers::{Player, Providers, agree, connect};

/// alice and frank at the hub, and bob, carol, dave and eve, who lies, at the guest.
struct Scene {
    providers: Providers,
    honest: Vec<Player>,
    eve: Player,
    group: GroupId,
    before: Vec<u64>,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let settings = format!("[groups]\ncomplaint_wait = \"{LONG}\"");
        let domains = ["a.example", "b.example"];
        let providers = Providers::start_with(&domains, seed, &settings, &[]).await;
        let mut honest = Vec::new();
        for name in [
            "alice@a.example",
            "frank@a.example",
            "bob@b.example",
            "carol@b.example",
            "dave@b.example",
        ] {
            honest.push(providers.client(&format!("{name}/phone")).await);
        }
        let home = providers.folder().join("eve.sqlite");
        let eve = providers.client_at("eve@b.example/phone", &home).await;
        let alice = &honest[0];
        let group = alice.client.create_group("team", SUITES[0], None).await.unwrap();
        for other in std::iter::once(&eve).chain(&honest[1..]) {
            connect(alice, other).await;
            alice.client.add_users(&group, std::slice::from_ref(&other.user)).await.unwrap();
            other.until_in(&group).await;
        }
        let everybody: Vec<&Player> = honest.iter().chain([&eve]).collect();
        agree(&group, &everybody).await;
        let before = honest.iter().map(|it| it.client.member().last_event().unwrap()).collect();
        Self { providers, honest, eve, group, before }
    }

    async fn lies(&self, lie: Lie) {
        let home = self.providers.folder().join("eve.sqlite");
        let hub = hub_of("a.example");
        liar::lie(&self.eve.client, &home, &self.group, &hub, lie).await;
    }

    fn events(&self, at: usize) -> Vec<Event> {
        let events = self.honest[at].client.member().events(self.before[at], usize::MAX).unwrap();
        events.into_iter().map(|(_, event)| event).collect()
    }

    fn went_back(&self, at: usize) -> bool {
        self.events(at).iter().any(|event| matches!(event, Event::WentBack { .. }))
    }

    async fn until(&self, at: usize, what: &str, so: impl Fn(&Event) -> bool) {
        self.honest[at].until(what, |_| self.events(at).iter().any(&so)).await;
    }

    async fn until_on(&self, at: usize, epoch: u64) {
        let player = &self.honest[at];
        let on = |client: &Client| {
            client.member().group(&self.group).unwrap().epoch >= Some(Epoch(epoch))
        };
        player.until(&format!("is in epoch {epoch}"), on).await;
    }

    /// All are in one epoch, say something, and read what the others say.
    async fn talk(&self, about: &str) {
        let honest: Vec<&Player> = self.honest.iter().collect();
        agree(&self.group, &honest).await;
        for (at, player) in honest.iter().enumerate() {
            player.receive().await;
            player.client.send_text(&self.group, &format!("{about} {at}")).await.unwrap();
        }
        for (at, player) in honest.iter().enumerate() {
            for other in (0..honest.len()).filter(|other| *other != at) {
                player.until_hears(&self.group, &format!("{about} {other}")).await;
            }
        }
        agree(&self.group, &honest).await;
    }

    fn has_eve(&self) -> bool {
        let members = self.honest[0].view(&self.group).members;
        members.iter().any(|member| member.user == self.eve.user)
    }

    fn nobody_came_again(&self) {
        for at in 0..self.honest.len() {
            let events = self.events(at);
            let joined = |event: &Event| matches!(event, Event::Joined { .. });
            assert!(!events.iter().any(joined), "{at}: {events:#?}");
        }
    }
}

fn is_unusable(event: &Event) -> bool {
    matches!(event, Event::Unusable { by: Some(by), .. } if by.user().name() == "eve")
}

#[tokio::test]
async fn members_of_a_guest_complain_through_it_and_go_back_with_the_group() {
    let scene = Scene::new(11).await;
    scene.lies(Lie::ConfirmationTag).await;
    // three of the five are at the guest, and only they complain: without them there is no quorum
    for at in 2..5 {
        scene.until(at, "meets the lie", is_unusable).await;
    }
    for at in 0..scene.honest.len() {
        scene.until(at, "goes back", |event| matches!(event, Event::WentBack { .. })).await;
    }
    scene.talk("again").await;
    assert!(!scene.has_eve(), "who lies is out");
    scene.nobody_came_again();
}

#[tokio::test]
async fn complaint_outlives_a_kill_of_the_hub_and_the_group_goes_back() {
    let scene = Scene::new(12).await;
    scene.lies(Lie::ConfirmationTag).await;
    // alice's and bob's complaints are answered; they are not heard of again before the others have complained
    for at in [0, 2] {
        scene.until(at, "meets the lie", is_unusable).await;
        scene.honest[at].receive().await;
    }
    let hub = &scene.providers.all[0];
    hub.kill();
    hub.start().await;
    // frank is the third of five
    scene.until(1, "goes back", |event| matches!(event, Event::WentBack { .. })).await;
    assert!(![0, 2, 3, 4].into_iter().any(|at| scene.went_back(at)));
    scene.talk("again").await;
    assert!(!scene.has_eve(), "who lies is out");
    scene.nobody_came_again();
}

#[tokio::test]
async fn member_of_a_guest_finds_a_wrong_external_pub_and_makes_it_good() {
    let scene = Scene::new(13).await;
    let guests = 2..scene.honest.len();
    let found = |event: &Event| matches!(event, Event::BadGroupInfo { .. });
    let has_found = |at: usize| scene.events(at).iter().any(found);
    // whose turn it is to look is another's each time
    for round in 0..20 {
        scene.lies(Lie::ExternalPub).await;
        let before = scene.honest[0].view(&scene.group).epoch.unwrap();
        for at in guests.clone().chain([0, 1]) {
            scene.until_on(at, before.0 + 1).await;
        }
        for at in guests.clone().chain([0, 1]) {
            scene.until_on(at, before.0 + 2).await;
        }
        scene.talk(&format!("round {round}")).await;
        scene.nobody_came_again();
        if guests.clone().any(has_found) {
            return;
        }
        // what she made of her own commit she does not have: she comes in again, by a commit that the others follow
        let everybody: Vec<&Player> = scene.honest.iter().chain([&scene.eve]).collect();
        agree(&scene.group, &everybody).await;
    }
    panic!("no member of the guest ever looked");
}
