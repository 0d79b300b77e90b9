//! What a client keeps of its own beside openmls' state: groups, requests on their way, feeds, contacts.
//! Stored as CBOR; a field that is added later has a default.

use serde::{Deserialize, Serialize};

use super::{
    behind::Behind,
    home::{LiftedGroup, bytes},
    identity::StoredKey,
    moving::{Left, Redirect},
};
use crate::wire::{
    ds::FanoutFilter,
    extensions::{ClientQueueConfig, JoinPolicy, Role},
    ids::{ClientUri, Domain, Epoch, FeedId, GroupId, RequestId, Sequence, Timestamp, UserUri},
};

/// Where a client stands in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupState {
    /// Asked for: created here or joined, and not answered yet.
    Joining,
    Active,
    /// The state cannot follow the group any more; a resync is on its way or needed.
    Lost,
    /// No longer a member.
    Left,
    Deleted,
}

impl GroupState {
    /// For people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Lost => "lost track",
            Self::Left => "left",
            Self::Deleted => "deleted",
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct GroupRecord {
    /// Who hosts it: the group's external sender, as soon as this client has the group.
    pub hub: Domain,
    pub name: String,
    pub state: GroupState,
    /// What this client's leaf signs with.
    pub leaf_key: StoredKey,
    /// The feed of this membership, once its first entry has come.
    pub feed: Option<FeedId>,
    /// The last feed of a membership before this one: what is left of it says nothing any more.
    pub past_feed: Option<FeedId>,
    pub queue: Option<ClientQueueConfig>,
    pub filter: FanoutFilter,
    pub joined_at: Timestamp,
    /// Where in the group's log the external commit stands that this client came in by, or came back by. It lacks nothing
    /// of what is before that.
    #[serde(default)]
    pub entered_at: Option<Sequence>,
    /// The epoch that this client came in with, or came back with.
    #[serde(default)]
    pub entered_epoch: Option<Epoch>,
    /// The epoch of the last message that came by the feed; before the first, that which this client came in with. Messages
    /// from there on may still be on their way.
    #[serde(default)]
    pub read_epoch: Option<Epoch>,
    pub proofs: Proofs,
    #[serde(default)]
    pub places: Places,
    /// A Welcome that came before the entry that says that this client was removed.
    pub welcome: Option<KeptWelcome>,
    #[serde(default)]
    pub left: Option<Left>,
    /// When this client came in again because of a commit that it could not use, within the last while.
    #[serde(default)]
    pub resyncs: Vec<Timestamp>,
    /// States that were left, in the order in which the queue comes past them.
    #[serde(default)]
    pub behind: Vec<Behind>,
}

/// The JoinProofs of newcomers' pending proposals, by proposal reference.
pub(super) type Proofs = Vec<(Vec<u8>, Vec<u8>)>;
/// Where pending proposals stand in the hub's log, by proposal reference, as far as it has been said: what comes later by the
/// queue may have been there before.
pub(super) type Places = Vec<(Vec<u8>, Sequence)>;

/// What is known of pending proposals beside themselves.
pub(super) struct Noted<'a> {
    pub proofs: &'a mut Proofs,
    pub places: &'a mut Places,
}

impl GroupRecord {
    pub fn noted(&mut self) -> Noted<'_> {
        Noted { proofs: &mut self.proofs, places: &mut self.places }
    }
}

impl Noted<'_> {
    pub fn place_of(&self, reference: &[u8]) -> Option<Sequence> {
        self.places.iter().find(|(known, _)| known == reference).map(|(_, at)| *at)
    }

    /// A commit has covered them, or taken them off.
    pub fn clear(&mut self) {
        self.proofs.clear();
        self.places.clear();
    }
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct KeptWelcome {
    pub hub: Domain,
    #[serde(with = "bytes")]
    pub welcome: Vec<u8>,
    pub came_at: Timestamp,
}

/// Something to do at a group's hub. It says what is wanted and not how: the messages for it are made anew when
/// another commit came first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    CreateGroup,
    DeleteGroup,
    /// Group KeyPackages of users who are not in the group.
    AddUsers {
        key_packages: Vec<Vec<u8>>,
    },
    /// KeyPackages of further clients of one's own user.
    AddClients {
        key_packages: Vec<Vec<u8>>,
    },
    RemoveUsers {
        users: Vec<UserUri>,
    },
    /// Clients of one's own user, not oneself.
    RemoveClients {
        clients: Vec<ClientUri>,
    },
    /// A new leaf; also commits what is pending.
    UpdateClient {
        rotate_key: bool,
    },
    UpdateGroup {
        changes: Vec<PolicyChange>,
    },
    /// Move the group to another provider, which has said that it takes it: an encoded `MigrationResponse`. That is for
    /// one epoch: once another commit has come first it cannot be done any more.
    Migrate {
        response: Vec<u8>,
    },
    Propose {
        proposals: Vec<NewProposal>,
    },
    /// Encoded MIMI content.
    Send {
        content: Vec<u8>,
    },
    /// Give the hub a new queue token.
    UpdateQueueInfo,
    UpdateFanoutInfo {
        filter: FanoutFilter,
    },
    /// An external commit that replaces one's own leaf.
    Resync,
    /// An external commit as a new client: of a member's user, with a joining code, or into an open group.
    Join {
        code: Option<[u8; 32]>,
    },
    /// A newcomer's proposal to be added.
    AskToJoin,
    /// Takes up a Welcome.
    Welcome {
        welcome: Vec<u8>,
        key_package_ref: Vec<u8>,
        epoch: Epoch,
        last_resort: bool,
    },
}

impl Operation {
    /// Whether it makes this client a member (anew): it rests on what a hub shows and not on a state that follows.
    pub(super) fn comes_from_outside(&self) -> bool {
        match self {
            Self::Resync | Self::Join { .. } | Self::AskToJoin | Self::Welcome { .. } => true,
            Self::CreateGroup
            | Self::DeleteGroup
            | Self::AddUsers { .. }
            | Self::AddClients { .. }
            | Self::RemoveUsers { .. }
            | Self::RemoveClients { .. }
            | Self::UpdateClient { .. }
            | Self::UpdateGroup { .. }
            | Self::Migrate { .. }
            | Self::Propose { .. }
            | Self::Send { .. }
            | Self::UpdateQueueInfo
            | Self::UpdateFanoutInfo { .. } => false,
        }
    }
}

/// What a member may propose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewProposal {
    Leave,
    Update,
    Remove(ClientUri),
    /// A group KeyPackage.
    Add(Vec<u8>),
}

/// One change of a group's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyChange {
    Role {
        user: UserUri,
        role: Role,
    },
    Join(JoinPolicy),
    /// The public half of a joining code.
    AddCode {
        public: Vec<u8>,
        expires_at: Timestamp,
    },
    RemoveCode {
        public: Vec<u8>,
    },
    May {
        what: Right,
        role: Role,
    },
    MembersMax(u32),
}

/// The rights that a policy gives to roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Right {
    Add,
    Remove,
    Update,
    Delete,
    Migrate,
    Send,
}

/// A request that has not been answered.
#[derive(Serialize, Deserialize)]
pub(super) struct Pending {
    pub request: RequestId,
    pub group: GroupId,
    pub operation: Operation,
    /// The encoded `Info` that the request is to be built on.
    pub info: Option<Vec<u8>>,
    pub built: Option<Built>,
    /// How often the hub's answer made it necessary to build it anew.
    pub rebuilt: u32,
    #[serde(default)]
    pub redirect: Option<Redirect>,
    /// Somebody who asked for it is told what comes of it.
    #[serde(default)]
    pub asked: bool,
}

impl Pending {
    /// Who is asked.
    pub fn hub<'a>(&'a self, record: &'a GroupRecord) -> &'a Domain {
        self.redirect.as_ref().map_or(&record.hub, |redirect| &redirect.hub)
    }

    /// Whether it was built as a commit that its sender merges where it is accepted.
    pub fn commits(&self) -> bool {
        matches!(&self.built, Some(Built { effect: Effect::Merge { .. }, .. }))
    }

    /// Whether it was built as proposals.
    pub fn proposes(&self) -> bool {
        matches!(&self.built, Some(Built { effect: Effect::Proposed { .. }, .. }))
    }
}

/// What came of a request that is not pending any more, for whoever asked for it.
#[derive(Serialize, Deserialize)]
pub(super) struct AnswerRecord {
    pub request: RequestId,
    pub answer: StoredAnswer,
}

#[derive(Serialize, Deserialize)]
pub(super) enum StoredAnswer {
    /// An encoded `Accepted`.
    Accepted(#[serde(with = "bytes")] Vec<u8>),
    AlreadySo,
    /// An encoded `DsError`.
    Refused(#[serde(with = "bytes")] Vec<u8>),
    GivenUp(String),
}

/// A request as it was sent.
#[derive(Serialize, Deserialize)]
pub(super) struct Built {
    /// The encoded `DsSenderId`.
    #[serde(with = "bytes")]
    pub sender: Vec<u8>,
    /// The encoded `DsRequest`.
    #[serde(with = "bytes")]
    pub request: Vec<u8>,
    pub signer: StoredKey,
    pub effect: Effect,
}

/// What the hub's `accepted` does to this client's state.
#[derive(Serialize, Deserialize)]
pub(super) enum Effect {
    Nothing,
    /// The group's pending commit is merged; the leaf may have a new key.
    Merge {
        leaf_key: Option<StoredKey>,
    },
    /// The references of the proposals made, to take them back where they are refused.
    Proposed {
        references: Vec<Vec<u8>>,
    },
    /// The group's state behind an external commit.
    Enter {
        state: LiftedGroup,
        leaf_key: StoredKey,
    },
    Queue {
        config: ClientQueueConfig,
        filter: Option<FanoutFilter>,
    },
    Delete,
}

impl Effect {
    /// The references of what is proposed.
    pub fn proposed(self) -> Vec<Vec<u8>> {
        match self {
            Self::Proposed { references } => references,
            Self::Nothing
            | Self::Merge { .. }
            | Self::Enter { .. }
            | Self::Queue { .. }
            | Self::Delete => Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct FeedRecord {
    pub group: Option<GroupId>,
    /// The last sequence that is in this client's state.
    pub last: Sequence,
    /// The last sequence that the provider was told of.
    pub acknowledged: Sequence,
}

/// What two users have given each other. PROTOCOL.md §5.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Their token: with it their group KeyPackages may be fetched.
    pub their_token: Option<Vec<u8>>,
    /// Ours, as it was handed to them.
    pub our_token: Option<Vec<u8>>,
    /// The group that connects the two.
    pub group: Option<GroupId>,
}

/// A connection request that waits for the user's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub from: UserUri,
    pub group: GroupId,
    pub hub: Domain,
    pub join_code: [u8; 32],
    pub their_token: Vec<u8>,
    pub received_at: Timestamp,
}

/// What happened, in the order in which this client came to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An application message. `text` is what it shows, where it shows text.
    Message {
        group: GroupId,
        sender: ClientUri,
        sent_at: Timestamp,
        text: Option<String>,
        /// The encoded MIMI content.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        content: Vec<u8>,
    },
    Joined {
        group: GroupId,
        epoch: Epoch,
    },
    /// A commit of somebody else.
    Changed {
        group: GroupId,
        epoch: Epoch,
        by: Option<ClientUri>,
        added: Vec<ClientUri>,
        removed: Vec<ClientUri>,
        policy: bool,
    },
    Proposed {
        group: GroupId,
        by: Option<ClientUri>,
        what: String,
    },
    /// Another provider hosts the group from now on.
    Moved {
        group: GroupId,
        from: Domain,
        to: Domain,
    },
    Removed {
        group: GroupId,
    },
    Deleted {
        group: GroupId,
    },
    /// The provider that was asked does not know the group, or not any more. What this client has of it stays.
    NotKnown {
        group: GroupId,
        hub: Domain,
    },
    /// The state cannot follow the group; a resync has been begun.
    Lost {
        group: GroupId,
        why: String,
    },
    /// A commit that this client cannot use: what it says is not so. It is complained of, and then this client comes in
    /// again or goes on in the epoch before, by itself.
    Unusable {
        group: GroupId,
        /// None: it came from outside.
        by: Option<ClientUri>,
        why: String,
    },
    /// The hub took back a commit that could not be used: the group goes on in the epoch before.
    WentBack {
        group: GroupId,
        epoch: Epoch,
    },
    /// A commit that is good for its members left a GroupInfo that nobody could come in by: this client complains of it, and commits
    /// anew, which leaves a right one.
    BadGroupInfo {
        group: GroupId,
        by: Option<ClientUri>,
    },
    /// This client came in again too often in too short a time: it stays out of step until an hour is over, or until it is told to
    /// resync.
    GaveUp {
        group: GroupId,
    },
    /// An entry that could not be read, and what is known of it.
    Unreadable {
        group: GroupId,
        why: String,
    },
    ConnectionRequested {
        from: UserUri,
    },
    /// The user's consent token has come.
    Connected {
        user: UserUri,
    },
    KeyPackagesLow {
        left: u32,
    },
    /// The provider or a member did what it must not.
    Misbehaviour {
        what: String,
    },
}
