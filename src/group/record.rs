//! What a group's log and snapshots hold beside what is delivered: enough to be replayed without repeating any
//! check. A commit's record is O(log members): openmls' serialized `StagedCommit` and the partial GroupInfo.

use openmls::prelude::QueuedProposal;
use serde::{Deserialize, Serialize};

use crate::{
    policy::{
        change::{Act, Author, What},
        leaf::LeafIdentity,
    },
    store::records::{GoneReason, RequestKey},
    wire::{
        codec::{Raw, decode, encode},
        ds::{Accepted, FanoutFilter, PartialGroupInfo},
        extensions::ClientQueueConfig,
        ids::{
            ClientUri, Epoch, KeyPackageRef, LeafIndex, RecipientId, Sequence, Timestamp,
            UserKeyHash,
        },
        mls::MlsMessage,
    },
};

use super::{
    lies::Lies,
    mls::{InfoParts, MlsProblem, from_record, to_record},
};

/// One log record's change of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The request that asked for it; none for what the hub does by itself.
    pub request: Option<RequestKey>,
    /// The member that asked for it: it is active, and no pending joiner any more.
    pub sender: Option<LeafIndex>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "it is encoded at once and never kept in numbers")]
pub enum Kind {
    /// The group begins: what it begins with is in the snapshot that is written with it.
    Created,
    Message,
    Queue {
        leaf: LeafIndex,
        config: ClientQueueConfig,
        filter: FanoutFilter,
        timestamp: Timestamp,
    },
    Proposal(PendingRecord),
    Commit(Box<CommitRecord>),
    /// The hub wants the leaf removed; it proposes so in every epoch until it is.
    Going {
        leaf: LeafIndex,
        reason: GoneReason,
    },
    Deleted,
    /// Proposals, by their references, that no commit can hold any more: they are not pending from here on.
    Voided {
        references: Vec<Vec<u8>>,
    },
    /// A complaint of the user's that is counted, as it came.
    Complaint {
        user: UserKeyHash,
        complaint: Vec<u8>,
    },
    /// The last commit is void, and with it the epoch that it began.
    EpochVoid {
        /// A snapshot of the group before that commit.
        before: Vec<u8>,
    },
    /// The provider went back to a backup. The record's sequence lies far ahead of the one before, past all that the group may
    /// have had since: nothing between is given to anything else. Its members may have gone on: each must come anew, by a
    /// resync, before anything of it is taken.
    Restored,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// openmls' StagedCommit in postcard.
    pub staged: Vec<u8>,
    /// The TLS encoding of the PartialGroupInfo.
    pub partial: Vec<u8>,
    pub signer: LeafIndex,
    pub removed: Vec<LeafIndex>,
    /// Leaves whose content changed: the path's and those of Updates.
    pub renewed: Vec<LeafIndex>,
    pub added: Vec<AddedRecord>,
    /// The newcomer of an external commit, with the leaf that a resync replaced.
    pub joined: Option<JoinedRecord>,
    pub policy_changed: bool,
    /// The group's deletion follows in the same write.
    pub dissolves: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedRecord {
    pub leaf: LeafIndex,
    pub client: ClientUri,
    pub reference: KeyPackageRef,
    pub config: ClientQueueConfig,
    pub not_after: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedRecord {
    pub leaf: LeafIndex,
    pub config: ClientQueueConfig,
    /// Of the request: an update of the queue that is older must not follow.
    pub timestamp: Timestamp,
    pub replaces: Option<LeafIndex>,
}

/// A proposal that waits to be committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRecord {
    /// openmls' QueuedProposal in postcard.
    pub queued: Vec<u8>,
    pub message: Vec<u8>,
    pub since: Timestamp,
    pub hub: bool,
    /// What the hub read of it when it came.
    pub by: Option<LeafIndex>,
    pub target: Target,
    /// Of an Add: what becomes of it when it is committed.
    pub added: Option<PendingAdd>,
    /// The TLS encoding of a newcomer's JoinProof: whoever commits its Add has no other.
    pub proof: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    Add {
        client: ClientUri,
        user: UserKeyHash,
        key: Vec<u8>,
        credential_type: u16,
        print: [u8; 32],
    },
    Remove(LeafIndex),
    Leave(LeafIndex),
    Update {
        leaf: LeafIndex,
        key: Vec<u8>,
    },
    Policy {
        policy: Vec<u8>,
    },
    HubKey,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingAdd {
    pub reference: KeyPackageRef,
    pub config: ClientQueueConfig,
    pub not_after: Timestamp,
}

/// A member as the hub sees it beside its leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub recipient: RecipientId,
    pub client: ClientUri,
    pub config: ClientQueueConfig,
    pub filter: FanoutFilter,
    /// Of the request that set config and filter: a later one wins.
    pub queue_timestamp: Timestamp,
    pub last_active: Timestamp,
    /// The sequence that made it a member.
    pub since: Sequence,
}

/// Whoever a commit added and has not sent anything yet: it may ask for its epoch's information.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joiner {
    pub leaf: LeafIndex,
    pub epoch: Epoch,
    pub key: Vec<u8>,
    pub not_after: Timestamp,
}

/// What was accepted lately, so that a retry is answered and not repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    pub request: RequestKey,
    pub accepted: Accepted,
    pub commit: bool,
}

/// Everything of a group at one sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub tree: Vec<u8>,
    pub partial: Vec<u8>,
    pub signer: LeafIndex,
    pub members: Vec<(LeafIndex, Member)>,
    pub pending: Vec<PendingRecord>,
    pub joiners: Vec<(KeyPackageRef, Joiner)>,
    pub remembered: Vec<Remembered>,
    pub going: Vec<(LeafIndex, GoneReason, Timestamp)>,
    pub next_sequence: Sequence,
    pub next_recipient: RecipientId,
    pub created_at: Timestamp,
    pub deleted: bool,
    /// What is known of liars; empty in a snapshot without that tail.
    #[serde(skip)]
    pub lies: Lies,
    /// Members that may have been further than this state since it was restored ([`Kind::Restored`]); mostly there are none,
    /// and no tail.
    #[serde(skip)]
    pub behind: Vec<LeafIndex>,
}

impl Snapshot {
    /// # Errors
    /// [`MlsProblem::Record`]
    pub fn to_bytes(&self) -> Result<Vec<u8>, MlsProblem> {
        let mut bytes = to_record(self)?;
        // behind what every version reads
        bytes.push(LIES);
        bytes.extend(to_record(&self.lies)?);
        if !self.behind.is_empty() {
            bytes.push(BEHIND);
            bytes.extend(to_record(&self.behind)?);
        }
        let keys = self.lies.keys_built_on();
        if !keys.is_empty() {
            bytes.push(BUILT_ON);
            bytes.extend(to_record(&keys)?);
        }
        Ok(bytes)
    }

    /// # Errors
    /// [`MlsProblem::Record`]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MlsProblem> {
        let (mut snapshot, mut rest): (Self, &[u8]) = taken(bytes)?;
        while let Some((tail, of_tail)) = rest.split_first() {
            rest = match *tail {
                LIES => {
                    let (lies, rest) = taken(of_tail)?;
                    snapshot.lies = lies;
                    rest
                }
                BEHIND => {
                    let (behind, rest) = taken(of_tail)?;
                    snapshot.behind = behind;
                    rest
                }
                BUILT_ON => {
                    let (keys, rest) = taken(of_tail)?;
                    snapshot.lies.put_keys_built_on(keys);
                    rest
                }
                _ => return Err(MlsProblem::Record),
            };
        }
        Ok(snapshot)
    }
}

/// What follows the part that every version reads is numbered: what is known of liars, who is behind, and (behind the liars) on
/// which keys commits from outside were built.
const LIES: u8 = 1;
const BEHIND: u8 = 2;
const BUILT_ON: u8 = 3;

fn taken<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), MlsProblem> {
    postcard::take_from_bytes(bytes).map_err(|_| MlsProblem::Record)
}

/// A pending proposal in memory.
#[derive(Debug, Clone)]
pub struct Pending {
    pub queued: QueuedProposal,
    pub act: Act,
    pub message: MlsMessage,
    pub record: PendingRecord,
}

impl Pending {
    /// # Errors
    /// [`MlsProblem::Record`]
    pub fn from_record(record: PendingRecord) -> Result<Self, MlsProblem> {
        let author = match (record.hub, record.by) {
            (true, _) => Author::Hub,
            (false, Some(leaf)) => Author::Leaf(leaf),
            (false, None) => {
                let proof = record.proof.as_ref().map(|proof| decode(proof)).transpose();
                Author::Newcomer { proof: proof.map_err(|_| MlsProblem::Record)? }
            }
        };
        let what = match &record.target {
            Target::Add { client, user, key, credential_type, print } => {
                What::Add(Box::new(LeafIdentity {
                    client: client.clone(),
                    user: user.clone(),
                    signature_key: key.clone(),
                    credential_type: *credential_type,
                    print: *print,
                }))
            }
            Target::Remove(leaf) => What::Remove(*leaf),
            Target::Leave(leaf) => What::Leave(*leaf),
            Target::Update { leaf, .. } => What::Update(*leaf),
            Target::Policy { policy } => {
                What::Policy(Box::new(decode(policy).map_err(|_| MlsProblem::Record)?))
            }
            Target::HubKey => What::HubKey,
        };
        Ok(Self {
            queued: from_record(&record.queued)?,
            act: Act { author, what },
            message: Raw::new(record.message.clone()).map_err(|_| MlsProblem::Record)?,
            record,
        })
    }

    /// # Errors
    /// [`MlsProblem::Record`]
    pub fn new(
        queued: QueuedProposal,
        act: Act,
        message: MlsMessage,
        since: Timestamp,
        update_key: Vec<u8>,
        added: Option<PendingAdd>,
    ) -> Result<Self, MlsProblem> {
        let target = match &act.what {
            What::Add(identity) => Target::Add {
                client: identity.client.clone(),
                user: identity.user.clone(),
                key: identity.signature_key.clone(),
                credential_type: identity.credential_type,
                print: identity.print,
            },
            What::Remove(leaf) => Target::Remove(*leaf),
            What::Leave(leaf) => Target::Leave(*leaf),
            What::Update(leaf) => Target::Update { leaf: *leaf, key: update_key },
            What::Policy(policy) => Target::Policy { policy: encode(policy.as_ref()) },
            What::HubKey => Target::HubKey,
            What::Join(_) | What::Resync(_) => return Err(MlsProblem::Record),
        };
        let proof = match &act.author {
            Author::Newcomer { proof } => proof.as_ref().map(encode),
            Author::Leaf(_) | Author::Hub => None,
        };
        let by = match &act.author {
            Author::Leaf(leaf) => Some(*leaf),
            Author::Hub | Author::Newcomer { .. } => None,
        };
        let record = PendingRecord {
            queued: to_record(&queued)?,
            message: message.as_slice().to_vec(),
            since,
            hub: act.author == Author::Hub,
            by,
            target,
            added,
            proof,
        };
        Ok(Self { queued, act, message, record })
    }

    /// The reference by which a commit covers it.
    #[must_use]
    pub fn reference(&self) -> &[u8] {
        self.queued.proposal_reference_ref().as_slice()
    }
}

impl CommitRecord {
    /// # Errors
    /// [`MlsProblem::Record`]
    pub fn info_parts(&self) -> Result<InfoParts, MlsProblem> {
        let partial: PartialGroupInfo = decode(&self.partial).map_err(|_| MlsProblem::Record)?;
        Ok(InfoParts { partial, signer: self.signer })
    }
}
