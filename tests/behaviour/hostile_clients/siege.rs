//! What is done to one request: it is forged, cut, made too large, sent again and sent late, from outside; and what must
//! stay as it is meanwhile.

use std::collections::BTreeMap;

use mimid::{
    client::core::{CoreError, Settled},
    crypto::{self, SigningKey},
    wire::{
        client::{
            ClientMessage, ClientResponse, Flag, MintedTokens, ProviderKeys, ProviderKeysAnswer,
            QueueTokens,
        },
        codec::{List, Opaque, ShortOpaque, append_vector},
        decode,
        ds::*,
        encode,
        extensions::{KeyPackageClass, SignatureScheme},
        ids::{Domain, Epoch, KeyPackageRef, LeafIndex, RequestId, Timestamp, UserKeyHash},
        mls::MlsMessage,
    },
};

use super::{
    device::{Line, now, signed},
    *,
};

/// What was sent and what came of it.
#[derive(Default)]
pub(super) struct Tally {
    pub codes: BTreeMap<&'static str, usize>,
    /// Refused, by kind.
    pub kinds: BTreeMap<&'static str, usize>,
    /// Sent again and answered as before, by kind.
    pub again: BTreeMap<&'static str, usize>,
}

impl Tally {
    pub fn count(&mut self, kind: &'static str, code: &'static str) {
        *self.codes.entry(code).or_default() += 1;
        *self.kinds.entry(kind).or_default() += 1;
    }

    pub fn refused(&self) -> usize {
        self.kinds.values().sum()
    }
}

pub(super) const OPERATION: &str = "/v1/group_operation";
pub(super) const WELCOME: &str = "/v1/welcome_information";
pub(super) const INFO: &str = "/v1/external_commit_information";

pub(super) fn path_of(request: &DsRequest) -> &'static str {
    match request {
        DsRequest::WelcomeInfo(_) => WELCOME,
        DsRequest::ExternalCommitInfo(_) => INFO,
        _ => OPERATION,
    }
}

/// The largest body that an endpoint takes: PROTOCOL.md §3, with what is around a body of that size.
pub(super) fn body_bytes_max(path: &str) -> usize {
    match path {
        OPERATION => (4 << 20) + (128 << 10),
        INFO | "/v1/consent" => 256 << 10,
        WELCOME | "/v1/complaint" => 16 << 10,
        _ => panic!("{path} has a limit that this test does not know"),
    }
}

/// What a device of ours has to sign with.
pub(super) fn key_of(client: &Client, message: &DsMessage) -> SigningKey {
    let member = client.member();
    let identity = member.identity();
    match message.sender_id {
        DsSenderId::UserKeyHash(_) => identity.user_key.clone(),
        DsSenderId::LeafIndex(_) | DsSenderId::KeyPackageRef(_) => {
            identity.leaf_key(SUITES[0]).unwrap().clone()
        }
    }
}

/// The honest client's request for `request`, not sent.
pub(super) fn outbound(line: &mut Line, client: &Client, request: RequestId) -> DsMessage {
    loop {
        let built = client.member().outbound(request, now());
        match built {
            Ok(outbound) => return outbound.message,
            Err(CoreError::NoToken { class, last_resort }) => {
                mint(line, client, class, last_resort)
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has more queue tokens given to `client`.
pub(super) fn mint(line: &mut Line, client: &Client, class: KeyPackageClass, last_resort: bool) {
    let flag = if last_resort { Flag::Yes } else { Flag::No };
    let body = QueueTokens { class, last_resort: flag, count: 8, revoke: List::default() };
    let minted: MintedTokens = ask(line, client, "/v1/queue_tokens", &encode(&body)).unwrap();
    client.member().store_tokens(class, last_resort, &minted.tokens).unwrap();
}

pub(super) fn hub_of(line: &mut Line, client: &Client) -> mimid::client::core::Hub {
    let domain = client.member().client().domain();
    let body = encode(&ProviderKeys { domain: domain.clone() });
    let keys: ProviderKeysAnswer = ask(line, client, "/v1/provider_keys", &body).unwrap();
    let mut keys = keys.signature.keys.iter();
    let key = keys.find(|key| key.scheme == SignatureScheme::ED25519).unwrap();
    let external_sender = Opaque::new(key.public_key.as_slice()).unwrap();
    mimid::client::core::Hub { domain, external_sender }
}

pub(super) fn sign_as(client: &Client, path: &str, body: &[u8]) -> Vec<u8> {
    let identity = client.member().identity().clone();
    signed(&identity.client, &identity.client_key, path, body)
}

/// Asks an endpoint that answers in ClientResponses.
pub(super) fn ask<T: tls_codec::DeserializeBytes>(
    line: &mut Line,
    client: &Client,
    path: &str,
    body: &[u8],
) -> Result<T, DsError> {
    let (_, answer) = line.post(path, &sign_as(client, path, body));
    let answer: ClientResponse = decode(&answer).unwrap();
    answer.outcome.into_result().map(|body| decode(body.as_slice()).unwrap())
}

pub(super) fn send(line: &mut Line, client: &Client, message: &DsMessage) -> (u16, DsResponse) {
    send_bytes(line, client, path_of(&message.request), &encode(message))
}

fn send_bytes(line: &mut Line, client: &Client, path: &str, body: &[u8]) -> (u16, DsResponse) {
    let (status, answer) = line.post(path, &sign_as(client, path, body));
    (status, decode(&answer).unwrap())
}

/// `message` signed by another key, whatever it says.
pub(super) fn signed_by(key: &SigningKey, message: &DsMessage) -> DsMessage {
    let tbs = ds_message_tbs(&message.sender_id, &message.request, &message.context);
    let signature = key.sign_with_label("DSMessageTBS", &tbs).unwrap();
    DsMessage { signature: ShortOpaque::new(signature.into_vec()).unwrap(), ..message.clone() }
}

/// The request as it should not be: what is wrong, and its bytes.
pub(super) fn mutations(message: &DsMessage, stranger: &SigningKey) -> Vec<(String, Vec<u8>)> {
    let whole = encode(message);
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, change: &dyn Fn(&mut DsMessage)| {
        let mut changed = message.clone();
        change(&mut changed);
        // as it is, and with a signature that is good but for the key
        all.push((format!("{name}, the signature left"), encode(&changed)));
        all.push((format!("{name}, signed by a stranger"), encode(&signed_by(stranger, &changed))));
    };
    add("another request_id", &|it| it.context.request_id = RequestId([7; 16]));
    add("another time", &|it| it.context.timestamp = Timestamp(it.context.timestamp.0 + 1));
    add("an old time", &|it| it.context.timestamp = Timestamp(it.context.timestamp.0 - 600_000));
    add("a time to come", &|it| it.context.timestamp = Timestamp(it.context.timestamp.0 + 600_000));
    add("the end of time", &|it| it.context.timestamp = Timestamp(u64::MAX));
    add("another hub", &|it| it.context.hub_domain = Domain::new("elsewhere.example").unwrap());
    add("another group", &|it| {
        it.context.group_id = GroupId::of(&Domain::new("localhost").unwrap(), [9; 16]);
    });
    add("another version", &|it| it.context.version = ProtocolVersion(2));
    for leaf in [0, 1, 2, 3, 10_000, u32::MAX] {
        if message.sender_id != DsSenderId::LeafIndex(LeafIndex(leaf)) {
            add(&format!("leaf {leaf} as its sender"), &|it| {
                it.sender_id = DsSenderId::LeafIndex(LeafIndex(leaf));
            });
        }
    }
    add("a user as its sender", &|it| {
        it.sender_id = DsSenderId::UserKeyHash(UserKeyHash(Opaque::new([3; 32]).unwrap()));
    });
    add("a KeyPackage as its sender", &|it| {
        it.sender_id = DsSenderId::KeyPackageRef(KeyPackageRef(Opaque::new([4; 32]).unwrap()));
    });
    let mut unsigned = message.clone();
    unsigned.signature = ShortOpaque::new([0; 0]).unwrap();
    all.push(("no signature".into(), encode(&unsigned)));
    all.push(("a stranger's signature".into(), encode(&signed_by(stranger, message))));
    for step in 0..24 {
        let at = step * whole.len() / 24;
        all.push((format!("cut at {at}"), whole[..at].to_vec()));
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (step % 8);
        all.push((format!("a bit of byte {at} flipped"), flipped));
    }
    for back in [1, 2, 20, 60, 90] {
        let at = whole.len() - back;
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        all.push((format!("a bit of byte {at} flipped"), flipped));
    }
    all.push(("one byte more".into(), [&whole[..], &[0]].concat()));
    all.push(("twice".into(), [&whole[..], &whole[..]].concat()));
    all.push(("nothing".into(), Vec::new()));
    for (name, context) in too_long(message) {
        let rest = whole.len() - encode(&message.context).len();
        all.push((name.to_owned(), [&whole[..rest], &context].concat()));
    }
    // the code of every other kind, in front of this one's body
    let at = encode(&message.sender_id).len();
    for code in 0..=20 {
        if code != whole[at] {
            let mut other = whole.clone();
            other[at] = code;
            all.push((format!("as kind {code}"), other));
        }
    }
    all
}

/// The contexts of `message` with one thing that is longer by a byte than it may be (PROTOCOL.md §1, limits).
fn too_long(message: &DsMessage) -> Vec<(&'static str, Vec<u8>)> {
    let context = |domain: &[u8], group: &[u8]| {
        let mut bytes = encode(&message.context.version);
        append_vector(&mut bytes, domain);
        append_vector(&mut bytes, group);
        bytes.extend(encode(&message.context.timestamp));
        bytes.extend(message.context.request_id.0);
        bytes
    };
    let (domain, group) =
        (message.context.hub_domain.as_str().as_bytes(), message.context.group_id.as_bytes());
    assert_eq!(context(domain, group), encode(&message.context));
    // labels of a domain have at most 63 bytes each
    let longest = "a.".repeat(126) + "aa";
    let mut long_group = group.to_vec();
    long_group.resize(256, b'a');
    vec![
        ("a domain of 254 bytes", context(longest.as_bytes(), group)),
        ("a group id of 256 bytes", context(domain, &long_group)),
    ]
}

/// The same under another request_id, signed by `key` now.
pub(super) fn anew(key: &SigningKey, message: &DsMessage) -> DsMessage {
    let mut message = message.clone();
    message.context.request_id = RequestId(crypto::random());
    message.context.timestamp = now();
    signed_by(key, &message)
}

/// What of MLS is in a request, in an epoch.
fn mls_in(request: &mut DsRequest) -> Option<&mut MlsMessage> {
    match request {
        DsRequest::DeleteGroup(it) => Some(&mut it.update.commit),
        DsRequest::AddUsers(it) | DsRequest::AddClients(it) => Some(&mut it.commit),
        DsRequest::RemoveUsers(it) | DsRequest::RemoveClients(it) | DsRequest::UpdateClient(it) => {
            Some(&mut it.commit)
        }
        DsRequest::ResyncClient(it) => Some(&mut it.update.commit),
        DsRequest::SendMessage(it) => Some(&mut it.application_message),
        DsRequest::JoinGroup(it) => Some(&mut it.update.commit),
        DsRequest::UpdateGroup(it) => Some(&mut it.update.commit),
        DsRequest::StartMigration(it) => Some(&mut it.update.commit),
        // a list, which is changed as one
        DsRequest::Propose(_)
        | DsRequest::CreateGroup(_)
        | DsRequest::UpdateQueueInfo(_)
        | DsRequest::WelcomeInfo(_)
        | DsRequest::ExternalCommitInfo(_)
        | DsRequest::UpdateClientFanoutInfo(_) => None,
    }
}

/// The request with its MLSMessage changed; none where it has none.
fn with_mls(message: &DsMessage, change: impl Fn(&mut Vec<u8>)) -> Option<DsMessage> {
    let changed = |mls: &MlsMessage| {
        let mut bytes = mls.as_slice().to_vec();
        change(&mut bytes);
        MlsMessage::new(bytes).unwrap()
    };
    let mut message = message.clone();
    if let DsRequest::Propose(it) = &mut message.request {
        let mls = changed(it.proposals.iter().next().unwrap());
        it.proposals = List::new(vec![mls]).unwrap();
        return Some(message);
    }
    let mls = mls_in(&mut message.request)?;
    *mls = changed(mls);
    Some(message)
}

/// Where the epoch stands in an MLSMessage of `group`: behind version, wire format and group id (RFC 9420 §6).
fn epoch_at(group: &GroupId) -> usize {
    let mut before = vec![0; 4];
    append_vector(&mut before, group.as_bytes());
    before.len()
}

/// The request as if it were of `epoch`; none where it is of none.
pub(super) fn of_epoch(message: &DsMessage, epoch: Epoch) -> Option<DsMessage> {
    let at = epoch_at(&message.context.group_id);
    with_mls(message, |bytes| bytes[at..at + 8].copy_from_slice(&epoch.0.to_be_bytes()))
}

/// The request with so many bytes of `authenticated_data` in its MLSMessage, which still is one; none where it has none.
fn with_data(message: &DsMessage, len: usize) -> Option<DsMessage> {
    let epoch = epoch_at(&message.context.group_id);
    with_mls(message, |bytes| {
        let is_public = bytes[2..4] == [0, 1];
        // who sent it (a member and what is external have an index), or of what type the content is
        let between = if is_public && bytes[epoch + 8] <= 2 { 5 } else { 1 };
        let at = epoch + 8 + between;
        let (len_bytes, data) = match bytes[at] {
            short @ 0..64 => (1, usize::from(short)),
            first => (2, usize::from(first & 63) << 8 | usize::from(bytes[at + 1])),
        };
        let mut longer = bytes[..at].to_vec();
        append_vector(&mut longer, &vec![0; len]);
        longer.extend_from_slice(&bytes[at + len_bytes + data..]);
        *bytes = longer;
    })
}

/// What must stay as it is.
#[derive(Clone, Copy)]
pub(super) struct Witness<'a> {
    pub one: &'a Client,
    pub other: &'a Client,
    pub group: &'a GroupId,
}

/// Who attacks, and what of the provider is looked at meanwhile.
pub(super) struct Siege<'a> {
    pub runtime: &'a tokio::runtime::Runtime,
    pub line: Line,
    /// How many messages groups have accepted so far.
    pub accepted: Box<dyn Fn() -> u64 + 'a>,
    pub witness: Witness<'a>,
    /// A client of the same provider who has no part in it.
    pub stranger: &'a Client,
    /// The bound of a handshake message, in bytes.
    pub handshake_bytes_max: usize,
    pub tally: &'a mut Tally,
}

impl Siege<'_> {
    pub fn sees(&self) -> String {
        let Witness { one, other, group } = self.witness;
        // who attacks has a request pending, which it would go on with
        assert_eq!(self.runtime.block_on(other.receive(0)).unwrap(), 0, "something came");
        let views = [one, other].map(|client| {
            let view = client.member().group(group).unwrap();
            let members: Vec<_> =
                view.members.iter().map(|it| (it.leaf, it.client.clone(), it.role)).collect();
            (view.epoch, view.state, members, view.pending, view.authenticator)
        });
        format!("{views:?}, {} accepted", (self.accepted)())
    }

    /// Both have taken in all that there is.
    pub fn in_step(&self) {
        let Witness { one, other, group } = self.witness;
        in_step(self.runtime, one, other, group);
    }

    fn is_refused(
        &mut self,
        kind: &'static str,
        name: &str,
        (status, answer): &(u16, Vec<u8>),
    ) -> DsError {
        let response: DsResponse = decode(answer).unwrap();
        let Outcome::Err(error) = response.outcome else { panic!("{kind}, {name}: it was taken") };
        assert!((400..500).contains(status), "{kind}, {name}: {status} {error}");
        self.tally.count(kind, error.name());
        error
    }

    /// Sends `message` in every way that it must not be sent in.
    pub fn attack(&mut self, sender: &Client, message: &DsMessage) {
        let before = self.sees();
        let (kind, path) = (message.request.name(), path_of(&message.request));
        let stranger = self.stranger.member().identity().clone();
        for (name, bytes) in mutations(message, &stranger.client_key) {
            let answer = self.line.post(path, &sign_as(sender, path, &bytes));
            self.is_refused(kind, &name, &answer);
        }
        // and what is around it: signed by another, cut, flipped, at another endpoint
        let whole = encode(message);
        let outer = sign_as(sender, path, &whole);
        let mut named: ClientMessage = decode(&outer).unwrap();
        named.client = stranger.client.clone();
        let mut wrong =
            vec![encode(&named), outer[..outer.len() / 2].to_vec(), [&outer[..], &[0]].concat()];
        for at in [0, 5, outer.len() / 3, outer.len() - 1] {
            let mut flipped = outer.clone();
            flipped[at] ^= 4;
            wrong.push(flipped);
        }
        wrong.push(signed(sender.member().client(), &stranger.client_key, path, &whole));
        wrong.push(sign_as(sender, "/v1/dequeue", &whole));
        for bytes in wrong {
            let answer = self.line.post(path, &bytes);
            self.is_refused(kind, "around it", &answer);
        }
        let elsewhere = if path == OPERATION { WELCOME } else { OPERATION };
        let at_another = sign_as(sender, elsewhere, &whole);
        let answer = self.line.post(elsewhere, &at_another);
        let error = self.is_refused(kind, "at another endpoint", &answer);
        let is_larger = at_another.len() > body_bytes_max(elsewhere);
        assert_eq!(error.name(), if is_larger { "too_large" } else { "malformed" }, "{kind}");
        self.oversize(sender, message);
        assert_eq!(self.sees(), before, "{kind}");
    }

    /// Sends it larger than it may be: the body, and the message of MLS that is in it, rightly signed.
    fn oversize(&mut self, sender: &Client, message: &DsMessage) {
        let (kind, path) = (message.request.name(), path_of(&message.request));
        let mut outer = sign_as(sender, path, &encode(message));
        let limit = body_bytes_max(path);
        let answer = self.line.announce(path, limit + 1, &outer);
        let error = self.is_refused(kind, "one byte more than the limit", &answer);
        assert!(
            matches!(error, DsError::TooLarge { limit: told, .. } if told == limit as u64),
            "{kind}: {error:?}"
        );
        // as long as it may be: read whole, and none
        outer.resize(limit, 0);
        let answer = self.line.post(path, &outer);
        assert_eq!(self.is_refused(kind, "at the limit", &answer).name(), "malformed", "{kind}");
        let is_message = matches!(message.request, DsRequest::SendMessage(_));
        let limit = if is_message { APPLICATION_BYTES_MAX } else { self.handshake_bytes_max };
        // with what is around it the message is longer than its data
        let padded = with_data(message, limit);
        if let Some(padded) = padded {
            let padded = anew(&key_of(sender, message), &padded);
            let answer = self.line.post(path, &sign_as(sender, path, &encode(&padded)));
            let error = self.is_refused(kind, "its message larger than it may be", &answer);
            assert!(
                matches!(error, DsError::TooLarge { limit: told, .. } if told == limit as u64),
                "{kind}: {error:?}"
            );
        }
    }

    /// Sends it rightly, and then again in every way that it may come again in: it is answered as it was, and done once. What
    /// comes of it is in the sender's state.
    pub fn replay(
        &mut self,
        sender: &Client,
        request: RequestId,
        message: &DsMessage,
    ) -> DsResponse {
        let (kind, path) = (message.request.name(), path_of(&message.request));
        let (whole, before) = (encode(message), (self.accepted)());
        let wrapped = sign_as(sender, path, &whole);
        let (status, answer) = self.line.post(path, &wrapped);
        let first: DsResponse = decode(&answer).unwrap();
        let Outcome::Ok(body) = &first.outcome else { panic!("{kind}: {first:?}") };
        assert_eq!(status, 200, "{kind}");
        let times = match (body, &message.request) {
            // what goes with the group is no entry of this hub's any more
            (DsResponseBody::Info(_) | DsResponseBody::Moving(_), _) => 0,
            // its commit, and the end of the group behind that
            (_, DsRequest::DeleteGroup(_)) => 2,
            _ => 1,
        };
        assert_eq!((self.accepted)() - before, times, "{kind}: how often it was accepted");
        let settled = sender.member().settle(request, &first, now()).unwrap();
        if matches!(settled, Settled::Done(_)) {
            self.in_step();
        }
        let seen = self.sees();
        let answer = self.line.post(path, &wrapped);
        let error = self.is_refused(kind, "the same bytes again", &answer);
        assert_eq!(error.name(), "unauthenticated", "{kind}: its nonce was taken: {error}");
        for client in [sender, self.stranger, sender] {
            let (status, again) = send(&mut self.line, client, message);
            assert_eq!((status, &again), (200, &first), "{kind}");
            *self.tally.again.entry(kind).or_default() += 1;
        }
        assert_eq!(self.sees(), seen, "{kind} was done again");
        first
    }

    /// Sends what is refused, and says how.
    pub fn refused(&mut self, sender: &Client, message: &DsMessage) -> DsError {
        let (kind, path) = (message.request.name(), path_of(&message.request));
        let answer = self.line.post(path, &sign_as(sender, path, &encode(message)));
        self.is_refused(kind, "out of order", &answer)
    }

    /// Sends `message` as a new request of its sender's.
    pub fn refused_anew(&mut self, sender: &Client, message: &DsMessage) -> DsError {
        let message = anew(&key_of(sender, message), message);
        self.refused(sender, &message)
    }
}

/// Both have taken in all that there is.
pub(super) fn in_step(
    runtime: &tokio::runtime::Runtime,
    one: &Client,
    other: &Client,
    group: &GroupId,
) {
    let epoch = |client: &Client| client.member().group(group).unwrap().authenticator;
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "{:?} and {:?}", epoch(one), epoch(other));
        let new = runtime
            .block_on(async { one.receive(0).await.unwrap() + other.receive(100).await.unwrap() });
        if new == 0 && epoch(one) == epoch(other) {
            return;
        }
    }
}
