//! A local user who says that it is somebody else, or whom nobody vouches for: refused at every way in, by the whole
//! provider, and nothing of it stays. What a leaf says, MLS alone can verify; whose it is, only the account says.

use mimid::{
    client::core::{
        Home, Identity, Member, NewGroup, NewProposal, Operation, PolicyChange, SUITES,
    },
    wire::{
        client::PublishKeyPackages,
        codec::List,
        ds::DsError,
        extensions::{JoinPolicy, KeyPackageClass},
        ids::{ClientUri, GroupId},
    },
};

use crate::world::{TestClient, World, domain};

/// What mallory's provider hears of it as mallory, with `identity` in its leaves.
fn posing(mallory: &TestClient, identity: Identity) -> TestClient {
    let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
    TestClient { member, uri: mallory.uri.clone() }
}

/// Identities that mallory can make up, each valid as MLS has it. It even has bob's user key where it uses that.
async fn impostors(
    world: &World,
    mallory: &TestClient,
    bob: &TestClient,
) -> Vec<(&'static str, TestClient)> {
    let key_of = |client: &TestClient| client.member.identity().user_key.clone();
    let device = |of: &TestClient, name| ClientUri::of(&of.uri.user(), name).unwrap();
    let made = |client, key| Identity::with_user_key(client, key).unwrap();
    let tablet = posing(mallory, made(device(bob, "tablet"), key_of(mallory)));
    let bob_himself = posing(mallory, made(bob.uri.clone(), key_of(mallory)));
    // everybody who adds bob sees a token of his
    let (class, last_resort) = (KeyPackageClass::Group, false);
    bob.tokens(world, class, last_resort).await;
    let with_bobs_queue = posing(bob, made(bob.uri.clone(), key_of(mallory)));
    with_bobs_queue.tokens(world, class, last_resort).await;
    let with_bobs_queue = TestClient { uri: mallory.uri.clone(), ..with_bobs_queue };
    let with_bobs_key = posing(mallory, made(mallory.uri.clone(), key_of(bob)));
    let with_new_key = posing(mallory, Identity::generate(mallory.uri.clone()).unwrap());
    vec![
        ("a device of bob that nobody registered", tablet),
        ("bob, with mallory's user key", bob_himself),
        ("bob, with mallory's user key and bob's own queue", with_bobs_queue),
        ("mallory, with bob's user key", with_bobs_key),
        ("mallory, with a user key that is on no record", with_new_key),
    ]
}

async fn published(world: &World, client: &TestClient) -> u32 {
    let nothing = PublishKeyPackages { key_packages: List::default() };
    world.node.publish_key_packages(&client.uri, nothing).await.unwrap().group_left
}

async fn key_package(world: &World, of: &TestClient) -> mimid::wire::mls::KeyPackage {
    if of.member.tokens(KeyPackageClass::Group, false).unwrap() == 0 {
        of.tokens(world, KeyPackageClass::Group, false).await;
    }
    let made = of.member.key_packages(KeyPackageClass::Group, SUITES[0], false, 1, world.now());
    made.unwrap().remove(0)
}

/// The account knows another, whoever says so.
fn says_whose(why: &str) -> bool {
    why.contains("another client") || why.contains("user key")
}

#[test]
fn nobody_is_in_a_group_or_has_key_packages_in_anothers_name() {
    actix_rt::System::new().block_on(async {
        let world = World::new();
        let carol = world.client("carol", "phone").await;
        let (bob, mallory) =
            (world.client("bob", "phone").await, world.client("mallory", "phone").await);
        let group = carol.create(&world).await;
        let open = PolicyChange::Join(JoinPolicy::Open);
        let changes = vec![open];
        carol.act(&world, &group, Operation::UpdateGroup { changes }).await.unwrap();

        for (what, rogue) in impostors(&world, &mallory, &bob).await {
            let stock = (published(&world, &mallory).await, published(&world, &bob).await);
            let publish = PublishKeyPackages {
                key_packages: List::new(vec![key_package(&world, &rogue).await]).unwrap(),
            };
            let adds = || async { key_package(&world, &rogue).await.into_vec() };
            let (by_value, by_reference) = (adds().await, adds().await);
            let before = (world.head(&group).await, world.node.store_stats().writes);

            let refused = world.node.publish_key_packages(&rogue.uri, publish).await.unwrap_err();
            assert!(matches!(refused, DsError::InvalidKeyPackage { .. }), "{what}: {refused:?}");

            let (made, why) = creates(&world, &rogue).await;
            assert!(says_whose(&why), "{what} creates: {why}");
            assert!(!world.knows(&made).await, "{what}");

            for entrance in [Operation::Join { code: None }, Operation::AskToJoin] {
                let name = format!("{what}, {entrance:?}");
                let now = world.now();
                let request = rogue.member.join(&group, &domain(), "", entrance, now).unwrap();
                let why = rogue.drive(&world, request).await.unwrap_err();
                assert!(says_whose(&why), "{name}: {why}");
            }

            // a member was talked into it
            let add = Operation::AddUsers { key_packages: vec![by_value] };
            let why = carol.act(&world, &group, add).await.unwrap_err();
            assert!(says_whose(&why), "{what} is added: {why}");
            let proposals = vec![NewProposal::Add(by_reference)];
            let why = carol.act(&world, &group, Operation::Propose { proposals }).await;
            let why = why.unwrap_err();
            assert!(says_whose(&why), "{what} is to be added: {why}");

            let after = (world.head(&group).await, world.node.store_stats().writes);
            assert_eq!(after, before, "{what}: nothing changes");
            let left = (published(&world, &mallory).await, published(&world, &bob).await);
            assert_eq!(left, stock, "{what}");
        }

        // whom they all named comes in as himself
        carol.add(&world, &group, &bob).await;
        bob.receive(&world).await;
        bob.say(&world, &group, "it is me").await;
        carol.receive(&world).await;
        assert_eq!(carol.texts(), ["it is me"]);
        world.end();
    });
}

/// Creates a group; its id, and why it was not taken.
async fn creates(world: &World, rogue: &TestClient) -> (GroupId, String) {
    let new = NewGroup::default();
    let (group, request) = rogue.member.create_group(&world.hub(), &new, world.now()).unwrap();
    let why = rogue.drive(world, request).await.unwrap_err();
    (group, why)
}
