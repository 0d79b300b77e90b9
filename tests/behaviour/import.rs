//! A large group at a provider that runs: brought in by its operator, used by real clients over TLS, and what a
//! message costs the store in it.

use std::{fs, path::Path, process::Command};

use futures_util::{StreamExt, TryStreamExt, stream};
use mimid::{
    client::{
        Client, ClientError, Outcome, Registration, Server,
        core::{Event, Home, Identity, Member, Operation, PolicyChange, Right},
        http::{Caller, Http},
        system_clock,
    },
    server::{self, Config, Endpoints, Running},
    wire::{
        client::{Flag, MintedTokens, ProviderKeys, ProviderKeysAnswer, QueueTokens, Registered},
        codec::{List, encode},
        ds::DsError,
        extensions::{KeyPackageClass, PublicKey, QueueToken, Role, SignatureScheme},
        ids::{ClientUri, Domain, GroupId},
    },
};

use crate::{
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

/// A provider on loopback, and where its operator and its clients find it.
struct Provider {
    running: Running,
    config: Config,
}

impl Provider {
    fn start(folder: &Path) -> Self {
        let mut config = Config::default();
        config.data_dir = folder.join("data");
        config.client.listen.set_port(0);
        config.ops.listen.set_port(0);
        let running = server::start(config.clone()).unwrap();
        // started again, it is found where it was
        let address = |url: &str| url.rsplit("//").next().unwrap().parse().unwrap();
        config.client.listen = address(&running.endpoints().client);
        config.ops.listen = address(&running.endpoints().ops);
        Self { running, config }
    }

    fn again(self) -> Self {
        self.running.stop().unwrap();
        Self { running: server::start(self.config.clone()).unwrap(), config: self.config }
    }

    fn endpoints(&self) -> &Endpoints {
        self.running.endpoints()
    }

    fn server(&self) -> Server {
        let certificate = self.endpoints().certificate.as_ref().unwrap();
        let certificate = Some(fs::read_to_string(certificate).unwrap());
        Server { url: self.endpoints().client.clone(), certificate }
    }

    fn http(&self) -> Http {
        let server = self.server();
        Http::new(&server.url, server.certificate.as_deref().map(str::as_bytes)).unwrap()
    }

    async fn client(&self, home: &Path, client: ClientUri, of: Option<&SynthMember>) -> Client {
        if let Some(of) = of {
            // a further device of a user whose key is known here, as an authorised one knows it
            let identity = Identity::with_user_key(client.clone(), of.user_key.clone()).unwrap();
            Member::new(Home::open(home).unwrap(), identity).unwrap();
        }
        let (server, token) = (self.server(), Vec::new());
        let registration = Registration { client, server, token, authorization: None };
        Client::register(Home::open(home).unwrap(), registration, system_clock()).await.unwrap()
    }
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_mimid"));
    command.args(["admin", "import-group"]).arg(file).args(provider);
    let output = command.env_remove("MIMID_DATA_DIR").output().unwrap();
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn texts(client: &Client) -> Vec<String> {
    let events = client.member().events(0, 1000).unwrap().into_iter();
    let text = |(_, event)| match event {
        Event::Message { text, .. } => text,
        _ => None,
    };
    events.filter_map(text).collect()
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

fn agree(group: &GroupId, clients: &[&Client], members: usize) {
    let view = |client: &Client| client.member().group(group).unwrap();
    let first = view(clients[0]);
    assert_eq!(first.members.len(), members);
    for client in clients {
        let view = view(client);
        assert_eq!((view.epoch, view.authenticator), (first.epoch, first.authenticator.clone()));
    }
}

#[test]
fn operator_brings_in_a_group_of_a_thousand_and_real_clients_use_it() {
    const SIZE: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let domain = provider.endpoints().domain.clone();

    let file = folder.path().join("group.bin");
    let synth = runtime.block_on(async {
        let http = provider.http();
        let first = synth::member(&domain, 0);
        settle(&http, &first).await;
        let key = hub_key(&http, &first, &domain).await;
        let synth = Synth::new(&domain, &key, SIZE);
        let tokens: Vec<QueueToken> = stream::iter(&synth.members)
            .map(|member| async { Ok::<_, ()>(settle(&http, member).await) })
            .buffered(32)
            .try_collect()
            .await
            .unwrap();
        fs::write(&file, encode(&synth.import(|index| tokens[index].clone()))).unwrap();
        synth
    });
    let data_dir = provider.config.data_dir.clone();
    let by_folder = ["--data-dir", data_dir.to_str().unwrap()];
    let (done, said) = import_group(&file, &by_folder);
    assert!(done && said.contains("1000 members, epoch 7"), "{said}");
    let by_url = ["--ops", provider.endpoints().ops.as_str()];
    let (done, said) = import_group(&file, &by_url);
    assert!(!done && said.contains("409") && said.contains("already"), "{said}");
    fs::write(folder.path().join("half.bin"), &fs::read(&file).unwrap()[..1000]).unwrap();
    let (done, said) = import_group(&folder.path().join("half.bin"), &by_url);
    assert!(!done && said.contains("400"), "{said}");

    let id = synth.id.clone();
    let device = |member: &SynthMember, name| ClientUri::of(&member.client.user(), name).unwrap();
    let home = |name: &str| folder.path().join(name);
    let (first, second) = (&synth.members[0], &synth.members[1]);
    let (alice, bob, carol) = runtime.block_on(async {
        let alice = provider.client(&home("alice"), device(first, "laptop"), Some(first)).await;
        let bob = provider.client(&home("bob"), device(second, "laptop"), Some(second)).await;
        let new = ClientUri::new(format!("mimi://{domain}/d/carol/phone")).unwrap();
        let carol = provider.client(&home("carol"), new, None).await;
        accepted(alice.join(&id, &domain, "large", None).await);
        accepted(bob.join(&id, &domain, "large", None).await);
        all_receive(&[&alice]).await;
        accepted(alice.send_text(&id, "hello").await);
        all_receive(&[&bob]).await;
        agree(&id, &[&alice, &bob], SIZE + 2);

        let carols = carol.member().client().user();
        alice.connect(&carols).await.unwrap();
        all_receive(&[&carol]).await;
        carol.accept(&first.client.user()).await.unwrap();
        all_receive(&[&alice]).await;
        accepted(alice.add_users(&id, &[carols]).await);
        all_receive(&[&bob, &carol]).await;
        agree(&id, &[&alice, &bob, &carol], SIZE + 3);
        accepted(bob.update(&id, true).await);
        (alice, bob, carol)
    });

    // the group comes back from its snapshot and its log
    let provider = provider.again();
    runtime.block_on(async {
        all_receive(&[&alice, &carol]).await;
        accepted(carol.send_text(&id, "still here").await);
        all_receive(&[&alice, &bob]).await;

        let may = PolicyChange::May { what: Right::Add, role: Role::Moderator };
        accepted(alice.change_policy(&id, vec![may]).await);
        accepted(alice.update_queue_info(&id).await);
        all_receive(&[&bob, &carol]).await;
        accepted(carol.mute(&id, true).await);
        let gone = synth.members[SIZE - 1].client.user();
        accepted(alice.remove_users(&id, vec![gone]).await);
        all_receive(&[&bob, &carol]).await;
        accepted(bob.resync(&id).await);
        all_receive(&[&alice, &carol]).await;
        accepted(bob.send_text(&id, "not for the muted").await);
        all_receive(&[&alice, &carol]).await;
        agree(&id, &[&alice, &bob, &carol], SIZE + 2);

        accepted(bob.leave(&id).await);
        all_receive(&[&alice, &carol]).await;
        accepted(alice.update(&id, false).await);
        all_receive(&[&carol, &bob]).await;
        agree(&id, &[&alice, &carol], SIZE + 1);
        assert_eq!(alice.member().group(&id).unwrap().policy.unwrap().may_add, Role::Moderator);
    });
    assert_eq!(texts(&alice), ["still here", "not for the muted"]);
    assert_eq!(texts(&bob), ["hello", "still here"]);
    assert_eq!(texts(&carol), Vec::<String>::new());
    provider.running.stop().unwrap();
}
