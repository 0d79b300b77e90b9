//! A member who lies: commits that a server cannot see through, and a group that talks again without a person doing
//! anything. PROTOCOL.md §2, "When a committer lies".

use std::time::{Duration, Instant};

use mimid::{
    client::{
        Client,
        core::{Event, GroupState, SUITES},
        system_clock,
    },
    wire::{
        ds::ComplaintOutcome,
        ids::{Domain, GroupId, LeafIndex},
    },
};

use super::{
    client::{Provider, connected, texts, user_uri},
    liar::{self, Lie, Told},
};

const PATIENCE: Duration = Duration::from_secs(180);

/// Nine honest users and eve, in one group.
struct Scene {
    provider: Provider,
    honest: Vec<Client>,
    eve: Client,
    group: GroupId,
    /// How many events each honest client had before.
    before: Vec<u64>,
}

impl Scene {
    /// alice is at leaf 0 and eve beside her.
    async fn new(names: &[&str]) -> Self {
        let provider = Provider::start();
        let mut honest = Vec::new();
        for name in names {
            honest.push(provider.client(name, "phone", system_clock()).await);
        }
        let eve = provider.client("eve", "phone", system_clock()).await;
        let alice = &honest[0];
        let group = alice.create_group("team", SUITES[0], None).await.unwrap();
        for other in std::iter::once(&eve).chain(&honest[1..]) {
            connected(alice, other).await;
            let user = other.member().client().user();
            alice.add_users(&group, &[user]).await.unwrap();
        }
        let mut scene = Self { provider, honest, eve, group, before: Vec::new() };
        scene.agree().await;
        scene.eve.receive(0).await.unwrap();
        scene.before = scene.marks();
        scene
    }

    fn marks(&self) -> Vec<u64> {
        self.honest.iter().map(|it| it.member().last_event().unwrap()).collect()
    }

    async fn lies(&self, lie: Lie) -> Told {
        let home = self.provider.home(&user_uri("eve"), "phone");
        liar::lie(&self.eve, &home, &self.group, &hub(), lie).await
    }

    /// Everybody honest receives, and nothing else, until all are in one epoch.
    async fn agree(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for client in &self.honest {
                client.receive(0).await.unwrap();
            }
            let views: Vec<_> =
                self.honest.iter().map(|it| it.member().group(&self.group).unwrap()).collect();
            let active = views.iter().all(|it| it.state == GroupState::Active);
            if active && views.iter().all(|it| it.authenticator == views[0].authenticator) {
                return;
            }
            let states: Vec<_> = views.iter().map(|it| (it.state, it.epoch)).collect();
            let events: Vec<_> = self.events(0);
            assert!(Instant::now() < deadline, "{states:?}, {events:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Each says something, and all others read it.
    async fn talk(&self, about: &str) {
        for (at, client) in self.honest.iter().enumerate() {
            client.receive(0).await.unwrap();
            client.send_text(&self.group, &format!("{about} {at}")).await.unwrap();
        }
        self.agree().await;
        for (at, client) in self.honest.iter().enumerate() {
            let heard = texts(client);
            for other in (0..self.honest.len()).filter(|other| *other != at) {
                let said = format!("{about} {other}");
                assert!(heard.contains(&said), "{at} has not heard {said:?}");
            }
        }
    }

    fn events(&self, at: usize) -> Vec<Event> {
        let since = self.before.get(at).copied().unwrap_or_default();
        let events = self.honest[at].member().events(since, usize::MAX).unwrap();
        events.into_iter().map(|(_, event)| event).collect()
    }

    /// Which of the honest came in again.
    fn came_again(&self) -> Vec<usize> {
        let came =
            |at: &usize| self.events(*at).iter().any(|event| matches!(event, Event::Joined { .. }));
        (0..self.honest.len()).filter(came).collect()
    }

    fn has_eve(&self) -> bool {
        let eve = user_uri("eve");
        let members = self.honest[0].member().group(&self.group).unwrap().members;
        members.iter().any(|member| member.user == eve)
    }
}

fn hub() -> Domain {
    Domain::new("localhost").unwrap()
}

const NINE: [&str; 9] =
    ["alice", "bob", "carol", "dave", "frank", "grace", "heidi", "ivan", "judy"];

async fn bricked_group_goes_back(lie: Lie) {
    let scene = Scene::new(&NINE).await;
    scene.lies(lie).await;
    scene.agree().await;
    for at in 0..NINE.len() {
        let events = scene.events(at);
        let by_eve = |event: &Event| matches!(event, Event::Unusable { by: Some(by), .. } if by.user() == user_uri("eve"));
        assert!(events.iter().any(by_eve), "{at}: {events:#?}");
    }
    assert_eq!(scene.came_again(), [0_usize; 0], "the hub went back one epoch");
    scene.talk("again").await;
    assert!(!scene.has_eve(), "who lies is out");
    assert_eq!(scene.came_again(), [0_usize; 0]);
}

#[tokio::test]
async fn group_bricked_by_a_forged_confirmation_tag_talks_again_without_the_liar() {
    bricked_group_goes_back(Lie::ConfirmationTag).await;
}

#[tokio::test]
async fn group_bricked_by_a_forged_membership_tag_talks_again_without_the_liar() {
    bricked_group_goes_back(Lie::MembershipTag).await;
}

#[tokio::test]
async fn group_bricked_by_wrong_path_secrets_talks_again_without_the_liar() {
    bricked_group_goes_back(Lie::Path).await;
}

#[tokio::test]
async fn who_is_lied_to_alone_comes_in_again_alone() {
    let scene = Scene::new(&["alice", "bob", "carol"]).await;
    scene.lies(Lie::PathFor(LeafIndex(0))).await;
    scene.agree().await;
    assert_eq!(scene.came_again(), [0]);
    scene.talk("again").await;
    assert!(scene.has_eve(), "one user's word removes nobody");
}

#[tokio::test]
async fn group_whose_newcomer_was_misled_by_a_wrong_external_pub_talks_again() {
    let scene = Scene::new(&["alice", "bob", "carol"]).await;
    scene.lies(Lie::ExternalPub).await;
    scene.agree().await;
    // whoever comes in by this GroupInfo has other secrets than everybody else
    scene.honest[1].resync(&scene.group).await.unwrap();
    scene.agree().await;
    scene.talk("again").await;
}

#[tokio::test]
async fn false_complaint_and_one_of_the_committer_change_nothing() {
    let scene = Scene::new(&["alice", "bob", "carol"]).await;
    let honest = scene.lies(Lie::None).await;
    scene.agree().await;
    let bob = &scene.honest[1];
    let answer = liar::complain(bob, LeafIndex(2), &scene.group, &hub(), &honest).await;
    assert_ne!(answer.outcome, ComplaintOutcome::Void);
    let own = liar::complain(&scene.eve, LeafIndex(1), &scene.group, &hub(), &honest).await;
    assert_eq!(own.outcome, ComplaintOutcome::None);
    scene.talk("still").await;
    assert!(scene.has_eve());
    assert_eq!(scene.came_again(), [0_usize; 0]);
}
