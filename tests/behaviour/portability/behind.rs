//! Groups that move on before the hub of before has delivered what it owes their next one.

use mimid::client::core::Event;

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
