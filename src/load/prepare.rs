//! `mimid load prepare`: registers the clients at the live targets, creates the groups there, makes the messages ahead and writes the
//! workload.
//!
//! KeyPackages carry their provider's queue tokens, and a group its hub's key: so this needs the targets, and what it makes is good for them
//! alone. Many groups at a time; the memory is that of those at work.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    LoadError,
    account::Account,
    crew::{Accounts, Crew, Staged},
    lines::{Lines, now, patiently},
    plan::{GroupPlan, Op, Shape},
    progress::Progress,
    request::Request,
    workload::{self, Group, Header, Live, Step, Target, Writer},
};
use crate::{
    client, crypto,
    wire::{
        client::{Flag, MintedTokens, ProviderKeys, ProviderKeysAnswer, QueueTokens, Registered},
        codec::List,
        encode,
        extensions::{KeyPackageClass, PublicKey, QueueToken, SignatureScheme},
        ids::{ClientUri, RequestId, UserUri},
    },
};

/// What is to be prepared.
#[derive(Debug, Clone)]
pub struct Prepare {
    pub name: String,
    pub shape: Shape,
    pub targets: Vec<Target>,
    /// What the operator gave out, where registration asks for it.
    pub token: Vec<u8>,
    pub file: PathBuf,
    /// Of each group's members, at most.
    pub adds_per_commit: usize,
    /// Groups at work at the same time.
    pub jobs: usize,
    pub is_quiet: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub bytes: u64,
    pub registering: Duration,
    pub grouping: Duration,
    /// Groups whose races are made when they are replayed.
    pub live: u32,
    pub steps: u64,
}

/// Prepares a workload. What was registered and created stays at the targets, also where this fails.
///
/// # Errors
/// [`LoadError`]; there is no file then.
pub async fn prepare(options: Prepare) -> Result<Prepared, LoadError> {
    options.shape.check().map_err(LoadError::Usage)?;
    if options.targets.len() != options.shape.targets as usize {
        return Err(LoadError::Usage("a workload has as many targets as it is made for".into()));
    }
    let mut writer = Writer::create(&options.file)?;
    let began = Instant::now();
    let lines = Lines::new(&options.targets, CONNECTIONS)?;
    let site = Site::open(&options, &lines).await?;
    let registering = began.elapsed();
    let header = Header {
        name: options.name.clone(),
        shape: options.shape.clone(),
        targets: options.targets.clone(),
        made_at_ms: now().0,
    };
    writer.begin(&header, &site.accounts)?;
    let site = Arc::new(site);
    let progress = Progress::begin("groups", options.shape.groups.into(), options.is_quiet);
    let mut made = stream::iter(0..options.shape.groups)
        .map(|index| build(Arc::clone(&site), &lines, &options, index))
        .buffer_unordered(options.jobs.max(1));
    let (mut live, mut steps) = (0, 0);
    while let Some(block) = made.next().await {
        let block = block?;
        writer.group(block.index, &block.bytes)?;
        live += u32::from(block.is_live);
        steps += u64::from(block.steps);
        progress.step();
    }
    drop(made);
    let bytes = writer.finish()?;
    progress.finish();
    Ok(Prepared { bytes, registering, grouping: began.elapsed() - registering, live, steps })
}

/// What all groups need.
struct Site {
    accounts: Accounts,
    /// By account.
    tokens: Vec<Mutex<Vec<QueueToken>>>,
    /// By target.
    hub_keys: Vec<PublicKey>,
}

impl Site {
    async fn open(options: &Prepare, lines: &Lines) -> Result<Self, LoadError> {
        let Prepare { shape, targets, .. } = options;
        // users of an earlier workload may be there
        let run = hex::encode(crypto::random::<4>());
        let mut accounts = Vec::new();
        for number in 0..shape.users {
            let domain = &targets[(number % shape.targets) as usize].domain;
            let user = UserUri::of(domain, &format!("load-{run}-{number}"));
            let client = user.and_then(|user| ClientUri::of(&user, "load"));
            let client = client.map_err(|error| LoadError::Usage(error.to_string()))?;
            accounts.push(Account::generate(client)?);
        }
        // a target that is none is told of before anything is done at the others
        let mut hub_keys = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            register(lines, &accounts[at], at, target, &options.token).await?;
            hub_keys.push(hub_key(lines, &accounts[at], at, target).await?);
        }
        let counts = shape.tokens();
        let progress = Progress::begin("clients", shape.users.into(), options.is_quiet);
        let tokens = stream::iter(accounts.iter().enumerate().zip(counts))
            .map(async |((number, account), count)| {
                let at = number % targets.len();
                register(lines, account, at, &targets[at], &options.token).await?;
                let tokens = mint(lines, account, at, &targets[at], count).await?;
                progress.step();
                Ok::<_, LoadError>(Mutex::new(tokens))
            })
            .buffered(REQUESTS)
            .try_collect::<Vec<_>>()
            .await?;
        progress.finish();
        Ok(Self { accounts: Arc::new(accounts), tokens, hub_keys })
    }

    fn token(&self, account: u32) -> Result<QueueToken, LoadError> {
        let mut tokens =
            self.tokens[account as usize].lock().unwrap_or_else(PoisonError::into_inner);
        tokens.pop().ok_or_else(|| LoadError::Mls("a token more is needed than was counted".into()))
    }
}

/// May be repeated: the same keys get the same answer.
async fn register(
    lines: &Lines,
    account: &Account,
    at: usize,
    target: &Target,
    token: &[u8],
) -> Result<(), LoadError> {
    let request = encode(&account.register(token)?);
    let answer: Result<Registered, _> =
        patiently(async || lines.call(account, at, "/v1/register", request.clone()).await).await;
    let what = format!("register a client of {} there", target.domain);
    answer.map(|_| ()).map_err(|error| LoadError::of(error, &target.url, &what))
}

async fn hub_key(
    lines: &Lines,
    account: &Account,
    at: usize,
    target: &Target,
) -> Result<PublicKey, LoadError> {
    let request = encode(&ProviderKeys { domain: target.domain.clone() });
    let answer: Result<ProviderKeysAnswer, _> =
        patiently(async || lines.call(account, at, "/v1/provider_keys", request.clone()).await)
            .await;
    let answer =
        answer.map_err(|error| LoadError::of(error, &target.url, "say what its keys are"))?;
    client::hub_key(&answer, SignatureScheme::ED25519, now()).ok_or_else(|| {
        LoadError::Unfit(format!("{} hosts no groups of ciphersuite 1", target.domain))
    })
}

async fn mint(
    lines: &Lines,
    account: &Account,
    at: usize,
    target: &Target,
    count: u32,
) -> Result<Vec<QueueToken>, LoadError> {
    let mut tokens: Vec<QueueToken> = Vec::new();
    while tokens.len() < count as usize {
        let left = count as usize - tokens.len();
        let request = encode(&QueueTokens {
            class: KeyPackageClass::Group,
            last_resort: Flag::No,
            count: u8::try_from(left).unwrap_or(u8::MAX).min(TOKENS_MAX),
            revoke: List::default(),
        });
        let answer: Result<MintedTokens, _> =
            patiently(async || lines.call(account, at, "/v1/queue_tokens", request.clone()).await)
                .await;
        let answer = answer.map_err(|error| LoadError::of(error, &target.url, "mint tokens"))?;
        if answer.tokens.is_empty() {
            return Err(LoadError::Unfit(format!("{} gave no queue token", target.url)));
        }
        tokens.extend(answer.tokens.iter().cloned());
    }
    Ok(tokens)
}

struct Block {
    index: u32,
    bytes: Vec<u8>,
    is_live: bool,
    steps: u32,
}

async fn build(
    site: Arc<Site>,
    lines: &Lines,
    options: &Prepare,
    index: u32,
) -> Result<Block, LoadError> {
    let plan = options.shape.group(index);
    let (hub, creator) = (plan.hub as usize, plan.members[0]);
    let target = &options.targets[hub];
    let message_bytes = options.shape.message_bytes;
    let (mut crew, request) = {
        let site = Arc::clone(&site);
        busy(move || {
            let key = &site.hub_keys[hub];
            let mut tokens = |account| site.token(account);
            Crew::create(&site.accounts, creator, key, message_bytes, &mut tokens, now())
        })
        .await?
    };
    let account = &site.accounts[creator as usize];
    let send = async |crew: &Crew, request: Request, what: &str| {
        let id = RequestId(crypto::random());
        let sent = patiently(async || {
            let message = request.sign(account, &target.domain, crew.id(), id, now())?;
            lines.ds(account, hub, request.kind.endpoint(), message).await
        });
        sent.await.map(|_| ()).map_err(|error| LoadError::of(error, &target.url, what))
    };
    send(&crew, request, "create a group").await?;
    let mut drivers = options.shape.drivers as usize - 1;
    // all drivers come in by the first commit
    let adds = options.adds_per_commit.max(drivers).max(1);
    for newcomers in plan.members[1..].chunks(adds) {
        let (newcomers, site) = (newcomers.to_vec(), Arc::clone(&site));
        let filled = busy(move || {
            let mut tokens = |account| site.token(account);
            let request = crew.fill(&newcomers, drivers, &mut tokens, now())?;
            Ok((crew, request))
        });
        let request;
        (crew, request) = filled.await?;
        drivers = 0;
        send(&crew, request, "add the members of a group").await?;
    }
    busy(move || {
        let mut tokens = |account| site.token(account);
        let block = script(crew, plan, &mut tokens)?;
        Ok(Block { index, ..block })
    })
    .await
}

/// What follows in a group that is there: its steps, or where clients race what they are made from.
fn script(
    mut crew: Crew,
    plan: GroupPlan,
    tokens: &mut dyn FnMut(u32) -> Result<QueueToken, LoadError>,
) -> Result<Block, LoadError> {
    let GroupPlan { hub, members, ops } = plan;
    let mut group = Group {
        id: crew.id().clone(),
        hub,
        members,
        epoch: crew.epoch().0,
        steps: 0,
        tail: 0,
        live: None,
    };
    let mut steps = Vec::new();
    let is_live = ops.iter().any(|op| matches!(op, Op::Race { .. }));
    let count = u32::try_from(ops.len()).unwrap_or(u32::MAX);
    if is_live {
        let tokens = ops
            .iter()
            .filter_map(|op| match op {
                Op::Add { who, .. } | Op::Join { who } => Some(tokens(*who)),
                Op::Message { .. } | Op::Update { .. } | Op::Remove { .. } | Op::Race { .. } => {
                    None
                }
            })
            .collect::<Result<_, _>>()?;
        group.live = Some(Live { crew: crew.stored(), ops, tokens });
    } else {
        for op in ops {
            let (epoch, change) = (crew.epoch().0, op.change());
            for staged in crew.stage(&op, tokens, now())? {
                // nobody else commits in this group, so what is made ahead is what the hub accepts
                crew.merge(&staged)?;
                let Staged { requests, holds, .. } = staged;
                steps.push(Step { epoch, holds, change, requests });
            }
        }
        group.steps = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    }
    let tail = steps.iter().rev().take_while(|step| step.holds == 0).count();
    group.tail = u32::try_from(tail).unwrap_or(u32::MAX);
    let bytes = workload::block(&group, &steps)?;
    Ok(Block { index: 0, bytes, is_live, steps: count })
}

/// Runs what takes the processor on a thread for that.
async fn busy<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LoadError::Interrupted))
}

/// To each target while preparing.
const CONNECTIONS: usize = 4;
/// Registrations on their way at the same time.
const REQUESTS: usize = 64;
/// In one request; a provider mints 200 at most.
const TOKENS_MAX: u8 = 200;
