//! What must be so, judged from outside: by what clients are handed, what they show, and what stands on the disks.
//!
//! - **One commit per epoch**: all who are in an epoch of a group have the same one (its authenticator), and whoever hosts or follows a
//!   group, now or later, has the same at each place of its feed.
//! - **Feeds without gaps**: what a client is handed follows on what it was handed before, or says that there is a gap.
//! - **Nothing behind a removal**: a client is handed nothing of what came behind the commit that removed it.
//! - **One hub**: no two providers host a group so that both take commits.
//! - **Nothing that was answered is lost**: whoever was in the group from before a text to the end shows it, once.
//! - **Liars**: nobody is held to have lied, and where hubs remove nobody for silence nobody's removal is proposed, but who may have lied
//!   or is deleted. A commit that is taken back is none. Of who has lied in a group nothing is demanded there; all others are in one epoch
//!   again and hear each other.
//! - At the end, in bounded time: nothing waits for anybody, every member can speak in every group and is heard by all others, and who
//!   is deleted is in no group.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use openmls::prelude as mls;

use super::{
    World,
    agent::Agent,
    bounds::lacking,
    net::Handed,
    trace::Trace,
    violation::{Invariant, Violation},
};
use crate::{
    client::core::{Event, GroupState, GroupView},
    crypto,
    store::{
        Page, StoreError,
        records::{GroupHead, GroupStatus, OwnSequence},
    },
    wire::{
        decode, encode,
        ids::{ClientUri, Domain, Epoch, FeedId, GroupId, Sequence, Timestamp, UserUri},
        queueing::{QueueEntry, QueueEvent},
    },
};

/// What an application shows.
pub(super) struct Shown {
    pub by: ClientUri,
    pub events: Vec<(u64, Event)>,
    pub views: Vec<GroupView>,
}

/// Something that was said so that all others hear it.
pub(super) struct Probe {
    pub group: GroupId,
    pub by: ClientUri,
    pub text: String,
    /// Or there is no need to: its sender is not in the group any more.
    pub is_said: bool,
    /// Why not yet.
    pub left: Option<String>,
}

pub(super) struct Oracle {
    trace: Trace,
    failure: Option<Violation>,
    handed: Handed,
    /// What was handed to whom, by feed.
    feeds: BTreeMap<(ClientUri, FeedId), Feed>,
    authenticators: BTreeMap<(GroupId, Epoch), (Vec<u8>, ClientUri)>,
    /// What stands where in a group's feed, and who has it so.
    log: BTreeMap<GroupId, BTreeMap<Sequence, (Vec<u8>, Domain)>>,
    /// Up to where a provider's copy of the feed was looked at.
    looked: BTreeMap<(Domain, GroupId), Sequence>,
    texts: BTreeMap<String, Text>,
    /// Where in the group's feed a client came in, came back, was out.
    stays: BTreeMap<(ClientUri, GroupId), Stay>,
    /// By group and client: epochs that began with it coming or going, as others show it.
    changes: BTreeMap<(GroupId, ClientUri), BTreeMap<Epoch, Change>>,
    /// Where the commit stands that ended an epoch.
    commits: BTreeMap<(GroupId, Epoch), Sequence>,
    /// Commits that their hub has taken back, by where they stand.
    voids: BTreeSet<(GroupId, Sequence)>,
    /// Who may have lied in which group.
    liars: BTreeSet<(GroupId, UserUri)>,
    /// Liars whose removal is not expected: for [`super::Mutation::ForgivesLiars`].
    forgiven: BTreeSet<(GroupId, UserUri)>,
    /// Groups that a member has deleted.
    over: BTreeSet<GroupId>,
    /// Whether hubs propose the removal of nobody but liars and who is deleted.
    removes_liars_only: bool,
    deleted: BTreeSet<ClientUri>,
    may_be_deleted: BTreeSet<ClientUri>,
    suspects: BTreeSet<GroupId>,
}

#[derive(Default)]
struct Feed {
    group: Option<GroupId>,
    /// By sequence: what came before, and what it is.
    entries: BTreeMap<Sequence, (Sequence, [u8; 32])>,
    messages: BTreeSet<Sequence>,
    removed: bool,
}

struct Text {
    group: GroupId,
    by: ClientUri,
    at: Option<Sequence>,
    /// Who shows it, and when the hub accepted what that was.
    shown_to: BTreeMap<ClientUri, Timestamp>,
}

/// One client's membership of one group.
#[derive(Default)]
struct Stay {
    /// What it had been handed of the group when it showed that it had come in, come back, or lost track.
    since: Sequence,
    /// The epoch that it came in with: what came before the commit that began it is for others to read.
    epoch: Epoch,
    is_in: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Came,
    Went,
    /// A resync: out and in by one commit.
    Both,
}

impl Oracle {
    pub fn new(trace: Trace, handed: Handed, removes_liars_only: bool) -> Self {
        Self {
            handed,
            trace,
            failure: None,
            feeds: BTreeMap::new(),
            authenticators: BTreeMap::new(),
            log: BTreeMap::new(),
            looked: BTreeMap::new(),
            texts: BTreeMap::new(),
            stays: BTreeMap::new(),
            changes: BTreeMap::new(),
            commits: BTreeMap::new(),
            voids: BTreeSet::new(),
            liars: BTreeSet::new(),
            forgiven: BTreeSet::new(),
            over: BTreeSet::new(),
            removes_liars_only,
            deleted: BTreeSet::new(),
            may_be_deleted: BTreeSet::new(),
            suspects: BTreeSet::new(),
        }
    }

    fn fail(&mut self, of: Invariant, what: String) {
        self.broken(of.broken(what));
    }

    fn broken(&mut self, violation: Violation) {
        if self.failure.is_none() {
            self.trace.note(|| format!("BROKEN: {violation}"));
            self.failure = Some(violation);
        }
    }

    pub fn said(&mut self, text: &str, group: &GroupId, by: &ClientUri) {
        let (group, by) = (group.clone(), by.clone());
        let text_of = Text { group, by, at: None, shown_to: BTreeMap::new() };
        self.texts.insert(text.to_owned(), text_of);
    }

    pub fn acknowledged(&mut self, text: &str, at: Sequence) {
        if let Some(text) = self.texts.get_mut(text) {
            text.at = Some(at);
        }
    }

    /// Somebody has asked for it.
    pub fn may_be_deleted(&mut self, client: &ClientUri) {
        self.may_be_deleted.insert(client.clone());
    }

    /// Its provider does not know it; whether that is right.
    pub fn is_gone(&mut self, client: &ClientUri) -> bool {
        let is_right = self.may_be_deleted.contains(client);
        match is_right {
            true => self.deleted(client),
            false => self.fail(
                Invariant::NothingLost,
                format!("{client} is not known to its provider any more"),
            ),
        }
        is_right
    }

    /// A client of this user is about to lie in a group.
    pub fn lies(&mut self, group: &GroupId, by: &ClientUri) {
        self.liars.insert((group.clone(), by.user()));
    }

    /// Whoever lied is taken for honest when hubs propose its removal.
    pub fn forgive(&mut self, group: &GroupId, by: &ClientUri) {
        self.forgiven.insert((group.clone(), by.user()));
    }

    pub fn may_have_lied(&self, group: &GroupId, client: &ClientUri) -> bool {
        self.liars.contains(&(group.clone(), client.user()))
    }

    fn has_liars(&self, group: &GroupId) -> bool {
        self.liars.iter().any(|(of, _)| of == group)
    }

    /// Its hub has answered that the group is deleted.
    pub fn is_over(&mut self, group: &GroupId) {
        self.over.insert(group.clone());
    }

    pub fn has_ended(&self, group: &GroupId) -> bool {
        self.over.contains(group)
    }

    pub fn created(&mut self, group: &GroupId, by: &ClientUri) {
        self.stay(by, group, Some(Epoch(0)));
    }

    fn stay(&mut self, client: &ClientUri, group: &GroupId, epoch: Option<Epoch>) {
        let of_client = self.feeds.iter().filter(|((of, _), _)| of == client);
        let of_group = of_client.filter(|(_, feed)| feed.group.as_ref() == Some(group));
        let last = of_group.filter_map(|(_, feed)| feed.entries.last_key_value());
        let since = last.map(|(last, _)| *last).max().unwrap_or_default();
        let stay = Stay { since, epoch: epoch.unwrap_or_default(), is_in: epoch.is_some() };
        self.stays.insert((client.clone(), group.clone()), stay);
    }

    pub fn deleted(&mut self, client: &ClientUri) {
        self.deleted.insert(client.clone());
    }

    /// Judges what was handed to clients since the last time.
    pub fn take_in(&mut self) -> Result<(), Violation> {
        for (client, entries) in self.handed.take() {
            for entry in entries {
                self.handed(&client, &entry);
            }
        }
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn handed(&mut self, client: &ClientUri, entry: &QueueEntry) {
        let hash = crypto::sha256(&encode(&entry.event));
        let key = (client.clone(), entry.feed);
        let feed = self.feeds.entry(key).or_default();
        let last = feed.entries.last_key_value().map_or(Sequence(0), |(last, _)| *last);
        let is_gap = matches!(entry.event, QueueEvent::Gap { .. });
        let what = |why: &str| {
            format!("{client} was handed {} of feed {} {why}", entry.sequence.0, entry.feed.0)
        };
        let failure = if let Some(before) = feed.entries.get(&entry.sequence) {
            let is_same = *before == (entry.previous, hash);
            (!is_same).then(|| Invariant::NoGap.broken(what("twice, and it is not the same")))
        } else if feed.removed && entry.feed != FeedId(0) {
            Some(Invariant::NothingBehindRemoval.broken(what("behind its removal")))
        } else if entry.sequence < last {
            Some(Invariant::NoGap.broken(what(&format!("behind {}", last.0))))
        } else if entry.previous != last && !is_gap && last != Sequence(0) {
            let why = format!("which follows {}, and had {} before", entry.previous.0, last.0);
            Some(Invariant::NoGap.broken(what(&why)))
        } else {
            None
        };
        if entry.feed != FeedId(0) {
            feed.group = GroupId::from_bytes(entry.group_id.as_slice()).ok();
            feed.removed |= matches!(entry.event, QueueEvent::Removed | QueueEvent::GroupDeleted);
        }
        feed.entries.insert(entry.sequence, (entry.previous, hash));
        if matches!(entry.event, QueueEvent::MlsMessage { .. }) {
            feed.messages.insert(entry.sequence);
        }
        if let Some(failure) = failure {
            self.broken(failure);
        }
    }

    pub fn shown(&mut self, shown: Shown) {
        let Shown { by, events, views } = shown;
        // a failure stays
        let _ = self.take_in();
        for (_, event) in events {
            self.event(&by, event);
        }
        for view in views {
            let Some(epoch) = view.epoch.filter(|_| view.state == GroupState::Active) else {
                continue;
            };
            // who has lied may be in an epoch that is void
            if self.may_have_lied(&view.id, &by) {
                continue;
            }
            let known = self
                .authenticators
                .entry((view.id.clone(), epoch))
                .or_insert_with(|| (view.authenticator.clone(), by.clone()));
            if known.0 != view.authenticator {
                let what = format!(
                    "{} and {by} are in different epochs {} of {}",
                    known.1, epoch.0, view.id
                );
                self.fail(Invariant::OneCommit, what);
            }
        }
    }

    fn event(&mut self, by: &ClientUri, event: Event) {
        match event {
            Event::Message { group, text: Some(text), sender, sent_at, .. } => {
                self.trace.count(|counts| counts.heard += 1);
                let Some(known) = self.texts.get_mut(&text) else {
                    let what = format!("{by} shows {text:?}, which nobody said");
                    return self.fail(Invariant::SaidOnce, what);
                };
                if known.group != group || known.by != sender {
                    let what = format!("{by} shows {text:?} as of another group or sender");
                    return self.fail(Invariant::SaidOnce, what);
                }
                let Some(first) = known.shown_to.get(by).copied() else {
                    known.shown_to.insert(by.clone(), sent_at);
                    return;
                };
                // whoever has no answer for so long that nobody knows any more says it again (PROTOCOL.md §3)
                if first.ms_since(sent_at).max(sent_at.ms_since(first)) < REMEMBERED_MS {
                    return self.fail(Invariant::SaidOnce, format!("{by} shows {text:?} twice"));
                }
                self.trace.note(|| format!("{by} shows {text:?} again, a day later"));
                self.trace.count(|counts| counts.said_again += 1);
            }
            Event::Joined { group, epoch } => {
                self.trace.note(|| format!("{by} is in {group} from epoch {} on", epoch.0));
                self.stay(by, &group, Some(epoch));
                self.changed(&group, epoch, by, Change::Came);
            }
            Event::Changed { group, epoch, added, removed, by: author, .. } => {
                self.trace.count(|counts| counts.commits += 1);
                for client in &removed {
                    let both = added.contains(client);
                    self.changed(
                        &group,
                        epoch,
                        client,
                        if both { Change::Both } else { Change::Went },
                    );
                }
                for client in added.iter().filter(|client| !removed.contains(client)) {
                    self.changed(&group, epoch, client, Change::Came);
                }
                let (by, group) = (by.clone(), group.clone());
                self.trace.note(|| {
                    let short = |of: &[ClientUri]| {
                        let name = |it: &ClientUri| format!("{}/{}", it.user().name(), it.device());
                        let mut names: Vec<String> = of.iter().map(name).collect();
                        // openmls keeps proposals in a map whose order is by chance
                        names.sort();
                        names.join(" ")
                    };
                    let author = author.map_or("the hub".to_owned(), |it| it.to_string());
                    format!(
                        "{by} sees epoch {} of {group} by {author} +[{}] -[{}]",
                        epoch.0,
                        short(&added),
                        short(&removed)
                    )
                });
            }
            Event::Moved { .. } => self.trace.count(|counts| counts.moves += 1),
            ref event @ (Event::Removed { ref group }
            | Event::Deleted { ref group }
            | Event::NotKnown { ref group, .. }) => {
                self.trace.note(|| format!("{by}: {event:?}"));
                self.stay(by, group, None);
            }
            Event::Lost { group, why } => {
                self.trace.note(|| format!("{by} has lost track of {group}: {why}"));
                self.stay(by, &group, None);
            }
            ref event @ (Event::Unusable { ref group, by: ref liar, .. }
            | Event::BadGroupInfo { ref group, by: ref liar }) => {
                self.trace.note(|| format!("{by}: {event:?}"));
                // from outside come those who were misled
                let is_lie = match liar {
                    Some(liar) => self.may_have_lied(group, liar),
                    None => self.has_liars(group),
                };
                // a liar's own client does not know which epoch it is in
                if !is_lie && !self.may_have_lied(group, by) {
                    return self.fail(Invariant::BlamesLiars, format!("{by}: {event:?}"));
                }
                self.trace.count(|counts| counts.lies_seen += 1);
            }
            ref event @ (Event::WentBack { ref group, .. } | Event::GaveUp { ref group }) => {
                self.trace.note(|| format!("{by}: {event:?}"));
                if !self.has_liars(group) {
                    self.fail(Invariant::BlamesLiars, format!("{by}: {event:?}"));
                }
            }
            Event::Unreadable { group, why } => {
                self.trace.note(|| format!("{by} cannot read an entry of {group}: {why}"));
            }
            Event::Misbehaviour { what } => {
                self.fail(Invariant::NoComplaint, format!("{by} complains: {what}"));
            }
            Event::Proposed { by: None, group, what } => {
                self.trace.count(|counts| counts.removals_by_hub += 1);
                let whom = what.strip_prefix("remove ").and_then(|whom| ClientUri::new(whom).ok());
                let Some(whom) = whom.filter(|_| self.removes_liars_only) else { return };
                let is_forgiven = self.forgiven.contains(&(group.clone(), whom.user()));
                let may_go = (self.may_have_lied(&group, &whom) && !is_forgiven)
                    || self.may_be_deleted.contains(&whom)
                    || self.deleted.contains(&whom);
                if !may_go {
                    let what = format!("the hub of {group} wants {whom} removed, who has not lied");
                    self.fail(Invariant::BlamesLiars, what);
                }
            }
            Event::Message { text: None, .. }
            | Event::Proposed { .. }
            | Event::ConnectionRequested { .. }
            | Event::Connected { .. }
            | Event::KeyPackagesLow { .. } => {}
        }
    }

    fn changed(&mut self, group: &GroupId, epoch: Epoch, client: &ClientUri, change: Change) {
        let of_client = self.changes.entry((group.clone(), client.clone())).or_default();
        let known = of_client.entry(epoch).or_insert(change);
        if *known == Change::Came && change == Change::Both {
            *known = change;
        }
    }

    /// What stands on a provider's disk at a place of a group's feed.
    fn stands(&mut self, domain: &Domain, group: &GroupId, at: Sequence, event: &[u8]) {
        let log = self.log.entry(group.clone()).or_default();
        let known = log.entry(at).or_insert_with(|| (event.to_vec(), domain.clone()));
        if known.0 != event {
            let what = format!(
                "{} of {group} is not the same at {} ({}) and at {domain} ({})",
                at.0,
                known.1,
                told(&known.0),
                told(event)
            );
            self.fail(Invariant::OneLog, what);
        }
        if let Ok(QueueEvent::EpochVoid { group_sequence, .. }) = decode(event)
            && self.voids.insert((group.clone(), group_sequence))
        {
            self.trace.note(|| format!("the commit at {} of {group} is void", group_sequence.0));
            self.trace.count(|counts| counts.voids += 1);
        }
        let Some(epoch) = ended_by(event) else { return };
        // of a commit that is void nothing is left; the one that stands may have been seen before at another disk
        let is_void = |at: Sequence| self.voids.contains(&(group.clone(), at));
        if is_void(at) {
            return;
        }
        let known = self.commits.entry((group.clone(), epoch)).or_insert(at);
        if is_void(*known) {
            *known = at;
        } else if *known != at {
            let (one, other) = (known.0, at.0);
            let what = format!("epoch {} of {group} has a commit at {one} and at {other}", epoch.0);
            self.fail(Invariant::OneCommit, what);
        }
    }

    /// Who has not heard what was said for all to hear.
    pub fn unheard(&self, agents: &[Rc<Agent>], probes: &[Probe]) -> Vec<String> {
        let mut unheard = Vec::new();
        for probe in probes {
            if !probe.is_said {
                unheard.extend(probe.left.clone());
                continue;
            }
            let text = &self.texts[&probe.text];
            if text.at.is_none() {
                continue;
            }
            for agent in agents.iter().filter(|agent| agent.uri != probe.by) {
                let is_there = agent.client().member().group(&probe.group);
                let is_there = is_there.is_ok_and(|view| view.state == GroupState::Active);
                if is_there && self.is_owed(agent, text) && !text.shown_to.contains_key(&agent.uri)
                {
                    unheard.push(format!("{} has not heard {:?}", agent.uri, probe.text));
                }
            }
        }
        unheard
    }

    /// Whether a client is to show a text: it was in the group when that was accepted, and since then without a break.
    fn is_owed(&self, agent: &Agent, text: &Text) -> bool {
        let stay = self.stays.get(&(agent.uri.clone(), text.group.clone()));
        let (Some(at), Some(stay)) = (text.at, stay.filter(|stay| stay.is_in)) else {
            return false;
        };
        let began = stay.epoch.0.checked_sub(1).map(|epoch| (text.group.clone(), Epoch(epoch)));
        let began = began.and_then(|epoch| self.commits.get(&epoch)).copied();
        let is_gone = agent.deleted.get() || self.deleted.contains(&agent.uri);
        // what was said in an epoch that is void is not heard by anybody else, nor does who is in it hear the others
        let lied = self.may_have_lied(&text.group, &text.by)
            || self.may_have_lied(&text.group, &agent.uri);
        !is_gone
            && !lied
            && agent.uri != text.by
            && at > stay.since
            && at > began.unwrap_or_default()
    }

    /// What is so when everything is at rest.
    pub fn judge_the_end(&mut self, agents: &[Rc<Agent>], trace: &Trace) -> Result<(), Violation> {
        let mut failures = Vec::new();
        for (words, text) in &self.texts {
            let Some(at) = text.at else { continue };
            for agent in agents {
                if text.shown_to.contains_key(&agent.uri) {
                    continue;
                }
                if self.is_owed(agent, text) {
                    let what = format!(
                        "{} was never shown {words:?}, which stands at {} of {}",
                        agent.uri, at.0, text.group
                    );
                    failures.push(Invariant::NothingLost.broken(what));
                } else {
                    trace.count(|counts| counts.excused += 1);
                }
            }
        }
        for agent in agents.iter().filter(|agent| !self.deleted.contains(&agent.uri)) {
            for view in agent.client().member().groups().unwrap() {
                if view.state != GroupState::Active {
                    continue;
                }
                let gone = view.members.iter().find(|it| self.deleted.contains(&it.client));
                // where it is proposed the next commit does it
                if let Some(gone) = gone.filter(|_| view.pending == 0) {
                    let what = format!("{} was deleted and is still in {}", gone.client, view.id);
                    failures.push(Invariant::DeletedIsGone.broken(what));
                }
            }
        }
        failures.extend(self.in_what_is_deleted(agents));
        failures.extend(self.behind_removals());
        if let Some(failure) = failures.into_iter().next() {
            self.broken(failure);
        }
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Oracle {
    /// Who is in a group that is deleted, when it has had the time to hear of it.
    pub fn in_what_is_deleted(&self, agents: &[Rc<Agent>]) -> Option<Violation> {
        for agent in agents.iter().filter(|agent| !agent.deleted.get()) {
            let views = agent.client().member().groups().unwrap();
            let is_in = |it: &&GroupView| it.state == GroupState::Active && self.has_ended(&it.id);
            if let Some(view) = views.iter().find(is_in) {
                let what = format!("{} is in {}, which is deleted", agent.uri, view.id);
                return Some(Invariant::DeletedIsGone.broken(what));
            }
        }
        None
    }

    /// Messages that were handed to whom the others saw removed before.
    fn behind_removals(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for ((group, client), changes) in &self.changes {
            let went = changes.iter().filter(|(_, change)| **change == Change::Went);
            for (epoch, _) in went {
                let ended = Epoch(epoch.0.saturating_sub(1));
                let Some(at) = self.commits.get(&(group.clone(), ended)) else { continue };
                for ((of, feed), handed) in &self.feeds {
                    if of != client || handed.group.as_ref() != Some(group) {
                        continue;
                    }
                    let began_before = handed.entries.keys().next().is_some_and(|it| it <= at);
                    let behind = handed.messages.range(at.next()..).next();
                    if let Some(behind) = behind.filter(|_| began_before) {
                        let what = format!(
                            "{client} was removed from {group} at {} and was handed {} of feed {}",
                            at.0, behind.0, feed.0
                        );
                        found.push(Invariant::NothingBehindRemoval.broken(what));
                    }
                }
            }
        }
        found
    }
}

/// The epoch that a commit ends.
pub(super) fn ended_by(event: &[u8]) -> Option<Epoch> {
    let Ok(QueueEvent::MlsMessage { message }) = decode(event) else { return None };
    let mls::MlsMessageBodyIn::PublicMessage(message) = message.parse().unwrap().extract() else {
        return None;
    };
    let message: mls::ProtocolMessage = message.into();
    let is_commit = message.content_type() == mls::ContentType::Commit;
    is_commit.then(|| Epoch(message.epoch().as_u64()))
}

/// What an event is, for people.
fn told(event: &[u8]) -> String {
    let event: QueueEvent = decode(event).unwrap();
    let mut told = format!("{event:?}");
    let end = told.char_indices().nth(400).map_or(told.len(), |(at, _)| at);
    told.truncate(end);
    told
}

/// Compares what the providers have on their disks.
pub(super) async fn look_at_disks(world: &World) -> Result<(), Violation> {
    let mut hubs: BTreeMap<GroupId, Vec<Domain>> = BTreeMap::new();
    let stores: Vec<_> = {
        let providers = world.providers.borrow();
        providers.iter().filter_map(|it| Some((it.domain.clone(), it.store()?))).collect()
    };
    for (domain, store) in stores {
        let Ok(heads) = store.group_heads(None, 10_000).await else { continue };
        for head in heads {
            if head.status == GroupStatus::Active {
                hubs.entry(head.group.clone()).or_default().push(domain.clone());
            }
            // a disk that fails meanwhile is looked at the next time
            let _ = look_at_log(world, &domain, &store, &head).await;
        }
    }
    let mut oracle = world.oracle.borrow_mut();
    let two: BTreeMap<_, _> = hubs.into_iter().filter(|(_, hubs)| hubs.len() > 1).collect();
    // it may have moved while the disks were read; it is not hosted twice for long
    let again = two.iter().find(|(group, _)| oracle.suspects.contains(*group));
    if let Some((group, hubs)) = again {
        let what = format!("{group} is hosted by {hubs:?}");
        oracle.fail(Invariant::OneHub, what);
    }
    oracle.suspects = two.into_keys().collect();
    oracle.failure.clone().map_or(Ok(()), Err)
}

async fn look_at_log(
    world: &World,
    domain: &Domain,
    store: &crate::store::SharedStore,
    head: &GroupHead,
) -> Result<(), StoreError> {
    let key = (domain.clone(), head.group.clone());
    let mut from = {
        let oracle = world.oracle.borrow();
        oracle.looked.get(&key).copied().unwrap_or_default().max(head.first_sequence)
    };
    loop {
        let page = store.feed(&head.group, from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        from = last.sequence.next();
        let mut oracle = world.oracle.borrow_mut();
        for entry in &page {
            // a copy has nothing for nobody, and may have a gap, which its readers are told
            let is_gap = || matches!(decode(&entry.event), Ok(QueueEvent::Gap { .. }));
            if !entry.event.is_empty() && !is_gap() {
                oracle.stands(domain, &head.group, entry.sequence, &entry.event);
            }
        }
        oracle.looked.insert(key.clone(), from);
    }
}

/// What still waits for somebody.
pub(super) async fn what_is_left(world: &World, agents: &[Rc<Agent>]) -> Vec<String> {
    let mut left = Vec::new();
    let may_have_lied =
        |group: &GroupId, client: &ClientUri| world.oracle.borrow().may_have_lied(group, client);
    let stores: Vec<_> = {
        let providers = world.providers.borrow();
        providers.iter().filter_map(|it| Some((it.domain.clone(), it.store()?))).collect()
    };
    for (domain, store) in &stores {
        let heads = store.group_heads(None, 10_000).await.unwrap_or_default();
        for (peer, copies) in stores.iter().filter(|(peer, _)| peer != domain) {
            for (group, until) in lacking(domain, &heads, copies).await.unwrap_or_default() {
                left.push(format!("{peer} does not have {group} up to {}", until.0));
            }
        }
    }
    for (domain, store) in stores {
        for peer in store.outbound_peers(None, 100).await.unwrap_or_default() {
            for (group, until) in store.outbound(&peer, None, 100).await.unwrap_or_default() {
                left.push(format!("{domain} owes {peer} {group} up to {}", until.0));
            }
        }
        for agent in agents.iter().filter(|it| it.uri.domain() == domain && !it.deleted.get()) {
            let subscriptions = store.subscriptions(&agent.uri).await.unwrap_or_default();
            for closed in subscriptions.iter().filter(|it| it.last.is_some()) {
                left.push(format!("{} still has feed {} that is over", agent.uri, closed.feed.0));
            }
            let own = store.own(&agent.uri, OwnSequence(0), PAGE).await.unwrap_or_default();
            let inbox = store.inbox(&agent.uri, PAGE).await.unwrap_or_default().items;
            if own.len() + inbox.len() > 0 {
                left.push(format!(
                    "{} + {} entries wait for {}",
                    inbox.len(),
                    own.len(),
                    agent.uri
                ));
            }
        }
        for departure in store.departures(None, 100).await.unwrap_or_default() {
            left.push(format!("{} is on its way from {domain}", departure.group));
        }
        for (group, moves) in store.all_moves(None, 100).await.unwrap_or_default() {
            if moves.arrived.is_some_and(|arrived| arrived.here && !arrived.confirmed) {
                left.push(format!("{domain} waits for the word that {group} is there"));
            }
        }
    }
    for agent in agents.iter().filter(|agent| !agent.deleted.get()) {
        let client = agent.client();
        let pending = client.member().pending().unwrap_or_default();
        // whether a liar comes in again is its own affair
        let honest = pending.iter().filter(|(_, group, _)| !may_have_lied(group, &agent.uri));
        left.extend(honest.map(|(_, group, operation)| {
            let what = format!("{operation:?}");
            let what = what.split([' ', '{']).next().unwrap_or_default();
            format!("{} waits for an answer of {group} to {what}", agent.uri)
        }));
        for view in client.member().groups().unwrap_or_default() {
            let is_out = matches!(view.state, GroupState::Joining | GroupState::Lost);
            if is_out && !may_have_lied(&view.id, &agent.uri) {
                left.push(format!("{} is {} in {}", agent.uri, view.state.word(), view.id));
            }
        }
    }
    left
}

/// A hub remembers for a day that it accepted a message. Its clock may be off a little.
const REMEMBERED_MS: u64 = 24 * 3600 * 1000 - 10 * 60 * 1000;
const PAGE: Page = Page { items_max: 1_000, bytes_max: 64 << 20 };
