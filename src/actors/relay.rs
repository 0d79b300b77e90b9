//! What this provider asks of others for its own clients. PROTOCOL.md §2, §4, §5.
//!
//! A hub knows a client by its leaf alone. So the relay checks what only the client's own provider can know: that a leaf
//! which comes in is the sender and has its account's user key, and that a queue is the sender's own. The hub's answer
//! is decoded once and passed on as it is. Deliberately absent: signing and finding the other provider (`federation`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    arbiters::blocking,
    errors::{detail, internal, malformed, not_authorized, of_store, unauthenticated},
    hints::locked,
    moves::step,
    node::Node,
    queue::BindError,
    tokens::user_key_hash,
};
use crate::{
    crypto::{self, MlsCrypto},
    federation::{CallError, Federation},
    key_package::publish,
    policy::{
        incoming::{self, Incoming},
        leaf::client_of,
    },
    wire::{
        client::{ProviderKeysAnswer, VerificationKeyResponse},
        codec::encode,
        decode,
        ds::{
            CommitComplaint, ComplaintResponse, DsError, DsMessage, DsRequest, DsResponse,
            DsSenderId, ExternalCommitInfo, Outcome, ProtocolVersion,
        },
        extensions::{ClientQueueConfig, KeyPackageClass},
        federation::EventType,
        ids::{ClientUri, Domain, GroupId, RequestId, UserKeyHash, UserUri},
        key_packages::{
            ConnectionKeyPackageRequest, ConnectionKeyPackageResponse, ConnectionRequest,
            GroupKeyPackageRequest, GroupKeyPackageResponse, KeyPackageStatus,
        },
        mls::KeyPackage,
        portability::{MigrationRequest, MigrationResponse},
        queueing::QueueingServiceResponse,
    },
};

/// How many requests of clients here wait for each other provider: one that is slow must not take the places of those
/// who want something else.
#[derive(Debug, Default)]
pub struct Relays(Mutex<HashMap<Domain, usize>>);

impl Relays {
    fn enter(&self, peer: &Domain, per_peer_max: usize) -> Result<Waiting<'_>, DsError> {
        let mut waiting = locked(&self.0);
        let count = waiting.entry(peer.clone()).or_default();
        if *count >= per_peer_max {
            return Err(DsError::Unavailable {
                detail: detail(format!("too many requests wait for {peer}; try again")),
                retry_after_ms: BUSY_RETRY_MS,
            });
        }
        *count += 1;
        Ok(Waiting { of: self, peer: peer.clone() })
    }
}

/// A place among those who wait for one provider.
#[derive(Debug)]
struct Waiting<'a> {
    of: &'a Relays,
    peer: Domain,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = locked(&self.of.0);
        if let Some(count) = waiting.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.peer);
            }
        }
    }
}

impl Node {
    /// Brings a request of a client of this provider to the hub that it names, which is another provider. It may be sent
    /// again where the answer is lost: the hub knows its request_id.
    pub async fn relay(&self, from: &ClientUri, message: DsMessage) -> DsResponse {
        let operation = message.request.name();
        let hub = message.context.hub_domain.clone();
        let response = match self.try_relay(from, message).await {
            Ok(response) => response,
            Err(error) => {
                DsResponse { version: ProtocolVersion::MIMI10, outcome: Outcome::Err(error) }
            }
        };
        let outcome = match &response.outcome {
            Outcome::Ok(_) => "ok",
            Outcome::Err(error) => error.name(),
        };
        tracing::debug!(%hub, operation, outcome, "relayed a request");
        self.metrics.relayed.with_label_values(&[operation, outcome]).inc();
        response
    }

    async fn try_relay(&self, from: &ClientUri, message: DsMessage) -> Result<DsResponse, DsError> {
        let hub = message.context.hub_domain.clone();
        let federation = self.federation_with(&hub)?;
        self.vouch_for(from, &message).await?;
        let event = EventType::of(&message.request);
        let is_info =
            matches!(message.request, DsRequest::WelcomeInfo(_) | DsRequest::ExternalCommitInfo(_));
        // a whole tree is a large answer: few of one hub are held at a time
        let _waiting = if is_info {
            self.info_relays.enter(&hub, INFO_RELAYS_MAX)?
        } else {
            self.relays.enter(&hub, self.limits.relays_per_peer_max)?
        };
        let request_id = RequestId(crypto::random());
        let timeout = Duration::from_millis(self.limits.relay_timeout_ms);
        let answer = federation.request(&hub, event, request_id, encode(&message), timeout).await;
        let answer = answer.map_err(|error| of_call(&hub, error))?;
        decode(&answer).map_err(|error| bad_answer(&hub, error))
    }

    /// Checks what the hub takes this provider's word for.
    async fn vouch_for(&self, from: &ClientUri, message: &DsMessage) -> Result<(), DsError> {
        let account = self.store.account(&from.user()).await.map_err(of_store)?;
        let account = account.ok_or_else(|| internal("a device without an account"))?;
        let user = user_key_hash(&account).map_err(of_store)?;
        let sender = Vouched { client: from, user: &user };
        let mut queue: Option<ClientQueueConfig> = None;
        match &message.request {
            DsRequest::CreateGroup(create) => {
                sender.is_owner_of(&create.key_package)?;
                queue = Some(create.client_queue_config.clone());
            }
            DsRequest::JoinGroup(join) => {
                sender.is_in(incoming::of_commit(&join.update.commit))?;
                queue = Some(join.client_queue_config.clone());
            }
            DsRequest::ResyncClient(resync) => {
                sender.is_in(incoming::of_commit(&resync.update.commit))?;
                queue = Some(resync.client_queue_config.clone());
            }
            DsRequest::UpdateQueueInfo(update) => queue = Some(update.client_queue_config.clone()),
            DsRequest::UpdateClientFanoutInfo(update) => {
                queue = Some(update.client_queue_config.clone());
            }
            DsRequest::ExternalCommitInfo(info) => sender.may_ask(info)?,
            DsRequest::Propose(propose) => {
                if matches!(message.sender_id, DsSenderId::KeyPackageRef(_)) {
                    for proposal in propose.proposals.iter() {
                        let added = incoming::added(proposal);
                        let added =
                            added.ok_or_else(|| malformed("a newcomer proposes its own Add"))?;
                        queue = Some(sender.is_owner_of(&added)?);
                    }
                }
            }
            // their leaves are known to the hub, their KeyPackages were checked when they were published
            DsRequest::DeleteGroup(_)
            | DsRequest::WelcomeInfo(_)
            | DsRequest::AddUsers(_)
            | DsRequest::RemoveUsers(_)
            | DsRequest::AddClients(_)
            | DsRequest::RemoveClients(_)
            | DsRequest::UpdateClient(_)
            | DsRequest::SendMessage(_)
            | DsRequest::UpdateGroup(_)
            | DsRequest::StartMigration(_) => {}
        }
        match queue {
            Some(queue) => {
                let context = &message.context;
                self.is_own_queue(from, &user, &queue, &context.hub_domain, &context.group_id).await
            }
            None => Ok(()),
        }
    }

    /// Whether `queue` is `client`'s and good for `group` at `hub`. It is bound when the hub names it.
    async fn is_own_queue(
        &self,
        client: &ClientUri,
        user: &UserKeyHash,
        queue: &ClientQueueConfig,
        hub: &Domain,
        group: &GroupId,
    ) -> Result<(), DsError> {
        if queue.domain != self.domain {
            return Err(not_authorized("a client's queue must be at its own provider"));
        }
        match self.bind_token(queue, client, user, hub, group).await {
            Ok(_) => Ok(()),
            Err(BindError::Token(problem)) => Err(not_authorized(problem)),
            Err(BindError::Store(error)) => Err(of_store(error)),
        }
    }

    pub(super) async fn relay_connection_request(
        &self,
        to: &Domain,
        request: ConnectionRequest,
    ) -> Result<QueueingServiceResponse, DsError> {
        let body = encode(&request);
        // it may wait for long
        drop(request);
        let answer = self.ask(to, EventType::ConnectionRequest, body).await?;
        decode(&answer).map_err(|error| bad_answer(to, error))
    }

    pub(super) async fn relay_connection_key_packages(
        &self,
        request: ConnectionKeyPackageRequest,
    ) -> Result<ConnectionKeyPackageResponse, DsError> {
        let target = request.target_user.clone();
        let provider = target.domain();
        let event = EventType::ConnectionKeyPackages;
        let answer = self.ask(&provider, event, encode(&request)).await?;
        let response: ConnectionKeyPackageResponse =
            decode(&answer).map_err(|error| bad_answer(&provider, error))?;
        let key_packages: Vec<_> =
            response.key_packages.iter().map(|key_package| (None, key_package.clone())).collect();
        check_all(&target, KeyPackageClass::Connection, key_packages).await?;
        Ok(response)
    }

    pub(super) async fn relay_group_key_packages(
        &self,
        request: GroupKeyPackageRequest,
    ) -> Result<GroupKeyPackageResponse, DsError> {
        let target = request.target_user.clone();
        let provider = target.domain();
        let event = EventType::GroupKeyPackages;
        let answer = self.ask(&provider, event, encode(&request)).await?;
        let response: GroupKeyPackageResponse =
            decode(&answer).map_err(|error| bad_answer(&provider, error))?;
        let mut key_packages = Vec::new();
        for answered in response.clients.iter() {
            let has_one = answered.key_package.is_some();
            if has_one != (answered.status == KeyPackageStatus::Ok)
                || answered.client.user() != target
            {
                return Err(bad_answer(&provider, "it is of another user, or contradicts itself"));
            }
            if let Some(key_package) = &answered.key_package {
                key_packages.push((Some(answered.client.clone()), key_package.clone()));
            }
        }
        check_all(&target, KeyPackageClass::Group, key_packages).await?;
        Ok(response)
    }

    /// Brings a complaint of a client of this provider to the hub. Where the answer is lost the client comes again.
    pub(super) async fn relay_complaint(
        &self,
        hub: &Domain,
        complaint: &CommitComplaint,
    ) -> Result<ComplaintResponse, DsError> {
        let federation = self.federation_with(hub)?;
        let _waiting = self.relays.enter(hub, self.limits.relays_per_peer_max)?;
        let request_id = RequestId(crypto::random());
        let timeout = Duration::from_millis(self.limits.relay_timeout_ms);
        let event = EventType::Complaint;
        let answer = federation.request(hub, event, request_id, encode(complaint), timeout).await;
        let answer = answer.map_err(|error| of_call(hub, error))?;
        decode(&answer).map_err(|error| bad_answer(hub, error))
    }

    /// Asks the provider that a group is to move to, for a client of this one.
    ///
    /// # Errors
    /// What the target says, or why it cannot be asked.
    pub async fn request_migration(
        &self,
        request: MigrationRequest,
    ) -> Result<MigrationResponse, DsError> {
        let target = request.target_domain_name.clone();
        if target == self.domain {
            return self.migration_response(request).await;
        }
        step("initiator.before-request").await;
        let answer = self.ask(&target, EventType::MigrationRequest, encode(&request)).await?;
        step("initiator.promised").await;
        decode(&answer).map_err(|error| bad_answer(&target, error))
    }

    /// The keys of another provider.
    pub(super) async fn provider_keys_of(
        &self,
        domain: &Domain,
    ) -> Result<ProviderKeysAnswer, DsError> {
        let federation = self.federation_with(domain)?;
        let _waiting = self.relays.enter(domain, self.limits.relays_per_peer_max)?;
        let (verification, signature) = futures_util::future::join(
            federation.keys_of(domain),
            federation.external_senders_of(domain),
        )
        .await;
        let is_theirs = |keys: VerificationKeyResponse| {
            if keys.domain == *domain {
                Ok(keys)
            } else {
                Err(bad_answer(domain, "it gives the keys of another provider"))
            }
        };
        let of = |error| of_call(domain, error);
        Ok(ProviderKeysAnswer {
            verification: is_theirs(verification.map_err(of)?)?,
            signature: is_theirs(signature.map_err(of)?)?,
        })
    }

    /// Asks `peer` for what it may be asked for once: where no answer comes in half of the time, the same request is
    /// sent again, and gets the answer of the first.
    async fn ask(
        &self,
        peer: &Domain,
        event: EventType,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, DsError> {
        let request_id = RequestId(crypto::random());
        let federation = self.federation_with(peer)?;
        let _waiting = self.relays.enter(peer, self.limits.relays_per_peer_max)?;
        let half = Duration::from_millis(self.limits.relay_timeout_ms / 2);
        let first = federation.request(peer, event, request_id, body.clone(), half).await;
        let answer = match first {
            Err(CallError::Timeout | CallError::Unreachable(_)) => {
                federation.request(peer, event, request_id, body, half).await
            }
            first => first,
        };
        answer.map_err(|error| of_call(peer, error))
    }

    fn federation_with(&self, peer: &Domain) -> Result<Arc<Federation>, DsError> {
        let federation = self.federation.as_ref().filter(|federation| federation.admits(peer));
        federation
            .cloned()
            .ok_or_else(|| not_authorized(format!("this provider does not federate with {peer}")))
    }
}

/// The sender of a request, as its provider knows it.
struct Vouched<'a> {
    client: &'a ClientUri,
    user: &'a UserKeyHash,
}

impl Vouched<'_> {
    fn is_in(&self, incoming: Option<Incoming>) -> Result<(), DsError> {
        let incoming = incoming
            .ok_or_else(|| malformed("there is no leaf with one user_key that comes in"))?;
        let client = incoming.client().map_err(malformed)?;
        if client != *self.client {
            return Err(unauthenticated("the leaf that comes in is another client's"));
        }
        let user = incoming.user().map_err(|error| unauthenticated(&error.to_string()))?;
        self.is_user(&user)
    }

    fn is_user(&self, user: &UserKeyHash) -> Result<(), DsError> {
        if user == self.user {
            return Ok(());
        }
        Err(unauthenticated("the user key is not the one that this user's account has"))
    }

    /// Gives the queue that the KeyPackage names.
    fn is_owner_of(&self, key_package: &KeyPackage) -> Result<ClientQueueConfig, DsError> {
        self.is_in(incoming::of_key_package(key_package))?;
        let parsed = publish::parse(&MlsCrypto::default(), key_package).map_err(malformed)?;
        Ok(parsed.queue.config)
    }

    fn may_ask(&self, info: &ExternalCommitInfo) -> Result<(), DsError> {
        let credential = info.credential.parse().map_err(malformed)?;
        if client_of(&credential).map_err(malformed)? != *self.client {
            return Err(unauthenticated("the credential is another client's"));
        }
        let Some(user_key) = &info.user_key else { return Ok(()) };
        self.is_user(&crypto::user_key_hash(user_key.scheme, &user_key.user_public_key))
    }
}

/// Whether KeyPackages that another provider handed out are `target`'s: as valid as those that are published here.
async fn check_all(
    target: &UserUri,
    class: KeyPackageClass,
    key_packages: Vec<(Option<ClientUri>, KeyPackage)>,
) -> Result<(), DsError> {
    let provider = target.domain();
    if key_packages.len() > CLIENTS_MAX {
        return Err(bad_answer(&provider, "too many KeyPackages of one user"));
    }
    let target = target.clone();
    let checked = blocking(move || {
        let crypto = MlsCrypto::default();
        key_packages.iter().all(|(client, key_package)| {
            let Ok(parsed) = publish::parse(&crypto, key_package) else { return false };
            let named = client_of(parsed.key_package.leaf_node().credential());
            named.is_ok_and(|named| {
                named.user() == target
                    && client.as_ref().is_none_or(|client| *client == named)
                    && parsed.queue.class == class
                    && parsed.queue.config.domain == target.domain()
            })
        })
    });
    if checked.await.map_err(internal)? {
        return Ok(());
    }
    Err(bad_answer(&provider, "it hands out KeyPackages that are not this user's or not valid"))
}

/// Why the other provider's answer is missing, for a client.
fn of_call(peer: &Domain, error: CallError) -> DsError {
    let retry_after_ms = error.retry_after_ms().unwrap_or(RETRY_AFTER_MS);
    match error {
        CallError::Refused { .. } => {
            not_authorized(format!("this provider does not federate with {peer}"))
        }
        // between the providers: nothing that the client did, or can do, makes it better
        CallError::Status {
            error:
                Some(
                    error @ (DsError::Malformed { .. }
                    | DsError::Unauthenticated { .. }
                    | DsError::StaleRequest { .. }
                    | DsError::UnsupportedVersion { .. }),
                ),
            ..
        } => {
            tracing::error!(%peer, %error, "another provider does not take what this one signs: `mimid doctor` says more");
            DsError::Unavailable {
                detail: detail(format!("{peer} does not take this provider's messages now")),
                retry_after_ms,
            }
        }
        CallError::Status { error: Some(error), .. } => error,
        CallError::Signing(reason) => internal(reason),
        CallError::Discovery(_)
        | CallError::Unreachable(_)
        | CallError::Timeout
        | CallError::Status { error: None, .. }
        | CallError::TooLarge
        | CallError::BadAnswer(_) => {
            tracing::warn!(%peer, kind = error.kind(), %error, "another provider did not answer");
            DsError::Unavailable {
                detail: detail(format!("{peer} cannot be asked now ({}); try again", error.kind())),
                retry_after_ms,
            }
        }
    }
}

fn bad_answer(peer: &Domain, why: impl std::fmt::Display) -> DsError {
    of_call(peer, CallError::BadAnswer(why.to_string()))
}

const RETRY_AFTER_MS: u64 = 5_000;
const BUSY_RETRY_MS: u64 = 500;
/// Requests for the state of groups of one hub, at a time.
const INFO_RELAYS_MAX: usize = 4;
/// Clients of one user, as other providers may allow them.
const CLIENTS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_wait_for_a_slow_provider_leave_room_for_others_and_give_their_places_back() {
        let relays = Relays::default();
        let (slow, other) =
            (Domain::new("slow.example").unwrap(), Domain::new("other.example").unwrap());
        let first = relays.enter(&slow, 2).unwrap();
        let second = relays.enter(&slow, 2).unwrap();
        assert!(matches!(
            relays.enter(&slow, 2).unwrap_err(),
            DsError::Unavailable { retry_after_ms: 500, .. }
        ));
        drop(relays.enter(&other, 2).unwrap());
        drop(first);
        let third = relays.enter(&slow, 2).unwrap();
        drop((second, third));
        assert!(locked(&relays.0).is_empty(), "nobody is remembered for nothing");
    }

    #[test]
    fn what_the_other_provider_says_is_passed_on_and_what_it_does_not_is_unavailable() {
        let peer = Domain::new("b.example").unwrap();
        let said = not_authorized("because");
        let status = |error| CallError::Status { http: 403, retry_after_ms: Some(7_000), error };
        assert_eq!(of_call(&peer, status(Some(said.clone()))), said);
        // of the message between the providers, which no client has made
        let misled = DsError::Malformed { detail: detail("the message is for c.example") };
        for (error, after) in [
            (status(None), 7_000),
            (status(Some(misled)), 7_000),
            (CallError::Timeout, RETRY_AFTER_MS),
            (CallError::Discovery("nowhere".into()), RETRY_AFTER_MS),
            (CallError::BadAnswer("garbage".into()), RETRY_AFTER_MS),
        ] {
            let DsError::Unavailable { retry_after_ms, .. } = of_call(&peer, error) else {
                unreachable!()
            };
            assert_eq!(retry_after_ms, after);
        }
        let refused = of_call(&peer, CallError::Refused { domain: peer.clone() });
        assert_eq!(refused.name(), "not_authorized");
    }
}
