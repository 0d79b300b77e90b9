//! One group at its hub without actors, store or network, driven by real clients: `stage`, `merge`, and a feed that
//! its clients read.

use std::{collections::BTreeMap, sync::Arc};

use mimid::{
    client::core::{Handled, Home, Identity, Member, Operation, Settled},
    crypto::{self, MlsCrypto, SigningKey},
    group::{
        Decision, Effects, GroupState, Hub, HubKey, HubKeys, Reject, Request, Settings, import,
    },
    store::records::InboxItem,
    wire::{
        codec::{Opaque, decode},
        ds::{DsMessage, DsResponse, DsResponseBody, Outcome, ProtocolVersion},
        extensions::{KeyPackageClass, QueueToken, SignatureScheme},
        ids::{ClientUri, Domain, FeedId, GroupId, RecipientId, RequestId, Sequence, Timestamp},
        import::GroupImport,
        queueing::{QueueEntry, QueueEvent},
    },
};

/// The hub of `domain`, with a new key.
pub fn hub(domain: &Domain, settings: impl FnOnce(&mut Settings)) -> Arc<Hub> {
    let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let mut all = Settings::new(domain.clone());
    settings(&mut all);
    Arc::new(Hub {
        settings: all,
        crypto: MlsCrypto::default(),
        keys: HubKeys::new([HubKey { key, since: Timestamp(0) }]),
        rates: Default::default(),
    })
}

/// A client with some tokens that nobody checks.
pub fn client(identity: Identity) -> Member {
    let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
    let tokens: Vec<QueueToken> =
        (0..64).map(|_| Opaque::new(crypto::random::<32>()).unwrap()).collect();
    member.store_tokens(KeyPackageClass::Group, false, &tokens).unwrap();
    member
}

/// A further device of the user whose key `user_key` is.
pub fn device(user: &ClientUri, device: &str, user_key: &SigningKey) -> Member {
    let uri = ClientUri::of(&user.user(), device).unwrap();
    client(Identity::with_user_key(uri, user_key.clone()).unwrap())
}

/// A client of a user who is new.
pub fn new_client(domain: &Domain, user: &str, device: &str) -> Member {
    let uri = ClientUri::new(format!("mimi://{domain}/d/{user}/{device}")).unwrap();
    client(Identity::generate(uri).unwrap())
}

pub struct Hosted {
    pub hub: Arc<Hub>,
    pub state: GroupState,
    pub now: Timestamp,
    feed: Vec<(Sequence, Option<RecipientId>, QueueEvent)>,
    readers: BTreeMap<ClientUri, Reader>,
}

#[derive(Default)]
struct Reader {
    recipient: RecipientId,
    welcome: Option<QueueEvent>,
    from: Sequence,
    got: Sequence,
}

impl Hosted {
    pub fn import(hub: &Arc<Hub>, group: &GroupImport, now: Timestamp) -> Result<Self, Reject> {
        let creation = import::judge(hub, group, now)?;
        let (feed, readers) = (Vec::new(), BTreeMap::new());
        Ok(Self { hub: Arc::clone(hub), state: creation.state, now, feed, readers })
    }

    pub fn id(&self) -> GroupId {
        self.state.id().clone()
    }

    /// What the hub answers to `member`'s `message`; what it accepts is merged and in the feed.
    pub fn ask(&mut self, member: &Member, message: DsMessage) -> Result<DsResponseBody, Reject> {
        let request = Request { message, relay: member.client().domain() };
        match self.state.stage(&request, self.now)? {
            Decision::Answer(body) => Ok(body),
            Decision::Move(_) => panic!("nobody takes the group from here"),
            Decision::History(epoch, _) => {
                panic!("epoch {epoch} is gone and nobody keeps a log here")
            }
            Decision::Write(staged) => {
                let effects = self.state.merge(*staged)?;
                let accepted = effects.accepted.expect("a member's request is answered");
                self.publish(effects);
                Ok(DsResponseBody::Accepted(accepted))
            }
        }
    }

    fn publish(&mut self, effects: Effects) {
        for record in effects.records {
            if !record.feed.event.is_empty() {
                let event = decode(&record.feed.event).unwrap();
                self.feed.push((record.feed.sequence, record.feed.except, event));
            }
        }
        for (client, _, item) in effects.inbox {
            if let InboxItem::Open { recipient, from, event, .. } = item {
                let welcome = event.map(|event| decode(&event).unwrap());
                let got = Sequence(0);
                self.readers.insert(client, Reader { recipient, welcome, from, got });
            }
        }
    }

    /// Sends `request` until it is through.
    pub fn run(&mut self, member: &Member, request: RequestId) {
        for _ in 0..4 {
            // of two changes of one queue the later one stands: none is sent at the same time as another
            self.now = self.now.plus_ms(1);
            let outbound = member.outbound(request, self.now).unwrap();
            let body = self.ask(member, outbound.message).unwrap();
            let response =
                DsResponse { version: ProtocolVersion::MIMI10, outcome: Outcome::Ok(body) };
            match member.settle(request, &response, self.now).unwrap() {
                Settled::Again { .. } => {}
                Settled::Done(_) | Settled::Entered => return,
                other => panic!("{other:?}"),
            }
        }
        panic!("the request does not come to an end");
    }

    pub fn operate(&mut self, member: &Member, operation: Operation) {
        let request = member.begin(&self.id(), operation).unwrap();
        self.run(member, request);
    }

    /// `member` comes in by external commit.
    pub fn join(&mut self, member: &Member) {
        let (group, hub) = (self.id(), self.hub.settings.hub.clone());
        let join = Operation::Join { code: None };
        let request = member.join(&group, &hub, "", join, self.now).unwrap();
        self.run(member, request);
    }

    /// Hands `member` everything that it has not got yet: its Welcome, then the feed.
    pub fn deliver(&mut self, member: &Member) {
        let group = Opaque::new(self.id().as_bytes()).unwrap();
        let Some(reader) = self.readers.get_mut(member.client()) else { return };
        let entry = |feed, sequence, previous, event| QueueEntry {
            feed: FeedId(feed),
            sequence,
            previous,
            accepted_at: self.now,
            group_id: group.clone(),
            event,
        };
        if let Some(welcome) = reader.welcome.take() {
            let entry = entry(0, Sequence(1), Sequence(0), welcome);
            assert_eq!(member.handle(&entry, self.now).unwrap(), Handled::Taken);
            let (request, ..) = member.pending().unwrap().pop().unwrap();
            self.run(member, request);
            return self.deliver(member);
        }
        for (sequence, except, event) in &self.feed {
            let news = *sequence >= reader.from && *sequence > reader.got;
            if !news || *except == Some(reader.recipient) {
                continue;
            }
            let entry = entry(1, *sequence, reader.got, event.clone());
            let handled = member.handle(&entry, self.now).unwrap();
            assert_eq!(handled, Handled::Taken, "{:?}", member.events(0, 100));
            reader.got = *sequence;
        }
    }
}
