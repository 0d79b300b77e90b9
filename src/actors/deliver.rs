//! What comes in for one client from outside its groups: single messages of a hub (DS §6.1) and connection requests
//! (TR §5.6). It is left in the client's inbox, under its hash: a repeat within a day is stored once.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{
    errors::{of_store, rate_limited},
    hints::locked,
    limits::Limits,
    node::Node,
    tokens::{BindError, Opened},
};
use crate::{
    crypto,
    queue::{
        state::own_backlog,
        token::{self, TokenClass, TokenProblem},
    },
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

    /// Counts an offer.
    ///
    /// # Errors
    /// rate_limited
    fn count(&self, by: Sender, to: Target, now: Timestamp) -> Result<(), DsError> {
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
        *count += 1;
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
        self.leave(&client, id, event, batch, self.limits.own_entries_max).await
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
        self.offers.count(sender, target, self.clock.now())?;
        self.relay_connection_request(&recipient_domain, &request).await
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
        for offer in request.offers.into_vec() {
            let answer = self.take_offer(by, offer, None).await?;
            if answer != QueueingServiceResponse::Ok {
                worst = answer;
            }
        }
        Ok(worst)
    }

    /// Leaves one sealed offer of `by`. It is there once under its `id`: by default its hash.
    ///
    /// # Errors
    /// rate_limited, unavailable.
    pub(super) async fn take_offer(
        &self,
        by: &Sender,
        offer: SealedOffer,
        id: Option<[u8; 16]>,
    ) -> Result<QueueingServiceResponse, DsError> {
        let opened = match self.open_token(&offer.client_queue_information).await {
            Ok(opened) => opened,
            Err(BindError::Token(problem)) => return Ok(refused(problem)),
            Err(BindError::Store(error)) => return Err(of_store(error)),
        };
        let Opened { token, client, record, while_there, .. } = opened;
        if let Err(problem) = token::admit_connection(&token, record.as_ref(), &client) {
            return Ok(refused(problem));
        }
        self.offers.count(by.clone(), Target::User(client.user()), self.clock.now())?;
        let id = id.unwrap_or_else(|| item_id(&encode(&offer)));
        let event = QueueEvent::ConnectionRequest { sender_domain: by.domain(), offer };
        let entries_max = self.limits.own_entries_max;
        let batch = Batch::new().when(while_there);
        self.leave(&client, id, event, batch, entries_max - entries_max / 10).await
    }

    /// Leaves `event` for `client` together with `batch`, unless its own feed holds `max` entries.
    async fn leave(
        &self,
        client: &ClientUri,
        id: [u8; 16],
        event: QueueEvent,
        mut batch: Batch,
        max: usize,
    ) -> Result<QueueingServiceResponse, DsError> {
        let head = self.store.queue_head(client).await.map_err(of_store)?.unwrap_or_default();
        if head.recent.iter().any(|(_, recent)| *recent == id) {
            return Ok(QueueingServiceResponse::Ok);
        }
        let waiting = self.store.inbox(client, max).await.map_err(of_store)?;
        let known = waiting.iter().any(|(key, _)| *key == InboxKey::Item(id));
        if !known && own_backlog(&head) + waiting.len() >= max {
            self.metrics.queue_overflows.with_label_values(&["request"]).inc();
            return Ok(QueueingServiceResponse::QueueFull);
        }
        batch.push(Write::Inbox {
            client: client.clone(),
            key: InboxKey::Item(id),
            item: InboxItem::Event { group: None, event: encode(&event) },
        });
        match self.store.write(batch).await {
            Ok(()) => {
                self.hints.inbox(client);
                Ok(QueueingServiceResponse::Ok)
            }
            // the token or the account changed meanwhile
            Err(error @ StoreError::Conflict { .. }) => Err(of_store(error)),
            Err(error) => Err(of_store(error)),
        }
    }
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
            offers.count(user("mallory"), provider(n), now).unwrap();
        }
        let refused = offers.count(user("mallory"), provider(TARGETS_MAX), now).unwrap_err();
        let DsError::RateLimited { retry_after_ms, .. } = refused else { panic!("{refused}") };
        assert!((1..=HOUR_MS).contains(&retry_after_ms));
        offers.count(user("mallory"), provider(0), now).unwrap();
        offers.count(user("bob"), provider(TARGETS_MAX), now).unwrap();
        offers.count(user("mallory"), provider(TARGETS_MAX), now.plus_ms(HOUR_MS)).unwrap();
    }
}
