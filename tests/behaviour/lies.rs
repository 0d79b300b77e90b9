//! A member who lies: commits that a server cannot see through, and a group that talks again without a person doing
//! anything. PROTOCOL.md §2, "When a committer lies".

mod federated;

use std::time::{Duration, Instant};

use mimid::{
    client::{
        Client, ClientError, Registration,
        core::{Event, GroupState, Home, Operation, PolicyChange, SUITES},
        http::HttpError,
        system_clock,
    },
    wire::{
        ds::{ComplaintOutcome, ComplaintReason, ComplaintResponse, DsError},
        extensions::{JoinPolicy, Role},
        ids::{ClientUri, Domain, Epoch, GroupId, LeafIndex},
    },
};

use super::{
    client::{Provider, connected, texts, user_uri},
    liar::{self, Deed, Lie, Told},
};

const PATIENCE: Duration = Duration::from_secs(180);
/// How long complainants wait for others: for so long that no machine is too slow for them to be enough, or so that they wait for
/// nobody.
const LONG: &str = "2m";
const SHORT: &str = "1s";

/// Honest users and eve, in one group.
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
    async fn new(names: &[&str], complaint_wait: &str) -> Self {
        let provider = Provider::start_with(&[("MIMID_GROUPS__COMPLAINT_WAIT", complaint_wait)]);
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
        self.does(Deed::Update, lie).await
    }

    /// eve does what a member may, and lies or not.
    async fn does(&self, deed: Deed, lie: Lie) -> Told {
        let home = self.provider.home(&user_uri("eve"), "phone");
        liar::does(&self.eve, &home, &self.group, &hub(), (deed, lie)).await
    }

    /// What `by`, who is at `leaf`, hears of a complaint that it makes up or not.
    async fn complains(
        &self,
        (by, leaf): (&Client, u32),
        told: &Told,
        reason: ComplaintReason,
    ) -> Result<ComplaintResponse, HttpError> {
        liar::complain(by, LeafIndex(leaf), &self.group, &hub(), (told, reason)).await
    }

    /// A newcomer, who is in no group.
    async fn newcomer(&self, name: &str) -> Client {
        let client = self.provider.client(name, "phone", system_clock()).await;
        connected(&self.honest[0], &client).await;
        client
    }

    /// alice adds `client`, which takes up its Welcome whenever it looks into its queue.
    async fn adds(&self, client: &Client) {
        self.honest[0].receive(0).await.unwrap();
        let user = client.member().client().user();
        self.honest[0].add_users(&self.group, &[user]).await.unwrap();
    }

    fn is_honest(&mut self, client: Client) {
        self.before.push(0);
        self.honest.push(client);
    }

    /// A further device of the one at `at`, which comes in from outside as soon as it is registered.
    async fn device(&self, at: usize, device: &str) -> Client {
        let first = &self.honest[at];
        let user = first.member().client().user();
        let authorization = first.authorize_device().unwrap();
        let registration = Registration {
            client: ClientUri::of(&user, device).unwrap(),
            server: self.provider.server(),
            token: Vec::new(),
            authorization: Some(authorization),
        };
        let home = Home::open(&self.provider.home(&user, device)).unwrap();
        Client::register(home, registration, system_clock()).await.unwrap()
    }

    /// Newcomers come in by a Welcome and from outside, and talk as everybody does.
    async fn others_come_in(&mut self) {
        let newcomer = self.newcomer("nadia").await;
        self.adds(&newcomer).await;
        self.is_honest(newcomer);
        self.agree().await;
        let tablet = self.device(1, "tablet").await;
        self.is_honest(tablet);
        self.talk("with others").await;
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

    fn events_of_group(&self, at: usize) -> Vec<Event> {
        let mut events = self.events(at);
        events.retain(|event| !matches!(event, Event::Message { .. } | Event::Connected { .. }));
        events
    }

    /// Who found a GroupInfo that was wrong.
    fn found(&self) -> Vec<usize> {
        let found = |at: &usize| {
            let is_one = |event: &Event| matches!(event, Event::BadGroupInfo { by: Some(by), .. } if by.user() == user_uri("eve"));
            self.events(*at).iter().any(is_one)
        };
        (0..self.honest.len()).filter(found).collect()
    }

    /// Which of the honest came in (again) since everybody was together.
    fn came_again(&self) -> Vec<usize> {
        let is_here =
            |event: &Event| matches!(event, Event::Joined { group, .. } if *group == self.group);
        let came = |at: &usize| self.events(*at).iter().any(is_here);
        (0..self.honest.len()).filter(came).collect()
    }

    /// alice's.
    fn epoch(&self) -> Epoch {
        self.honest[0].member().group(&self.group).unwrap().epoch.unwrap()
    }

    fn has_eve(&self) -> bool {
        let eve = user_uri("eve");
        let members = self.honest[0].member().group(&self.group).unwrap().members;
        members.iter().any(|member| member.user == eve)
    }
}

fn hub() -> Domain {
    hub_of("localhost")
}

fn hub_of(domain: &str) -> Domain {
    Domain::new(domain).unwrap()
}

const NINE: [&str; 9] =
    ["alice", "bob", "carol", "dave", "frank", "grace", "heidi", "ivan", "judy"];
const THREE: [&str; 3] = ["alice", "bob", "carol"];

async fn bricked_group_goes_back(lie: Lie) -> Scene {
    let scene = Scene::new(&NINE, LONG).await;
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
    scene
}

#[tokio::test]
async fn group_bricked_by_a_forged_confirmation_tag_talks_again_without_the_liar() {
    let mut scene = bricked_group_goes_back(Lie::ConfirmationTag).await;
    scene.others_come_in().await;
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
async fn group_that_cannot_go_back_goes_forward_and_the_hub_has_the_liar_removed() {
    let mut scene = Scene::new(&NINE, LONG).await;
    scene.lies(Lie::ConfirmationTag).await;
    // something of somebody else that was accepted cannot be taken back
    scene.honest[1].update_queue_info(&scene.group).await.unwrap();
    scene.agree().await;
    let all: Vec<usize> = (0..NINE.len()).collect();
    assert_eq!(scene.came_again(), all);
    for at in all {
        let went_back = |event: &Event| matches!(event, Event::WentBack { .. });
        assert!(!scene.events(at).iter().any(went_back), "{at}");
    }
    let refused = scene.eve.resync(&scene.group).await;
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    scene.talk("again").await;
    assert!(!scene.has_eve(), "who lies is out");
    let by_hub = |event: &Event| matches!(event, Event::Proposed { by: None, what, .. } if what.contains("remove") && what.contains("/eve/"));
    let seen = (0..NINE.len()).any(|at| scene.events(at).iter().any(by_hub));
    assert!(seen, "it is the hub that wants it: {:#?}", scene.events_of_group(0));
    scene.others_come_in().await;
}

#[tokio::test]
async fn who_is_lied_to_alone_comes_in_again_alone() {
    let scene = Scene::new(&THREE, SHORT).await;
    scene.lies(Lie::PathFor(LeafIndex(0))).await;
    scene.agree().await;
    assert_eq!(scene.came_again(), [0]);
    scene.talk("again").await;
    assert!(scene.has_eve(), "one user's word removes nobody");
}

#[tokio::test]
async fn who_could_use_the_commit_comes_in_again_when_the_group_goes_back() {
    let mut scene = Scene::new(&NINE, LONG).await;
    // alice follows into the void epoch, and nobody else
    scene.lies(Lie::PathBut(LeafIndex(0))).await;
    scene.honest[0].receive(0).await.unwrap();
    let view = scene.honest[0].member().group(&scene.group).unwrap();
    assert_eq!(view.state, GroupState::Active, "{:#?}", scene.events_of_group(0));
    let void = view.epoch.unwrap();
    scene.agree().await;
    assert_eq!(scene.came_again(), [0], "who was in the void epoch");
    for at in 1..NINE.len() {
        let back =
            |event: &Event| matches!(event, Event::WentBack { epoch, .. } if epoch.next() == void);
        assert!(scene.events(at).iter().any(back), "{at}: {:#?}", scene.events_of_group(at));
    }
    scene.talk("again").await;
    assert!(!scene.has_eve(), "who lies is out");
    scene.others_come_in().await;
}

#[tokio::test]
async fn who_came_in_by_a_void_commit_is_out_with_it_and_can_be_added_again() {
    let mut scene = Scene::new(&NINE, LONG).await;
    let nadia = scene.newcomer("nadia").await;
    connected(&scene.eve, &nadia).await;
    let user = nadia.member().client().user();
    let found = scene.eve.group_key_packages(&scene.group, &user).await.unwrap();
    scene.does(Deed::Add(found[0].1.clone()), Lie::ConfirmationTag).await;
    // she is in, with eve alone
    nadia.receive(0).await.unwrap();
    let state = |client: &Client| client.member().group(&scene.group).unwrap().state;
    assert_eq!(state(&nadia), GroupState::Active);
    scene.agree().await;
    assert_eq!(scene.came_again(), [0_usize; 0]);
    nadia.receive(0).await.unwrap();
    assert_eq!(state(&nadia), GroupState::Left);
    scene.talk("again").await;
    scene.adds(&nadia).await;
    scene.is_honest(nadia);
    scene.talk("with nadia").await;
    assert!(!scene.has_eve());
}

/// The number of the void epoch is given again, and who is added in it asks for what it was in the log's past.
#[tokio::test]
async fn who_takes_up_its_welcome_late_gets_the_epoch_that_stands_and_not_the_void_one() {
    let mut scene = Scene::new(&THREE, LONG).await;
    let nadia = scene.newcomer("nadia").await;
    let void = scene.lies(Lie::ConfirmationTag).await.epoch.next();
    scene.agree().await;
    scene.adds(&nadia).await;
    assert_eq!(scene.epoch(), void);
    // the group goes on, so that this epoch is of the past for the hub, too
    scene.agree().await;
    for client in &scene.honest[1..] {
        client.update(&scene.group, false).await.unwrap();
        scene.agree().await;
    }
    nadia.receive(0).await.unwrap();
    scene.is_honest(nadia);
    let at = scene.honest.len() - 1;
    let joined = |event: &Event| matches!(event, Event::Joined { group, epoch } if *group == scene.group && *epoch == void);
    assert!(scene.events(at).iter().any(joined), "{:#?}", scene.events_of_group(at));
    assert!(
        !scene.events(at).iter().any(|event| matches!(event, Event::Unreadable { .. })),
        "{:#?}",
        scene.events_of_group(at)
    );
    scene.talk("with nadia").await;
}

#[tokio::test]
async fn wrong_external_pub_is_found_and_made_good_before_anybody_is_misled() {
    let mut scene = Scene::new(&NINE, LONG).await;
    let told = scene.lies(Lie::ExternalPub).await;
    scene.agree().await;
    // they look one after the other here, so that who comes second finds it made good
    assert_eq!(scene.found().len(), 1, "{:?}", scene.found());
    assert_eq!(scene.epoch().0, told.epoch.0 + 2, "the lie, and one commit behind it");
    assert_eq!(scene.came_again(), [0_usize; 0]);
    scene.others_come_in().await;
    assert_eq!(scene.came_again(), [9, 10], "newcomers, and nobody had to come in again");
    assert!(scene.has_eve(), "one user's word removes nobody");
    for at in 0..NINE.len() {
        let is_bad = |event: &Event| {
            matches!(
                event,
                Event::Unusable { .. } | Event::Misbehaviour { .. } | Event::Lost { .. }
            )
        };
        assert!(!scene.events(at).iter().any(is_bad), "{at}: {:#?}", scene.events_of_group(at));
    }
}

#[tokio::test]
async fn good_commits_are_looked_at_and_nobody_commits_because_of_that() {
    let mut scene = Scene::new(&THREE, LONG).await;
    let told = scene.lies(Lie::None).await;
    scene.agree().await;
    assert_eq!((scene.found(), scene.epoch()), (Vec::new(), told.epoch.next()));
    // nor because of who comes from outside
    let tablet = scene.device(1, "tablet").await;
    scene.is_honest(tablet);
    scene.agree().await;
    assert_eq!((scene.found(), scene.epoch()), (Vec::new(), told.epoch.next().next()));
    scene.talk("with the tablet").await;
}

#[tokio::test]
async fn group_whose_member_was_misled_by_a_wrong_external_pub_talks_again() {
    let scene = Scene::new(&NINE, LONG).await;
    scene.lies(Lie::ExternalPub).await;
    // whoever comes in by this GroupInfo, before somebody has looked at it, has other secrets than everybody else
    scene.honest[1].resync(&scene.group).await.unwrap();
    scene.agree().await;
    scene.talk("again").await;
    assert!(!scene.has_eve(), "who misled it is out, and not who was misled");
}

#[tokio::test]
async fn group_bricked_from_outside_talks_again_without_the_liar() {
    let mut scene = Scene::new(&NINE, LONG).await;
    let home = scene.provider.home(&user_uri("eve"), "phone");
    liar::lie_from_outside(&scene.eve, &home, &scene.group, &hub()).await;
    scene.agree().await;
    let all: Vec<usize> = (0..NINE.len()).collect();
    assert_eq!(scene.came_again(), all, "a resync is not taken back");
    scene.talk("again").await;
    assert!(!scene.has_eve(), "who lies is out");
    let refused = scene.eve.resync(&scene.group).await;
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    scene.others_come_in().await;
}

#[tokio::test]
async fn newcomer_who_was_misled_by_a_wrong_external_pub_is_in_and_talks() {
    let mut scene = Scene::new(&THREE, LONG).await;
    scene.lies(Lie::ExternalPub).await;
    let desk = scene.device(1, "desk").await;
    scene.is_honest(desk);
    scene.agree().await;
    assert_eq!(scene.came_again(), [0, 1, 2, 3]);
    scene.talk("with the desk").await;
    scene.others_come_in().await;
}

/// Where enough say so, the hub lets nobody in by it until there is a better one; who wants to come in needs do nothing.
#[tokio::test]
async fn newcomer_who_comes_to_a_closed_door_comes_in_when_it_is_made_good() {
    let mut scene = Scene::new(&THREE, LONG).await;
    let open = PolicyChange::Join(JoinPolicy::Open);
    scene.honest[0].change_policy(&scene.group, vec![open]).await.unwrap();
    scene.eve.receive(0).await.unwrap();
    let told = scene.lies(Lie::ExternalPub).await;
    for (at, leaf) in [(0, 0), (1, 2), (2, 3)] {
        let by = (&scene.honest[at], leaf);
        let answer = scene.complains(by, &told, ComplaintReason::ExternalPub).await.unwrap();
        assert_eq!(answer.outcome, ComplaintOutcome::Resync);
    }
    let nadia = scene.newcomer("nadia").await.with_patience(Duration::ZERO);
    let came = nadia.join(&scene.group, &hub(), "team", None).await;
    assert!(matches!(came, Err(ClientError::Unanswered { .. })), "{came:?}");
    scene.talk("before nadia").await;
    assert!(!scene.has_eve(), "three users are enough to have her removed");
    assert_eq!(scene.came_again(), [0_usize; 0]);
    let nadia = nadia.with_patience(PATIENCE);
    assert!(nadia.resume().await.unwrap().is_empty());
    scene.is_honest(nadia);
    scene.talk("with nadia").await;
}

#[tokio::test]
async fn false_complaint_and_one_of_the_committer_change_nothing() {
    let scene = Scene::new(&THREE, LONG).await;
    let honest = scene.lies(Lie::None).await;
    scene.agree().await;
    let forged = ComplaintReason::ConfirmationTag;
    let answer = scene.complains((&scene.honest[1], 2), &honest, forged).await.unwrap();
    assert_ne!(answer.outcome, ComplaintOutcome::Void);
    let own = scene.complains((&scene.eve, 1), &honest, forged).await.unwrap();
    assert_eq!(own.outcome, ComplaintOutcome::None);
    scene.talk("still").await;
    assert!(scene.has_eve());
    assert_eq!(scene.came_again(), [0_usize; 0]);
}

/// Who says of a good GroupInfo that it is bad, with however many clients, for whatever reason and however often, removes nobody,
/// keeps nobody out and has nobody commit.
#[tokio::test]
async fn false_complaints_of_a_group_info_remove_nobody_and_close_no_door() {
    let mut scene = Scene::new(&["alice", "bob", "carol", "dave"], LONG).await;
    let desk = scene.device(1, "desk").await;
    scene.is_honest(desk);
    scene.agree().await;
    let leaf_of_desk = scene.eve.receive(0).await.map(|_| 5).unwrap();
    let honest = scene.lies(Lie::None).await;
    scene.agree().await;
    let (bob, desk) = (&scene.honest[1], &scene.honest[4]);
    for reason in
        [ComplaintReason::ExternalPub, ComplaintReason::Other, ComplaintReason::ExternalPub]
    {
        for by in [(bob, 2), (desk, leaf_of_desk)] {
            let answer = scene.complains(by, &honest, reason).await.unwrap();
            assert_ne!(answer.outcome, ComplaintOutcome::Void);
        }
        let own = scene.complains((&scene.eve, 1), &honest, reason).await.unwrap();
        assert_eq!(own.outcome, ComplaintOutcome::None, "eve would add to the quorum");
    }
    scene.agree().await;
    assert_eq!(scene.epoch(), honest.epoch.next(), "nobody has committed");
    assert_eq!(scene.found(), [0_usize; 0]);
    scene.others_come_in().await;
    assert!(scene.has_eve(), "one user's word removes nobody");
}

#[tokio::test]
async fn who_was_removed_does_not_count_and_nobody_complains_for_another() {
    let mut scene = Scene::new(&["alice", "bob", "carol", "dave"], LONG).await;
    let role = PolicyChange::Role { user: user_uri("eve"), role: Role::Moderator };
    scene.honest[0].change_policy(&scene.group, vec![role]).await.unwrap();
    scene.eve.receive(0).await.unwrap();
    scene.agree().await;
    let before = scene.lies(Lie::None).await;
    scene.agree().await;
    scene.eve.receive(0).await.unwrap();
    // it has made nothing of its own commit here, and comes in again
    scene.eve.resync(&scene.group).await.unwrap();
    scene.agree().await;
    let carol = scene.honest.remove(2);
    let removal = scene.does(Deed::Remove(LeafIndex(3)), Lie::None).await;
    carol.receive(0).await.unwrap();
    let left = carol.member().group(&scene.group).unwrap().state;
    assert_eq!(left, GroupState::Left);
    scene.agree().await;
    for told in [&before, &removal] {
        for reason in [ComplaintReason::ConfirmationTag, ComplaintReason::ExternalPub] {
            let answer = scene.complains((&carol, 3), told, reason).await.unwrap();
            assert_eq!(answer.outcome, ComplaintOutcome::None, "{told:?} {reason:?}");
            // by another's leaf it is nobody's
            let refused = scene.complains((&carol, 2), told, reason).await;
            let unauthenticated = |error: &HttpError| {
                matches!(error, HttpError::Refused(DsError::Unauthenticated { .. }))
            };
            assert!(refused.as_ref().is_err_and(unauthenticated), "{refused:?}");
        }
    }
    // with carol's two would be more than half of the three who are left
    let bob = scene.complains((&scene.honest[1], 2), &removal, ComplaintReason::Path).await;
    assert_eq!(bob.unwrap().outcome, ComplaintOutcome::Resync);
    scene.talk("without carol").await;
    assert!(scene.has_eve());
    let pending = scene.honest[0].member().pending().unwrap();
    assert!(pending.iter().all(|(.., operation)| *operation != Operation::Resync));
}
