//! Who plays in the demo, and what they must know: everything that was said to them, in order, and the group as
//! everyone else has it. What goes from one provider to another takes its time, so it is waited for, with a limit.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use super::stage::{Broke, Provider, Tally, counted};
use crate::{
    client::{
        Authorization, Client, ClientError, Registration,
        core::{Event, GroupState, GroupView, Home},
        system_clock,
    },
    wire::ids::{ClientUri, Domain, GroupId, UserUri},
};

/// What a client is to show of a group: who said what, in order.
type Said = Vec<(ClientUri, String)>;

pub(super) struct Actor {
    /// alice@a.example/phone
    pub name: String,
    pub user: UserUri,
    pub client: Client,
    expected: BTreeMap<GroupId, Said>,
}

/// A group and who is in it, by number.
pub(super) struct Room {
    pub id: GroupId,
    pub members: BTreeSet<usize>,
    /// Those that get no messages of it.
    pub muted: BTreeSet<usize>,
}

impl Room {
    pub fn of(id: &GroupId, members: impl IntoIterator<Item = usize>) -> Self {
        Self { id: id.clone(), members: members.into_iter().collect(), muted: BTreeSet::new() }
    }
}

/// Where something is done: it is counted as going to another provider where that is not the doer's own.
pub(super) enum At<'a> {
    Home,
    Group(&'a GroupId),
    User(&'a UserUri),
}

/// Everyone, and the count of what they did.
pub(super) struct Cast<'a> {
    pub actors: Vec<Actor>,
    pub tally: &'a mut Tally,
    /// Who hosts the groups that are not where their ids say.
    pub moved: BTreeMap<GroupId, Domain>,
}

impl Cast<'_> {
    /// Registers a client of `provider`; gives its number.
    pub async fn register(
        &mut self,
        folder: &Path,
        provider: &Provider,
        (user, device): (&str, &str),
        authorization: Option<Authorization>,
    ) -> Result<usize, Broke> {
        let name = format!("{user}@{}/{device}", provider.domain);
        let not = |error: crate::wire::ids::IdError| Broke::Not(error.to_string());
        let user = UserUri::of(&provider.domain, user).map_err(not)?;
        let client = ClientUri::of(&user, device).map_err(not)?;
        let registration =
            Registration { client, server: provider.server()?, token: Vec::new(), authorization };
        let path = folder.join(format!("{}-{device}.sqlite", user.name()));
        let home = Home::open(&path).map_err(|error| Broke::Client {
            what: format!("{name} registers"),
            error: error.into(),
        })?;
        let registers = Client::register(home, registration, system_clock());
        let row = "register, key packages, queue tokens";
        let client = counted(self.tally, row, false, &name, registers).await?;
        self.actors.push(Actor { name, user, client, expected: BTreeMap::new() });
        Ok(self.actors.len() - 1)
    }

    pub fn authorization(&self, of: usize) -> Result<Authorization, Broke> {
        let actor = &self.actors[of];
        actor.client.authorize_device().map_err(|error| Broke::Client {
            what: format!("{} authorises a device", actor.name),
            error,
        })
    }

    /// Lets a client do something, and counts it.
    pub async fn done<T>(
        &mut self,
        name: &'static str,
        who: usize,
        at: At<'_>,
        act: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, Broke> {
        let across = self.goes_across(who, &at);
        let actor = &self.actors[who];
        counted(self.tally, name, across, &actor.name, act(&actor.client)).await
    }

    /// Lets a client do in a group what must be refused, and counts that.
    pub async fn refused<T>(
        &mut self,
        name: &'static str,
        who: usize,
        group: &GroupId,
        act: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<(), Broke> {
        let refused = matches!(act(&self.actors[who].client).await, Err(ClientError::Refused(_)));
        self.is(name, who, &At::Group(group), refused, &format!("{name} ({})", self.name(who)))
    }

    /// Counts whether something is as it should be.
    pub fn is(
        &mut self,
        name: &'static str,
        who: usize,
        at: &At<'_>,
        so: bool,
        what: &str,
    ) -> Result<(), Broke> {
        let across = self.goes_across(who, at);
        self.tally.count(name, across, so);
        self.check(so, what)
    }

    pub fn goes_across(&self, who: usize, at: &At<'_>) -> bool {
        let own = self.actors[who].user.domain();
        let theirs: Domain = match at {
            At::Home => return false,
            At::Group(group) => self.hub(group),
            At::User(user) => user.domain(),
        };
        own != theirs
    }

    pub fn hub(&self, group: &GroupId) -> Domain {
        self.moved.get(group).cloned().unwrap_or_else(|| group.domain())
    }

    pub async fn receive(&mut self, who: usize, wait_ms: u32) -> Result<(), Broke> {
        self.done("receive: long poll", who, At::Home, async |c| c.receive(wait_ms).await).await?;
        Ok(())
    }

    /// Lets a client receive until `so`.
    pub async fn wait_for(
        &mut self,
        who: usize,
        what: &str,
        mut so: impl FnMut(&Actor) -> bool,
    ) -> Result<(), Broke> {
        let deadline = Instant::now() + TIMEOUT;
        let mut wait_ms = 0;
        loop {
            self.receive(who, wait_ms).await?;
            let actor = &self.actors[who];
            if so(actor) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Broke::Not(format!(
                    "not so in time: {} {what}; its last events: {:?}",
                    actor.name,
                    last_events(actor)
                )));
            }
            wait_ms = 500;
        }
    }

    /// Waits until a client is in a group, which it came into by `name`.
    pub async fn comes_in(
        &mut self,
        who: usize,
        group: &GroupId,
        name: &'static str,
    ) -> Result<(), Broke> {
        let waited = self.wait_for(who, "is in the group", |actor| is_active(actor, group)).await;
        self.tally.count(name, self.goes_across(who, &At::Group(group)), waited.is_ok());
        waited
    }

    /// Waits until a client knows that it is out of a group.
    pub async fn goes_out(&mut self, who: usize, group: &GroupId) -> Result<(), Broke> {
        self.wait_for(who, "knows that it is out of the group", |actor| {
            let view = actor.client.member().group(group);
            view.is_ok_and(|it| matches!(it.state, GroupState::Left | GroupState::Deleted))
        })
        .await
    }

    /// Notes what everyone in a room is to hear.
    pub fn will_hear(&mut self, room: &Room, who: usize, text: &str) {
        let sender = self.uri(who);
        for at in room.members.iter().filter(|at| **at != who && !room.muted.contains(at)) {
            let said = self.actors[*at].expected.entry(room.id.clone()).or_default();
            said.push((sender.clone(), text.to_owned()));
        }
    }

    pub async fn speak(&mut self, room: &Room, who: usize, text: &str) -> Result<(), Broke> {
        self.speak_as("send-message", room, who, text).await
    }

    pub async fn speak_as(
        &mut self,
        row: &'static str,
        room: &Room,
        who: usize,
        text: &str,
    ) -> Result<(), Broke> {
        self.will_hear(room, who, text);
        self.done(row, who, At::Group(&room.id), async |c| c.send_text(&room.id, text).await)
            .await?;
        Ok(())
    }

    /// Waits until everybody but the `absent` has heard what was said and is in the same epoch.
    pub async fn settle(&mut self, room: &Room, absent: &[usize]) -> Result<(), Broke> {
        let deadline = Instant::now() + TIMEOUT;
        let present: Vec<usize> =
            room.members.iter().copied().filter(|at| !absent.contains(at)).collect();
        let mut late: Vec<usize> = present.clone();
        loop {
            for at in std::mem::take(&mut late) {
                self.receive(at, 0).await?;
            }
            let views: Vec<GroupView> =
                present.iter().map(|at| self.view(*at, &room.id)).collect::<Result<_, _>>()?;
            let newest = views.iter().max_by_key(|view| view.epoch).map(|it| &it.authenticator);
            for (at, view) in present.iter().zip(&views) {
                let behind = Some(&view.authenticator) != newest;
                if behind || self.heard(*at, &room.id)?.is_none() {
                    late.push(*at);
                }
            }
            let Some(first) = late.first().copied() else { return Ok(()) };
            if Instant::now() > deadline {
                let epochs: Vec<_> = views.iter().map(|view| view.epoch).collect();
                let actor = &self.actors[first];
                let (shown, expected) = (
                    shown(actor, &room.id)?.len(),
                    actor.expected.get(&room.id).map_or(0, Vec::len),
                );
                return Err(Broke::Not(format!(
                    "{} is behind: {shown} of {expected} messages, epochs {epochs:?}; its last events: {:?}",
                    actor.name,
                    last_events(actor)
                )));
            }
            // what is missing is on its way between the providers
            self.receive(first, 200).await?;
        }
    }

    /// How many messages of a group a client shows where they are those that were sent to it, in order; none where
    /// some are still missing.
    fn heard(&self, who: usize, group: &GroupId) -> Result<Option<usize>, Broke> {
        let actor = &self.actors[who];
        let shown = shown(actor, group)?;
        let expected = actor.expected.get(group).map(Vec::as_slice).unwrap_or_default();
        let same = shown.iter().zip(expected).take_while(|(a, b)| a == b).count();
        if same < shown.len() {
            return Err(Broke::Not(format!(
                "{} shows {} messages where {} were sent to it; the first difference is at {same}: {:?} and not {:?}; \
                 its last events: {:?}",
                actor.name,
                shown.len(),
                expected.len(),
                shown.get(same),
                expected.get(same),
                last_events(actor),
            )));
        }
        Ok((shown.len() == expected.len()).then_some(same))
    }

    /// Everybody but the `absent` shows exactly what was said, in order, and is in the same epoch.
    pub async fn compare(&mut self, room: &Room, absent: &[usize]) -> Result<(), Broke> {
        self.settle(room, absent).await?;
        let (mut copies, mut across) = (0, 0);
        for at in room.members.iter().filter(|at| !absent.contains(at)) {
            let shown = self.heard(*at, &room.id)?.unwrap_or_default();
            copies += shown;
            if self.goes_across(*at, &At::Group(&room.id)) {
                across += shown;
            }
        }
        println!(
            "    ✓ {copies} decrypted copies are as they were sent, {across} of them at another provider's clients"
        );
        Ok(())
    }

    pub fn no_complaints(&self) -> Result<(), Broke> {
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

    pub fn view(&self, who: usize, group: &GroupId) -> Result<GroupView, Broke> {
        let actor = &self.actors[who];
        let view = actor.client.member().group(group);
        view.map_err(|error| Broke::Client {
            what: format!("{} looks at its group", actor.name),
            error: error.into(),
        })
    }

    pub fn name(&self, who: usize) -> String {
        self.actors[who].name.clone()
    }

    pub fn user(&self, who: usize) -> UserUri {
        self.actors[who].user.clone()
    }

    pub fn uri(&self, who: usize) -> ClientUri {
        self.actors[who].client.member().client().clone()
    }

    pub fn check(&self, so: bool, what: &str) -> Result<(), Broke> {
        if so { Ok(()) } else { Err(Broke::Not(format!("not so: {what}"))) }
    }
}

fn is_active(actor: &Actor, group: &GroupId) -> bool {
    let view = actor.client.member().group(group);
    view.is_ok_and(|view| view.state == GroupState::Active)
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

/// How long something may take to come from one provider to the other, or a hub to propose a removal.
const TIMEOUT: Duration = Duration::from_secs(60);
