//! What was asked, answered, delivered and shown, and the rules that it must keep. Nothing here knows a provider: a history is
//! judged by itself, in time linear in its length.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mimid::{
    client::core::Event,
    wire::ids::{ClientUri, GroupId},
};

use super::proposals::Proposal;

/// Everything that the harness knows of one run.
#[derive(Default)]
pub struct History {
    pub said: Vec<Said>,
    pub commits: Vec<Commit>,
    pub proposals: Vec<Proposal>,
    /// Who made a group: it is in it from epoch 0.
    pub makers: HashMap<GroupId, ClientUri>,
    pub clients: BTreeMap<ClientUri, Client>,
}

/// One message that a client wanted to send. Texts are unique.
pub struct Said {
    pub group: GroupId,
    pub by: ClientUri,
    pub text: String,
    pub answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Accepted {
        sequence: u64,
        epoch: u64,
    },
    Refused,
    /// No answer came, or it was told to somebody else.
    Unknown,
}

/// A commit that was answered as accepted.
pub struct Commit {
    pub group: GroupId,
    pub by: ClientUri,
    pub sequence: u64,
    pub epoch: u64,
}

/// What one client got.
#[derive(Default)]
pub struct Client {
    pub wire: Vec<Wire>,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    Delivered {
        feed: u64,
        sequence: u64,
        /// What came before it in this feed, as it says itself.
        previous: u64,
        group: Option<GroupId>,
        /// What all members get alike; none for a client's own entries.
        message: Option<Message>,
    },
    /// The provider has answered this acknowledgement.
    Acknowledged { feed: u64, sequence: u64 },
    /// The client's provider was killed: it writes acknowledgements down a moment later, and may have forgotten some.
    Killed,
}

/// An MLS message as it was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub hash: [u8; 32],
    pub kind: MessageKind,
    pub epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    Application,
    /// Of a member.
    Proposal,
    /// Of the hub, or of who wants to come in.
    ProposalFromOutside,
    Commit,
    CommitFromOutside,
}

/// Which rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What was accepted reaches every client that was a member then.
    Lost,
    /// Once, and nothing again that was acknowledged.
    Doubled,
    /// In one order for all, each sender's own kept.
    Reordered,
    /// One commit in each epoch.
    TwoCommits,
    /// What was refused, or said by nobody, is shown to nobody.
    MadeUp,
    /// Nobody gets anything behind its removal.
    AfterRemoval,
    /// One entry at each place of a group's feed.
    Differs,
    /// Nobody loses track of a group whose providers lost nothing, and nobody lies: no commit is complained of, no entry is
    /// called unreadable or a misdeed.
    Strays,
    /// The commit that ends an epoch does what was proposed in it.
    Uncovered,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub rule: Rule,
    pub what: String,
}

pub(super) fn broken(rule: Rule, what: String) -> Broken {
    Broken { rule, what }
}

impl History {
    /// Everything that is wrong with it.
    pub fn judge(&self) -> Vec<Broken> {
        let mut found = Vec::new();
        self.judge_commits(&mut found);
        self.judge_wire(&mut found);
        self.judge_senders(&mut found);
        let shown: BTreeMap<&ClientUri, Shown<'_>> =
            self.clients.iter().map(|(uri, client)| (uri, self.shown_to(uri, client))).collect();
        for (uri, shown) in &shown {
            found.extend(shown.broken.iter().cloned());
            self.judge_order_of(uri, shown, &mut found);
        }
        self.judge_delivery(&shown, &mut found);
        self.judge_one_order(&shown, &mut found);
        self.judge_proposals(&shown, &mut found);
        found
    }

    fn judge_commits(&self, found: &mut Vec<Broken>) {
        let mut by_epoch: HashMap<(&GroupId, u64), &Commit> = HashMap::new();
        for commit in &self.commits {
            if let Some(other) = by_epoch.insert((&commit.group, commit.epoch), commit) {
                let Commit { group, by, sequence, epoch } = commit;
                let what = format!(
                    "{} ({}) and {by} ({sequence}) both made epoch {epoch} of {group}",
                    other.by, other.sequence
                );
                found.push(broken(Rule::TwoCommits, what));
            }
        }
        let mut changes: HashMap<(&GroupId, u64), (&ClientUri, &Event)> = HashMap::new();
        for (uri, client) in &self.clients {
            for event in &client.events {
                // who comes in anew is told what has changed meanwhile, by nobody in one epoch
                let Event::Changed { group, epoch, by: Some(_), .. } = event else { continue };
                let (other, first) = *changes.entry((group, epoch.0)).or_insert((uri, event));
                if first != event {
                    let what = format!("{other} saw {first:?} and {uri} saw {event:?}");
                    found.push(broken(Rule::TwoCommits, what));
                }
            }
        }
    }

    /// What a client was told of at once stands in the order in which it said it. What had no answer is sent anew when its
    /// client goes on, behind what it has said meanwhile.
    fn judge_senders(&self, found: &mut Vec<Broken>) {
        let mut last: HashMap<(&GroupId, &ClientUri), u64> = HashMap::new();
        for said in &self.said {
            let Answer::Accepted { sequence, .. } = said.answer else { continue };
            let before = last.insert((&said.group, &said.by), sequence).unwrap_or_default();
            if sequence <= before {
                let Said { by, text, .. } = said;
                let what = format!(
                    "{text:?} of {by} is at {sequence}, behind {before} that it said before"
                );
                found.push(broken(Rule::Reordered, what));
            }
        }
    }

    fn judge_wire(&self, found: &mut Vec<Broken>) {
        let mut at: HashMap<(&GroupId, u64), (&ClientUri, &Message)> = HashMap::new();
        let mut places: HashMap<(&GroupId, &[u8; 32]), u64> = HashMap::new();
        for (uri, client) in &self.clients {
            let mut acknowledged: HashMap<u64, u64> = HashMap::new();
            for wire in &client.wire {
                match wire {
                    Wire::Killed => acknowledged.clear(),
                    Wire::Acknowledged { feed, sequence } => {
                        let until = acknowledged.entry(*feed).or_default();
                        *until = (*until).max(*sequence);
                    }
                    Wire::Delivered { feed, sequence, group, message, .. } => {
                        if acknowledged.get(feed).is_some_and(|until| sequence <= until) {
                            let what = format!(
                                "{uri} got {sequence} of feed {feed} behind its acknowledgement"
                            );
                            found.push(broken(Rule::Doubled, what));
                        }
                        let (Some(group), Some(message)) = (group, message) else { continue };
                        let place = *places.entry((group, &message.hash)).or_insert(*sequence);
                        if place != *sequence {
                            let what =
                                format!("entry {sequence} of {group} stands at {place} as well");
                            found.push(broken(Rule::Doubled, what));
                        }
                        let (other, first) =
                            *at.entry((group, *sequence)).or_insert((uri, message));
                        if first != message {
                            let what = format!(
                                "{other} and {uri} got different entries {sequence} of {group}"
                            );
                            found.push(broken(Rule::Differs, what));
                        }
                    }
                }
            }
        }
    }

    /// Goes through a client's events: what it heard, and when it was in which group.
    fn shown_to<'a>(&'a self, uri: &ClientUri, client: &'a Client) -> Shown<'a> {
        let mut shown = Shown::default();
        for (group, maker) in &self.makers {
            if maker == uri {
                shown.groups.entry(group).or_default().enter(0);
            }
        }
        for event in &client.events {
            let of =
                |shown: &mut Shown<'a>, group: &'a GroupId, step: fn(&mut In<'a>, u64), epoch| {
                    step(shown.groups.entry(group).or_default(), epoch);
                };
            match event {
                Event::Joined { group, epoch } => of(&mut shown, group, In::enter, epoch.0),
                Event::Changed { group, epoch, .. } => of(&mut shown, group, In::goes_on, epoch.0),
                Event::Removed { group } | Event::Deleted { group } => {
                    of(&mut shown, group, In::ends, 0);
                }
                Event::Lost { .. }
                | Event::Unusable { .. }
                | Event::WentBack { .. }
                | Event::BadGroupInfo { .. }
                | Event::GaveUp { .. }
                | Event::Unreadable { .. }
                | Event::Misbehaviour { .. } => {
                    shown.broken.push(broken(Rule::Strays, format!("{uri} says {event:?}")));
                }
                Event::Message { group, text: Some(text), .. } => {
                    let place = shown.groups.entry(group).or_default();
                    if place.now.is_none() {
                        let what =
                            format!("{uri} was shown {text:?} in {group}, which it is not in");
                        shown.broken.push(broken(Rule::AfterRemoval, what));
                    }
                    if !place.heard_once.insert(text) {
                        let what = format!("{uri} was shown {text:?} twice");
                        shown.broken.push(broken(Rule::Doubled, what));
                    }
                    place.heard.push(text);
                }
                _ => {}
            }
        }
        shown
    }

    /// The hub's order, and each sender's own.
    fn judge_order_of(&self, uri: &ClientUri, shown: &Shown<'_>, found: &mut Vec<Broken>) {
        let texts: HashMap<&str, &Said> =
            self.said.iter().map(|said| (said.text.as_str(), said)).collect();
        for (group, place) in &shown.groups {
            let mut last = 0;
            for text in &place.heard {
                let Some(said) = texts.get(text).filter(|said| said.group == **group) else {
                    found.push(broken(
                        Rule::MadeUp,
                        format!("{uri} was shown {text:?} in {group}, which nobody said there"),
                    ));
                    continue;
                };
                match said.answer {
                    Answer::Refused => {
                        found.push(broken(
                            Rule::MadeUp,
                            format!("{uri} was shown {text:?}, which was refused"),
                        ));
                    }
                    Answer::Accepted { sequence, .. } if sequence <= last => {
                        found.push(broken(
                            Rule::Reordered,
                            format!("{uri} was shown {text:?} ({sequence}) behind {last}"),
                        ));
                    }
                    Answer::Accepted { sequence, .. } => last = sequence,
                    Answer::Unknown => {}
                }
            }
        }
    }

    fn judge_delivery(&self, shown: &BTreeMap<&ClientUri, Shown<'_>>, found: &mut Vec<Broken>) {
        let unanswered = self.epochs_of_unanswered(shown);
        for said in &self.said {
            let epoch = match said.answer {
                Answer::Accepted { epoch, .. } => Some(epoch),
                Answer::Refused => None,
                Answer::Unknown => unanswered.get(said.text.as_str()).copied(),
            };
            let Some(epoch) = epoch else { continue };
            for (uri, shown) in shown {
                let Some(place) = shown.groups.get(&said.group).filter(|_| **uri != said.by) else {
                    continue;
                };
                if place.must_hear(epoch) && !place.heard_once.contains(said.text.as_str()) {
                    let Said { group, by, text, answer } = said;
                    let what = format!(
                        "{uri} was not shown {text:?} of {by} ({answer:?}, epoch {epoch}) in {group}; it was in {:?}",
                        place.times()
                    );
                    found.push(broken(Rule::Lost, what));
                }
            }
        }
    }

    /// The epochs of those without an answer that somebody was shown, where what is in front and behind tells: they were accepted, whoever
    /// was told so, and are owed to everybody.
    fn epochs_of_unanswered<'a>(
        &'a self,
        shown: &BTreeMap<&ClientUri, Shown<'_>>,
    ) -> HashMap<&'a str, u64> {
        let answer_of: HashMap<&str, Answer> =
            self.said.iter().map(|said| (said.text.as_str(), said.answer)).collect();
        let epoch_of = |text: &&str| match answer_of.get(text) {
            Some(Answer::Accepted { epoch, .. }) => Some(*epoch),
            Some(Answer::Refused | Answer::Unknown) | None => None,
        };
        let places = shown.values().flat_map(|shown| shown.groups.values());
        let all = places.flat_map(|place| {
            place.heard.iter().enumerate().filter_map(move |(at, text)| {
                let (before, behind) = (&place.heard[..at], &place.heard[at + 1..]);
                let before = before.iter().rev().find_map(epoch_of)?;
                let behind = behind.iter().find_map(epoch_of)?;
                (before == behind).then_some((*text, before))
            })
        });
        let told: HashMap<&str, u64> = all.collect();
        let unanswered = self.said.iter().filter(|said| said.answer == Answer::Unknown);
        unanswered
            .filter_map(|said| Some((said.text.as_str(), *told.get(said.text.as_str())?)))
            .collect()
    }

    /// Whether what all clients were shown fits into one order: no message is before itself, over any of them.
    fn judge_one_order(&self, shown: &BTreeMap<&ClientUri, Shown<'_>>, found: &mut Vec<Broken>) {
        let mut behind: HashMap<(&GroupId, &str), BTreeSet<&str>> = HashMap::new();
        let mut before: HashMap<(&GroupId, &str), usize> = HashMap::new();
        for place in shown.values().flat_map(|shown| &shown.groups) {
            let (group, place) = place;
            for text in &place.heard {
                before.entry((group, text)).or_default();
            }
            for pair in place.heard.windows(2) {
                if behind.entry((group, pair[0])).or_default().insert(pair[1]) {
                    *before.entry((group, pair[1])).or_default() += 1;
                }
            }
        }
        let mut free: Vec<(&GroupId, &str)> =
            before.iter().filter(|(_, count)| **count == 0).map(|(key, _)| *key).collect();
        let mut ordered = 0;
        while let Some(key) = free.pop() {
            ordered += 1;
            for next in behind.get(&key).into_iter().flatten() {
                let count = before.get_mut(&(key.0, *next)).unwrap();
                *count -= 1;
                if *count == 0 {
                    free.push((key.0, next));
                }
            }
        }
        if ordered < before.len() {
            let left = before.iter().find(|(_, count)| **count > 0);
            found.push(broken(
                Rule::Reordered,
                format!("clients were shown different orders around {left:?}"),
            ));
        }
    }
}

/// What one client was shown.
#[derive(Default)]
pub(super) struct Shown<'a> {
    pub(super) groups: BTreeMap<&'a GroupId, In<'a>>,
    broken: Vec<Broken>,
}

/// A client's time in one group.
#[derive(Default)]
pub(super) struct In<'a> {
    /// Epochs of which it must have every message.
    whole: Vec<(u64, u64)>,
    /// Since which epoch it is in the group, and the last that it knows of.
    now: Option<(u64, u64)>,
    heard: Vec<&'a str>,
    heard_once: BTreeSet<&'a str>,
}

impl In<'_> {
    /// It came in; who comes in anew lacks nothing of what was before.
    fn enter(&mut self, epoch: u64) {
        self.now.get_or_insert((epoch, epoch));
        self.goes_on(epoch);
    }

    fn goes_on(&mut self, epoch: u64) {
        if let Some((_, last)) = &mut self.now {
            *last = (*last).max(epoch);
        }
    }

    /// It was removed: it has everything up to the commit that did so.
    fn ends(&mut self, _: u64) {
        self.whole.extend(self.now.take());
    }

    pub(super) fn must_hear(&self, epoch: u64) -> bool {
        let is_now = self.now.is_some_and(|(from, _)| from <= epoch);
        is_now || self.whole.iter().any(|(from, last)| (*from..=*last).contains(&epoch))
    }

    pub(super) fn times(&self) -> Vec<(u64, u64)> {
        self.whole.iter().copied().chain(self.now).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mimid::wire::ids::{Domain, Epoch, Timestamp};

    use super::*;

    pub(in super::super) fn uri(name: &str) -> ClientUri {
        ClientUri::new(format!("mimi://a.example/d/{name}/phone")).unwrap()
    }

    pub(in super::super) fn group() -> GroupId {
        GroupId::of(&Domain::new("a.example").unwrap(), [7; 16])
    }

    fn said(by: &str, text: &str, answer: Answer) -> Said {
        Said { group: group(), by: uri(by), text: text.to_owned(), answer }
    }

    fn accepted(sequence: u64, epoch: u64) -> Answer {
        Answer::Accepted { sequence, epoch }
    }

    fn shows(by: &str, text: &str) -> Event {
        Event::Message {
            group: group(),
            sender: uri(by),
            sent_at: Timestamp(0),
            text: Some(text.to_owned()),
            content: Vec::new(),
        }
    }

    fn joined(epoch: u64) -> Event {
        Event::Joined { group: group(), epoch: Epoch(epoch) }
    }

    pub(in super::super) fn changed(epoch: u64, by: &str) -> Event {
        let by = Some(uri(by));
        Event::Changed {
            group: group(),
            epoch: Epoch(epoch),
            by,
            added: vec![],
            removed: vec![],
            policy: false,
        }
    }

    /// alice makes a group; bob and carol are in it since epoch 1. alice says three things, carol one.
    pub(in super::super) fn good() -> History {
        let mut history = History::default();
        history.makers.insert(group(), uri("alice"));
        history.said = vec![
            said("alice", "one", accepted(3, 1)),
            said("alice", "two", Answer::Unknown),
            said("carol", "three", accepted(5, 1)),
            said("alice", "four", accepted(7, 2)),
            said("alice", "no", Answer::Refused),
        ];
        history.commits = vec![
            Commit { group: group(), by: uri("alice"), sequence: 2, epoch: 1 },
            Commit { group: group(), by: uri("bob"), sequence: 6, epoch: 2 },
        ];
        let shown = |events| Client { wire: Vec::new(), events };
        let bob = vec![
            joined(1),
            shows("alice", "one"),
            shows("alice", "two"),
            shows("carol", "three"),
            shows("alice", "four"),
        ];
        let carol = vec![
            joined(1),
            shows("alice", "one"),
            shows("alice", "two"),
            changed(2, "bob"),
            shows("alice", "four"),
        ];
        let alice = vec![shows("carol", "three"), changed(2, "bob")];
        for (name, events) in [("alice", alice), ("bob", bob), ("carol", carol)] {
            history.clients.insert(uri(name), shown(events));
        }
        history
    }

    pub(in super::super) fn rules(history: &History) -> Vec<Rule> {
        let mut rules: Vec<Rule> = history.judge().into_iter().map(|broken| broken.rule).collect();
        rules.sort();
        rules.dedup();
        rules
    }

    pub(in super::super) fn events<'a>(history: &'a mut History, of: &str) -> &'a mut Vec<Event> {
        &mut history.clients.get_mut(&uri(of)).unwrap().events
    }

    pub(in super::super) fn wire<'a>(history: &'a mut History, of: &str) -> &'a mut Vec<Wire> {
        &mut history.clients.get_mut(&uri(of)).unwrap().wire
    }

    pub(in super::super) fn delivers(
        sequence: u64,
        previous: u64,
        epoch: u64,
        kind: MessageKind,
        hash: u8,
    ) -> Wire {
        let message = Some(Message { hash: [hash; 32], kind, epoch });
        Wire::Delivered { feed: 1, sequence, previous, group: Some(group()), message }
    }

    #[test]
    fn nothing_is_wrong_with_a_good_history() {
        assert_eq!(good().judge(), []);
    }

    #[test]
    fn an_answered_message_that_a_member_lacks_is_lost() {
        let mut history = good();
        events(&mut history, "bob").remove(3);
        assert_eq!(rules(&history), [Rule::Lost]);
        // one without an answer may be
        let mut history = good();
        for name in ["bob", "carol"] {
            events(&mut history, name).remove(2);
        }
        assert_eq!(rules(&history), []);
    }

    #[test]
    fn a_message_without_an_answer_is_owed_to_all_once_it_is_shown_to_one() {
        let mut history = good();
        events(&mut history, "carol").retain(|it| *it != shows("alice", "two"));
        assert_eq!(rules(&history), [Rule::Lost]);
        // nobody was shown it: it may have been accepted, or not
        events(&mut history, "bob").retain(|it| *it != shows("alice", "two"));
        assert_eq!(rules(&history), []);
        // shown to one, and nothing tells in which epoch
        let mut history = good();
        history.said[0].answer = Answer::Unknown;
        for name in ["bob", "carol"] {
            events(&mut history, name).retain(|it| *it != shows("carol", "three"));
        }
        events(&mut history, "alice").retain(|it| *it != shows("carol", "three"));
        history.said.retain(|said| said.text != "three");
        events(&mut history, "carol").retain(|it| *it != shows("alice", "two"));
        assert_eq!(rules(&history), []);
    }

    #[test]
    fn who_was_not_in_the_group_need_not_hear_and_who_came_in_anew_must() {
        let mut history = good();
        *events(&mut history, "bob") = vec![joined(2), shows("alice", "four")];
        assert_eq!(rules(&history), []);
        // coming in anew is no reason to lack something, before or behind
        let mut history = good();
        let anew =
            [joined(3), shows("alice", "one"), shows("alice", "two"), shows("alice", "four")];
        *events(&mut history, "carol") = [&[joined(1)], &anew[..]].concat();
        assert_eq!(rules(&history), []);
        for lacks in [1, 3] {
            let mut anew = anew.to_vec();
            anew.remove(lacks);
            *events(&mut history, "carol") = [&[joined(1)], &anew[..]].concat();
            assert_eq!(rules(&history), [Rule::Lost]);
        }
        // removed in epoch 2: it has all before that
        let mut history = good();
        *events(&mut history, "carol") =
            vec![joined(1), changed(2, "bob"), Event::Removed { group: group() }];
        assert_eq!(rules(&history), [Rule::Lost]);
    }

    #[test]
    fn who_loses_track_or_complains_of_what_honest_ones_did_is_seen() {
        let why = String::new;
        for event in [
            Event::Lost { group: group(), why: why() },
            Event::Unusable { group: group(), by: Some(uri("alice")), why: why() },
            Event::BadGroupInfo { group: group(), by: Some(uri("alice")) },
            Event::Unreadable { group: group(), why: why() },
            Event::Misbehaviour { what: why() },
        ] {
            let mut history = good();
            events(&mut history, "bob").push(event);
            assert_eq!(rules(&history), [Rule::Strays]);
        }
    }

    #[test]
    fn twice_is_once_too_often() {
        let mut history = good();
        events(&mut history, "carol").push(shows("alice", "one"));
        assert!(rules(&history).contains(&Rule::Doubled));
        let mut history = good();
        let delivered =
            Wire::Delivered { feed: 1, sequence: 4, previous: 0, group: None, message: None };
        let wire = &mut history.clients.get_mut(&uri("bob")).unwrap().wire;
        wire.extend([delivered.clone(), delivered.clone()]);
        assert_eq!(rules(&history), [], "it was not acknowledged");
        let wire = &mut history.clients.get_mut(&uri("bob")).unwrap().wire;
        wire.extend([Wire::Acknowledged { feed: 1, sequence: 4 }, Wire::Killed, delivered.clone()]);
        assert_eq!(rules(&history), [], "it may have been forgotten");
        let wire = &mut history.clients.get_mut(&uri("bob")).unwrap().wire;
        wire.extend([Wire::Acknowledged { feed: 1, sequence: 4 }, delivered]);
        assert_eq!(rules(&history), [Rule::Doubled]);
    }

    #[test]
    fn another_order_is_seen() {
        // against the hub's
        let mut history = good();
        events(&mut history, "bob").swap(1, 3);
        assert!(rules(&history).contains(&Rule::Reordered));
        // against its sender's
        let mut history = good();
        history.said.swap(0, 3);
        assert_eq!(rules(&history), [Rule::Reordered]);
        // against each other's, of two whose place is not known
        let mut history = good();
        for (by, text) in [("dave", "five"), ("erin", "six")] {
            history.said.push(said(by, text, Answer::Unknown));
        }
        events(&mut history, "bob").extend([shows("dave", "five"), shows("erin", "six")]);
        assert_eq!(rules(&history), []);
        events(&mut history, "carol").extend([shows("erin", "six"), shows("dave", "five")]);
        assert_eq!(rules(&history), [Rule::Reordered]);
    }

    #[test]
    fn two_commits_in_an_epoch_are_seen() {
        let mut history = good();
        history.commits.push(Commit { group: group(), by: uri("carol"), sequence: 8, epoch: 2 });
        assert_eq!(rules(&history), [Rule::TwoCommits]);
        let mut history = good();
        events(&mut history, "alice")[1] = changed(2, "carol");
        assert_eq!(rules(&history), [Rule::TwoCommits]);
    }

    #[test]
    fn what_was_refused_or_never_said_is_made_up() {
        for text in ["no", "who said this?"] {
            let mut history = good();
            events(&mut history, "bob").push(shows("alice", text));
            assert_eq!(rules(&history), [Rule::MadeUp]);
        }
    }

    #[test]
    fn a_message_behind_a_removal_is_seen() {
        let mut history = good();
        let events = events(&mut history, "bob");
        events.insert(4, Event::Removed { group: group() });
        assert_eq!(rules(&history), [Rule::AfterRemoval]);
    }

    #[test]
    fn two_entries_in_one_place_are_seen() {
        let mut history = good();
        for (name, hash) in [("bob", 1), ("carol", 1), ("alice", 2)] {
            wire(&mut history, name).push(delivers(9, 0, 2, MessageKind::Application, hash));
        }
        assert_eq!(rules(&history), [Rule::Differs]);
    }

    #[test]
    fn one_entry_in_two_places_is_seen() {
        let mut history = good();
        let [at_9, at_10] = [9, 10].map(|at| delivers(at, at - 1, 2, MessageKind::Application, 1));
        wire(&mut history, "bob").push(at_9);
        assert_eq!(rules(&history), []);
        wire(&mut history, "carol").push(at_10);
        assert_eq!(rules(&history), [Rule::Doubled]);
    }
}
