//! A network in memory: providers of one process that speak with each other as over HTTPS, and what a hub owes them,
//! brought to them by hand, so that a test decides what arrives, when and how often.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use mimid::{
    actors::Node,
    federation::{CallError, Federation, HttpAnswer, Transport},
    store::{
        Batch, Page, Write,
        records::{GoneReason, GroupNotice},
    },
    wire::{
        client::ClientResponse,
        codec::List,
        decode,
        ds::{DsResponse, Outcome, ProtocolVersion},
        encode,
        federation::{EventType, S2SEndpoint, S2SMessage, S2SPayload},
        ids::{Domain, GroupId, RequestId, Sequence},
        queueing::{
            DeliverBatchRequest, DeliverBatchResponse, DeliveryFailure, DeliveryItem,
            DeliveryProblem, QueueEvent, RosterChanges,
        },
    },
};

use super::world::World;

/// What one provider sends to another, as whoever carries it may read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub from: Domain,
    pub to: Domain,
    pub event: EventType,
    pub body: Vec<u8>,
}

/// What becomes of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    /// It never comes.
    Lost,
    /// It comes, but its answer does not.
    AnswerLost,
    /// It never comes, and this is the answer.
    Answered(Vec<u8>),
    /// It comes when the door is opened.
    Behind(Door),
    /// It comes, and its answer when the door is opened.
    AnswerBehind(Door),
}

/// Closed until it is opened.
#[derive(Debug, Clone)]
pub struct Door(Arc<tokio::sync::watch::Sender<bool>>);

impl Default for Door {
    fn default() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(false)))
    }
}

impl Door {
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn opened(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

impl PartialEq for Door {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Door {}

type Carrier = Arc<dyn Fn(&Letter) -> Fate + Send + Sync>;

/// Everybody who can be reached.
#[derive(Default)]
pub struct Net {
    carrier: Mutex<Option<Carrier>>,
    nodes: Mutex<HashMap<Domain, (Node, Arc<Federation>)>>,
    down: Mutex<HashSet<Domain>>,
    /// How many answers are still to be lost behind what they answer to.
    lost: Mutex<usize>,
}

impl Net {
    pub fn enter(&self, domain: &Domain, node: &Node, federation: &Arc<Federation>) {
        let entered = (node.clone(), Arc::clone(federation));
        self.nodes.lock().unwrap().insert(domain.clone(), entered);
    }

    pub fn leave(&self, domain: &Domain) {
        self.nodes.lock().unwrap().remove(domain);
    }

    pub fn cut(&self, domain: &Domain) {
        self.down.lock().unwrap().insert(domain.clone());
    }

    pub fn mend(&self, domain: &Domain) {
        self.down.lock().unwrap().remove(domain);
    }

    /// From now on `carrier` decides what becomes of each letter.
    pub fn carry(&self, carrier: impl Fn(&Letter) -> Fate + Send + Sync + 'static) {
        *self.carrier.lock().unwrap() = Some(Arc::new(carrier));
    }

    fn fate_of(&self, peer: &Domain, message: &[u8]) -> Fate {
        let carrier = self.carrier.lock().unwrap().clone();
        let Some(carrier) = carrier else { return Fate::Arrives };
        let message: S2SMessage = decode(message).unwrap();
        let payload: S2SPayload = decode(message.event.event_payload.as_slice()).unwrap();
        let event = EventType::parse(message.event.event_type.as_str()).unwrap();
        let (from, body) = (message.sender_domain, payload.body.into_vec());
        carrier(&Letter { from, to: peer.clone(), event, body })
    }

    pub fn lose_answers(&self, count: usize) {
        *self.lost.lock().unwrap() = count;
    }

    fn find(&self, domain: &Domain) -> Result<(Node, Arc<Federation>), CallError> {
        if self.down.lock().unwrap().contains(domain) {
            return Err(CallError::Unreachable("the line is cut".to_owned()));
        }
        let found = self.nodes.lock().unwrap().get(domain).cloned();
        found.ok_or_else(|| CallError::Discovery("there is no such provider".to_owned()))
    }
}

/// A way out of one provider.
pub struct Road {
    pub net: Arc<Net>,
    /// Else deliveries do not get through: what a hub owes is brought by hand ([`World::replicate`]).
    pub delivers: bool,
    /// Whether whoever carries letters carries those that go this way ([`Net::carry`]).
    pub carried: bool,
}

impl Transport for Road {
    fn get<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        _: usize,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async move {
            let (_, federation) = self.net.find(peer)?;
            let keys = if path == S2SEndpoint::SignatureKey.path() {
                federation.signature_keys()
            } else {
                federation.verification_keys()
            };
            Ok(HttpAnswer { status: 200, retry_after_ms: None, body: encode(&keys) })
        })
    }

    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        body: Vec<u8>,
        _: usize,
        _: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async move {
            if path == S2SEndpoint::DeliverMessage.path() && !self.delivers {
                return Err(CallError::Unreachable("by hand only".to_owned()));
            }
            let (node, federation) = self.net.find(peer)?;
            let fate = match self.carried {
                true => self.net.fate_of(peer, &body),
                false => Fate::Arrives,
            };
            match &fate {
                Fate::Lost => return Err(CallError::Unreachable("it was lost".to_owned())),
                Fate::Answered(body) => {
                    let body = body.clone();
                    return Ok(HttpAnswer { status: 200, retry_after_ms: None, body });
                }
                Fate::Behind(door) => door.opened().await,
                Fate::Arrives | Fate::AnswerLost | Fate::AnswerBehind(_) => {}
            }
            let endpoint = ENDPOINTS.into_iter().find(|endpoint| endpoint.path() == path).unwrap();
            // what answers is not this task: it goes on where nobody waits for it
            let answered = actix_rt::spawn(async move {
                match federation.open(endpoint, &body).await {
                    Ok(opened) => node.federated(opened).await,
                    Err(error) => Err(error),
                }
            });
            let answer = answered.await.unwrap();
            match &fate {
                Fate::AnswerLost => return Err(CallError::Timeout),
                Fate::AnswerBehind(door) => door.opened().await,
                _ => {}
            }
            {
                let mut lost = self.net.lost.lock().unwrap();
                if *lost > 0 {
                    *lost -= 1;
                    return Err(CallError::Timeout);
                }
            }
            let (status, body) = match answer {
                Ok(body) => (200, body),
                Err(error) if endpoint.answers_ds_response() => {
                    let outcome = Outcome::Err(error);
                    (409, encode(&DsResponse { version: ProtocolVersion::MIMI10, outcome }))
                }
                Err(error) => (409, encode(&ClientResponse { outcome: Outcome::Err(error) })),
            };
            Ok(HttpAnswer { status, retry_after_ms: None, body })
        })
    }
}

impl World {
    /// Everything that this hub owes `peer` of `group`, from what opens its copy on.
    pub async fn owed(&self, peer: &Domain, group: &GroupId) -> Vec<DeliveryItem> {
        let page = Page { items_max: 10_000, bytes_max: usize::MAX };
        let rows = self.store.outbound_roster(peer, group, Sequence(0), page).await.unwrap();
        let rows: BTreeMap<Sequence, _> = rows.into_iter().map(|row| (row.sequence, row)).collect();
        let mut items = Vec::new();
        for entry in self.store.feed(group, Sequence(1), page).await.unwrap() {
            let sequence = entry.sequence;
            let row = rows.get(&sequence);
            let roster: RosterChanges =
                row.map_or_else(List::default, |row| decode(&row.changes).unwrap());
            if row.is_some_and(|row| row.opens) {
                items.push(DeliveryItem::Snapshot {
                    group_id: group.clone(),
                    next_sequence: sequence.next(),
                    chain: List::default(),
                    roster,
                });
            } else if !items.is_empty() {
                let event = if entry.event.is_empty() {
                    QueueEvent::RosterOnly
                } else {
                    decode(&entry.event).unwrap()
                };
                items.push(DeliveryItem::Feed {
                    group_id: group.clone(),
                    group_sequence: sequence,
                    accepted_at: entry.accepted_at,
                    except: entry.except.filter(|_| entry.origin.as_ref() == Some(peer)),
                    event,
                    roster,
                });
            }
        }
        items
    }

    /// Sends `items` to `peer` and does what its answer asks for.
    pub async fn send(&self, peer: &Domain, items: Vec<DeliveryItem>) -> Vec<DeliveryFailure> {
        let groups: Vec<GroupId> = items
            .iter()
            .map(|item| match item {
                DeliveryItem::Feed { group_id, .. } | DeliveryItem::Snapshot { group_id, .. } => {
                    group_id.clone()
                }
                DeliveryItem::Direct { .. } => panic!("of no group"),
            })
            .collect();
        let body = encode(&DeliverBatchRequest { items: List::new(items).unwrap() });
        let federation = self.by_hand.as_ref().unwrap();
        let id = RequestId(mimid::crypto::random());
        let event = EventType::DeliverBatch;
        let answer = federation.request(peer, event, id, body, Duration::from_secs(9)).await;
        let answer: DeliverBatchResponse = decode(&answer.unwrap()).unwrap();
        for failure in answer.failures.iter() {
            let bad = DeliveryProblem::InvalidClientQueueInformation;
            if failure.problem == bad && failure.recipient.0 > 0 {
                let group = groups[failure.item as usize].clone();
                let (recipient, reason) = (failure.recipient, GoneReason::QueueGone);
                let notice = GroupNotice::RecipientGone { peer: peer.clone(), recipient, reason };
                let key = mimid::crypto::random();
                let write = Write::GroupNotice { group: group.clone(), key, notice };
                self.store.write(Batch::new().and(write)).await.unwrap();
                self.node.settle_group(&group).await;
            }
        }
        answer.failures.into_vec()
    }

    /// Brings `guest` everything that it is owed of `group`, what it has already included.
    pub async fn replicate(&self, guest: &World, group: &GroupId) {
        let items = self.owed(&guest.domain, group).await;
        if !items.is_empty() {
            self.send(&guest.domain, items).await;
        }
    }
}

const ENDPOINTS: [S2SEndpoint; 10] = [
    S2SEndpoint::MigrationRequest,
    S2SEndpoint::MigrationContent,
    S2SEndpoint::Complaint,
    S2SEndpoint::GroupOperation,
    S2SEndpoint::WelcomeInformation,
    S2SEndpoint::ExternalCommitInformation,
    S2SEndpoint::ConnectionRequest,
    S2SEndpoint::DeliverMessage,
    S2SEndpoint::ConnectionKeyPackages,
    S2SEndpoint::GroupKeyPackages,
];
