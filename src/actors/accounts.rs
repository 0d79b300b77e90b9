//! Who a client is: authentication of its messages, registration, deletion, consent. PROTOCOL.md §3.
//!
//! Thin: [`crate::account`] decides about registrations. Deliberately absent: limits per address, which are the
//! listener's.

use std::collections::BTreeSet;

use super::{
    errors::{
        internal, malformed, not_authorized, of_registration, of_store, rate_limited, too_large,
        unauthenticated, unavailable,
    },
    federated::whole,
    node::Node,
    nonces::NonceProblem,
};
use crate::{
    account::{self, Decision},
    crypto,
    queue::state::client_gone,
    store::{
        Batch, Condition, Page, StoreError, Write,
        records::{ConsentHash, Device, GoneReason, GroupNotice, InboxItem, Subscription},
    },
    wire::{
        client::{
            ClientMessage, ClientMessageTbs, Consent, DeleteDevice, ProviderKeysAnswer, Register,
            Registered, VerificationKeyResponse,
        },
        codec::{List, Opaque, encode},
        ds::{DsError, ProtocolVersion},
        extensions::SignatureScheme,
        ids::{ClientUri, Domain, GroupId, UserUri},
    },
};

impl Node {
    /// Who sent `message`: a registered client of this provider whose device is there. `endpoint` is the path called.
    ///
    /// # Errors
    /// unsupported_version, malformed (another endpoint), unauthenticated, stale_request, rate_limited, unavailable.
    pub async fn authenticate(
        &self,
        message: &ClientMessage,
        endpoint: &str,
    ) -> Result<ClientUri, DsError> {
        let outcome = self.try_authenticate(message, endpoint).await;
        let name = outcome.as_ref().map_or_else(DsError::name, |_| "ok");
        self.metrics.authentications.with_label_values(&[name]).inc();
        outcome
    }

    async fn try_authenticate(
        &self,
        message: &ClientMessage,
        endpoint: &str,
    ) -> Result<ClientUri, DsError> {
        self.check_envelope(message, endpoint)?;
        let device = self.store.device(&message.client).await.map_err(of_store)?;
        // a device that deletes itself asks again where the answer was lost; what it may do then is with the deleting
        let may_be_gone = [DELETE_DEVICE, DELETE_ACCOUNT].contains(&endpoint);
        let device = match device {
            Some(device) if device.deleted_at.is_none() || may_be_gone => device,
            _ => return Err(unauthenticated("no such client is registered here")),
        };
        verify(message, SignatureScheme(device.key_scheme), &device.key)?;
        self.remember_nonce(message)?;
        Ok(message.client.clone())
    }

    /// Opens an account with its first device, or adds a device to one. Repeated with the same keys it answers the same.
    ///
    /// # Errors
    /// malformed, unauthenticated, not_authorized, stale_request, rate_limited, unavailable.
    pub async fn register(
        &self,
        message: &ClientMessage,
        register: Register,
    ) -> Result<Registered, DsError> {
        self.check_envelope(message, REGISTER)?;
        verify(message, register.scheme, register.client_key.as_slice())?;
        let credential = register.credential.clone();
        let claim = account::check(&self.domain, &message.client, register)
            .map_err(|refusal| of_registration(&refusal))?;
        let mut remembered = false;
        let (client, user) = (claim.client.clone(), claim.client.user());
        for _ in 0..CONFLICTS_MAX {
            let account = self.store.account(&user).await.map_err(of_store)?;
            let device = self.store.device(&client).await.map_err(of_store)?;
            let decision = account::decide(
                &claim,
                &self.registration,
                account.as_ref(),
                device.as_ref(),
                self.limits.devices_per_user_max,
                crypto::random(),
                self.clock.now(),
            )
            .map_err(|refusal| of_registration(&refusal))?;
            // only now: anyone can sign in another's name with a key of its own, and would use up that one's nonces
            if !std::mem::replace(&mut remembered, true) {
                self.remember_nonce(message)?;
            }
            let absent = Condition::DeviceAbsent(client.clone());
            let user_write = |account| Write::Account { user: user.clone(), account };
            let device_write = |device| Write::Device { client: client.clone(), device };
            let batch = match (decision, account) {
                (Decision::Repeated, _) => Batch::new(),
                (Decision::NewUser { account, device }, _) => Batch::new()
                    .when(Condition::AccountAbsent(user.clone()))
                    .when(absent)
                    .and(user_write(account))
                    .and(device_write(device)),
                (Decision::NewDevice { account, device }, before) => Batch::new()
                    .when(Condition::AccountAt {
                        user: user.clone(),
                        revision: before.map_or(0, |before| before.revision),
                    })
                    .when(absent)
                    .and(user_write(account))
                    .and(device_write(device)),
            };
            match self.store.write(batch).await {
                Ok(()) => {
                    return Ok(Registered { client, credential, chain: Opaque::default() });
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(of_store(error)),
            }
        }
        Err(unavailable("too many changes of this account at a time; try again"))
    }

    /// Deletes a device of the same user, which may be the sender. The groups that it is in are told to remove it. A
    /// repeat does what is not done yet; a sender that is deleted itself can do no more than that.
    ///
    /// # Errors
    /// unauthenticated, not_authorized, unavailable.
    pub async fn delete_device(
        &self,
        from: &ClientUri,
        delete: DeleteDevice,
    ) -> Result<(), DsError> {
        if delete.client.user() != from.user() {
            return Err(not_authorized("only a client of the same user can delete a device"));
        }
        let device = self.store.device(&delete.client).await.map_err(of_store)?;
        let Some(device) = device else {
            return Err(not_authorized("there is no such device"));
        };
        if device.deleted_at.is_none() {
            self.must_be_there(from).await?;
        }
        self.delete(from, &Deleted::Device(delete.client)).await
    }

    /// Deletes the sender's account with all of its devices. Its name is not given again. A repeat does what is not
    /// done yet.
    ///
    /// # Errors
    /// unauthenticated, unavailable.
    pub async fn delete_account(&self, from: &ClientUri) -> Result<(), DsError> {
        let account = self.store.account(&from.user()).await.map_err(of_store)?;
        let account = account.ok_or_else(|| internal("a device without an account"))?;
        if account.deleted_at.is_none() {
            self.must_be_there(from).await?;
        }
        self.delete(from, &Deleted::Account).await
    }

    async fn must_be_there(&self, client: &ClientUri) -> Result<(), DsError> {
        let device = self.store.device(client).await.map_err(of_store)?;
        match device {
            Some(device) if device.deleted_at.is_none() => Ok(()),
            _ => Err(unauthenticated("no such client is registered here")),
        }
    }

    /// Adds and revokes consent tokens, by their hashes. A repeat changes nothing.
    ///
    /// # Errors
    /// too_large, unavailable.
    pub async fn consent(&self, from: &ClientUri, consent: Consent) -> Result<(), DsError> {
        let (node, user) = (self.clone(), from.user());
        // others that count meanwhile would not see what this one is to add
        let turn = self.consenting.of(&user).lock_owned().await;
        whole(async move {
            let _turn = turn;
            node.change_consent(user, consent).await
        })
        .await
    }

    async fn change_consent(&self, user: UserUri, consent: Consent) -> Result<(), DsError> {
        let hash = |hash: &Opaque<32, 32>| {
            let mut bytes = [0; 32];
            bytes.copy_from_slice(hash.as_slice());
            ConsentHash(bytes)
        };
        let mut batch = Batch::new();
        let mut added = 0;
        for token in consent.add.iter().map(hash) {
            if !self.store.has_consent(&user, &token).await.map_err(of_store)? {
                added += 1;
            }
            batch.push(Write::Consent { user: user.clone(), token });
        }
        let max = self.limits.consents_per_user_max;
        if added > 0 {
            let count = self.store.consent_count(&user, max + 1).await.map_err(of_store)?;
            if count + added > max {
                return Err(too_large("too many consent tokens; revoke some first", max));
            }
        }
        for token in consent.revoke.iter().map(hash) {
            batch.push(Write::DropConsent { user: user.clone(), token });
        }
        self.store.write(batch).await.map_err(of_store)
    }

    /// The keys of this provider, or of another one, as that says.
    ///
    /// # Errors
    /// not_authorized (a provider that this one does not speak with), unavailable.
    pub async fn provider_keys(&self, domain: &Domain) -> Result<ProviderKeysAnswer, DsError> {
        if domain != &self.domain {
            return self.provider_keys_of(domain).await;
        }
        if let Some(federation) = &self.federation {
            return Ok(ProviderKeysAnswer {
                verification: federation.verification_keys(),
                signature: federation.signature_keys(),
            });
        }
        let signature = self.external_senders();
        let verification = VerificationKeyResponse { keys: List::default(), ..signature.clone() };
        Ok(ProviderKeysAnswer { verification, signature })
    }

    /// What can be refused before anything is looked up.
    fn check_envelope(&self, message: &ClientMessage, endpoint: &str) -> Result<(), DsError> {
        if message.version != ProtocolVersion::MIMI10 {
            return Err(DsError::UnsupportedVersion {
                detail: super::errors::detail("this provider speaks mimi10 (1)"),
                versions: List::new(vec![ProtocolVersion::MIMI10]).unwrap_or_default(),
            });
        }
        if message.endpoint.as_str() != endpoint {
            return Err(malformed(format!("the message is for {}", message.endpoint)));
        }
        if message.client.domain() != self.domain {
            return Err(unauthenticated("a client of another provider; go there"));
        }
        let now = self.clock.now();
        let sent = message.timestamp;
        let skew = now.ms_since(sent).max(sent.ms_since(now));
        // what was sent before this process began may have been taken by the one before
        if skew > self.limits.clock_skew_ms || sent < self.started.by(now) {
            return Err(DsError::StaleRequest {
                detail: super::errors::detail("send it anew, with the time of the server"),
                server_time: now,
            });
        }
        Ok(())
    }

    fn remember_nonce(&self, message: &ClientMessage) -> Result<(), DsError> {
        let now = self.clock.now();
        self.nonces.insert(&message.client, message.nonce, message.timestamp, now).map_err(
            |problem| match problem {
                NonceProblem::Repeated => {
                    unauthenticated("this message was taken already; a retry takes a new nonce")
                }
                NonceProblem::TooMany => {
                    rate_limited("too many messages in a few minutes", NONCES_RETRY_MS)
                }
            },
        )
    }

    async fn delete(&self, from: &ClientUri, what: &Deleted) -> Result<(), DsError> {
        for _ in 0..CONFLICTS_MAX {
            match self.mark_deleted(from, what).await {
                Ok(()) => {
                    self.finish_deletions().await.map_err(of_store)?;
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(of_store(error)),
            }
        }
        Err(unavailable("too many changes of this account at a time; try again"))
    }

    /// The first half: nobody can bring the devices into a group any more, and it is noted that their groups are to be told.
    /// Who brought one in just before has left that in its inbox, where the second half finds it.
    pub(super) async fn mark_deleted(
        &self,
        from: &ClientUri,
        what: &Deleted,
    ) -> Result<(), StoreError> {
        let (user, now) = (from.user(), self.clock.now());
        let Some(mut account) = self.store.account(&user).await? else { return Ok(()) };
        // of an account those of this revision: the write holds for no other, and one may have come since it was asked for
        let (clients, reason) = match what {
            Deleted::Device(client) => (vec![client.clone()], GoneReason::DeviceDeleted),
            Deleted::Account => (account.devices.clone(), GoneReason::AccountDeleted),
        };
        let mut batch = Batch::new()
            .when(Condition::AccountAt { user: user.clone(), revision: account.revision });
        for client in &clients {
            let device = self.store.device(client).await?;
            let Some(device) = device.filter(|device| device.deleted_at.is_none()) else {
                continue;
            };
            let device = Device { deleted_at: Some(now), ..device };
            batch.push(Write::Device { client: client.clone(), device });
            batch.push(client_gone(client, &deletions(), reason));
        }
        let account_goes = matches!(what, Deleted::Account) && account.deleted_at.is_none();
        if batch.writes.is_empty() && !account_goes {
            return Ok(());
        }
        account.revision += 1;
        account.devices.retain(|device| !clients.contains(device));
        if account_goes {
            account.deleted_at = Some(now);
        }
        batch.push(Write::Account { user, account });
        self.store.write(batch).await
    }

    /// The second half of every deletion that is not finished, also of a process before this one: tells the groups and
    /// drops the queues. What it is interrupted in is done again.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn finish_deletions(&self) -> Result<(), StoreError> {
        let mut told = BTreeSet::new();
        let mut after: Option<[u8; 16]> = None;
        loop {
            let page =
                self.store.group_notices(&deletions(), after.as_ref(), DELETIONS_PAGE).await?;
            let Some((last, _)) = page.last() else {
                // a group that several devices of an account were in proposes all of their removals at once
                told.iter().for_each(|group| self.hints.notice(group));
                return Ok(());
            };
            after = Some(*last);
            for (key, notice) in page {
                match notice {
                    GroupNotice::ClientGone { client, reason } => {
                        match self.finish_deletion(&client, key, reason, &mut told).await {
                            // those behind it do not wait until it is restored
                            Err(StoreError::Corrupt { .. }) => {}
                            finished => finished?,
                        }
                    }
                    // nobody leaves such a one here
                    GroupNotice::RecipientGone { .. } => {
                        let group = deletions();
                        let taken = Batch::new().and(Write::GroupNoticeTaken { group, key });
                        self.store.write(taken).await?;
                    }
                }
            }
        }
    }

    async fn finish_deletion(
        &self,
        client: &ClientUri,
        key: [u8; 16],
        reason: GoneReason,
        told: &mut BTreeSet<GroupId>,
    ) -> Result<(), StoreError> {
        loop {
            self.close_queue(client).await;
            // a queue that was still writing when it was closed is seen by its revision; the inbox is read before the
            // subscriptions, so what moves from one to the other is in one of them
            let head = self.store.queue_head(client).await?.unwrap_or_default();
            let inbox = self.store.inbox(client, INBOX_PAGE).await?;
            let is_last = !inbox.more;
            let mut groups: Vec<GroupId> = Vec::new();
            let revision = head.revision;
            let mut batch =
                Batch::new().when(Condition::QueueAt { client: client.clone(), revision });
            for (key, item) in inbox.items {
                match item {
                    InboxItem::Open { group, .. } => groups.push(group),
                    // a group that goes quiet does not look for itself who is gone
                    InboxItem::Close { group, recipient, .. } => {
                        batch.push(Write::DropLeaver { group, recipient });
                    }
                    InboxItem::Filter { .. } | InboxItem::Event { .. } => {}
                }
                batch.push(Write::InboxTaken { client: client.clone(), key });
            }
            if is_last {
                let subscriptions = self.store.subscriptions(client).await?;
                for Subscription { group, recipient, last, .. } in subscriptions {
                    match last {
                        None => groups.push(group),
                        Some(_) => batch.push(Write::DropLeaver { group, recipient }),
                    }
                }
                batch.push(Write::DropQueue(client.clone()));
                batch.push(Write::GroupNoticeTaken { group: deletions(), key });
            }
            groups.sort_unstable();
            groups.dedup();
            for group in &groups {
                batch.push(client_gone(client, group, reason));
            }
            match self.store.write(batch).await {
                Ok(()) => told.extend(groups),
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error),
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

/// What of a user goes.
#[derive(Debug)]
pub(super) enum Deleted {
    Device(ClientUri),
    /// All that there is of it.
    Account,
}

/// Under this name, which is no group's, stands which devices' deletion is not finished. No provider has such a domain
/// (RFC 2606), so no group is ever made by this name.
pub(super) fn deletions() -> GroupId {
    #[expect(clippy::expect_used, reason = "the text is a domain")]
    let nobody = Domain::new("invalid").expect("a domain");
    GroupId::of(&nobody, *b"device-deletions")
}

fn verify(message: &ClientMessage, scheme: SignatureScheme, key: &[u8]) -> Result<(), DsError> {
    let tbs = ClientMessageTbs {
        version: message.version,
        client: message.client.clone(),
        endpoint: message.endpoint.clone(),
        timestamp: message.timestamp,
        nonce: message.nonce,
        body: message.body.clone(),
    };
    crypto::verify_with_label(
        scheme,
        key,
        "ClientMessageTBS",
        &encode(&tbs),
        message.signature.as_slice(),
    )
    .map_err(|_| unauthenticated("the signature does not verify with the client's key"))
}

const REGISTER: &str = "/v1/register";
const CONFLICTS_MAX: usize = 8;
const DELETE_DEVICE: &str = "/v1/devices/delete";
const DELETE_ACCOUNT: &str = "/v1/account/delete";
const INBOX_PAGE: Page = Page { items_max: 1_000, bytes_max: 1 << 20 };
const DELETIONS_PAGE: usize = 64;
const NONCES_RETRY_MS: u64 = 60_000;
