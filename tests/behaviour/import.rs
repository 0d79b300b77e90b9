//! A large group at a provider that runs: brought in by its operator, used by real clients over TLS, and what a
//! message costs the store in it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use mimid::{
    client::{
        Authorization, Client, ClientError, Outcome, Registration, Server,
        core::{Event, GroupState, Home, Identity, Member, NewProposal, Operation, PolicyChange},
        http::{Caller, Http},
        system_clock,
    },
    wire::{
        client::{Flag, MintedTokens, ProviderKeys, ProviderKeysAnswer, QueueTokens, Registered},
        codec::{List, encode},
        ds::DsError,
        extensions::{JoinPolicy, KeyPackageClass, PublicKey, QueueToken, Role, SignatureScheme},
        ids::{ClientUri, Domain, GroupId},
    },
};

use crate::{
    serve::{MIMID, Serve},
    support::synth::{self, Synth, SynthMember, system_now},
    world::{self, TestClient, World},
};

/// A group of `size`: all but one of it synthesised and brought in, the last a real client of its admin.
async fn brought_in(world: &World, size: usize) -> (TestClient, GroupId) {
    let mut synth = Synth::new(&world::domain(), &world.hub().external_sender, size - 1);
    synth.now = world.now();
    let mut tokens = Vec::new();
    for member in &synth.members {
        world.enrol(&member.client, &member.leaf_key, member.register()).await;
        let minted = world.node.queue_tokens(&member.client, one_token()).await.unwrap();
        tokens.push(minted.tokens[0].clone());
    }
    let imported = world.node.bring_in(synth.import(|index| tokens[index].clone())).await.unwrap();
    assert_eq!((imported.members, imported.epoch.0), (size - 1, synth.epoch));
    let first = &synth.members[0];
    let laptop = ClientUri::of(&first.client.user(), "laptop").unwrap();
    let identity = Identity::with_user_key(laptop, first.user_key.clone()).unwrap();
    let admin = world.register(identity).await;
    let join = Operation::Join { code: None };
    let request =
        admin.member.join(&synth.id, &world::domain(), "large", join, world.now()).unwrap();
    admin.drive(world, request).await.unwrap();
    (admin, synth.id)
}

fn one_token() -> QueueTokens {
    let (class, last_resort) = (KeyPackageClass::Group, Flag::No);
    QueueTokens { class, last_resort, count: 1, revoke: List::default() }
}

#[test]
fn a_message_costs_the_store_the_same_at_2_at_100_and_at_1000_members() {
    actix_rt::System::new().block_on(async {
        let mut costs = Vec::new();
        for size in [2, 100, 1000] {
            let world = World::new();
            let (admin, group) = brought_in(&world, size).await;
            assert_eq!(admin.member.group(&group).unwrap().members.len(), size);
            let before = world.node.store_stats();
            for text in ["one", "two", "three"] {
                admin.say(&world, &group, text).await;
            }
            let after = world.node.store_stats();
            costs.push((after.batches - before.batches, after.writes - before.writes));
            world.end();
        }
        // a log record and the group's head for each message
        assert_eq!(costs, [(3, 6), (3, 6), (3, 6)]);
    });
}

/// Ops' performance.md: with the records of more than one snapshot, so that the share of these is in it.
#[test]
fn an_update_commit_among_100_writes_at_most_8_kb() {
    const COMMITS: u64 = 70;
    actix_rt::System::new().block_on(async {
        let world = World::new();
        let (admin, group) = brought_in(&world, 100).await;
        let before = world.node.store_stats();
        for _ in 0..COMMITS {
            let update = Operation::UpdateClient { rotate_key: false };
            admin.act(&world, &group, update).await.unwrap().unwrap();
        }
        let after = world.node.store_stats();
        let each = (after.bytes_written - before.bytes_written) / COMMITS;
        println!("{each} bytes for a commit, {} batches", after.batches - before.batches);
        assert!(each <= 8 << 10, "{each} bytes for a commit");
        world.end();
    });
}

#[test]
fn a_group_is_brought_in_once_and_only_with_tokens_of_its_members() {
    actix_rt::System::new().block_on(async {
        let world = World::new();
        let synth = Synth::new(&world::domain(), &world.hub().external_sender, 3);
        let mut tokens = Vec::new();
        for member in &synth.members {
            world.enrol(&member.client, &member.leaf_key, member.register()).await;
            let minted = world.node.queue_tokens(&member.client, one_token()).await.unwrap();
            tokens.push(minted.tokens[0].clone());
        }
        // another's token, and none at all
        let swapped = synth.import(|index| tokens[(index + 1) % 3].clone());
        let before = world.node.store_stats().writes;
        for wrong in [swapped, synth.import(synth::any_token)] {
            let refused = world.node.bring_in(wrong).await.unwrap_err();
            assert!(matches!(refused, DsError::NotAuthorized { .. }), "{refused:?}");
        }
        assert_eq!(world.node.store_stats().writes, before, "nothing is left of what was refused");

        let import = synth.import(|index| tokens[index].clone());
        world.node.bring_in(import.clone()).await.unwrap();
        let again = world.node.bring_in(import.clone()).await.unwrap_err();
        assert!(matches!(again, DsError::InvalidGroupId { .. }), "{again:?}");
        // also where the group has been passivated, or the provider has been started anew
        let world = world.crash();
        let again = world.node.bring_in(import).await.unwrap_err();
        assert!(matches!(again, DsError::InvalidGroupId { .. }), "{again:?}");
        world.end();
    });
}

fn caller(member: &SynthMember) -> Caller<'_> {
    Caller { client: &member.client, key: &member.leaf_key, now: system_now() }
}

/// Registers a synthesised member and gets it a queue.
async fn settle(http: &Http, member: &SynthMember) -> QueueToken {
    let caller = caller(member);
    let register = encode(&member.register());
    let _: Registered = http.call(&caller, "/v1/register", register, 0).await.unwrap();
    let minted: MintedTokens =
        http.call(&caller, "/v1/queue_tokens", encode(&one_token()), 0).await.unwrap();
    minted.tokens[0].clone()
}

async fn hub_key(http: &Http, member: &SynthMember, domain: &Domain) -> PublicKey {
    let ask = encode(&ProviderKeys { domain: domain.clone() });
    let keys: ProviderKeysAnswer =
        http.call(&caller(member), "/v1/provider_keys", ask, 0).await.unwrap();
    let mut keys = keys.signature.keys.iter();
    let key = keys.find(|key| key.scheme == SignatureScheme::ED25519).unwrap();
    PublicKey::new(key.public_key.as_slice()).unwrap()
}

/// `mimid admin import-group`: whether it says that it worked, and what it says.
fn import_group(file: &Path, provider: &[&str]) -> (bool, String) {
    let mut command = Command::new(MIMID);
    command.args(["admin", "import-group"]).arg(file).args(provider);
    let output = command.env_remove("MIMID_DATA_DIR").output().unwrap();
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// Whose client it is.
enum Of<'a> {
    NewUser,
    /// A further device of a user whose key is known here, as an authorised one knows it.
    Synth(&'a SynthMember),
    Authorized(Authorization),
}

/// A large group at the built binary on sled, and its real clients, who speak TLS with it.
struct Large {
    provider: Serve,
    folder: tempfile::TempDir,
    synth: Synth,
    group: GroupId,
    /// How many it has.
    members: usize,
    /// Delivery Service requests by operation and status, of the processes that were killed.
    counted: BTreeMap<(String, String), u64>,
}

impl Large {
    /// Synthesises a group of `size` and has the operator bring it in.
    async fn bring_in(size: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let provider = Serve::start(folder.path());
        let domain = provider.endpoints.domain.clone();
        let server = server(&provider, folder.path());
        let http = Http::new(&server.url, server.certificate.as_deref().map(str::as_bytes));
        let http = http.unwrap();
        let first = synth::member(&domain, 0);
        settle(&http, &first).await;
        let synth = Synth::new(&domain, &hub_key(&http, &first, &domain).await, size);
        let tokens: Vec<QueueToken> = stream::iter(&synth.members)
            .map(|member| async { Ok::<_, ()>(settle(&http, member).await) })
            .buffered(32)
            .try_collect()
            .await
            .unwrap();
        let file = folder.path().join("group.bin");
        fs::write(&file, encode(&synth.import(|index| tokens[index].clone()))).unwrap();
        let data_dir = provider.data_dir();
        let (done, said) = import_group(&file, &["--data-dir", data_dir.to_str().unwrap()]);
        assert!(done && said.contains(&format!("{size} members, epoch 7")), "{said}");
        let by_url = ["--ops", provider.endpoints.ops.as_str()];
        let (done, said) = import_group(&file, &by_url);
        assert!(!done && said.contains("409") && said.contains("already"), "{said}");
        let half = folder.path().join("half.bin");
        fs::write(&half, &fs::read(&file).unwrap()[..1000]).unwrap();
        let (done, said) = import_group(&half, &by_url);
        assert!(!done && said.contains("400"), "{said}");
        let (group, counted) = (synth.id.clone(), BTreeMap::new());
        Self { provider, folder, synth, group, members: size, counted }
    }

    async fn client(&self, user: &str, device: &str, of: Of<'_>) -> Client {
        let domain = &self.provider.endpoints.domain;
        let home = || Home::open(&self.folder.path().join(format!("{user}-{device}"))).unwrap();
        let mut client = ClientUri::new(format!("mimi://{domain}/d/{user}/{device}")).unwrap();
        let mut authorization = None;
        match of {
            Of::NewUser => {}
            Of::Authorized(by) => authorization = Some(by),
            Of::Synth(member) => {
                client = ClientUri::of(&member.client.user(), device).unwrap();
                let key = member.user_key.clone();
                let identity = Identity::with_user_key(client.clone(), key).unwrap();
                Member::new(home(), identity).unwrap();
            }
        }
        let server = server(&self.provider, self.folder.path());
        let registration = Registration { client, server, token: Vec::new(), authorization };
        Client::register(home(), registration, system_clock()).await.unwrap()
    }

    /// Everybody takes in what there is for it; then all of `clients` are in the group and in one epoch, with as many
    /// members as the test has counted.
    async fn agree(&self, clients: &[&Client]) {
        all_receive(clients).await;
        let view = |client: &Client| client.member().group(&self.group).unwrap();
        let first = view(clients[0]);
        assert_eq!(first.members.len(), self.members);
        for client in clients {
            let view = view(client);
            assert_eq!(view.state, GroupState::Active);
            assert_eq!(
                (view.epoch, view.authenticator),
                (first.epoch, first.authenticator.clone())
            );
        }
    }

    /// `from` says something, and exactly `hearers` show it, once.
    async fn says(&self, from: &Client, text: &str, hearers: &[&Client], deaf: &[&Client]) {
        accepted(from.send_text(&self.group, text).await);
        all_receive(hearers).await;
        all_receive(deaf).await;
        let times = |client: &Client| texts(client).iter().filter(|it| *it == text).count();
        for (clients, expected) in [(hearers, 1), (deaf, 0)] {
            for client in clients {
                assert_eq!(times(client), expected, "{client:?}, {text}: {:?}", texts(client));
            }
        }
    }

    fn state_of(&self, client: &Client) -> GroupState {
        client.member().group(&self.group).unwrap().state
    }

    async fn propose(&self, from: &Client, proposal: NewProposal) {
        let proposals = vec![proposal];
        accepted(from.operate(&self.group, Operation::Propose { proposals }).await);
    }

    /// The provider is killed, and another process takes its place.
    fn kill_and_restart(&mut self) {
        self.count();
        self.provider.kill_and_restart();
    }

    /// Adds up what this process counts of the Delivery Service's requests.
    fn count(&mut self) {
        let address = self.provider.endpoints.ops.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        for line in text.lines() {
            let Some(line) = line.strip_prefix("mimid_ds_requests_total{operation=\"") else {
                continue;
            };
            let (operation, rest) = line.split_once("\",status=\"").unwrap();
            let (status, count) = rest.split_once("\"} ").unwrap();
            let key = (operation.to_owned(), status.to_owned());
            *self.counted.entry(key).or_default() += count.parse::<u64>().unwrap();
        }
    }

    fn counted(&self, operation: &str, status: &str) -> u64 {
        self.counted.get(&(operation.to_owned(), status.to_owned())).copied().unwrap_or_default()
    }
}

fn server(provider: &Serve, folder: &Path) -> Server {
    let certificate = folder.join(provider.endpoints.certificate.as_ref().unwrap());
    let certificate = Some(fs::read_to_string(certificate).unwrap());
    Server { url: provider.endpoints.client.clone(), certificate }
}

fn texts(client: &Client) -> Vec<String> {
    let text = |event| match event {
        Event::Message { text, .. } => text,
        _ => None,
    };
    events(client).into_iter().filter_map(text).collect()
}

fn events(client: &Client) -> Vec<Event> {
    let events = client.member().events(0, 10_000).unwrap();
    events.into_iter().map(|(_, event)| event).collect()
}

fn accepted(outcome: Result<Outcome, ClientError>) {
    let outcome = outcome.unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

async fn all_receive(clients: &[&Client]) {
    for client in clients {
        client.receive(0).await.unwrap();
    }
}

/// Takes in what comes until something is pending in `group`.
async fn await_pending(client: &Client, group: &GroupId) {
    for _ in 0..30 {
        if client.member().group(group).unwrap().pending > 0 {
            return;
        }
        client.receive(2_000).await.unwrap();
    }
    panic!("nothing is proposed: {:?}", events(client));
}

/// Every operation of the Delivery Service at a thousand members; only create-group is at a group of two, which is
/// how any begins.
#[test]
fn operator_brings_in_a_group_of_a_thousand_and_real_clients_use_every_operation() {
    const SIZE: usize = 1000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut large = Large::bring_in(SIZE).await;
        let group = large.group.clone();
        let hub = group.domain();

        // two devices of members come in by themselves
        let (first, second) = (large.synth.members[0].clone(), large.synth.members[1].clone());
        let alice = large.client("u0000", "laptop", Of::Synth(&first)).await;
        let bob = large.client("u0001", "laptop", Of::Synth(&second)).await;
        accepted(alice.join(&group, &hub, "large", None).await);
        accepted(bob.join(&group, &hub, "large", None).await);
        large.members += 2;
        large.agree(&[&alice, &bob]).await;
        large.says(&alice, "hello", &[&bob], &[]).await;
        large.says(&bob, "hello yourself", &[&alice], &[]).await;

        // a user with two devices is added; the tablet is away and comes epochs later
        let carol = large.client("carol", "phone", Of::NewUser).await;
        let authorization = carol.authorize_device().unwrap();
        let tablet = large.client("carol", "tablet", Of::Authorized(authorization)).await;
        let carols = carol.member().client().user();
        alice.connect(&carols).await.unwrap();
        all_receive(&[&carol]).await;
        carol.accept(&first.client.user()).await.unwrap();
        all_receive(&[&alice]).await;
        accepted(alice.add_users(&group, std::slice::from_ref(&carols)).await);
        large.members += 2;
        large.agree(&[&alice, &bob, &carol]).await;
        let moderator = PolicyChange::Role { user: second.client.user(), role: Role::Moderator };
        accepted(alice.change_policy(&group, vec![moderator]).await);
        all_receive(&[&bob, &carol]).await;
        accepted(carol.update(&group, true).await);
        all_receive(&[&alice, &bob]).await;

        // two commits for one epoch: alice has not seen bob's and catches up from the answer
        accepted(bob.update(&group, false).await);
        accepted(alice.update(&group, false).await);
        large.agree(&[&alice, &bob, &carol, &tablet]).await;
        large.says(&carol, "we are four", &[&alice, &bob, &tablet], &[]).await;

        // a user's own devices
        let tablets = tablet.member().client().clone();
        accepted(carol.remove_clients(&group, vec![tablets.clone()]).await);
        large.members -= 1;
        all_receive(&[&alice, &bob, &tablet]).await;
        assert_eq!(large.state_of(&tablet), GroupState::Left);
        accepted(carol.add_own_clients(&group, std::slice::from_ref(&tablets)).await);
        large.members += 1;
        large.agree(&[&alice, &bob, &carol, &tablet]).await;

        // the process is killed; the group comes back from its snapshot and its log
        large.kill_and_restart();
        large.says(&tablet, "still here", &[&alice, &bob, &carol], &[]).await;

        // proposals: an Update and a Remove by reference, committed by a third
        large.propose(&carol, NewProposal::Update).await;
        large.propose(&bob, NewProposal::Remove(tablets.clone())).await;
        all_receive(&[&alice]).await;
        accepted(alice.update(&group, false).await);
        large.members -= 1;
        all_receive(&[&bob, &carol, &tablet]).await;
        assert_eq!(large.state_of(&tablet), GroupState::Left);
        // an Add by a member, which the committer has not seen: the answer shows it
        let key_packages = carol.group_key_packages(&group, &carols).await.unwrap();
        let (_, add) = key_packages.into_iter().find(|(owner, _)| *owner == tablets).unwrap();
        large.propose(&carol, NewProposal::Add(add)).await;
        accepted(bob.update(&group, false).await);
        large.members += 1;
        large.agree(&[&alice, &bob, &carol, &tablet]).await;

        // a user comes in by a joining code
        let code = alice.add_code(&group, 7).await.unwrap();
        let dave = large.client("dave", "phone", Of::NewUser).await;
        let wrong = dave.join(&group, &hub, "large", Some([7; 32])).await;
        assert!(matches!(wrong, Err(ClientError::Refused(_))), "{wrong:?}");
        accepted(dave.join(&group, &hub, "large", Some(code)).await);
        large.members += 1;

        // a deleted device: the hub proposes its removal, and waits for it to be committed
        carol.delete_device(&tablets).await.unwrap();
        await_pending(&bob, &group).await;
        accepted(bob.update(&group, false).await);
        large.members -= 1;
        large.agree(&[&alice, &bob, &carol, &dave]).await;
        assert!(
            carol.member().group(&group).unwrap().members.iter().all(|it| it.client != tablets)
        );

        // queues: another address, and a filter
        accepted(carol.update_queue_info(&group).await);
        accepted(dave.mute(&group, true).await);
        large.says(&bob, "not for dave", &[&alice, &carol], &[&dave]).await;
        accepted(dave.mute(&group, false).await);
        large.says(&bob, "for dave, too", &[&alice, &carol, &dave], &[]).await;

        // who leaves asks to be added again, now that the group is open; another just comes in
        accepted(dave.leave(&group).await);
        all_receive(&[&alice]).await;
        let open = PolicyChange::Join(JoinPolicy::Open);
        accepted(alice.change_policy(&group, vec![open]).await);
        all_receive(&[&bob, &carol, &dave]).await;
        assert_eq!(large.state_of(&dave), GroupState::Left);
        accepted(dave.ask_to_join(&group, &hub, "large").await);
        all_receive(&[&bob]).await;
        accepted(bob.update(&group, false).await);
        large.agree(&[&alice, &bob, &carol, &dave]).await;
        let erin = large.client("erin", "phone", Of::NewUser).await;
        accepted(erin.join(&group, &hub, "large", None).await);
        large.members += 1;

        // a device enters anew
        all_receive(&[&bob]).await;
        accepted(bob.resync(&group).await);
        large.agree(&[&alice, &bob, &carol, &dave, &erin]).await;
        large.says(&erin, "everyone is in", &[&alice, &bob, &carol, &dave], &[]).await;

        // users are removed, a synthesised one among them; then the group ends
        let last = large.synth.members[SIZE - 1].client.user();
        let gone = vec![erin.member().client().user(), last];
        accepted(bob.remove_users(&group, gone).await);
        large.members -= 2;
        large.agree(&[&alice, &bob, &carol, &dave]).await;
        large.says(&bob, "this is the end", &[&alice, &carol, &dave], &[&erin]).await;
        assert_eq!(large.state_of(&erin), GroupState::Left);
        accepted(alice.delete_group(&group).await);
        all_receive(&[&bob, &carol, &dave]).await;
        for client in [&alice, &bob, &carol, &dave] {
            let state = large.state_of(client);
            assert!(
                matches!(state, GroupState::Deleted | GroupState::Left),
                "{client:?}: {state:?}"
            );
        }

        large.count();
        for operation in OPERATIONS {
            assert!(large.counted(operation, "ok") > 0, "{operation}: {:?}", large.counted);
        }
        assert!(large.counted("update-client", "wrong_epoch") > 0, "{:?}", large.counted);
        assert!(large.counted("update-client", "pending_proposals") > 0, "{:?}", large.counted);
        for client in [&alice, &bob, &carol, &dave, &erin] {
            let complains = |event: &Event| {
                matches!(
                    event,
                    Event::Misbehaviour { .. } | Event::Lost { .. } | Event::Unreadable { .. }
                )
            };
            let complaints: Vec<Event> = events(client).into_iter().filter(complains).collect();
            assert_eq!(complaints, [], "{client:?}");
        }
    });
}

/// What DS §2.4 lets clients ask for, and what PROTOCOL.md §2 adds; a group's move is not of this provider.
const OPERATIONS: [&str; 16] = [
    "create-group",
    "delete-group",
    "update-queue-info",
    "welcome-info",
    "external-commit-info",
    "add-users",
    "remove-users",
    "add-clients",
    "remove-clients",
    "update-client",
    "resync-client",
    "update-client-fanout-info",
    "send-message",
    "join-group",
    "propose",
    "update-group",
];
