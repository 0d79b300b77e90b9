//! The play: what happens in the demo, scene by scene. Who plays is in [`super::cast`].

mod moves;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Args,
    cast::{At, Cast, Room},
    stage::{Broke, Provider, Tally, counted},
};
use crate::{
    client::{
        ClientError,
        core::{Event, GroupState, NewProposal, Operation, PolicyChange, SUITES},
    },
    wire::{
        extensions::{JoinPolicy, Role},
        ids::{GroupId, UserUri},
    },
};

pub(super) struct Play<'a> {
    args: &'a Args,
    folder: PathBuf,
    cast: Cast<'a>,
    providers: [Provider; 2],
    random: StdRng,
    said: u32,
}

// the numbers of the first five clients; bob is a user of b.example, alice and carol are of a.example
const ALICE: usize = 0;
const BOB: usize = 1;
const CAROL: usize = 2;
const BOB_2: usize = 3;
const CAROL_2: usize = 4;
const A: usize = 0;
const B: usize = 1;

const WELCOME: &str = "welcome-info: join from a Welcome";
const COMMIT_PENDING: &str = "update-client: commits what is pending";

impl<'a> Play<'a> {
    pub fn new(
        args: &'a Args,
        folder: &Path,
        tally: &'a mut Tally,
        providers: [Provider; 2],
    ) -> Self {
        Self {
            args,
            folder: folder.to_owned(),
            cast: Cast { actors: Vec::new(), tally, moved: BTreeMap::new() },
            providers,
            random: StdRng::seed_from_u64(args.seed),
            said: 0,
        }
    }

    pub async fn all(&mut self) -> Result<(), Broke> {
        scene("Users and devices register at their providers and publish KeyPackages");
        self.register_everyone().await?;
        scene("They connect across providers: first contact, consent");
        self.connect_everyone().await?;
        scene(
            "A group at a.example with users of both: messages both ways, a joiner who comes late",
        );
        let mut team = self.a_group().await?;
        scene("Further devices join by themselves, one of them from b.example");
        let (laptop, tablet) = self.further_devices(&mut team).await?;
        scene("New keys, lost races, a late joiner");
        self.keys_and_races(&mut team).await?;
        scene("Roles, proposals of every kind");
        self.roles_and_proposals(&mut team, laptop).await?;
        scene("Queues: a new address, muting, streams");
        self.queues(&mut team, &[laptop, tablet]).await?;
        scene("Each provider is killed (SIGKILL) with messages on their way, and starts again");
        self.restarts(&team).await?;
        scene("Devices resync; others join with a code, or where all may");
        self.resync(&team).await?;
        self.doors().await?;
        scene("The other way round: groups at b.example with guests of a.example");
        self.lodge().await?;
        scene("Devices are deleted: the hub removes them from its groups");
        self.deleted_devices(&mut team, [(ALICE, laptop), (BOB, tablet)]).await?;
        scene("Users of both providers are removed, the group deleted");
        self.the_end(team).await?;
        scene(
            "The end: a group moves to the other provider in the middle of a conversation, and home",
        );
        self.moves().await?;
        self.cast.no_complaints()
    }

    async fn register_everyone(&mut self) -> Result<(), Broke> {
        for number in 0..self.args.users {
            let user = user_name(number);
            let at = if number % 2 == 0 { A } else { B };
            let provider = &self.providers[at];
            self.cast.register(&self.folder, provider, (&user, "phone"), None).await?;
            if number == CAROL as u32 {
                self.further(BOB, "laptop").await?;
                self.further(CAROL, "laptop").await?;
            }
        }
        let names: Vec<&str> = self.cast.actors.iter().map(|it| it.name.as_str()).collect();
        told(&names.join(", "));
        Ok(())
    }

    /// Registers a further device of a user.
    async fn further(&mut self, of: usize, device: &str) -> Result<usize, Broke> {
        let authorization = self.cast.authorization(of)?;
        let user = self.cast.user(of);
        let domain = user.domain();
        let at = if self.providers[A].domain == domain { A } else { B };
        let device = (user.name(), device);
        let provider = &self.providers[at];
        self.cast.register(&self.folder, provider, device, Some(authorization)).await
    }

    async fn connect_everyone(&mut self) -> Result<(), Broke> {
        let mut pairs = vec![(ALICE, BOB), (ALICE, CAROL), (BOB, CAROL)];
        pairs.extend((CAROL_2 + 1..self.cast.actors.len()).map(|other| (ALICE, other)));
        for (one, other) in pairs {
            let (asking, asked) = (self.cast.user(one), self.cast.user(other));
            self.cast
                .done("connect: sealed offer to each device", one, At::User(&asked), async |c| {
                    c.connect(&asked).await
                })
                .await?;
            self.cast
                .wait_for(other, &format!("sees the request of {asking}"), |actor| {
                    let requests = actor.client.member().requests();
                    requests.is_ok_and(|all| all.iter().any(|it| it.from == asking))
                })
                .await?;
            self.cast
                .done("accept: join with the code, consent", other, At::User(&asking), async |c| {
                    c.accept(&asking).await
                })
                .await?;
            self.cast
                .wait_for(one, &format!("has the consent of {asked}"), |actor| {
                    let contact = actor.client.member().contact(&asked);
                    contact.is_ok_and(|contact| contact.their_token.is_some())
                })
                .await?;
            told(&format!("{} and {} are connected", called(&asking), called(&asked)));
        }
        Ok(())
    }

    async fn a_group(&mut self) -> Result<Room, Broke> {
        let id = self.create(ALICE, "team", A, 0).await?;
        let mut team = Room::of(&id, [ALICE]);
        self.add(&mut team, ALICE, &[BOB]).await?;
        team.members.insert(BOB_2);
        self.cast.comes_in(BOB, &id, WELCOME).await?;
        told("alice made the group team and added bob of b.example with his two devices");
        self.add(&mut team, BOB, &[CAROL]).await?;
        team.members.insert(CAROL_2);
        for carol in [CAROL, CAROL_2] {
            self.cast.comes_in(carol, &id, WELCOME).await?;
        }
        told("bob, a guest there, added carol of a.example");
        let others: Vec<usize> = (CAROL_2 + 1..self.cast.actors.len()).collect();
        if !others.is_empty() {
            self.cast.receive(ALICE, 0).await?;
            self.add(&mut team, ALICE, &others).await?;
            for other in others {
                self.cast.comes_in(other, &id, WELCOME).await?;
            }
        }
        // bob's laptop is switched off for now
        self.talk(&team, &[BOB_2]).await?;
        Ok(team)
    }

    async fn create(
        &mut self,
        who: usize,
        name: &str,
        at: usize,
        suite: usize,
    ) -> Result<GroupId, Broke> {
        let hub = self.providers[at].domain.clone();
        let across = self.cast.user(who).domain() != hub;
        let actor = &self.cast.actors[who];
        let creates = actor.client.create_group_at(&hub, name, SUITES[suite], None);
        counted(self.cast.tally, "create-group", across, &actor.name, creates).await
    }

    /// Adds users to a room; `whom` are the first clients of theirs.
    async fn add(&mut self, room: &mut Room, who: usize, whom: &[usize]) -> Result<(), Broke> {
        let users: Vec<UserUri> = whom.iter().map(|at| self.cast.user(*at)).collect();
        let id = room.id.clone();
        self.cast
            .done("add-users", who, At::Group(&id), async |c| c.add_users(&id, &users).await)
            .await?;
        room.members.extend(whom);
        Ok(())
    }

    async fn further_devices(&mut self, team: &mut Room) -> Result<(usize, usize), Broke> {
        let row = "external-commit-info, join-group: own device";
        let laptop = self.further(ALICE, "laptop").await?;
        self.cast.comes_in(laptop, &team.id, row).await?;
        let tablet = self.further(BOB, "tablet").await?;
        self.cast.comes_in(tablet, &team.id, row).await?;
        team.members.extend([laptop, tablet]);
        told("alice's laptop and bob's tablet registered and joined all their users' groups");
        self.talk(team, &[BOB_2]).await?;
        Ok((laptop, tablet))
    }

    async fn update(&mut self, who: usize, room: &Room, row: &'static str) -> Result<(), Broke> {
        let rotate = row == NEW_KEY;
        self.cast
            .done(row, who, At::Group(&room.id), async |c| c.update(&room.id, rotate).await)
            .await?;
        Ok(())
    }

    async fn keys_and_races(&mut self, team: &mut Room) -> Result<(), Broke> {
        for (who, row) in [(CAROL, UPDATE), (BOB, UPDATE), (BOB, NEW_KEY)] {
            self.update(who, team, row).await?;
            self.cast.settle(team, &[BOB_2]).await?;
        }
        for late in [ALICE, BOB] {
            // carol commits; somebody who has not seen it commits, too, and is late
            self.update(CAROL, team, UPDATE).await?;
            self.update(late, team, "lost race: catches up from the answer").await?;
            self.cast.settle(team, &[BOB_2]).await?;
        }
        self.talk(team, &[BOB_2]).await?;
        self.cast.comes_in(BOB_2, &team.id, "welcome-info: late joiner, epochs later").await?;
        told("bob's laptop came late, joined at its own epoch and read everything since");
        self.cast.compare(team, &[]).await
    }

    async fn roles_and_proposals(&mut self, team: &mut Room, laptop: usize) -> Result<(), Broke> {
        let id = team.id.clone();
        let moderator = PolicyChange::Role { user: self.cast.user(BOB), role: Role::Moderator };
        self.policy(ALICE, &id, moderator).await?;
        self.cast.settle(team, &[]).await?;
        told("bob is a moderator");
        let bob = vec![self.cast.user(BOB)];
        self.cast
            .refused("refused: a member removes a moderator", CAROL, &id, async |c| {
                c.remove_users(&id, bob).await
            })
            .await?;

        let second = self.cast.uri(CAROL_2);
        self.cast
            .done("remove-clients", CAROL, At::Group(&id), async |c| {
                c.remove_clients(&id, vec![second.clone()]).await
            })
            .await?;
        team.members.remove(&CAROL_2);
        self.cast.goes_out(CAROL_2, &id).await?;
        self.cast.settle(team, &[]).await?;
        for (who, device) in [(CAROL, CAROL_2), (BOB, BOB_2)] {
            if who == BOB {
                let uri = self.cast.uri(device);
                self.cast
                    .done("remove-clients", who, At::Group(&id), async |c| {
                        c.remove_clients(&id, vec![uri]).await
                    })
                    .await?;
                team.members.remove(&device);
                self.cast.goes_out(device, &id).await?;
            }
            self.cast
                .done("add-clients", who, At::Group(&id), async |c| {
                    c.add_own_clients(&id, &[]).await
                })
                .await?;
            team.members.insert(device);
            self.cast.comes_in(device, &id, WELCOME).await?;
            self.cast.settle(team, &[]).await?;
        }
        told("carol and bob each removed their laptop and added it again");
        self.talk(team, &[]).await?;

        self.propose(CAROL, &id, "propose: Update", NewProposal::Update).await?;
        self.propose(BOB, &id, "propose: Remove", NewProposal::Remove(second.clone())).await?;
        self.cast.receive(ALICE, 0).await?;
        self.update(ALICE, team, COMMIT_PENDING).await?;
        team.members.remove(&CAROL_2);
        self.cast.goes_out(CAROL_2, &id).await?;
        self.cast.settle(team, &[]).await?;

        let carol = self.cast.user(CAROL);
        let key_packages = self
            .cast
            .done("group key packages", CAROL, At::User(&carol), async |c| {
                c.group_key_packages(&id, &carol).await
            })
            .await?;
        let add = key_packages.into_iter().find(|(client, _)| *client == second);
        let add = add.ok_or_else(|| Broke::Not("no KeyPackage of carol's laptop".to_owned()))?;
        self.propose(CAROL, &id, "propose: Add", NewProposal::Add(add.1)).await?;
        self.propose(BOB_2, &id, "propose: SelfRemove (leave)", NewProposal::Leave).await?;
        // alice has not seen them: the answer shows what has to be covered
        self.update(ALICE, team, "pending proposals: covered from the answer").await?;
        team.members.remove(&BOB_2);
        self.cast.goes_out(BOB_2, &id).await?;
        team.members.insert(CAROL_2);
        self.cast.comes_in(CAROL_2, &id, WELCOME).await?;
        self.cast.settle(team, &[]).await?;
        told("proposals to update, remove, add and leave were made at both and committed");

        self.cast
            .done("propose: newcomer asks to be added", BOB_2, At::Group(&id), async |c| {
                c.ask_to_join(&id, &id.domain(), "team").await
            })
            .await?;
        self.cast.receive(laptop, 0).await?;
        self.update(laptop, team, COMMIT_PENDING).await?;
        team.members.insert(BOB_2);
        self.cast.comes_in(BOB_2, &id, WELCOME).await?;
        told("bob's laptop left, asked to be let in again, and was");
        self.talk(team, &[]).await
    }

    async fn policy(
        &mut self,
        who: usize,
        group: &GroupId,
        change: PolicyChange,
    ) -> Result<(), Broke> {
        self.cast
            .done("update-group: policy, roles", who, At::Group(group), async |c| {
                c.change_policy(group, vec![change]).await
            })
            .await?;
        Ok(())
    }

    async fn propose(
        &mut self,
        who: usize,
        group: &GroupId,
        row: &'static str,
        proposal: NewProposal,
    ) -> Result<(), Broke> {
        self.cast
            .done(row, who, At::Group(group), async |c| {
                c.operate(group, Operation::Propose { proposals: vec![proposal] }).await
            })
            .await?;
        Ok(())
    }

    async fn queues(&mut self, team: &mut Room, quiet: &[usize]) -> Result<(), Broke> {
        let id = team.id.clone();
        for who in [CAROL, BOB] {
            self.cast
                .done("update-queue-info", who, At::Group(&id), async |c| {
                    c.update_queue_info(&id).await
                })
                .await?;
        }
        for (muted, row) in [
            (true, "update-client-fanout-info: mute"),
            (false, "update-client-fanout-info: unmute"),
        ] {
            for who in quiet {
                self.cast
                    .done(row, *who, At::Group(&id), async |c| c.mute(&id, muted).await)
                    .await?;
                if muted {
                    team.muted.insert(*who);
                } else {
                    team.muted.remove(who);
                }
            }
            if muted {
                self.cast.speak(team, BOB, "the muted do not hear this").await?;
                self.cast.speak(team, ALICE, "nor this").await?;
                self.update(CAROL, team, UPDATE).await?;
            }
            self.cast.settle(team, &[]).await?;
        }
        self.talk(team, &[]).await?;
        told(
            "alice's laptop and bob's tablet were muted and got only what keeps them in the group",
        );
        for (writer, follower) in [(BOB, CAROL), (CAROL, BOB)] {
            self.stream(team, writer, follower).await?;
        }
        self.cast.compare(team, &[]).await
    }

    /// One follows a stream while another, at the other provider, writes.
    async fn stream(&mut self, team: &Room, writer: usize, follower: usize) -> Result<(), Broke> {
        self.cast.settle(team, &[]).await?;
        let texts: Vec<String> = (0..self.args.messages).map(|n| format!("streamed {n}")).collect();
        for text in &texts {
            self.cast.will_hear(team, writer, text);
        }
        let (follows, writes) = (&self.cast.actors[follower], &self.cast.actors[writer]);
        let from = follows.client.member().last_event().unwrap_or_default();
        let mut left = texts.len();
        let written = async {
            for text in &texts {
                writes.client.send_text(&team.id, text).await?;
            }
            Ok::<(), ClientError>(())
        };
        let followed = follows.client.follow(from, |_, event| {
            left -= usize::from(matches!(event, Event::Message { .. }));
            left > 0
        });
        let both = async {
            tokio::try_join!(written, followed)?;
            Ok(())
        };
        let limited = async {
            tokio::time::timeout(STREAM_TIMEOUT, both).await.unwrap_or_else(|_| {
                Err(ClientError::Invalid("the stream did not bring all in time".to_owned()))
            })
        };
        let across = follows.user.domain() != team.id.domain();
        let row = "stream: followed with acknowledgements";
        counted(self.cast.tally, row, across, &follows.name, limited).await?;
        told(&format!("{} heard {} over its stream", follows.name, writes.name));
        Ok(())
    }

    async fn restarts(&mut self, team: &Room) -> Result<(), Broke> {
        let (hub, guest) = (A, B);
        // the hub goes while bob's message is on its way through his own provider
        self.providers[hub].kill()?;
        self.sent_meanwhile(team, BOB, hub, "sent while the hub was down").await?;
        told("bob's message, sent while the hub was down, arrived everywhere once");
        // the guest goes: what is written meanwhile waits for it at the hub
        self.providers[guest].kill()?;
        for n in 0..self.args.messages {
            self.cast.speak(team, CAROL, &format!("kept for b.example, {n}")).await?;
        }
        self.sent_meanwhile(team, BOB, guest, "sent while the own provider was down").await?;
        told("what was written while b.example was down was kept for it, and came in order");
        self.talk(team, &[]).await
    }

    /// Lets a client send while `down` starts again.
    async fn sent_meanwhile(
        &mut self,
        team: &Room,
        who: usize,
        down: usize,
        text: &str,
    ) -> Result<(), Broke> {
        self.cast.will_hear(team, who, text);
        let actor = &self.cast.actors[who];
        let sends = actor.client.send_text(&team.id, text);
        let (sent, restarted) = tokio::join!(sends, self.providers[down].start());
        restarted?;
        let across = actor.user.domain() != team.id.domain();
        let row = "retried until answered, delivered once";
        counted(self.cast.tally, row, across, &actor.name, async { sent }).await?;
        let is_other = self.providers[down].domain != team.id.domain();
        self.cast.tally.count("provider killed and restarted", is_other, true);
        self.cast.compare(team, &[]).await
    }

    async fn resync(&mut self, team: &Room) -> Result<(), Broke> {
        for who in [BOB, ALICE] {
            self.cast.settle(team, &[]).await?;
            self.cast
                .done("resync-client", who, At::Group(&team.id), async |c| c.resync(&team.id).await)
                .await?;
        }
        told("bob's and alice's phones entered the group anew");
        self.talk(team, &[]).await
    }

    async fn doors(&mut self) -> Result<(), Broke> {
        let club = self.create(CAROL, "club", A, 1).await?;
        let mut room = Room::of(&club, [CAROL]);
        let code = self
            .cast
            .done("update-group: a joining code", CAROL, At::Group(&club), async |c| {
                c.add_code(&club, 7).await
            })
            .await?;
        let hub = club.domain();
        self.cast
            .refused("refused: a wrong joining code", BOB, &club, async |c| {
                c.join(&club, &hub, "club", Some([7; 32])).await
            })
            .await?;
        self.join(BOB, &club, "join-group: joining code", Some(code)).await?;
        room.members.insert(BOB);
        self.cast.settle(&room, &[]).await?;
        self.policy(CAROL, &club, PolicyChange::Join(JoinPolicy::Open)).await?;
        for who in [ALICE, BOB_2] {
            self.join(who, &club, "join-group: open group", None).await?;
            room.members.insert(who);
            self.cast.settle(&room, &[]).await?;
        }
        told("bob joined carol's club with a code; others came when it was open (ciphersuite 2)");
        self.talk(&room, &[]).await
    }

    async fn join(
        &mut self,
        who: usize,
        group: &GroupId,
        row: &'static str,
        code: Option<[u8; 32]>,
    ) -> Result<(), Broke> {
        let name = "club";
        self.cast
            .done(row, who, At::Group(group), async |c| {
                c.join(group, &group.domain(), name, code).await
            })
            .await?;
        Ok(())
    }

    /// Groups whose hub is b.example.
    async fn lodge(&mut self) -> Result<(), Broke> {
        let id = self.create(BOB, "lodge", B, 0).await?;
        let mut lodge = Room::of(&id, [BOB]);
        self.add(&mut lodge, BOB, &[ALICE, CAROL]).await?;
        // a user is added with every device: alice's and bob's later ones are the last two
        let devices = self.cast.actors.len();
        lodge.members.extend([CAROL_2, devices - 2]);
        for at in lodge.members.clone() {
            if at != BOB {
                self.cast.comes_in(at, &id, WELCOME).await?;
            }
        }
        told("bob made a group at his own provider and added alice and carol of a.example");
        let third = CAROL_2 + 1;
        if self.args.users > 3 {
            self.cast.settle(&lodge, &[]).await?;
            self.add(&mut lodge, ALICE, &[third]).await?;
            self.cast.comes_in(third, &id, WELCOME).await?;
            told("alice, a guest there, added another user of b.example");
        }
        self.talk(&lodge, &[]).await?;

        self.propose(CAROL, &id, "propose: SelfRemove (leave)", NewProposal::Leave).await?;
        self.propose(CAROL_2, &id, "propose: SelfRemove (leave)", NewProposal::Leave).await?;
        self.cast.receive(BOB, 0).await?;
        self.update(BOB, &lodge, COMMIT_PENDING).await?;
        for carol in [CAROL, CAROL_2] {
            lodge.members.remove(&carol);
            self.cast.goes_out(carol, &id).await?;
        }
        self.cast.settle(&lodge, &[]).await?;
        told("carol, a guest there, left with both devices");
        self.talk(&lodge, &[]).await?;
        let alice = vec![self.cast.user(ALICE)];
        self.cast
            .done("remove-users", BOB, At::Group(&id), async |c| c.remove_users(&id, alice).await)
            .await?;
        for alice in [ALICE, devices - 2] {
            lodge.members.remove(&alice);
            self.cast.goes_out(alice, &id).await?;
        }
        self.talk(&lodge, &[]).await?;
        told("bob removed alice, a guest there");

        let annex = self.create(CAROL, "annex", B, 0).await?;
        let mut room = Room::of(&annex, [CAROL]);
        self.add(&mut room, CAROL, &[BOB]).await?;
        room.members.extend([BOB_2, devices - 1]);
        for bob in [BOB, BOB_2, devices - 1] {
            self.cast.comes_in(bob, &annex, WELCOME).await?;
        }
        told("carol made a group that bob's provider hosts, and added bob");
        self.talk(&room, &[]).await?;
        self.delete(CAROL, &room).await
    }

    async fn deleted_devices(
        &mut self,
        team: &mut Room,
        devices: [(usize, usize); 2],
    ) -> Result<(), Broke> {
        let id = team.id.clone();
        for (owner, device) in devices {
            let uri = self.cast.uri(device);
            self.cast
                .done("device deleted", owner, At::Home, async |c| c.delete_device(&uri).await)
                .await?;
            team.members.remove(&device);
            // a hub elsewhere is told with the next thing that it delivers, and its proposal comes through the queue
            let text = format!("{} has one device less", called(&self.cast.user(owner)));
            self.cast.speak(team, CAROL, &text).await?;
            let what = format!("is told that the hub wants {uri} removed");
            self.cast
                .wait_for(BOB, &what, |actor| {
                    actor.client.member().group(&id).is_ok_and(|view| view.pending > 0)
                })
                .await?;
            self.update(BOB, team, "removal by the hub: covered and committed").await?;
            self.cast.settle(team, &[]).await?;
            let members = self.cast.view(CAROL, &id)?.members;
            let gone = members.iter().all(|member| member.client != uri);
            self.cast.check(gone, "the deleted device is out of the group")?;
        }
        told("alice deleted her laptop and bob his tablet; the hub proposed their removal");
        self.talk(team, &[]).await
    }

    async fn the_end(&mut self, mut team: Room) -> Result<(), Broke> {
        let id = team.id.clone();
        for (who, whom) in [(BOB, [CAROL, CAROL_2]), (ALICE, [BOB, BOB_2])] {
            let users = vec![self.cast.user(whom[0])];
            self.cast
                .done("remove-users", who, At::Group(&id), async |c| {
                    c.remove_users(&id, users).await
                })
                .await?;
            for at in whom {
                team.members.remove(&at);
                self.cast.goes_out(at, &id).await?;
            }
            self.talk(&team, &[]).await?;
        }
        told("bob removed carol, alice removed bob");
        self.delete(ALICE, &team).await?;
        told("alice deleted the group");
        Ok(())
    }

    /// Deletes a group and waits until everyone knows it.
    async fn delete(&mut self, who: usize, room: &Room) -> Result<(), Broke> {
        self.cast.settle(room, &[]).await?;
        self.cast
            .done("delete-group", who, At::Group(&room.id), async |c| {
                c.delete_group(&room.id).await
            })
            .await?;
        for at in room.members.clone() {
            self.cast
                .wait_for(at, "knows that the group is deleted", |actor| {
                    let view = actor.client.member().group(&room.id);
                    view.is_ok_and(|it| matches!(it.state, GroupState::Deleted | GroupState::Left))
                })
                .await?;
        }
        Ok(())
    }

    /// A round of messages by members at random, and what everybody but the `absent` shows of it.
    async fn talk(&mut self, room: &Room, absent: &[usize]) -> Result<(), Broke> {
        self.cast.settle(room, absent).await?;
        let speakers: Vec<usize> =
            room.members.iter().copied().filter(|at| !absent.contains(at)).collect();
        for _ in 0..self.args.messages {
            let who = speakers[self.random.random_range(0..speakers.len())];
            let text = self.next_text(who);
            self.cast.speak(room, who, &text).await?;
        }
        self.cast.compare(room, absent).await
    }

    fn next_text(&mut self, who: usize) -> String {
        self.said += 1;
        format!("message {} of {}", self.said, self.cast.name(who))
    }
}

/// As people of a.example say it.
fn called(user: &UserUri) -> String {
    format!("{}@{}", user.name(), user.domain())
}

fn user_name(number: u32) -> String {
    match number {
        0 => "alice".to_owned(),
        1 => "bob".to_owned(),
        2 => "carol".to_owned(),
        3 => "dora".to_owned(),
        more => format!("user{more}"),
    }
}

fn scene(what: &str) {
    println!("\n{what}");
}

fn told(what: &str) {
    println!("    {what}");
}

const UPDATE: &str = "update-client";
const NEW_KEY: &str = "update-client: new signature key";
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);
