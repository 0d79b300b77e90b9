//! `mimid demo`: a provider of its own on loopback, and real clients that use everything it does, over TLS.
//!
//! Here: the play. The provider is a process of this same binary, killed and started again in the middle; the
//! clients are the client library with homes on disk. Whatever a client shows is compared with what was said.

mod stage;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use self::stage::{Broke, DOMAIN, Folder, LOG, Provider, Tally, counted};
use super::FAILED;
use crate::{
    client::{
        Authorization, Client, ClientError, Registration, Server,
        core::{Event, GroupState, Home, NewProposal, Operation, PolicyChange, SUITES},
        system_clock,
    },
    wire::{
        extensions::{JoinPolicy, Role},
        ids::{ClientUri, Domain, GroupId, UserUri},
    },
};

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Users; the first three have two devices each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=50))]
    users: u32,
    /// Messages in each round of talk
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    messages: u32,
    /// Who talks when: the same seed gives the same talk
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the provider's data and the clients' homes in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Plays it and says how it went.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    // a second call in one process finds one that is there
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let started = Instant::now();
    let folder = match Folder::make(args.keep.as_deref()) {
        Ok(folder) => folder,
        Err(error) => return failed(&format!("no folder for the demo: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let mut tally = Tally::default();
    let played = runtime.block_on(async {
        let mut play = Play::begin(args, &folder.path, &mut tally).await?;
        let played = play.all().await;
        play.provider.stop();
        played
    });
    match played {
        Ok(()) => {
            tally.print();
            println!("\nEverything worked, in {:.1} s.", started.elapsed().as_secs_f64());
            folder.end(true);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tally.print();
            let log = folder.path.join(LOG);
            folder.end(false);
            failed(&format!("{error}\nThe provider's log is {}", log.display()))
        }
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("mimid demo: {why}");
    ExitCode::from(FAILED)
}

/// What a client is to show of a group: who said what, in order.
type Said = Vec<(ClientUri, String)>;

struct Actor {
    /// alice/phone
    name: String,
    user: UserUri,
    client: Client,
    expected: BTreeMap<GroupId, Said>,
}

/// A group and who is in it, by number.
struct Room {
    id: GroupId,
    members: BTreeSet<usize>,
}

struct Play<'a> {
    args: &'a Args,
    folder: PathBuf,
    tally: &'a mut Tally,
    provider: Provider,
    actors: Vec<Actor>,
    random: StdRng,
    said: u32,
}

// the numbers of the first six clients
const ALICE: usize = 0;
const BOB: usize = 1;
const CAROL: usize = 2;
const BOB_2: usize = 3;
const CAROL_2: usize = 4;

impl<'a> Play<'a> {
    async fn begin(args: &'a Args, folder: &Path, tally: &'a mut Tally) -> Result<Self, Broke> {
        let provider = Provider::start(folder, "127.0.0.1:0").await?;
        println!("A provider for {DOMAIN} runs at {} (TLS 1.3, sled).", provider.endpoints.client);
        Ok(Self {
            args,
            folder: folder.to_owned(),
            tally,
            provider,
            actors: Vec::new(),
            random: StdRng::seed_from_u64(args.seed),
            said: 0,
        })
    }

    async fn all(&mut self) -> Result<(), Broke> {
        scene("Users and devices register and publish KeyPackages");
        self.register_everyone().await?;
        scene("They connect: first contact, consent");
        self.connect_everyone().await?;
        scene("A group: users, devices, messages, a joiner who comes late");
        let mut team = self.a_group().await?;
        scene("A further device joins by itself");
        let laptop = self.further_device(&mut team).await?;
        scene("New keys, a lost race, a late joiner");
        self.keys_and_races(&mut team).await?;
        scene("Roles, proposals of every kind");
        self.roles_and_proposals(&mut team, laptop).await?;
        scene("Queues: a new address, muting, a stream");
        self.queues(&mut team, laptop).await?;
        scene("The provider is killed (SIGKILL) with requests on their way, and starts again");
        self.restart(&team).await?;
        scene("A device resyncs; others join with a code, or where all may");
        self.resync(&mut team).await?;
        self.doors().await?;
        scene("A device is deleted: the hub removes it from its groups");
        self.deleted_device(&mut team, laptop).await?;
        scene("The end: a user is removed, the group deleted");
        self.the_end(team).await
    }

    async fn register_everyone(&mut self) -> Result<(), Broke> {
        for number in 0..self.args.users {
            let user = user_name(number);
            self.register(&user, "phone", None).await?;
            if number == CAROL as u32 {
                for first in [BOB, CAROL] {
                    let authorization = self.authorization(first)?;
                    let user = self.actors[first].user.name().to_owned();
                    self.register(&user, "laptop", Some(authorization)).await?;
                }
            }
        }
        let names: Vec<&str> = self.actors.iter().map(|actor| actor.name.as_str()).collect();
        told(&names.join(", "));
        Ok(())
    }

    fn authorization(&self, of: usize) -> Result<Authorization, Broke> {
        let actor = &self.actors[of];
        actor.client.authorize_device().map_err(|error| Broke::Client {
            what: format!("{} authorises a device", actor.name),
            error,
        })
    }

    async fn register(
        &mut self,
        user: &str,
        device: &str,
        authorization: Option<Authorization>,
    ) -> Result<usize, Broke> {
        let name = format!("{user}/{device}");
        let broke = |error: ClientError| Broke::Client { what: format!("{name} registers"), error };
        let user = UserUri::of(&domain()?, user).map_err(|error| Broke::Not(error.to_string()))?;
        let client = ClientUri::of(&user, device).map_err(|error| Broke::Not(error.to_string()))?;
        let certificate = match &self.provider.endpoints.certificate {
            Some(path) => {
                Some(std::fs::read_to_string(path).map_err(|e| Broke::Provider(e.to_string()))?)
            }
            None => None,
        };
        let registration = Registration {
            client,
            server: Server { url: self.provider.endpoints.client.clone(), certificate },
            token: Vec::new(),
            authorization,
        };
        let path = self.folder.join(format!("{}.sqlite", name.replace('/', "-")));
        let home = Home::open(&path).map_err(|error| broke(error.into()))?;
        let registered = Client::register(home, registration, system_clock());
        let client =
            counted(self.tally, "register, key packages, queue tokens", &name, registered).await?;
        self.actors.push(Actor { name, user, client, expected: BTreeMap::new() });
        Ok(self.actors.len() - 1)
    }

    async fn connect_everyone(&mut self) -> Result<(), Broke> {
        let mut pairs = vec![(ALICE, BOB), (ALICE, CAROL), (BOB, CAROL)];
        pairs.extend((CAROL_2 + 1..self.actors.len()).map(|other| (ALICE, other)));
        for (one, other) in pairs {
            let (asking, asked) = (self.user(one), self.user(other));
            self.done("connect: sealed offer to each device", one, async |c| {
                c.connect(&asked).await
            })
            .await?;
            self.receive(other).await?;
            let request = self.actors[other].client.member().requests();
            let found = request.is_ok_and(|all| all.iter().any(|it| it.from == asking));
            self.check(found, &format!("{asked} sees the request of {asking}"))?;
            self.done("accept: join with the code, give consent", other, async |c| {
                c.accept(&asking).await
            })
            .await?;
            self.receive(one).await?;
            let contact = self.actors[one].client.member().contact(&asked);
            let connected = contact.is_ok_and(|contact| contact.their_token.is_some());
            self.check(connected, &format!("{asking} has the consent of {asked}"))?;
            told(&format!("{} and {} are connected", asking.name(), asked.name()));
        }
        Ok(())
    }

    async fn a_group(&mut self) -> Result<Room, Broke> {
        let id = self
            .done("create-group", ALICE, async |c| c.create_group("team", SUITES[0], None).await)
            .await?;
        let mut team = Room { id: id.clone(), members: BTreeSet::from([ALICE]) };
        let bob = vec![self.user(BOB)];
        self.done("add-users", ALICE, async |c| c.add_users(&id, &bob).await).await?;
        team.members.extend([BOB, BOB_2]);
        told("alice made the group team and added bob with his two devices");
        self.receive(BOB).await?;
        self.is_in(BOB, &id, "welcome-info: join from a Welcome")?;
        let carol = vec![self.user(CAROL)];
        self.done("add-users", BOB, async |c| c.add_users(&id, &carol).await).await?;
        team.members.extend([CAROL, CAROL_2]);
        for carol in [CAROL, CAROL_2] {
            self.receive(carol).await?;
            self.is_in(carol, &id, "welcome-info: join from a Welcome")?;
        }
        let others: Vec<usize> = (CAROL_2 + 1..self.actors.len()).collect();
        if !others.is_empty() {
            let users: Vec<UserUri> = others.iter().map(|at| self.user(*at)).collect();
            self.receive(ALICE).await?;
            self.done("add-users", ALICE, async |c| c.add_users(&id, &users).await).await?;
            for other in others {
                self.receive(other).await?;
                self.is_in(other, &id, "welcome-info: join from a Welcome")?;
                team.members.insert(other);
            }
        }
        // bob's laptop is switched off for now
        self.talk(&team, &[BOB_2]).await?;
        Ok(team)
    }

    async fn further_device(&mut self, team: &mut Room) -> Result<usize, Broke> {
        let authorization = self.authorization(ALICE)?;
        let laptop = self.register("alice", "laptop", Some(authorization)).await?;
        self.is_in(laptop, &team.id, "external-commit-info, join-group: own device")?;
        team.members.insert(laptop);
        told("alice's laptop registered and joined all her groups by itself");
        self.talk(team, &[BOB_2]).await?;
        Ok(laptop)
    }

    async fn keys_and_races(&mut self, team: &mut Room) -> Result<(), Broke> {
        let id = team.id.clone();
        self.done("update-client", CAROL, async |c| c.update(&id, false).await).await?;
        self.receive_all(team, &[BOB_2]).await?;
        self.done("update-client: new signature key", BOB, async |c| c.update(&id, true).await)
            .await?;
        self.receive_all(team, &[BOB_2]).await?;
        // carol commits; alice, who has not seen it, commits too, and is late
        self.done("update-client", CAROL, async |c| c.update(&id, false).await).await?;
        self.done("lost race: catches up from the answer", ALICE, async |c| {
            c.update(&id, false).await
        })
        .await?;
        self.receive_all(team, &[BOB_2]).await?;
        self.talk(team, &[BOB_2]).await?;
        self.receive(BOB_2).await?;
        self.is_in(BOB_2, &id, "welcome-info: late joiner, epochs later")?;
        told("bob's laptop came late, joined at its own epoch and read everything since");
        self.agree(team, &[]).await
    }

    async fn roles_and_proposals(&mut self, team: &mut Room, laptop: usize) -> Result<(), Broke> {
        let id = team.id.clone();
        let moderator = PolicyChange::Role { user: self.user(BOB), role: Role::Moderator };
        self.done("update-group: policy, roles", ALICE, async |c| {
            c.change_policy(&id, vec![moderator]).await
        })
        .await?;
        self.receive_all(team, &[]).await?;
        told("bob is a moderator");

        let refused = self.actors[CAROL].client.remove_users(&id, vec![self.user(BOB)]).await;
        let row = self.tally.row("refused: a member removes a moderator");
        row.1 += 1;
        row.2 += u32::from(matches!(refused, Err(ClientError::Refused(_))));
        self.check(
            matches!(refused, Err(ClientError::Refused(_))),
            "a member cannot remove a moderator",
        )?;

        let second = self.uri(CAROL_2);
        self.done("remove-clients", CAROL, async |c| {
            c.remove_clients(&id, vec![second.clone()]).await
        })
        .await?;
        self.receive_all(team, &[]).await?;
        team.members.remove(&CAROL_2);
        self.is_out(CAROL_2, &id)?;
        self.done("add-clients", CAROL, async |c| c.add_own_clients(&id, &[]).await).await?;
        team.members.insert(CAROL_2);
        self.receive_all(team, &[]).await?;
        self.is_in(CAROL_2, &id, "welcome-info: join from a Welcome")?;
        told("carol removed her laptop and added it again");
        self.talk(team, &[]).await?;

        self.propose(CAROL, &id, "propose: Update", NewProposal::Update).await?;
        let remove = NewProposal::Remove(second.clone());
        self.propose(BOB, &id, "propose: Remove", remove).await?;
        self.receive_all(team, &[]).await?;
        self.done("update-client: commits what is pending", ALICE, async |c| {
            c.update(&id, false).await
        })
        .await?;
        self.receive_all(team, &[]).await?;
        team.members.remove(&CAROL_2);
        self.is_out(CAROL_2, &id)?;

        let user = self.user(CAROL);
        let key_packages = self
            .done("group key packages", CAROL, async |c| c.group_key_packages(&id, &user).await)
            .await?;
        let add = key_packages.into_iter().find(|(client, _)| *client == second);
        let add = add.ok_or_else(|| Broke::Not("no KeyPackage of carol's laptop".to_owned()))?;
        self.propose(CAROL, &id, "propose: Add", NewProposal::Add(add.1)).await?;
        self.propose(BOB_2, &id, "propose: SelfRemove (leave)", NewProposal::Leave).await?;
        // alice has not seen them: the answer shows what has to be covered
        self.done("pending proposals: covered from the answer", ALICE, async |c| {
            c.update(&id, false).await
        })
        .await?;
        team.members.insert(CAROL_2);
        self.receive_all(team, &[]).await?;
        self.is_in(CAROL_2, &id, "welcome-info: join from a Welcome")?;
        team.members.remove(&BOB_2);
        self.is_out(BOB_2, &id)?;
        told("proposals to update, remove, add and leave were made and committed");

        self.done("propose: newcomer asks to be added", BOB_2, async |c| {
            c.ask_to_join(&id, &id.domain(), "team").await
        })
        .await?;
        self.receive_all(team, &[]).await?;
        self.done("update-client: commits what is pending", laptop, async |c| {
            c.update(&id, false).await
        })
        .await?;
        team.members.insert(BOB_2);
        self.receive_all(team, &[]).await?;
        self.is_in(BOB_2, &id, "welcome-info: join from a Welcome")?;
        told("bob's laptop left, asked to be let in again, and was");
        self.talk(team, &[]).await
    }

    async fn propose(
        &mut self,
        who: usize,
        group: &GroupId,
        name: &'static str,
        proposal: NewProposal,
    ) -> Result<(), Broke> {
        self.done(name, who, async |c| {
            c.operate(group, Operation::Propose { proposals: vec![proposal] }).await
        })
        .await?;
        Ok(())
    }

    async fn queues(&mut self, team: &mut Room, laptop: usize) -> Result<(), Broke> {
        let id = team.id.clone();
        self.done("update-queue-info", CAROL, async |c| c.update_queue_info(&id).await).await?;
        self.done("update-client-fanout-info: mute", laptop, async |c| c.mute(&id, true).await)
            .await?;
        team.members.remove(&laptop);
        self.speak(team, BOB, "the laptop does not hear this").await?;
        team.members.insert(laptop);
        self.receive_all(team, &[]).await?;
        self.done("update-client-fanout-info: unmute", laptop, async |c| c.mute(&id, false).await)
            .await?;
        self.talk(team, &[]).await?;
        told("alice's laptop was muted and heard nothing but what keeps it in the group");

        // carol follows her stream while bob writes
        let texts: Vec<String> = (0..self.args.messages).map(|n| format!("streamed {n}")).collect();
        let members = team.members.clone();
        for text in &texts {
            self.will_hear(&id, &members, BOB, text);
        }
        let (carol, bob) = (&self.actors[CAROL], &self.actors[BOB]);
        let from = carol.client.member().last_event().unwrap_or_default();
        let mut left = texts.len();
        let writes = async {
            for text in &texts {
                bob.client.send_text(&id, text).await?;
            }
            Ok::<(), ClientError>(())
        };
        let follows = carol.client.follow(from, |_, event| {
            left -= usize::from(matches!(event, Event::Message { .. }));
            left > 0
        });
        let both = async {
            tokio::try_join!(writes, follows)?;
            Ok(())
        };
        let limited = async {
            tokio::time::timeout(STREAM_TIMEOUT, both).await.unwrap_or_else(|_| {
                Err(ClientError::Invalid("the stream did not bring all in time".to_owned()))
            })
        };
        counted(self.tally, "stream: followed with acknowledgements", "carol/phone", limited)
            .await?;
        told("carol heard bob over her stream");
        self.heard(team, &[]).await
    }

    async fn restart(&mut self, team: &Room) -> Result<(), Broke> {
        let id = team.id.clone();
        self.provider.kill()?;
        let members = team.members.clone();
        self.will_hear(&id, &members, CAROL, "sent while the provider was down");
        let (alice, carol) = (&self.actors[ALICE].client, &self.actors[CAROL].client);
        let provider = &mut self.provider;
        let sends = carol.send_text(&id, "sent while the provider was down");
        let restarts = provider.start_again();
        let (sent, restarted) = tokio::join!(sends, restarts);
        restarted?;
        let row = "retried until answered, delivered once";
        counted(self.tally, row, "carol/phone", async { sent }).await?;
        let update = alice.update(&id, false);
        counted(self.tally, "update-client", "alice/phone", update).await?;
        let row = self.tally.row("provider killed and restarted");
        (row.1, row.2) = (row.1 + 1, row.2 + 1);
        told("carol's message, sent while it was down, arrived once");
        self.heard(team, &[]).await?;
        self.talk(team, &[]).await
    }

    async fn resync(&mut self, team: &mut Room) -> Result<(), Broke> {
        let id = team.id.clone();
        self.receive_all(team, &[]).await?;
        self.done("resync-client", BOB, async |c| c.resync(&id).await).await?;
        told("bob's phone entered the group anew");
        self.talk(team, &[]).await
    }

    async fn doors(&mut self) -> Result<(), Broke> {
        let club = self
            .done("create-group", CAROL, async |c| c.create_group("club", SUITES[1], None).await)
            .await?;
        let mut room = Room { id: club.clone(), members: BTreeSet::from([CAROL]) };
        let code = self
            .done("update-group: a joining code", CAROL, async |c| c.add_code(&club, 7).await)
            .await?;
        let hub = club.domain();
        let wrong = self.actors[ALICE].client.join(&club, &hub, "club", Some([7; 32])).await;
        let refused = matches!(wrong, Err(ClientError::Refused(_)));
        let row = self.tally.row("refused: a wrong joining code");
        (row.1, row.2) = (row.1 + 1, row.2 + u32::from(refused));
        self.check(refused, "nobody joins with a wrong code")?;
        self.done("join-group: joining code", ALICE, async |c| {
            c.join(&club, &club.domain(), "club", Some(code)).await
        })
        .await?;
        room.members.insert(ALICE);
        self.receive_all(&room, &[]).await?;
        let open = PolicyChange::Join(JoinPolicy::Open);
        self.done("update-group: policy, roles", CAROL, async |c| {
            c.change_policy(&club, vec![open]).await
        })
        .await?;
        self.done("join-group: open group", BOB, async |c| {
            c.join(&club, &club.domain(), "club", None).await
        })
        .await?;
        room.members.insert(BOB);
        told("alice joined carol's club with a code, bob after it was opened (ciphersuite 2)");
        self.receive_all(&room, &[]).await?;
        self.talk(&room, &[]).await
    }

    async fn deleted_device(&mut self, team: &mut Room, laptop: usize) -> Result<(), Broke> {
        let id = team.id.clone();
        let uri = self.uri(laptop);
        self.done("device deleted", ALICE, async |c| c.delete_device(&uri).await).await?;
        team.members.remove(&laptop);
        // the hub's proposal comes through the queue
        let deadline = Instant::now() + HUB_TIMEOUT;
        while self.view(BOB, &id)?.pending == 0 {
            if Instant::now() > deadline {
                return Err(Broke::Not("the hub proposed no removal of the device".to_owned()));
            }
            let wait = async |c: &Client| c.receive(2_000).await;
            self.done("receive: long poll", BOB, wait).await?;
        }
        self.done("removal by the hub: covered and committed", BOB, async |c| {
            c.update(&id, false).await
        })
        .await?;
        self.receive_all(team, &[]).await?;
        let gone = self.view(CAROL, &id)?.members.iter().all(|member| member.client != uri);
        self.check(gone, "the deleted device is out of the group")?;
        told("alice deleted her laptop; the hub proposed its removal and bob committed it");
        self.talk(team, &[]).await
    }

    async fn the_end(&mut self, mut team: Room) -> Result<(), Broke> {
        let id = team.id.clone();
        let carol = vec![self.user(CAROL)];
        self.done("remove-users", BOB, async |c| c.remove_users(&id, carol).await).await?;
        self.receive_all(&team, &[]).await?;
        for at in [CAROL, CAROL_2] {
            self.is_out(at, &id)?;
            team.members.remove(&at);
        }
        self.talk(&team, &[]).await?;
        self.done("delete-group", ALICE, async |c| c.delete_group(&id).await).await?;
        self.receive_all(&team, &[]).await?;
        for at in team.members.clone() {
            let state = self.view(at, &id)?.state;
            let gone = matches!(state, GroupState::Deleted | GroupState::Left);
            let name = self.actors[at].name.clone();
            self.check(gone, &format!("{name} knows that the group is deleted"))?;
        }
        told("bob removed carol, and alice deleted the group");
        self.no_complaints()
    }

    /// A round of messages by members at random, and what everybody but the `absent` shows of it.
    async fn talk(&mut self, room: &Room, absent: &[usize]) -> Result<(), Broke> {
        self.receive_all(room, absent).await?;
        let speakers: Vec<usize> =
            room.members.iter().copied().filter(|at| !absent.contains(at)).collect();
        for _ in 0..self.args.messages {
            let who = speakers[self.random.random_range(0..speakers.len())];
            self.said += 1;
            let text = format!("message {} of {}", self.said, self.actors[who].name);
            self.speak(room, who, &text).await?;
        }
        self.heard(room, absent).await
    }

    async fn speak(&mut self, room: &Room, who: usize, text: &str) -> Result<(), Broke> {
        let members = room.members.clone();
        self.will_hear(&room.id, &members, who, text);
        self.done("send-message", who, async |c| c.send_text(&room.id, text).await).await?;
        Ok(())
    }

    fn will_hear(&mut self, group: &GroupId, members: &BTreeSet<usize>, who: usize, text: &str) {
        let sender = self.uri(who);
        for at in members.iter().filter(|at| **at != who) {
            let said = self.actors[*at].expected.entry(group.clone()).or_default();
            said.push((sender.clone(), text.to_owned()));
        }
    }

    /// Everybody but the `absent` shows exactly what was said, in order, and is in the same epoch.
    async fn heard(&mut self, room: &Room, absent: &[usize]) -> Result<(), Broke> {
        self.receive_all(room, absent).await?;
        let mut copies = 0;
        for at in room.members.iter().filter(|at| !absent.contains(at)) {
            let actor = &self.actors[*at];
            let shown = shown(actor, &room.id)?;
            let expected = actor.expected.get(&room.id).cloned().unwrap_or_default();
            if shown != expected {
                let at = shown.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                return Err(Broke::Not(format!(
                    "{} shows {} messages where {} were sent to it; the first difference is at {at}: {:?} and not {:?}; its last events: {:?}",
                    actor.name,
                    shown.len(),
                    expected.len(),
                    shown.get(at),
                    expected.get(at),
                    last_events(actor),
                )));
            }
            copies += shown.len();
        }
        self.agree(room, absent).await?;
        println!("    ✓ {copies} decrypted copies are as they were sent");
        Ok(())
    }

    async fn agree(&mut self, room: &Room, absent: &[usize]) -> Result<(), Broke> {
        let mut first: Option<(usize, Vec<u8>)> = None;
        for at in room.members.iter().copied().filter(|at| !absent.contains(at)) {
            let view = self.view(at, &room.id)?;
            match &first {
                None => first = Some((at, view.authenticator)),
                Some((other, authenticator)) => {
                    let (one, two) = (&self.actors[*other], &self.actors[at]);
                    if *authenticator != view.authenticator {
                        return Err(Broke::Not(format!(
                            "{} and {} are not in the same epoch ({:?}, {:?}); their last events: {:?}, {:?}",
                            one.name,
                            two.name,
                            self.view(*other, &room.id)?.epoch,
                            view.epoch,
                            last_events(one),
                            last_events(two),
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    fn no_complaints(&self) -> Result<(), Broke> {
        for actor in &self.actors {
            let events = events(actor)?;
            let bad = events.iter().find(|event| {
                matches!(
                    event,
                    Event::Misbehaviour { .. } | Event::Lost { .. } | Event::Unreadable { .. }
                )
            });
            if let Some(bad) = bad {
                return Err(Broke::Not(format!("{} complains: {bad:?}", actor.name)));
            }
        }
        Ok(())
    }

    async fn receive_all(&mut self, room: &Room, absent: &[usize]) -> Result<(), Broke> {
        for at in room.members.clone() {
            if !absent.contains(&at) {
                self.receive(at).await?;
            }
        }
        Ok(())
    }

    async fn receive(&mut self, who: usize) -> Result<(), Broke> {
        self.done("receive: long poll", who, async |c| c.receive(0).await).await?;
        Ok(())
    }

    /// Lets a client do something, and counts it.
    async fn done<T>(
        &mut self,
        name: &'static str,
        who: usize,
        act: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, Broke> {
        let actor = &self.actors[who];
        counted(self.tally, name, &actor.name, act(&actor.client)).await
    }

    fn is_in(&mut self, who: usize, group: &GroupId, name: &'static str) -> Result<(), Broke> {
        let view = self.view(who, group);
        let inside = view.as_ref().is_ok_and(|view| view.state == GroupState::Active);
        let row = self.tally.row(name);
        (row.1, row.2) = (row.1 + 1, row.2 + u32::from(inside));
        let actor = &self.actors[who];
        self.check(
            inside,
            &format!("{} is in the group (its last events: {:?})", actor.name, last_events(actor)),
        )
    }

    fn is_out(&self, who: usize, group: &GroupId) -> Result<(), Broke> {
        let out = self.view(who, group)?.state == GroupState::Left;
        self.check(out, &format!("{} knows that it is out", self.actors[who].name))
    }

    fn view(&self, who: usize, group: &GroupId) -> Result<crate::client::core::GroupView, Broke> {
        let actor = &self.actors[who];
        let view = actor.client.member().group(group);
        view.map_err(|error| Broke::Client {
            what: format!("{} looks at its group", actor.name),
            error: error.into(),
        })
    }

    fn user(&self, who: usize) -> UserUri {
        self.actors[who].user.clone()
    }

    fn uri(&self, who: usize) -> ClientUri {
        self.actors[who].client.member().client().clone()
    }

    fn check(&self, so: bool, what: &str) -> Result<(), Broke> {
        if so { Ok(()) } else { Err(Broke::Not(format!("not so: {what}"))) }
    }
}

fn events(actor: &Actor) -> Result<Vec<Event>, Broke> {
    let events = actor.client.member().events(0, usize::MAX);
    let events = events.map_err(|error| Broke::Client {
        what: format!("{} reads its events", actor.name),
        error: error.into(),
    })?;
    Ok(events.into_iter().map(|(_, event)| event).collect())
}

fn last_events(actor: &Actor) -> Vec<Event> {
    let mut events = events(actor).unwrap_or_default();
    events.retain(|event| !matches!(event, Event::Message { .. }));
    events.split_off(events.len().saturating_sub(3))
}

fn shown(actor: &Actor, wanted: &GroupId) -> Result<Said, Broke> {
    let said = |event| {
        let Event::Message { group, sender, text, .. } = event else { return None };
        (group == *wanted).then(|| (sender, text.unwrap_or_default()))
    };
    Ok(events(actor)?.into_iter().filter_map(said).collect())
}

fn user_name(number: u32) -> String {
    match number {
        0 => "alice".to_owned(),
        1 => "bob".to_owned(),
        2 => "carol".to_owned(),
        more => format!("user{more}"),
    }
}

fn domain() -> Result<Domain, Broke> {
    Domain::new(DOMAIN).map_err(|error| Broke::Not(error.to_string()))
}

fn scene(what: &str) {
    println!("\n{what}");
}

fn told(what: &str) {
    println!("    {what}");
}

const STREAM_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the hub may take to propose the removal of a device that was deleted.
const HUB_TIMEOUT: Duration = Duration::from_secs(60);
