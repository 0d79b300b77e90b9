//! What guest providers are to be sent of a group: PROTOCOL.md §3, "Between providers". The log itself is what they
//! get; here is which of them get it, and what changes of their own clients behind each sequence.
//!
//! Deliberately absent: sending, and where a guest's copy stands (`federation`).

use std::collections::BTreeMap;

use super::{
    GroupState, Hub, Reject,
    record::{AddedRecord, Change, Kind, Member},
};
use crate::wire::{
    ds::REQUEST_BYTES_MAX,
    ids::{ClientUri, Domain, KeyPackageRef, LeafIndex, RecipientId, Sequence},
    mls::MlsMessage,
    queueing::RosterChange,
};

/// Guest providers with the number of their clients in the group.
pub(super) type Guests = BTreeMap<Domain, usize>;

/// What one guest provider is owed at one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    pub peer: Domain,
    pub sequence: Sequence,
    /// It had no client in the group before: this opens its copy of the feed.
    pub opens: bool,
    /// Of its clients alone; they take effect behind the sequence.
    pub changes: Vec<RosterChange>,
}

/// What must be known of the group before a change to say what it means for guests.
#[derive(Debug, Default)]
pub(super) struct Before {
    guests: Guests,
    pub(super) removed: Vec<(LeafIndex, Member)>,
}

impl GroupState {
    /// Providers that have clients in the group and are not its hub.
    pub fn guests(&self) -> impl Iterator<Item = &Domain> {
        self.guests.keys()
    }

    /// All of `peer`'s clients in the group, as adds: what a snapshot for it holds. O(members).
    #[must_use]
    pub fn roster_for(&self, peer: &Domain) -> Vec<RosterChange> {
        let members = self.members.values().filter(|member| &member.config.domain == peer);
        members.map(|member| add(member, None)).collect()
    }

    /// The client that `peer` knows as `recipient`, if it is one of its own. O(members).
    #[must_use]
    pub fn client_of(&self, peer: &Domain, recipient: RecipientId) -> Option<&ClientUri> {
        let is_it =
            |member: &&Member| member.recipient == recipient && &member.config.domain == peer;
        self.members.values().find(is_it).map(|member| &member.client)
    }

    /// Whether what each guest is sent of a commit, its joiners' Welcomes inside, fits into one item of a batch.
    pub(super) fn fits_guests(
        &self,
        commit_bytes: usize,
        added: &[AddedRecord],
        welcomes: &BTreeMap<KeyPackageRef, MlsMessage>,
    ) -> Result<(), Reject> {
        let limit = REQUEST_BYTES_MAX - ITEM_MARGIN_BYTES;
        let mut bytes: BTreeMap<&Domain, usize> = BTreeMap::new();
        for joiner in added.iter().filter(|it| it.config.domain != self.hub.settings.hub) {
            let welcome = welcomes.get(&joiner.reference).map_or(0, |it| it.as_slice().len());
            let taken = bytes.entry(&joiner.config.domain).or_insert(commit_bytes);
            *taken += welcome + joiner.config.queue_token.as_slice().len() + CHANGE_BYTES;
        }
        match bytes.values().all(|taken| *taken <= limit) {
            true => Ok(()),
            false => Err(Reject::TooLarge {
                what: "what one provider's joiners get with the commit (add fewer at a time)",
                limit,
            }),
        }
    }

    pub(super) fn enter(&mut self, leaf: LeafIndex, member: Member) {
        if member.config.domain != self.hub.settings.hub {
            *self.guests.entry(member.config.domain.clone()).or_default() += 1;
        }
        self.members.insert(leaf, member);
    }

    pub(super) fn exit(&mut self, leaf: LeafIndex) -> Option<Member> {
        let member = self.members.remove(&leaf)?;
        if let Some(count) = self.guests.get_mut(&member.config.domain) {
            *count -= 1;
            if *count == 0 {
                self.guests.remove(&member.config.domain);
            }
        }
        Some(member)
    }

    /// Members that the change may take away, and the guests, as they are before it.
    pub(super) fn before(&self, change: &Change) -> Before {
        let removed = match &change.kind {
            Kind::Commit(commit) => commit
                .removed
                .iter()
                .filter_map(|leaf| self.members.get(leaf).map(|m| (*leaf, m.clone())))
                .collect(),
            Kind::EpochVoid { .. } => self.brought_in(),
            Kind::Created
            | Kind::Message
            | Kind::Queue { .. }
            | Kind::Proposal(_)
            | Kind::Going { .. }
            | Kind::Voided { .. }
            | Kind::Complaint { .. }
            | Kind::Restored
            | Kind::Deleted => Vec::new(),
        };
        // nobody was there before the group began
        let guests = match &change.kind {
            Kind::Created => Guests::new(),
            Kind::Commit(_)
            | Kind::EpochVoid { .. }
            | Kind::Message
            | Kind::Queue { .. }
            | Kind::Proposal(_)
            | Kind::Going { .. }
            | Kind::Voided { .. }
            | Kind::Complaint { .. }
            | Kind::Restored
            | Kind::Deleted => self.guests.clone(),
        };
        Before { guests, removed }
    }

    /// The provider of the client that a change's sender is.
    pub(super) fn origin_of(&self, change: &Change) -> Option<Domain> {
        if let Kind::Commit(commit) = &change.kind
            && let Some(joined) = &commit.joined
        {
            return Some(joined.config.domain.clone());
        }
        self.members.get(&change.sender?).map(|member| member.config.domain.clone())
    }

    /// What every guest is owed behind a change. `dissolved` holds whom the group's last commit removed until the
    /// group's end follows: they get to know of it, so they leave behind that.
    pub(super) fn owe_guests(
        &self,
        change: &Change,
        before: &Before,
        sequence: Sequence,
        welcomes: &BTreeMap<KeyPackageRef, MlsMessage>,
        dissolved: &mut Vec<Member>,
        outbound: &mut Vec<Outbound>,
    ) {
        let mut owed: BTreeMap<Domain, Vec<RosterChange>> = BTreeMap::new();
        for peer in before.guests.keys().chain(self.guests.keys()) {
            owed.entry(peer.clone()).or_default();
        }
        let hub = &self.hub.settings.hub;
        let mut owe = |member: &Member, change: RosterChange| {
            if member.config.domain != *hub {
                owed.entry(member.config.domain.clone()).or_default().push(change);
            }
        };
        match &change.kind {
            Kind::Created => {
                self.members.values().for_each(|member| owe(member, add(member, None)))
            }
            Kind::Queue { leaf, .. } => {
                if let Some(member) = self.members.get(leaf) {
                    owe(member, update(member));
                }
            }
            Kind::Commit(commit) => {
                let resynced = commit.joined.as_ref().and_then(|joined| joined.replaces);
                for (leaf, member) in &before.removed {
                    if resynced == Some(*leaf) {
                        continue;
                    }
                    if commit.dissolves {
                        dissolved.push(member.clone());
                    } else {
                        owe(member, RosterChange::Remove { recipient: member.recipient });
                    }
                }
                for added in &commit.added {
                    if let Some(member) = self.members.get(&added.leaf) {
                        owe(member, add(member, welcomes.get(&added.reference)));
                    }
                }
                if let Some(joined) = &commit.joined
                    && let Some(member) = self.members.get(&joined.leaf)
                {
                    let resync = joined.replaces.is_some();
                    owe(member, if resync { update(member) } else { add(member, None) });
                }
            }
            Kind::EpochVoid { .. } => {
                for (_, member) in &before.removed {
                    owe(member, RosterChange::Remove { recipient: member.recipient });
                }
            }
            Kind::Deleted => {
                for member in self.members.values().chain(dissolved.iter()) {
                    owe(member, RosterChange::Remove { recipient: member.recipient });
                }
                dissolved.clear();
            }
            Kind::Message
            | Kind::Proposal(_)
            | Kind::Going { .. }
            | Kind::Voided { .. }
            | Kind::Complaint { .. }
            | Kind::Restored => {}
        }
        // whom a dissolving commit removed is owed that commit, whoever else is still there
        for member in dissolved.iter().filter(|member| member.config.domain != *hub) {
            owed.entry(member.config.domain.clone()).or_default();
        }
        for (peer, changes) in owed {
            let opens = !before.guests.contains_key(&peer)
                && changes.iter().any(|change| matches!(change, RosterChange::Add { .. }));
            outbound.push(Outbound { peer, sequence, opens, changes });
        }
    }
}

/// What an item is beside commit and roster, and a change of the roster beside token and Welcome, at the most.
const ITEM_MARGIN_BYTES: usize = 4_096;
const CHANGE_BYTES: usize = 64;

/// The guests among `members`.
pub(super) fn guests_of<'a>(hub: &Hub, members: impl Iterator<Item = &'a Member>) -> Guests {
    let mut guests = Guests::new();
    for member in members.filter(|member| member.config.domain != hub.settings.hub) {
        *guests.entry(member.config.domain.clone()).or_default() += 1;
    }
    guests
}

fn add(member: &Member, welcome: Option<&MlsMessage>) -> RosterChange {
    RosterChange::Add {
        recipient: member.recipient,
        client_queue_information: member.config.queue_token.clone(),
        filter: member.filter,
        welcome: welcome.cloned(),
    }
}

fn update(member: &Member) -> RosterChange {
    RosterChange::Update {
        recipient: member.recipient,
        client_queue_information: member.config.queue_token.clone(),
        filter: member.filter,
    }
}
