//! The drivers of one group: members with a real MLS state, who make everything that is said and changed in it.
//!
//! The others in the group are leaves: signed and registered, and without a state. A hub sees no difference, for it cannot decrypt;
//! what such a member "says" is encrypted by a driver and signed towards the hub by the member itself. Preparing and replaying use
//! the same crew: one that is alone in its group knows what will be accepted, and builds ahead; one whose members race goes by what
//! the hub answers. PROTOCOL.md §2; RFC 9420.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use openmls::{
    group::{PURE_PLAINTEXT_WIRE_FORMAT_POLICY, StagedWelcome},
    prelude as mls,
    prelude::{OpenMlsProvider, ProcessedMessageContent, tls_codec::Serialize as _},
};
use openmls_memory_storage::MemoryStorage;
use serde::{Deserialize, Serialize};

use super::{
    LoadError,
    account::{Account, Provider},
    plan::Op,
    request::{Kind, Request, Signer},
};
use crate::{
    client::core::{Content, Hub, SUITES, capabilities, group_context, join_config, partial},
    crypto::MlsProvider,
    policy,
    wire::{
        codec::{Opaque, Raw, decode, encode},
        ds::{
            Add, CreateGroup, DsRequest, DsSenderId, ExternalCommitInfo, GroupUpdate, JoinGroup,
            SendMessage, WelcomeInfo,
        },
        extensions::{ClientQueueConfig, JoinPolicy, PublicKey, QueueToken},
        ids::{Epoch, GroupId, KeyPackageRef, LeafIndex, Timestamp},
        mls::{KeyPackage, MlsMessage},
    },
};

/// All clients of a workload, by their numbers.
pub type Accounts = Arc<Vec<Account>>;

/// A group and the members of it that have a state.
pub struct Crew {
    id: GroupId,
    accounts: Accounts,
    drivers: Vec<Driver>,
    /// The leaf of each member that is an account.
    leaves: BTreeMap<u32, LeafIndex>,
    numbers: BTreeMap<Vec<u8>, u32>,
    text: String,
}

struct Driver {
    account: u32,
    provider: Provider,
    group: mls::MlsGroup,
}

/// A crew at rest. It holds the group's secrets.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredCrew {
    drivers: Vec<StoredDriver>,
    members: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct StoredDriver {
    account: u32,
    values: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What is sent for one operation, and what becomes of it where it is accepted.
#[derive(Debug)]
pub(super) struct Staged {
    pub requests: Vec<Request>,
    /// How many of the requests, from the first, are over before anything else happens in the group.
    pub holds: u8,
    commit: Option<MlsMessage>,
    driver: Option<usize>,
}

/// Gives a token of an account's queue that no group has.
pub(super) type Tokens<'a> = dyn FnMut(u32) -> Result<QueueToken, LoadError> + 'a;

impl Crew {
    /// A group that one account creates; the hub does not know of it before it has accepted the request.
    pub(super) fn create(
        accounts: &Accounts,
        creator: u32,
        hub_key: &PublicKey,
        message_bytes: u32,
        tokens: &mut Tokens<'_>,
        now: Timestamp,
    ) -> Result<(Self, Request), LoadError> {
        let account = &accounts[creator as usize];
        let hub = account.client.domain();
        let id = GroupId::of(&hub, crate::crypto::random());
        let provider = scratch();
        let mut policy = policy::default_policy(&account.user_key_hash()?);
        policy.join = JoinPolicy::Open;
        let hub = Hub { domain: hub, external_sender: hub_key.clone() };
        let context = group_context(&hub, &policy)?;
        let group = mls::MlsGroup::builder()
            .with_group_id(mls::GroupId::from_slice(id.as_bytes()))
            .ciphersuite(SUITES[0])
            .with_wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
            .use_ratchet_tree_extension(false)
            .with_group_context_extensions(context)
            .with_capabilities(capabilities())
            .with_leaf_node_extensions(account.leaf_extensions()?)
            .map_err(LoadError::mls)?
            .build(&provider, &account.key, account.credential_with_key())
            .map_err(LoadError::mls)?;
        let config = config(account, tokens(creator)?);
        let key_package = account.key_package(&scratch(), config.clone(), now)?;
        let request = CreateGroup {
            group_id: id.clone(),
            key_package: KeyPackage::of(&key_package),
            client_queue_config: config,
            group_info: Raw::new(info_of(&group, &provider, account)?)?,
            ratchet_tree: Raw::of(&group.export_ratchet_tree()),
        };
        let driver = Driver { account: creator, provider, group };
        let text = "x".repeat(message_bytes as usize);
        let mut crew = Self {
            id,
            accounts: Arc::clone(accounts),
            drivers: vec![driver],
            leaves: BTreeMap::new(),
            numbers: BTreeMap::new(),
            text,
        };
        crew.know(creator);
        crew.look();
        let sender = crew.sender(creator)?;
        let request = DsRequest::CreateGroup(Box::new(request));
        Ok((crew, leaf_request(Kind::CreateGroup, creator, &sender, &request)))
    }

    /// Adds accounts to the group in one commit of its creator. The first `drivers` of them get a state.
    pub(super) fn fill(
        &mut self,
        newcomers: &[u32],
        drivers: usize,
        tokens: &mut Tokens<'_>,
        now: Timestamp,
    ) -> Result<Request, LoadError> {
        let mut key_packages = Vec::new();
        let mut providers = Vec::new();
        for (at, number) in newcomers.iter().enumerate() {
            self.know(*number);
            let account = &self.accounts[*number as usize];
            let provider = scratch();
            let config = config(account, tokens(*number)?);
            key_packages.push(account.key_package(&provider, config, now)?);
            if at < drivers {
                providers.push((*number, provider));
            }
        }
        let creator = self.drivers[0].account;
        let sender = self.sender(creator)?;
        let made = self.commit(0, Change { adds: key_packages, removes: Vec::new() })?;
        let request = DsRequest::AddUsers(made.add.clone().ok_or_else(no_welcome)?);
        let request = leaf_request(Kind::AddUsers, creator, &sender, &request);
        self.merge(&made.staged(Vec::new(), Some(0)))?;
        let add = made.add.ok_or_else(no_welcome)?;
        let tree = Raw::<mls::RatchetTreeIn>::of(&self.drivers[0].group.export_ratchet_tree());
        for (account, provider) in providers {
            let mls::MlsMessageBodyIn::Welcome(welcome) = add.welcome.parse()?.extract() else {
                return Err(no_welcome());
            };
            let group = StagedWelcome::build_from_welcome(&provider, &join_config(), welcome)
                .map_err(LoadError::mls)?
                .with_ratchet_tree(tree.parse()?)
                .skip_lifetime_validation()
                .build()
                .map_err(LoadError::mls)?
                .into_group(&provider)
                .map_err(LoadError::mls)?;
            self.drivers.push(Driver { account, provider, group });
        }
        self.look();
        Ok(request)
    }

    #[must_use]
    pub(super) fn id(&self) -> &GroupId {
        &self.id
    }

    #[must_use]
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.drivers[0].group.epoch().as_u64())
    }

    /// How many of the members are such.
    #[must_use]
    pub(super) fn readers(&self, reads: impl Fn(u32) -> bool) -> u32 {
        let readers = self.leaves.keys().filter(|account| reads(**account)).count();
        u32::try_from(readers).unwrap_or(u32::MAX)
    }

    /// What is to be sent for `op` in the epoch as it is: one operation, or one of each racer, of which at most one can be accepted.
    pub(super) fn stage(
        &mut self,
        op: &Op,
        tokens: &mut Tokens<'_>,
        now: Timestamp,
    ) -> Result<Vec<Staged>, LoadError> {
        Ok(match op {
            Op::Message { by } => vec![self.message(*by)?],
            Op::Update { driver } => vec![self.update(*driver as usize, Kind::Update)?],
            Op::Add { driver, who } => vec![self.add(*driver as usize, *who, tokens, now)?],
            Op::Remove { who } => vec![self.remove(*who)?],
            Op::Join { who } => vec![self.join(*who, tokens)?],
            Op::Race { drivers } => drivers
                .iter()
                .map(|driver| self.update(*driver as usize, Kind::Race))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Takes in what the hub accepted. What other drivers have staged is gone.
    pub(super) fn merge(&mut self, accepted: &Staged) -> Result<(), LoadError> {
        let Some(commit) = &accepted.commit else { return Ok(()) };
        for (at, driver) in self.drivers.iter_mut().enumerate() {
            let Driver { provider, group, .. } = driver;
            if accepted.driver == Some(at) {
                group.merge_pending_commit(provider).map_err(LoadError::mls)?;
                continue;
            }
            group.clear_pending_commit(provider.storage()).map_err(LoadError::mls)?;
            let message = commit.parse()?.try_into_protocol_message().map_err(LoadError::mls)?;
            let processed = group.process_message(provider, message).map_err(LoadError::mls)?;
            let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content()
            else {
                return Err(LoadError::Mls("a commit is none".to_owned()));
            };
            group.merge_staged_commit(provider, *staged).map_err(LoadError::mls)?;
        }
        self.look();
        Ok(())
    }

    /// Forgets what was staged and not accepted.
    pub(super) fn forget(&mut self) -> Result<(), LoadError> {
        for Driver { provider, group, .. } in &mut self.drivers {
            group.clear_pending_commit(provider.storage()).map_err(LoadError::mls)?;
        }
        Ok(())
    }

    pub(super) fn stored(&self) -> StoredCrew {
        let drivers = self.drivers.iter().map(|driver| {
            let values = driver.provider.storage.values.read();
            let values = values.unwrap_or_else(PoisonError::into_inner);
            let values = values.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            StoredDriver { account: driver.account, values }
        });
        StoredCrew { drivers: drivers.collect(), members: self.numbers.values().copied().collect() }
    }

    pub(super) fn open(
        id: GroupId,
        accounts: &Accounts,
        stored: StoredCrew,
        message_bytes: u32,
    ) -> Result<Self, LoadError> {
        let mls_id = mls::GroupId::from_slice(id.as_bytes());
        let drivers = stored.drivers.into_iter().map(|StoredDriver { account, values }| {
            if account as usize >= accounts.len() {
                return Err(LoadError::Mls(format!("there is no account {account}")));
            }
            let storage = MemoryStorage {
                values: values.into_iter().collect::<std::collections::HashMap<_, _>>().into(),
            };
            let provider = MlsProvider::new(storage);
            let group = mls::MlsGroup::load(provider.storage(), &mls_id).map_err(LoadError::mls)?;
            let group = group.ok_or_else(|| LoadError::Mls("a state is missing".to_owned()))?;
            Ok(Driver { account, provider, group })
        });
        let drivers: Vec<Driver> = drivers.collect::<Result<_, _>>()?;
        if drivers.is_empty() {
            return Err(LoadError::Mls("a group has no driver".to_owned()));
        }
        let text = "x".repeat(message_bytes as usize);
        let mut crew = Self {
            id,
            accounts: Arc::clone(accounts),
            drivers,
            leaves: BTreeMap::new(),
            numbers: BTreeMap::new(),
            text,
        };
        for number in stored.members {
            if (number as usize) < accounts.len() {
                crew.know(number);
            }
        }
        crew.look();
        Ok(crew)
    }

    fn message(&mut self, by: u32) -> Result<Staged, LoadError> {
        let sender = self.sender(by)?;
        let content = Content::text(&self.text).encode();
        let own = self.drivers.iter().position(|driver| driver.account == by);
        let at = own.unwrap_or(by as usize % self.drivers.len());
        let Driver { account, provider, group } = &mut self.drivers[at];
        let key = &self.accounts[*account as usize].key;
        let message = group.create_message(provider, key, &content).map_err(LoadError::mls)?;
        let request = SendMessage { application_message: Raw::of(&message) };
        let request = DsRequest::SendMessage(request);
        Ok(Staged {
            requests: vec![leaf_request(Kind::Message, by, &sender, &request)],
            holds: 0,
            commit: None,
            driver: None,
        })
    }

    fn update(&mut self, driver: usize, kind: Kind) -> Result<Staged, LoadError> {
        let account = self.drivers[driver].account;
        let sender = self.sender(account)?;
        let made = self.commit(driver, Change::default())?;
        let request = DsRequest::UpdateClient(made.update()?);
        let request = leaf_request(kind, account, &sender, &request);
        Ok(made.staged(vec![request], Some(driver)))
    }

    fn add(
        &mut self,
        driver: usize,
        who: u32,
        tokens: &mut Tokens<'_>,
        now: Timestamp,
    ) -> Result<Staged, LoadError> {
        self.know(who);
        let newcomer = &self.accounts[who as usize];
        let config = config(newcomer, tokens(who)?);
        let key_package = newcomer.key_package(&scratch(), config, now)?;
        let reference = key_package.hash_ref(&self.drivers[driver].provider.crypto);
        let reference = reference.map_err(LoadError::mls)?.as_slice().to_vec();
        let newcomer_key = newcomer.key.public().clone();
        let account = self.drivers[driver].account;
        let sender = self.sender(account)?;
        let epoch = Epoch(self.epoch().0 + 1);
        let made = self.commit(driver, Change { adds: vec![key_package], removes: Vec::new() })?;
        let add = DsRequest::AddUsers(made.add.clone().ok_or_else(no_welcome)?);
        let info = DsRequest::WelcomeInfo(WelcomeInfo {
            group_id: self.id.clone(),
            sender: newcomer_key,
            epoch,
        });
        let reference = DsSenderId::KeyPackageRef(KeyPackageRef(
            Opaque::new(reference).map_err(LoadError::mls)?,
        ));
        let requests = vec![
            leaf_request(Kind::Add, account, &sender, &add),
            leaf_request(Kind::WelcomeInfo, who, &reference, &info),
        ];
        Ok(made.staged(requests, Some(driver)))
    }

    fn remove(&mut self, who: u32) -> Result<Staged, LoadError> {
        let leaf = *self.leaves.get(&who).ok_or_else(|| not_in(who))?;
        // members of its own role only an admin removes, who is the creator
        let account = self.drivers[0].account;
        let sender = self.sender(account)?;
        let removes = vec![mls::LeafNodeIndex::new(leaf.0)];
        let made = self.commit(0, Change { adds: Vec::new(), removes })?;
        let request = DsRequest::RemoveUsers(made.update()?);
        let request = leaf_request(Kind::Remove, account, &sender, &request);
        Ok(made.staged(vec![request], Some(0)))
    }

    fn join(&mut self, who: u32, tokens: &mut Tokens<'_>) -> Result<Staged, LoadError> {
        self.know(who);
        let joiner = &self.accounts[who as usize];
        let Driver { account, provider, group } = &self.drivers[0];
        let info = info_of(group, provider, &self.accounts[*account as usize])?;
        let tree = Raw::<mls::RatchetTreeIn>::of(&group.export_ratchet_tree());
        let own = scratch();
        let leaf = mls::LeafNodeParameters::builder()
            .with_capabilities(capabilities())
            .with_extensions(joiner.leaf_extensions()?)
            .build();
        let (joined, bundle) = mls::MlsGroup::external_commit_builder()
            .with_ratchet_tree(tree.parse()?)
            .with_config(join_config())
            .skip_lifetime_validation()
            .build_group(&own, decode(&info)?, joiner.credential_with_key())
            .map_err(LoadError::mls)?
            .leaf_node_parameters(leaf)
            .load_psks(own.storage())
            .map_err(LoadError::mls)?
            .build(own.rand(), own.crypto(), &joiner.key, |_| true)
            .map_err(LoadError::mls)?
            .finalize(&own)
            .map_err(LoadError::mls)?;
        let exported =
            joined.export_group_info(own.crypto(), &joiner.key, false).map_err(LoadError::mls)?;
        let commit: MlsMessage = Raw::of(bundle.commit());
        let join = DsRequest::JoinGroup(JoinGroup {
            group_id: self.id.clone(),
            update: GroupUpdate {
                commit: commit.clone(),
                group_info: partial(&exported, SUITES[0])?,
                welcome: None,
            },
            client_queue_config: config(joiner, tokens(who)?),
        });
        let ask = DsRequest::ExternalCommitInfo(ExternalCommitInfo {
            group_id: self.id.clone(),
            sender: joiner.key.public().clone(),
            credential: Raw::of(&joiner.credential()),
            user_key: Some(joiner.vouch()?),
            join_proof: None,
        });
        let sender = encode(&DsSenderId::UserKeyHash(joiner.user_key_hash()?));
        let of_user = |kind, request| Request {
            kind,
            account: who,
            signer: Signer::User,
            sender: sender.clone(),
            body: encode(request),
        };
        Ok(Staged {
            requests: vec![of_user(Kind::ExternalCommitInfo, &ask), of_user(Kind::Join, &join)],
            holds: 2,
            commit: Some(commit),
            driver: None,
        })
    }

    fn commit(&mut self, driver: usize, change: Change) -> Result<Made, LoadError> {
        let Driver { account, provider, group } = &mut self.drivers[driver];
        let key = &self.accounts[*account as usize].key;
        group.clear_pending_commit(provider.storage()).map_err(LoadError::mls)?;
        let only_adds = !change.adds.is_empty();
        let bundle = group
            .commit_builder()
            .force_self_update(!only_adds)
            .propose_adds(change.adds)
            .propose_removals(change.removes)
            .load_psks(provider.storage())
            .map_err(LoadError::mls)?
            .create_group_info(true)
            .use_ratchet_tree_extension(false)
            .build(provider.rand(), provider.crypto(), key, |_| true)
            .map_err(LoadError::mls)?
            .stage_commit(provider)
            .map_err(LoadError::mls)?;
        let (commit, welcome, info) = bundle.into_messages();
        let info = info.ok_or_else(|| LoadError::Mls("openmls made no GroupInfo".to_owned()))?;
        let (commit, group_info): (MlsMessage, _) = (Raw::of(&commit), partial(&info, SUITES[0])?);
        let add = welcome.as_ref().map(|welcome| Add {
            commit: commit.clone(),
            welcome: Raw::of(welcome),
            group_info: group_info.clone(),
        });
        let update = GroupUpdate { commit, group_info, welcome: None };
        Ok(Made { update, add })
    }

    fn know(&mut self, number: u32) {
        let name = self.accounts[number as usize].client.as_str().as_bytes().to_vec();
        self.numbers.insert(name, number);
    }

    /// Looks up who has which leaf now.
    fn look(&mut self) {
        self.leaves = self.drivers[0]
            .group
            .members()
            .filter_map(|member| {
                let number = self.numbers.get(member.credential.serialized_content())?;
                Some((*number, LeafIndex(member.index.u32())))
            })
            .collect();
    }

    fn sender(&self, account: u32) -> Result<DsSenderId, LoadError> {
        let leaf = self.leaves.get(&account).ok_or_else(|| not_in(account))?;
        Ok(DsSenderId::LeafIndex(*leaf))
    }
}

#[derive(Default)]
struct Change {
    adds: Vec<mls::KeyPackage>,
    removes: Vec<mls::LeafNodeIndex>,
}

struct Made {
    update: GroupUpdate,
    add: Option<Add>,
}

impl Made {
    fn update(&self) -> Result<GroupUpdate, LoadError> {
        match &self.add {
            None => Ok(self.update.clone()),
            Some(_) => Err(LoadError::Mls("a commit adds whom it should not".to_owned())),
        }
    }

    fn staged(&self, requests: Vec<Request>, driver: Option<usize>) -> Staged {
        let commit = Some(self.update.commit.clone());
        Staged { requests, holds: 1, commit, driver }
    }
}

fn scratch() -> Provider {
    MlsProvider::new(MemoryStorage::default())
}

fn config(account: &Account, queue_token: QueueToken) -> ClientQueueConfig {
    ClientQueueConfig { domain: account.client.domain(), queue_token }
}

fn leaf_request(kind: Kind, account: u32, sender: &DsSenderId, request: &DsRequest) -> Request {
    Request { kind, account, signer: Signer::Leaf, sender: encode(sender), body: encode(request) }
}

/// A GroupInfo without the MLSMessage around it.
fn info_of(
    group: &mls::MlsGroup,
    provider: &Provider,
    account: &Account,
) -> Result<Vec<u8>, LoadError> {
    let message =
        group.export_group_info(provider.crypto(), &account.key, false).map_err(LoadError::mls)?;
    let bytes = message.tls_serialize_detached().map_err(LoadError::mls)?;
    Ok(bytes[MLS_MESSAGE_HEADER_LEN..].to_vec())
}

fn not_in(account: u32) -> LoadError {
    LoadError::Mls(format!("account {account} is not in the group"))
}

fn no_welcome() -> LoadError {
    LoadError::Mls("a commit that adds somebody has no Welcome".to_owned())
}

/// The version and wire format before an MLSMessage's body.
const MLS_MESSAGE_HEADER_LEN: usize = 4;
