//! Groups that move on before the hub of before has delivered what it owes their next one.

use mimid::{
    client::core::Event,
    store::Page,
    wire::queueing::{DeliverBatchRequest, QueueEvent},
};

use super::*;

/// carol of c.example, too, who is owed "one" and "two" by a.example, where `door` holds them back; the group is at b.example.
struct Behind {
    two: Two,
    c: World,
    carol: TestClient,
    door: Door,
    letters: Letters,
}

impl Behind {
    async fn new() -> Self {
        let two = Two::new().await;
        let c = provider("c.example", &two.net, &two.clock);
        let carol = c.client("carol", "phone").await;
        let key_packages = carol.key_packages_through(&c, &two.a, &two.alice).await;
        two.alice.act(&two.a, &two.group, Operation::AddUsers { key_packages }).await.unwrap();
        let role = PolicyChange::Role { user: two.bob.uri.user(), role: Role::Admin };
        let changes = vec![role];
        two.alice.act(&two.a, &two.group, Operation::UpdateGroup { changes }).await.unwrap();
        let is_admin =
            |it: &TestClient| view(it, &two.group).epoch == view(&two.alice, &two.group).epoch;
        until(&carol, &c, |it| is_in(it, &two.group) && is_admin(it)).await;
        until(&two.bob, &two.b, is_admin).await;
        let (door, letters) = (Door::default(), Letters::default());
        let (held, kept) = (door.clone(), Arc::clone(&letters));
        let between = (two.a.domain.clone(), c.domain.clone());
        two.net.carry(move |letter| {
            kept.lock().unwrap().push(letter.clone());
            let is_held = matches!(letter.event, EventType::Deliver | EventType::DeliverBatch)
                && (letter.from.clone(), letter.to.clone()) == between;
            if is_held { Fate::Behind(held.clone()) } else { Fate::Arrives }
        });
        two.alice.say(&two.a, &two.group, "one").await;
        two.alice.say(&two.a, &two.group, "two").await;
        two.migrate(&two.b).await.unwrap();
        until(&two.bob, &two.b, |it| view(it, &two.group).hub == two.b.domain).await;
        two.bob.say(&two.b, &two.group, "three").await;
        Self { two, c, carol, door, letters }
    }

    /// bob moves the group to c.example, and `meanwhile` is so when its content came there, and came again.
    async fn moves_on(&self, meanwhile: impl FnOnce()) {
        let (two, c) = (&self.two, &self.c);
        let response = promise(&two.b, &two.bob, &two.group, &c.domain).await.unwrap();
        let came_again =
            async || contents(&self.letters).iter().filter(|it| it.to == c.domain).count() > 1;
        let (moved, ()) =
            tokio::join!(two.bob.act(&two.b, &two.group, migrate(&response)), async {
                comes_true("a content that is sent again", came_again).await;
                assert_eq!(c.head(&two.group).await.status, GroupStatus::Followed);
                meanwhile();
            });
        moved.unwrap();
        assert_eq!(c.head(&two.group).await.status, GroupStatus::Active);
    }

    async fn ends(self) {
        let Self { two, c, carol, .. } = self;
        two.alice.receive(&two.a).await;
        two.alice.say(&two.a, &two.group, "here").await;
        until(&carol, &c, |it| it.texts().last().is_some_and(|text| text == "here")).await;
        assert_eq!(view(&carol, &two.group).hub, c.domain);
        c.end();
        two.end();
    }
}

/// The source does not know yet that its group has gone back, and its last hub goes on with it already.
#[actix::test]
async fn what_a_group_goes_on_with_waits_until_its_source_knows_that_it_has_gone_back() {
    let two = Two::new().await;
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    make_admin(&two).await;
    let (door, home) = (Door::default(), two.a.domain.clone());
    let held = door.clone();
    let letters = Letters::default();
    let kept = Arc::clone(&letters);
    two.net.carry(move |letter| {
        kept.lock().unwrap().push(letter.clone());
        match letter.event {
            EventType::MigrationContent if letter.to == home => Fate::AnswerBehind(held.clone()),
            _ => Fate::Arrives,
        }
    });
    let response = promise(&two.b, &two.bob, &two.group, &two.a.domain).await.unwrap();
    let goes_on = async {
        let at_home = async || two.a.head(&two.group).await.status == GroupStatus::Active;
        comes_true("the group is at home", at_home).await;
        until(&two.alice, &two.a, |it| view(it, &two.group).hub == two.a.domain).await;
        two.alice.say(&two.a, &two.group, "at home").await;
        let is_sent = async || {
            let letters = letters.lock().unwrap();
            letters.iter().any(|it| {
                matches!(it.event, EventType::Deliver | EventType::DeliverBatch)
                    && it.to == two.b.domain
            })
        };
        comes_true("what was said is sent to the source", is_sent).await;
        two.alice.say(&two.a, &two.group, "and on").await;
        assert_eq!(two.b.head(&two.group).await.status, GroupStatus::Migrating);
        door.open();
    };
    let (moved, ()) = tokio::join!(two.bob.act(&two.b, &two.group, migrate(&response)), goes_on);
    moved.unwrap();
    let on = |it: &TestClient| it.texts().iter().any(|text| text == "and on");
    // its last hub tries again by and by
    let comes = async || {
        two.clock.advance_ms(100);
        two.bob.receive(&two.b).await;
        on(&two.bob)
    };
    comes_true("what was said at home", comes).await;
    assert!(two.bob.texts().ends_with(&["at home".to_owned(), "and on".to_owned()]));
    assert!(!lost(&two.bob));
    two.goes_on_at(&two.a).await;
    two.end();
}

/// Who created a group says no more of it than anybody, once it is hosted elsewhere.
#[actix::test]
async fn creator_of_a_group_that_has_moved_says_nothing_in_it() {
    let two = Two::new().await;
    let c = provider("c.example", &two.net, &two.clock);
    make_admin(&two).await;
    two.migrate(&two.b).await.unwrap();
    until(&two.bob, &two.b, |it| view(it, &two.group).hub == two.b.domain).await;
    let response = promise(&two.b, &two.bob, &two.group, &c.domain).await.unwrap();
    two.bob.act(&two.b, &two.group, migrate(&response)).await.unwrap();
    let page = Page { items_max: 1_000, bytes_max: 1 << 30 };
    let stands = async || {
        let log = c.store.log(&two.group, Sequence(0), page).await.unwrap();
        (c.head(&two.group).await, log)
    };
    let before = stands().await;
    let (group_id, next) = (two.group.clone(), before.0.next_sequence);
    let (accepted_at, roster) = (c.now(), List::default());
    let feed = DeliveryItem::Feed {
        group_id: group_id.clone(),
        group_sequence: next,
        accepted_at,
        except: None,
        event: QueueEvent::RosterOnly,
        roster: roster.clone(),
    };
    let next_sequence = Sequence(next.0 + 10);
    let snapshot =
        DeliveryItem::Snapshot { group_id, next_sequence, chain: Chain::default(), roster };
    for item in [feed, snapshot] {
        let items = List::new(vec![item]).unwrap();
        let said = c.node.deliver_batch(&two.a.domain, DeliverBatchRequest { items }).await;
        let failures = said.unwrap().failures.into_vec();
        let problems: Vec<_> = failures.iter().map(|it| (it.problem, it.next_sequence)).collect();
        assert_eq!(problems, [(DeliveryProblem::WrongHub, next)]);
    }
    assert_eq!(stands().await, before);
    two.goes_on_at(&c).await;
    c.end();
    two.end();
}

async fn make_admin(two: &Two) {
    let role = PolicyChange::Role { user: two.bob.uri.user(), role: Role::Admin };
    let change = Operation::UpdateGroup { changes: vec![role] };
    two.alice.act(&two.a, &two.group, change).await.unwrap();
    let is_told =
        |it: &TestClient| view(it, &two.group).epoch == view(&two.alice, &two.group).epoch;
    until(&two.bob, &two.b, is_told).await;
}

fn lost(client: &TestClient) -> bool {
    let events = client.member.events(0, 1_000).unwrap();
    events.iter().any(|(_, event)| matches!(event, Event::Lost { .. }))
}

#[actix::test]
async fn group_waits_until_its_next_hub_has_what_the_one_before_owes_it() {
    let behind = Behind::new().await;
    behind.moves_on(|| behind.door.open()).await;
    until(&behind.carol, &behind.c, |it| it.texts().len() == 3).await;
    assert_eq!(behind.carol.texts(), ["one", "two", "three"]);
    assert!(!lost(&behind.carol));
    behind.ends().await;
}

#[actix::test]
async fn group_does_not_wait_for_a_hub_of_before_that_is_gone() {
    let behind = Behind::new().await;
    let wait_ms = Limits::default().moves.feed_wait_ms;
    behind.moves_on(|| behind.two.clock.advance_ms(wait_ms)).await;
    until(&behind.carol, &behind.c, lost).await;
    assert_eq!(behind.carol.texts(), [] as [&str; 0], "what is lost is said to be");
    behind.door.open();
    behind.ends().await;
}
