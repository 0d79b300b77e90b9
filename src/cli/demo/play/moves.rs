//! The last scene: a group of members of both providers moves to the other one and home, twice: while they talk, and with
//! both providers killed in the middle of it.

use std::collections::BTreeSet;

use super::{A, ALICE, At, B, BOB, BOB_2, CAROL, CAROL_2, Play, WELCOME, told};
use crate::{
    cli::demo::{
        cast::Room,
        stage::{Broke, counted},
    },
    client::{
        Client, ClientError, Outcome,
        core::{Operation, PolicyChange},
    },
    wire::{encode, extensions::Role, ids::GroupId},
};

const MOVE: &str = "move a group";
const WHILE: &str = "send-message: while the group moves";
const SENT_ON: &str = "send-message: sent on by the old hub";
const AT_NEW: &str = "go on at the new hub";
const HOME: &str = "move it home";
const AT_HOME: &str = "go on at home";

impl Play<'_> {
    pub(super) async fn moves(&mut self) -> Result<(), Broke> {
        let crew = self.a_crew().await?;
        self.talk(&crew, &[]).await?;

        // the laptops are switched off: they do not see it
        self.moves_while(&crew, (BOB, MOVE, B), CAROL).await?;
        told("bob moved the group to b.example, while carol went on writing");
        let laptops = [BOB_2, CAROL_2];
        self.go_on(&crew, AT_NEW, &laptops).await?;
        for laptop in laptops {
            let believed = self.cast.view(laptop, &crew.id)?.hub;
            let is_late = believed == self.providers[A].domain;
            self.cast.check(is_late, "a laptop that was off does not know of the move yet")?;
            let text = self.next_text(laptop);
            self.cast.speak_as(SENT_ON, &crew, laptop, &text).await?;
        }
        self.all_know_the_hub(&crew).await?;
        told("the laptops came late, asked the old hub, and were sent on");
        self.moves_while(&crew, (BOB, HOME, A), ALICE).await?;
        self.all_know_the_hub(&crew).await?;
        self.go_on(&crew, AT_HOME, &[]).await?;
        told("bob moved it home");

        self.moves_through_kills(&crew).await?;
        self.all_know_the_hub(&crew).await?;
        self.go_on(&crew, AT_NEW, &[]).await?;
        self.moves_while(&crew, (ALICE, HOME, A), CAROL).await?;
        self.all_know_the_hub(&crew).await?;
        self.go_on(&crew, AT_HOME, &[]).await?;
        told("alice moved it home, and the conversation went on there");
        self.update(BOB, &crew, super::NEW_KEY).await?;
        self.talk(&crew, &[]).await
    }

    /// A group at a.example with alice, bob and carol, that alice and bob may move.
    async fn a_crew(&mut self) -> Result<Room, Broke> {
        let id = self.create(ALICE, "crew", A, 0).await?;
        let mut crew = Room::of(&id, [ALICE]);
        self.add(&mut crew, ALICE, &[BOB, CAROL]).await?;
        crew.members.extend([BOB_2, CAROL_2]);
        for at in [BOB, BOB_2, CAROL, CAROL_2] {
            self.cast.comes_in(at, &id, WELCOME).await?;
        }
        let admin = PolicyChange::Role { user: self.cast.user(BOB), role: Role::Admin };
        self.policy(ALICE, &id, admin).await?;
        self.cast.settle(&crew, &[]).await?;
        told("alice made a group with bob and carol, all of their devices; bob is an admin, too");
        Ok(crew)
    }

    /// `mover` moves the group to a provider while `writer` goes on writing. What it wrote is heard once and in order,
    /// wherever it was taken.
    async fn moves_while(
        &mut self,
        room: &Room,
        (mover, row, to): (usize, &'static str, usize),
        writer: usize,
    ) -> Result<(), Broke> {
        let texts: Vec<String> = (0..self.args.messages).map(|_| self.next_text(writer)).collect();
        for text in &texts {
            self.cast.will_hear(room, writer, text);
        }
        let target = self.providers[to].domain.clone();
        let across = self.cast.goes_across(mover, &At::Group(&room.id));
        let (moves, writes) = (&self.cast.actors[mover], &self.cast.actors[writer]);
        let written = async {
            let mut sent = Vec::new();
            for text in &texts {
                sent.push(writes.client.send_text(&room.id, text).await);
            }
            sent
        };
        let (moved, written) = tokio::join!(moves.client.migrate(&room.id, &target), written);
        let writer_name = writes.name.clone();
        counted(self.cast.tally, row, across, &moves.name, async { moved }).await?;
        self.cast.moved.insert(room.id.clone(), target);
        let across = self.cast.goes_across(writer, &At::Group(&room.id));
        for sent in written {
            counted(self.cast.tally, WHILE, across, &writer_name, async { sent }).await?;
        }
        Ok(())
    }

    /// alice moves the group to b.example. It goes when it has agreed, and when the group is frozen its hub goes, too;
    /// carol's message and the move wait for both.
    async fn moves_through_kills(&mut self, room: &Room) -> Result<(), Broke> {
        let id = &room.id;
        let text = self.next_text(CAROL);
        self.cast.will_hear(room, CAROL, &text);
        let target = self.providers[B].domain.clone();
        let across = self.cast.goes_across(ALICE, &At::Group(id));
        let (alice, carol) = (&self.cast.actors[ALICE], &self.cast.actors[CAROL]);
        let promised = async {
            let wanted = alice.client.member().wish_to_move(id, &target)?;
            alice.client.promise(&wanted).await
        };
        let promised = promised.await.map_err(|error| Broke::Client {
            what: format!("{} asks {target} to take the group", alice.name),
            error,
        })?;
        self.providers[B].kill()?;
        let moves = answered(&alice.client, id, Operation::Migrate { response: encode(&promised) });
        let [a, b] = &mut self.providers;
        let kills = async {
            a.until_group_leaves().await?;
            let says = carol.client.send_text(id, &text);
            let restarts = async {
                a.kill()?;
                b.start().await?;
                a.start().await
            };
            let (said, restarted) = tokio::join!(says, restarts);
            restarted.map(|()| said)
        };
        let (moved, said) = tokio::join!(moves, kills);
        let (said, carol) = (said?, carol.name.clone());
        counted(self.cast.tally, MOVE, across, &alice.name, async { moved }).await?;
        self.cast.moved.insert(id.clone(), target);
        for provider in [A, B] {
            let is_other = self.providers[provider].domain != self.cast.hub(id);
            self.cast.tally.count("provider killed and restarted", is_other, true);
        }
        let across = self.cast.goes_across(CAROL, &At::Group(id));
        let row = "retried until answered, delivered once";
        counted(self.cast.tally, row, across, &carol, async { said }).await?;
        told("both providers were killed in the middle of a move, and it came to its end once");
        Ok(())
    }

    /// Members of both providers write, one after the other, and everybody but the `absent` hears them.
    async fn go_on(
        &mut self,
        room: &Room,
        row: &'static str,
        absent: &[usize],
    ) -> Result<(), Broke> {
        self.cast.settle(room, absent).await?;
        for _ in 0..self.args.messages.div_ceil(2) {
            for who in [BOB, ALICE] {
                let text = self.next_text(who);
                self.cast.speak_as(row, room, who, &text).await?;
            }
        }
        self.cast.compare(room, absent).await
    }

    /// Everybody has heard everything, and knows where the group is.
    async fn all_know_the_hub(&mut self, room: &Room) -> Result<(), Broke> {
        self.cast.compare(room, &[]).await?;
        let hub = self.cast.hub(&room.id);
        let known: Result<BTreeSet<_>, Broke> =
            room.members.iter().map(|at| Ok(self.cast.view(*at, &room.id)?.hub)).collect();
        let what = format!("everybody knows that {hub} hosts the group");
        self.cast.check(known? == BTreeSet::from([hub]), &what)
    }
}

/// Gets a request answered, if need be by asking again: it is kept.
async fn answered(
    client: &Client,
    group: &GroupId,
    operation: Operation,
) -> Result<Outcome, ClientError> {
    match client.operate(group, operation).await {
        Err(ClientError::Unanswered { .. }) => match client.resume().await?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(Outcome::AlreadySo),
        },
        outcome => outcome,
    }
}
