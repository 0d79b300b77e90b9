//! Proposals: what was answered as accepted stands in the feed of everyone who was in the group, at its place, and the commit that
//! ends its epoch does what PROTOCOL.md §2 ("Pending proposals") says. Nothing here knows a provider.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mimid::{
    client::core::Event,
    wire::ids::{ClientUri, GroupId},
};

use super::history::{
    Answer, Broken, Client, History, Message, MessageKind, Rule, Shown, Wire, broken,
};

/// One proposal that a client wanted to make, in a request of its own.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub group: GroupId,
    pub by: ClientUri,
    pub wish: Wish,
    pub answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// New keys of its own.
    Update,
    Leave,
    Remove(ClientUri),
    Add(ClientUri),
}

impl Proposal {
    /// As [`Event::Proposed`] calls it.
    fn shown_as(&self) -> String {
        match &self.wish {
            Wish::Update => format!("new keys of {}", self.by),
            Wish::Leave => format!("{} leaves", self.by),
            Wish::Remove(client) => format!("remove {client}"),
            Wish::Add(client) => format!("add {client}"),
        }
    }

    /// Whose leaf it takes out or changes: what displaces it names the same one.
    fn leaf(&self) -> Option<&ClientUri> {
        match &self.wish {
            Wish::Update | Wish::Leave => Some(&self.by),
            Wish::Remove(client) => Some(client),
            Wish::Add(_) => None,
        }
    }
}

/// One that was accepted, and where.
struct Accepted<'a> {
    proposal: &'a Proposal,
    sequence: u64,
    epoch: u64,
}

/// Whom a commit brought in and took out.
type AddedAndRemoved<'a> = (&'a [ClientUri], &'a [ClientUri]);

impl History {
    pub(super) fn judge_proposals(
        &self,
        shown: &BTreeMap<&ClientUri, Shown<'_>>,
        found: &mut Vec<Broken>,
    ) {
        let accepted: Vec<Accepted<'_>> = self
            .proposals
            .iter()
            .filter_map(|proposal| match proposal.answer {
                Answer::Accepted { sequence, epoch } => {
                    Some(Accepted { proposal, sequence, epoch })
                }
                Answer::Refused | Answer::Unknown => None,
            })
            .collect();
        judge_proposers(&accepted, found);
        self.judge_places(&accepted, found);
        for (uri, client) in &self.clients {
            let got = Got::of(client);
            for one in accepted.iter().filter(|one| one.proposal.by != *uri) {
                let place = shown.get(uri).and_then(|it| it.groups.get(&one.proposal.group));
                if let Some(place) = place
                    && place.must_hear(one.epoch)
                    && got.lacks(&one.proposal.group, one.sequence)
                {
                    let what = format!(
                        "{uri} was not delivered entry {}, {:?}; it was in {:?}",
                        one.sequence,
                        one.proposal,
                        place.times()
                    );
                    found.push(broken(Rule::Lost, what));
                }
            }
            self.judge_shown_proposals(uri, client, &accepted, found);
        }
        self.judge_covered(&accepted, found);
    }

    /// At the place that an answer names stands a member's proposal of that epoch. Where there is one that no answer names, somebody
    /// asked for one and has no answer.
    fn judge_places(&self, accepted: &[Accepted<'_>], found: &mut Vec<Broken>) {
        let by_place: HashMap<(&GroupId, u64), &Accepted<'_>> =
            accepted.iter().map(|one| ((&one.proposal.group, one.sequence), one)).collect();
        let mut unnamed: BTreeMap<&GroupId, BTreeSet<u64>> = BTreeMap::new();
        for (uri, group, sequence, message) in self.delivered() {
            let named = by_place.get(&(group, sequence));
            let is_proposal = message.kind == MessageKind::Proposal;
            if let Some(one) = named
                && (!is_proposal || message.epoch != one.epoch)
            {
                let what = format!(
                    "{uri} was delivered {message:?} as {sequence}, and accepted there was {:?}",
                    one.proposal
                );
                found.push(broken(Rule::Differs, what));
            }
            if named.is_none() && is_proposal {
                unnamed.entry(group).or_default().insert(sequence);
            }
        }
        for (group, sequences) in unnamed {
            let is_open = |it: &&Proposal| it.group == *group && it.answer == Answer::Unknown;
            let unanswered = self.proposals.iter().filter(is_open).count();
            if sequences.len() > unanswered {
                let what = format!(
                    "proposals {sequences:?} in {group} have no answer, and {unanswered} were asked for without one"
                );
                found.push(broken(Rule::MadeUp, what));
            }
        }
    }

    /// What a client shows its user: each proposal of others once, before the commit that ends its epoch, where the client followed
    /// the group from the one into the next. A removal that is known takes the place of what else was proposed for the same leaf: the hub's,
    /// and the client's own, which it does not show, too.
    fn judge_shown_proposals(
        &self,
        uri: &ClientUri,
        client: &Client,
        accepted: &[Accepted<'_>],
        found: &mut Vec<Broken>,
    ) {
        let mut by_epoch: HashMap<(&GroupId, u64), Vec<&Accepted<'_>>> = HashMap::new();
        for one in accepted {
            by_epoch.entry((&one.proposal.group, one.epoch)).or_default().push(one);
        }
        let mut counts: BTreeMap<(&GroupId, &ClientUri, &str), usize> = BTreeMap::new();
        let mut now: HashMap<&GroupId, u64> = HashMap::new();
        let mut standing: HashMap<&GroupId, Vec<(Option<&ClientUri>, &str)>> = HashMap::new();
        for event in &client.events {
            match event {
                Event::Proposed { group, by, what } => {
                    if let Some(by) = by {
                        *counts.entry((group, by, what)).or_default() += 1;
                    }
                    standing.entry(group).or_default().push((by.as_ref(), what));
                }
                Event::Joined { group, epoch } => {
                    now.insert(group, epoch.0);
                    standing.remove(group);
                }
                Event::Changed { group, epoch, by, .. } => {
                    let seen = standing.remove(group).unwrap_or_default();
                    let before = now.insert(group, epoch.0);
                    let follows = before.is_some_and(|before| before + 1 == epoch.0);
                    if !follows || by.as_ref().is_none_or(|by| by == uri) {
                        continue;
                    }
                    let of_epoch = by_epoch.get(&(group, epoch.0 - 1)).into_iter().flatten();
                    for one in of_epoch.filter(|one| one.proposal.by != *uri) {
                        let text = one.proposal.shown_as();
                        let is_out = |leaf: &ClientUri| {
                            let out = [format!("remove {leaf}"), format!("{leaf} leaves")];
                            seen.iter().any(|(_, what)| out.iter().any(|it| it == what))
                                || self.has_proposed_removal(uri, group, (leaf, epoch.0 - 1))
                        };
                        let is_shown = seen.contains(&(Some(&one.proposal.by), text.as_str()));
                        if !is_shown && !one.proposal.leaf().is_some_and(is_out) {
                            let what = format!(
                                "{uri} did not show {:?} before epoch {epoch}",
                                one.proposal
                            );
                            found.push(broken(Rule::Lost, what));
                        }
                    }
                }
                _ => {}
            }
        }
        for ((group, by, what), count) in counts {
            let could = |it: &&Proposal| {
                it.group == *group
                    && it.by == *by
                    && it.answer != Answer::Refused
                    && it.shown_as() == *what
            };
            let asked = self.proposals.iter().filter(could).count();
            if count > asked {
                let what = format!(
                    "{uri} showed {what:?} of {by} in {group} {count} times, asked for {asked} times"
                );
                found.push(broken(if asked == 0 { Rule::MadeUp } else { Rule::Doubled }, what));
            }
        }
    }

    /// Whether `by` may have proposed in that epoch to take that leaf out.
    fn has_proposed_removal(
        &self,
        by: &ClientUri,
        group: &GroupId,
        (leaf, epoch): (&ClientUri, u64),
    ) -> bool {
        self.proposals.iter().any(|it| {
            let is_in_it = match it.answer {
                Answer::Accepted { epoch: of, .. } => of == epoch,
                Answer::Unknown => true,
                Answer::Refused => false,
            };
            let takes_out = matches!(&it.wish, Wish::Remove(client) if client == leaf);
            is_in_it && takes_out && it.by == *by && it.group == *group
        })
    }

    /// A member's commit does all that is pending, one from outside what leaves: so whoever was proposed to be added or taken out is, where
    /// somebody shows what the commit changed.
    fn judge_covered(&self, accepted: &[Accepted<'_>], found: &mut Vec<Broken>) {
        let commits: HashMap<(&GroupId, u64), MessageKind> = self
            .delivered()
            .filter(|(.., message)| {
                matches!(message.kind, MessageKind::Commit | MessageKind::CommitFromOutside)
            })
            .map(|(_, group, _, message)| ((group, message.epoch), message.kind))
            .collect();
        let mut changes: HashMap<(&GroupId, u64), AddedAndRemoved<'_>> = HashMap::new();
        for event in self.clients.values().flat_map(|client| &client.events) {
            if let Event::Changed { group, epoch, by: Some(_), added, removed, .. } = event {
                changes.insert((group, epoch.0), (added, removed));
            }
        }
        for one in accepted {
            let Proposal { group, by, wish, .. } = one.proposal;
            let Some(kind) = commits.get(&(group, one.epoch)) else { continue };
            let Some((added, removed)) = changes.get(&(group, one.epoch + 1)) else { continue };
            let is_done = match (wish, kind) {
                (Wish::Update, _) => true,
                (Wish::Leave, _) => removed.contains(by),
                (_, MessageKind::CommitFromOutside) => true,
                (Wish::Remove(client), _) => removed.contains(client),
                (Wish::Add(client), _) => added.contains(client),
            };
            if !is_done {
                let what = format!(
                    "{:?} (epoch {}) was not done by the commit behind it, which added {added:?} and removed {removed:?}",
                    one.proposal, one.epoch
                );
                found.push(broken(Rule::Uncovered, what));
            }
        }
    }

    /// How many deliveries of accepted proposals the record has seen: with none of them it judges nothing.
    pub fn proposals_seen(&self) -> u64 {
        let places: BTreeSet<(&GroupId, u64)> = self
            .proposals
            .iter()
            .filter_map(|it| match it.answer {
                Answer::Accepted { sequence, .. } => Some((&it.group, sequence)),
                Answer::Refused | Answer::Unknown => None,
            })
            .collect();
        let seen: BTreeSet<(&ClientUri, &GroupId, u64)> = self
            .delivered()
            .map(|(uri, group, sequence, _)| (uri, group, sequence))
            .filter(|(_, group, sequence)| places.contains(&(*group, *sequence)))
            .collect();
        seen.len() as u64
    }

    fn delivered(&self) -> impl Iterator<Item = (&ClientUri, &GroupId, u64, Message)> {
        self.clients.iter().flat_map(|(uri, client)| {
            client.wire.iter().filter_map(move |wire| match wire {
                Wire::Delivered {
                    sequence, group: Some(group), message: Some(message), ..
                } => Some((uri, group, *sequence, *message)),
                Wire::Delivered { .. } | Wire::Acknowledged { .. } | Wire::Killed => None,
            })
        })
    }
}

/// What a client has proposed and was told of at once stands in the order in which it asked.
fn judge_proposers(accepted: &[Accepted<'_>], found: &mut Vec<Broken>) {
    let mut last: HashMap<(&GroupId, &ClientUri), u64> = HashMap::new();
    for Accepted { proposal, sequence, .. } in accepted {
        let before = last.insert((&proposal.group, &proposal.by), *sequence).unwrap_or_default();
        if *sequence <= before {
            let what = format!("{proposal:?} is at {sequence}, behind {before}, asked before it");
            found.push(broken(Rule::Reordered, what));
        }
    }
}

/// Where a client's record has entries, and where it says that nothing was.
struct Got<'a> {
    at: BTreeSet<(&'a GroupId, u64)>,
    /// By group: from an entry to what it names as previous, there was nothing in its feed.
    nothing: HashMap<&'a GroupId, BTreeSet<(u64, u64)>>,
}

impl<'a> Got<'a> {
    fn of(client: &'a Client) -> Self {
        let mut got = Self { at: BTreeSet::new(), nothing: HashMap::new() };
        for wire in &client.wire {
            let Wire::Delivered { feed, sequence, previous, group: Some(group), message } = wire
            else {
                continue;
            };
            // a Welcome names a group, and stands in the client's own feed
            if *feed == 0 {
                continue;
            }
            if message.is_some() {
                got.at.insert((group, *sequence));
            }
            // in front of a feed's first entry may be another feed of the same group
            if *previous > 0 {
                got.nothing.entry(group).or_default().insert((*previous, *sequence));
            }
        }
        got
    }

    /// Whether the entry at `sequence` was never delivered. What the client library took in by itself is not in the record: what
    /// is in front and behind says then whether there was one.
    fn lacks(&self, group: &GroupId, sequence: u64) -> bool {
        let was_left_out = || {
            let nothing = self.nothing.get(group)?;
            let (from, until) = nothing.range(..(sequence, 0)).next_back()?;
            Some((from + 1..*until).contains(&sequence))
        };
        !self.at.contains(&(group, sequence)) && was_left_out().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use mimid::wire::ids::Epoch;

    use super::{
        super::history::tests::{changed, delivers, events, good, group, rules, uri, wire},
        *,
    };

    fn proposed(by: &str, what: &str) -> Event {
        Event::Proposed { group: group(), by: Some(uri(by)), what: what.to_owned() }
    }

    fn leaves(name: &str) -> String {
        format!("{} leaves", uri(name))
    }

    /// Behind what is good: carol asks to leave (entry 8, epoch 2), bob commits that (9).
    fn carol_leaves() -> History {
        let mut history = good();
        history.proposals.push(Proposal {
            group: group(),
            by: uri("carol"),
            wish: Wish::Leave,
            answer: Answer::Accepted { sequence: 8, epoch: 2 },
        });
        events(&mut history, "alice").extend([
            proposed("carol", &leaves("carol")),
            Event::Changed {
                group: group(),
                epoch: Epoch(3),
                by: Some(uri("bob")),
                added: vec![],
                removed: vec![uri("carol")],
                policy: false,
            },
        ]);
        events(&mut history, "bob").push(proposed("carol", &leaves("carol")));
        events(&mut history, "carol").push(Event::Removed { group: group() });
        for (name, at_8) in [("alice", true), ("bob", true), ("carol", false)] {
            let wire = wire(&mut history, name);
            wire.push(delivers(7, 3, 2, MessageKind::Application, 7));
            wire.extend(at_8.then(|| delivers(8, 7, 2, MessageKind::Proposal, 8)));
        }
        wire(&mut history, "alice").push(delivers(9, 8, 2, MessageKind::Commit, 9));
        history
    }

    #[test]
    fn nothing_is_wrong_where_a_proposal_is_delivered_and_committed() {
        assert_eq!(carol_leaves().judge(), []);
        assert_eq!(carol_leaves().proposals_seen(), 2);
    }

    #[test]
    fn an_accepted_proposal_that_a_member_was_not_delivered_is_lost() {
        let mut history = carol_leaves();
        let wire_of = wire(&mut history, "bob");
        wire_of.pop();
        assert_eq!(rules(&history), [], "the client library may have taken it in");
        wire(&mut history, "bob").push(delivers(9, 7, 2, MessageKind::Commit, 9));
        assert_eq!(rules(&history), [Rule::Lost]);
        // by another that names it as the one before, the library has
        let mut history = carol_leaves();
        *wire(&mut history, "bob").last_mut().unwrap() = delivers(9, 8, 2, MessageKind::Commit, 9);
        assert_eq!(rules(&history), []);
    }

    #[test]
    fn who_came_behind_it_or_went_before_it_need_not_get_a_proposal() {
        let mut history = carol_leaves();
        let alice = events(&mut history, "alice");
        alice.truncate(alice.len() - 2);
        alice.push(Event::Removed { group: group() });
        *wire(&mut history, "alice") = vec![
            delivers(7, 3, 2, MessageKind::Application, 7),
            delivers(12, 7, 5, MessageKind::Commit, 12),
        ];
        assert_eq!(rules(&history), [Rule::Lost], "it was in epoch 2");
        history.proposals[0].answer = Answer::Accepted { sequence: 8, epoch: 3 };
        wire(&mut history, "bob").pop();
        assert_eq!(rules(&history), [], "and not in epoch 3");
    }

    #[test]
    fn a_proposal_that_is_not_shown_before_its_commit_is_lost() {
        let mut history = carol_leaves();
        events(&mut history, "alice").retain(|it| !matches!(it, Event::Proposed { .. }));
        assert_eq!(rules(&history), [Rule::Lost]);
        // a removal that is known takes its place
        let place = events(&mut history, "alice").len() - 1;
        events(&mut history, "alice")
            .insert(place, proposed("bob", &format!("remove {}", uri("carol"))));
        history.proposals.push(Proposal {
            group: group(),
            by: uri("bob"),
            wish: Wish::Remove(uri("carol")),
            answer: Answer::Unknown,
        });
        assert_eq!(rules(&history), []);
        // the client's own does, which it does not show; one of another epoch or leaf does not
        events(&mut history, "alice").retain(|it| !matches!(it, Event::Proposed { .. }));
        assert_eq!(rules(&history), [Rule::Lost]);
        for (leaf, epoch, found) in [
            ("carol", 2, &[][..]),
            ("carol", 1, &[Rule::Lost]),
            ("bob", 2, &[Rule::Lost, Rule::Uncovered]),
        ] {
            let mut history = carol_leaves();
            events(&mut history, "alice").retain(|it| !matches!(it, Event::Proposed { .. }));
            history.proposals.push(Proposal {
                group: group(),
                by: uri("alice"),
                wish: Wish::Remove(uri(leaf)),
                answer: Answer::Accepted { sequence: 8, epoch },
            });
            let mut rules = rules(&history);
            rules.retain(|it| matches!(it, Rule::Lost | Rule::Uncovered));
            assert_eq!(rules, found, "{leaf} {epoch}");
        }
    }

    #[test]
    fn a_proposal_that_is_shown_twice_or_was_never_made_is_seen() {
        let mut history = carol_leaves();
        events(&mut history, "bob").push(proposed("carol", &leaves("carol")));
        assert_eq!(rules(&history), [Rule::Doubled]);
        let mut history = carol_leaves();
        events(&mut history, "bob").push(proposed("alice", &leaves("alice")));
        assert_eq!(rules(&history), [Rule::MadeUp]);
        // and one that stands in a feed, and nobody asked for
        let mut history = carol_leaves();
        wire(&mut history, "bob").push(delivers(10, 9, 3, MessageKind::Proposal, 10));
        assert_eq!(rules(&history), [Rule::MadeUp]);
    }

    #[test]
    fn something_else_at_a_proposals_place_is_seen() {
        for (kind, epoch) in [(MessageKind::Application, 2), (MessageKind::Proposal, 1)] {
            let mut history = carol_leaves();
            for name in ["alice", "bob"] {
                let wire = wire(&mut history, name);
                wire.retain(|it| !matches!(it, Wire::Delivered { sequence: 8, .. }));
                wire.insert(1, delivers(8, 7, epoch, kind, 8));
            }
            assert_eq!(rules(&history), [Rule::Differs]);
        }
    }

    #[test]
    fn a_proposal_that_the_next_commit_does_not_do_is_uncovered() {
        let does_not = |wish: Wish, kind| {
            let mut history = carol_leaves();
            let shown_before = history.proposals[0].shown_as();
            history.proposals[0].wish = wish;
            let shown = history.proposals[0].shown_as();
            for client in history.clients.values_mut() {
                for event in &mut client.events {
                    if let Event::Proposed { what, .. } = event
                        && *what == shown_before
                    {
                        what.clone_from(&shown);
                    }
                }
            }
            *events(&mut history, "alice").last_mut().unwrap() = changed(3, "bob");
            *wire(&mut history, "alice").last_mut().unwrap() = delivers(9, 8, 2, kind, 9);
            rules(&history)
        };
        let (inside, outside) = (MessageKind::Commit, MessageKind::CommitFromOutside);
        assert_eq!(does_not(Wish::Leave, inside), [Rule::Uncovered]);
        assert_eq!(does_not(Wish::Leave, outside), [Rule::Uncovered]);
        assert_eq!(does_not(Wish::Remove(uri("bob")), inside), [Rule::Uncovered]);
        assert_eq!(does_not(Wish::Add(uri("dave")), inside), [Rule::Uncovered]);
        // what a commit from outside voids
        assert_eq!(does_not(Wish::Remove(uri("bob")), outside), []);
        assert_eq!(does_not(Wish::Add(uri("dave")), outside), []);
        assert_eq!(does_not(Wish::Update, inside), []);
    }

    #[test]
    fn proposals_behind_ones_that_were_asked_for_later_are_seen() {
        let mut history = carol_leaves();
        history.proposals.push(Proposal {
            group: group(),
            by: uri("carol"),
            wish: Wish::Update,
            answer: Answer::Accepted { sequence: 4, epoch: 1 },
        });
        assert!(rules(&history).contains(&Rule::Reordered));
    }
}
