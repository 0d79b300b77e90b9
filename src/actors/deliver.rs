//! What comes in for one client from outside its groups: single messages of a hub (DS §6.1) and connection requests
//! (TR §5.6). It is left in the client's inbox, under its hash: a repeat within a day is stored once.
//!
//! Whoever leaves something for a client has its turn at it, so that what each counts is there. It counts by sizes alone:
//! what waits for a client that is away is not read for those who leave more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::future::join_all;

use super::{
    errors::{of_store, rate_limited},
    guest::{Amount, Sort},
    hints::locked,
    limits::Limits,
    node::Node,
    tokens::{BindError, Opened},
};
use crate::{
    crypto,
    queue::token::{self, TokenClass, TokenProblem},
    store::{
        Batch, Condition, StoreError, Write,
        records::{GroupStatus, InboxItem, InboxKey},
    },
    wire::{
        client::ConnectionRequestTo,
        codec::encode,
        ds::DsError,
        ids::{ClientUri, Domain, GroupId, Timestamp, UserUri},
        key_packages::{ConnectionRequest, SealedOffer},
        mls::MlsMessage,
        queueing::{QueueEvent, QueueingServiceRequest, QueueingServiceResponse},
    },
};
use openmls::prelude::{MlsMessageBodyIn, ProtocolMessage};
use tls_codec::Size;

/// Who left connection offers for whom, in this hour.
pub struct Offers {
    hour: Mutex<Hour>,
    max: AtomicU32,
}

#[derive(Default)]
struct Hour {
    began_at: Timestamp,
    left: HashMap<(Sender, Target), u32>,
    /// How many different ones each user here has left something for.
    targets: HashMap<UserUri, usize>,
}

/// Who asks something for a user: a user of this provider, or one of another provider, which says which at most by
/// itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Sender {
    User(UserUri),
    Peer(Domain),
}

impl Sender {
    fn domain(&self) -> Domain {
        match self {
            Self::User(user) => user.domain(),
            Self::Peer(domain) => domain.clone(),
        }
    }
}

/// Whom an offer is for; a sealed one that goes to another provider does not say more than that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Target {
    User(UserUri),
    Provider(Domain),
}

impl Offers {
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let max = AtomicU32::new(limits.connection_offers_per_hour);
        Self { hour: Mutex::new(Hour::default()), max }
    }

    /// From now on so many may be left in an hour.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Counts an offer of so many bytes: a large one as several.
    ///
    /// # Errors
    /// rate_limited
    fn count(&self, by: Sender, to: Target, bytes: usize, now: Timestamp) -> Result<(), DsError> {
        let mut hour = locked(&self.hour);
        if now.ms_since(hour.began_at) >= HOUR_MS || hour.began_at > now {
            *hour = Hour { began_at: now, ..Hour::default() };
        }
        let left_ms = HOUR_MS - now.ms_since(hour.began_at);
        let pair = (by, to);
        if !hour.left.contains_key(&pair) {
            if hour.left.len() >= PAIRS_MAX {
                return Err(rate_limited("too many connection requests at this provider", left_ms));
            }
            // names of providers cost nothing: one user must not take what is counted from all others
            if let Sender::User(user) = &pair.0 {
                let targets = hour.targets.entry(user.clone()).or_default();
                if *targets >= TARGETS_MAX {
                    return Err(rate_limited("connection requests to too many others", left_ms));
                }
                *targets += 1;
            }
        }
        let count = hour.left.entry(pair).or_default();
        if *count >= self.max.load(Ordering::Relaxed) {
            return Err(rate_limited("too many connection requests to this user", left_ms));
        }
        let counts_for = u32::try_from(bytes / OFFER_BYTES).unwrap_or(u32::MAX).saturating_add(1);
        *count = count.saturating_add(counts_for);
        Ok(())
    }
}

impl Node {
    /// DS §6.1: one message for one client. `from` is the provider whose Delivery Service sent it. A token is bound to
    /// the hub and group of the first message that comes in by it.
    ///
    /// # Errors
    /// unavailable; all else is in the answer.
    pub async fn queueing_service_request(
        &self,
        request: QueueingServiceRequest,
        from: &Domain,
    ) -> Result<QueueingServiceResponse, DsError> {
        let id = item_id(&encode(&request));
        let opened = match self.open_token(&request.client_queue_information).await {
            Ok(opened) => opened,
            Err(BindError::Token(problem)) => return Ok(refused(problem)),
            Err(BindError::Store(error)) => return Err(of_store(error)),
        };
        let invalid = QueueingServiceResponse::InvalidClientQueueInformation;
        let Some(kind) = kind_of(&request.message) else { return Ok(invalid) };
        if !self.may_send(from, &kind).await.map_err(of_store)? {
            return Ok(invalid);
        }
        let Opened { token, client, record, while_there, .. } = opened;
        let groups_max = self.limits.last_resort_bindings_max;
        let bound = match &kind {
            Kind::OfGroup(group) => {
                token::bind(&token, record.as_ref(), &client, from, group, groups_max)
            }
            // a Welcome does not say which group it is to
            Kind::Welcome => token::welcomed(&token, record.as_ref(), &client, from).map(|()| None),
        };
        let bound = match bound {
            Ok(bound) => bound,
            Err(problem) => return Ok(refused(problem)),
        };
        let event = match kind {
            Kind::OfGroup(_) => QueueEvent::MlsMessage { message: request.message },
            Kind::Welcome => {
                QueueEvent::Welcome { hub_domain: from.clone(), welcome: request.message }
            }
        };
        let revision = token::revision(record.as_ref());
        let mut batch =
            Batch::new().when(Condition::TokenAt { token: token.id, revision }).when(while_there);
        if let Some(record) = bound {
            batch.push(Write::Token { token: token.id, record });
        }
        let all = vec![Leaving { id, event: encode(&event) }];
        let by = Sender::Peer(from.clone());
        let answers = self.leave(&client, &by, all, batch, Sort::Message).await;
        Ok(worst_of(&answers.map_err(of_store)?))
    }

    /// A group's messages come from its hub: the provider that its id names, or where the group has moved to.
    async fn may_send(&self, from: &Domain, kind: &Kind) -> Result<bool, StoreError> {
        let Kind::OfGroup(group) = kind else { return Ok(true) };
        let head = self.store.group_head(group).await?;
        Ok(match head.map(|head| head.status) {
            Some(GroupStatus::Active | GroupStatus::Migrating) => self.domain == *from,
            Some(GroupStatus::Followed | GroupStatus::Deleted) | None => {
                self.hub_of_copy(group).await? == *from
            }
        })
    }

    /// Leaves sealed offers for the clients that they are to, or sends them to those clients' provider. `from` is a
    /// client of this provider. The answer is of the worst that befell one of the offers; where it is lost, the same
    /// request may be sent again.
    ///
    /// # Errors
    /// not_authorized (a provider that this one does not speak with), rate_limited (what stands before the offer that
    /// was one too many is left), unavailable.
    pub async fn connection_request(
        &self,
        from: &ClientUri,
        to: ConnectionRequestTo,
    ) -> Result<QueueingServiceResponse, DsError> {
        let ConnectionRequestTo { recipient_domain, request } = to;
        let sender = Sender::User(from.user());
        if recipient_domain == self.domain {
            return self.take_offers(&sender, request).await;
        }
        let target = Target::Provider(recipient_domain.clone());
        let bytes = request.tls_serialized_len();
        self.offers.count(sender, target, bytes, self.clock.now())?;
        self.relay_connection_request(&recipient_domain, request).await
    }

    /// Leaves sealed offers of `by` for the clients that they are to. The answer is of the worst that befell one.
    ///
    /// # Errors
    /// As [`Node::connection_request`].
    pub(super) async fn take_offers(
        &self,
        by: &Sender,
        request: ConnectionRequest,
    ) -> Result<QueueingServiceResponse, DsError> {
        let mut worst = QueueingServiceResponse::Ok;
        let mut admitted = Admitted::default();
        let mut stopped = Ok(());
        for offer in request.offers.into_vec() {
            match self.admit_offer(by, offer, None, &mut admitted).await {
                Ok(Ok(_)) => {}
                Ok(Err(answer)) => worst = answer,
                Err(error) => {
                    stopped = Err(error);
                    break;
                }
            }
        }
        for (_, answers) in self.leave_offers(by, admitted).await {
            let answer = worst_of(&answers.map_err(of_store)?);
            if answer != QueueingServiceResponse::Ok {
                worst = answer;
            }
        }
        stopped.map(|()| worst)
    }

    /// Adds one sealed offer of `by` to those that are to be left, and says for whom it is; or why it is not taken. It is
    /// there once under its `id`: by default its hash.
    ///
    /// # Errors
    /// rate_limited, unavailable.
    pub(super) async fn admit_offer(
        &self,
        by: &Sender,
        offer: SealedOffer,
        id: Option<[u8; 16]>,
        admitted: &mut Admitted,
    ) -> Result<Result<ClientUri, QueueingServiceResponse>, DsError> {
        let opened = match self.open_token(&offer.client_queue_information).await {
            Ok(opened) => opened,
            Err(BindError::Token(problem)) => return Ok(Err(refused(problem))),
            Err(BindError::Store(error)) => return Err(of_store(error)),
        };
        let Opened { token, client, record, while_there, .. } = opened;
        if let Err(problem) = token::admit_connection(&token, record.as_ref(), &client) {
            return Ok(Err(refused(problem)));
        }
        let bytes = encode(&offer);
        let target = Target::User(client.user());
        self.offers.count(by.clone(), target, bytes.len(), self.clock.now())?;
        let id = id.unwrap_or_else(|| item_id(&bytes));
        let event = QueueEvent::ConnectionRequest { sender_domain: by.domain(), offer };
        let (conditions, all) = admitted.entry(client.clone()).or_default();
        if !conditions.contains(&while_there) {
            conditions.push(while_there);
        }
        all.push(Leaving { id, event: encode(&event) });
        Ok(Ok(client))
    }

    /// Leaves those offers of `by`, each recipient's together and recipients beside each other. The answers are in the order in which
    /// a recipient's offers were admitted.
    pub(super) async fn leave_offers(
        &self,
        by: &Sender,
        admitted: Admitted,
    ) -> BTreeMap<ClientUri, Result<Vec<QueueingServiceResponse>, StoreError>> {
        let left = admitted.into_iter().map(async |(client, (conditions, all))| {
            let batch = Batch { conditions, ..Batch::new() };
            let answers = self.leave(&client, by, all, batch, Sort::Offer).await;
            (client, answers)
        });
        join_all(left).await.into_iter().collect()
    }

    /// Leaves each of `all`, by `by`, for `client` together with `batch`, as far as there is room: no more entries and bytes than a
    /// client may be left, of all and of `by`. What was left before is there once. The answers are in the order of
    /// `all`; where nothing is left `batch` is not written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: the token or the account changed meanwhile.
    async fn leave(
        &self,
        client: &ClientUri,
        by: &Sender,
        all: Vec<Leaving>,
        mut batch: Batch,
        sort: Sort,
    ) -> Result<Vec<QueueingServiceResponse>, StoreError> {
        let turn = self.leaving.of(client);
        let _turn = turn.lock().await;
        let more = Amount { items: all.len(), bytes: all.iter().map(|it| it.event.len()).sum() };
        let (mut room, head) = self.room_for(client, by, sort, more).await?;
        let mut answers = Vec::with_capacity(all.len());
        let mut is_new = false;
        for Leaving { id, event } in all {
            let key = InboxKey::From { provider: by.domain(), id };
            // an earlier build did not say who left it
            let of_earlier = InboxKey::Item(id);
            let is_known = head.recent.iter().any(|(_, recent)| *recent == id)
                || self.store.is_left(client, &key).await?
                || self.store.is_left(client, &of_earlier).await?;
            if is_known {
                answers.push(QueueingServiceResponse::Ok);
                continue;
            }
            if let Err(bound) = room.take(event.len()) {
                self.metrics.queue_overflows.with_label_values(&[bound]).inc();
                answers.push(QueueingServiceResponse::QueueFull);
                continue;
            }
            is_new = true;
            let item = InboxItem::Event { group: None, event };
            batch.push(Write::Inbox { client: client.clone(), key, item });
            answers.push(QueueingServiceResponse::Ok);
        }
        if is_new {
            self.store.write(batch).await?;
            self.hints.inbox(client);
        }
        Ok(answers)
    }
}

/// What is to be left for a client: an encoded event, which is there once under its id.
#[derive(Debug)]
pub(super) struct Leaving {
    id: [u8; 16],
    event: Vec<u8>,
}

/// Offers that are to be left, by who gets them, with what must hold then.
pub(super) type Admitted = BTreeMap<ClientUri, (Vec<Condition>, Vec<Leaving>)>;

/// The last that is not well, if there is one.
fn worst_of(answers: &[QueueingServiceResponse]) -> QueueingServiceResponse {
    let bad = answers.iter().rfind(|answer| **answer != QueueingServiceResponse::Ok);
    bad.copied().unwrap_or(QueueingServiceResponse::Ok)
}

enum Kind {
    OfGroup(GroupId),
    Welcome,
}

/// What a hub may send to one client: a message of a group or a Welcome.
fn kind_of(message: &MlsMessage) -> Option<Kind> {
    let message = message.parse().ok()?;
    if let MlsMessageBodyIn::Welcome(_) = message.clone().extract() {
        return Some(Kind::Welcome);
    }
    let message = message.try_into_protocol_message().ok()?;
    let group = match &message {
        ProtocolMessage::PrivateMessage(message) => message.group_id(),
        ProtocolMessage::PublicMessage(message) => message.group_id(),
    };
    GroupId::from_bytes(group.as_slice()).ok().map(Kind::OfGroup)
}

fn refused(problem: TokenProblem) -> QueueingServiceResponse {
    match problem {
        TokenProblem::Unknown
        | TokenProblem::OtherClient
        | TokenProblem::OtherUserKey
        | TokenProblem::ClientGone
        | TokenProblem::Revoked
        | TokenProblem::BoundElsewhere
        | TokenProblem::Full
        | TokenProblem::Backlog
        | TokenProblem::WrongClass(
            TokenClass::Group | TokenClass::LastResort | TokenClass::Connection,
        ) => QueueingServiceResponse::InvalidClientQueueInformation,
    }
}

fn item_id(bytes: &[u8]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&crypto::sha256(bytes)[..16]);
    id
}

const HOUR_MS: u64 = 3_600_000;
/// An offer counts once, and once more for each so many bytes of it: an ordinary one is far smaller.
const OFFER_BYTES: usize = 8 * 1024;
/// Pairs of users that are counted at a time.
const PAIRS_MAX: usize = 200_000;
/// Users and providers that one user here may ask in an hour.
const TARGETS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_s_requests_to_ever_new_providers_leave_room_for_others() {
        let offers = Offers::new(&Limits::default());
        let user = |name| Sender::User(UserUri::new(format!("mimi://a.example/u/{name}")).unwrap());
        let provider = |n: usize| Target::Provider(Domain::new(format!("x{n}.example")).unwrap());
        let now = Timestamp(1_700_000_000_000);
        for n in 0..TARGETS_MAX {
            offers.count(user("mallory"), provider(n), 1, now).unwrap();
        }
        let refused = offers.count(user("mallory"), provider(TARGETS_MAX), 1, now).unwrap_err();
        let DsError::RateLimited { retry_after_ms, .. } = refused else { panic!("{refused}") };
        assert!((1..=HOUR_MS).contains(&retry_after_ms));
        offers.count(user("mallory"), provider(0), 1, now).unwrap();
        offers.count(user("bob"), provider(TARGETS_MAX), 1, now).unwrap();
        offers.count(user("mallory"), provider(TARGETS_MAX), 1, now.plus_ms(HOUR_MS)).unwrap();
    }
}
