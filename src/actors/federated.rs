//! What other providers ask of this one. PROTOCOL.md §4: one event, one struct, one answer.
//!
//! Who sends was authenticated by `federation`, and that the event belongs to its endpoint. Here is what the sender may
//! say: it speaks for its own clients, and for the groups that it hosts. The hub's own checks are `group`'s.

use std::collections::BTreeSet;

use tls_codec::DeserializeBytes;
use tracing::Instrument;

use super::{
    deliver::Sender,
    errors::{internal, malformed, not_authorized, of_store},
    groups::Work,
    moves::step,
    node::Node,
    peer::recipient_of,
    stages::Stages,
};
use crate::{
    federation::Opened,
    queue::state::recipient_gone,
    store::{Batch, records::GroupStatus},
    wire::{
        codec::encode,
        decode,
        ds::{CommitComplaint, Detail, DsError, Outcome},
        federation::EventType,
        ids::{Domain, RecipientId},
        key_packages::{ConnectionKeyPackageRequest, ConnectionRequest, GroupKeyPackageRequest},
        portability::{
            MigrationConfirmation, MigrationContent, MigrationRequest, MigrationResponse,
        },
        queueing::{DeliverBatchRequest, QueueingServiceRequest, RecipientsGone},
    },
};

/// Does `work` to its end, also where nobody waits for it any more: with its turn let go in the middle, what it
/// has queued to be written would meet what the next one finds.
pub(super) async fn whole<T: 'static>(
    work: impl Future<Output = Result<T, DsError>> + 'static,
) -> Result<T, DsError> {
    let work = Stages::current().scope(work);
    actix_rt::spawn(work.in_current_span()).await.map_err(internal)?
}

impl Node {
    /// Answers an event of another provider: with a DSResponse that is `ok`, or the event's own answer. A repeat is
    /// executed again where that changes nothing, else it gets the answer of the first time.
    ///
    /// # Errors
    /// The [`DsError`] that the answer says instead.
    pub async fn federated(&self, opened: Opened) -> Result<Vec<u8>, DsError> {
        self.federated_in(opened, ()).await
    }

    /// The same, and done to its end where nobody waits for it any more: what is written then is counted, remembered
    /// and told like anything else. `place` is held until then.
    ///
    /// # Errors
    /// As [`Node::federated`].
    pub async fn federated_in(
        &self,
        opened: Opened,
        place: impl Sized + 'static,
    ) -> Result<Vec<u8>, DsError> {
        let node = self.clone();
        whole(async move {
            let _place = place;
            node.answer_to(opened).await
        })
        .await
    }

    async fn answer_to(&self, opened: Opened) -> Result<Vec<u8>, DsError> {
        match opened.event {
            EventType::DeliveryService(_) => self.relayed(opened).await,
            EventType::DeliverBatch => {
                let batch: DeliverBatchRequest = body_of(&opened)?;
                Ok(encode(&self.deliver_batch(&opened.sender, batch).await?))
            }
            EventType::RecipientsGone => {
                let gone: RecipientsGone = body_of(&opened)?;
                self.recipients_gone(&opened.sender, gone).await?;
                Ok(Vec::new())
            }
            EventType::Deliver => {
                let request: QueueingServiceRequest = body_of(&opened)?;
                Ok(encode(&self.queueing_service_request(request, &opened.sender).await?))
            }
            EventType::ConnectionRequest
            | EventType::ConnectionKeyPackages
            | EventType::GroupKeyPackages => self.once(&opened).await,
            EventType::Complaint => {
                let complaint: CommitComplaint = body_of(&opened)?;
                Ok(encode(&self.hosted_complaint(opened.sender, complaint).await?))
            }
            EventType::MigrationRequest => {
                let request: MigrationRequest = body_of(&opened)?;
                step("target.request-received").await;
                let response = self.migration_response(request).await?;
                step("target.request-answering").await;
                Ok(encode(&response))
            }
            EventType::MigrationContent => {
                let content: MigrationContent = body_of(&opened)?;
                let node = self.clone();
                let taken = whole(async move { node.take_content(&opened.sender, content).await });
                let complete = taken.await?;
                step("target.content-answering").await;
                Ok(encode(&complete))
            }
            EventType::MigrationAbort => {
                let response: MigrationResponse = body_of(&opened)?;
                let node = self.clone();
                let ended = whole(async move { node.take_abort(&opened.sender, response).await });
                let complete = ended.await?;
                step("target.abort-answering").await;
                Ok(encode(&complete))
            }
            EventType::MigrationConfirmation => {
                let confirmation: MigrationConfirmation = body_of(&opened)?;
                self.take_confirmation(&opened.sender, confirmation).await?;
                step("target.confirmation-answering").await;
                Ok(Vec::new())
            }
        }
    }

    /// A guest says that queues of clients of its own are gone: their group proposes the removal. It finds out whose they
    /// are: a number that is not one of the sender's clients changes nothing.
    async fn recipients_gone(&self, peer: &Domain, gone: RecipientsGone) -> Result<(), DsError> {
        let RecipientsGone { group_id: group, recipients } = gone;
        let head = self.store.group_head(&group).await.map_err(of_store)?;
        let is_here = head.is_some_and(|head| head.status == GroupStatus::Active);
        let roster =
            if is_here { self.group_roster(&group, peer, Work::Others).await? } else { None };
        let own: BTreeSet<RecipientId> =
            roster.iter().flat_map(|roster| &roster.adds).map(recipient_of).collect();
        // who has nobody in it is not told whether there is such a group
        if own.is_empty() {
            return Err(DsError::GroupNotFound {
                detail: Detail::truncated("no client of the sender's is in such a group here"),
            });
        }
        let mut batch = Batch::new();
        for recipient in recipients.iter().filter(|recipient| own.contains(recipient)) {
            batch.push(recipient_gone(peer, &group, *recipient));
        }
        if !batch.writes.is_empty() {
            self.store.write(batch).await.map_err(of_store)?;
            self.hints.notice(&group);
        }
        Ok(())
    }

    /// A DSMessage of a client of the sender's.
    async fn relayed(&self, opened: Opened) -> Result<Vec<u8>, DsError> {
        let message = opened.ds_message()?;
        if message.context.hub_domain != self.domain {
            return Err(not_authorized(format!(
                "{} is another hub; this provider relays for its own clients only",
                message.context.hub_domain
            )));
        }
        let response = self.hosted_operation(opened.sender, message).await;
        match response.outcome {
            Outcome::Ok(_) => Ok(encode(&response)),
            Outcome::Err(error) => Err(error),
        }
    }

    /// What may not be done twice for one request.
    async fn once(&self, opened: &Opened) -> Result<Vec<u8>, DsError> {
        let Some(federation) = &self.federation else {
            return Err(not_authorized("this provider does not federate"));
        };
        if let Some(answer) = federation.answer_of(opened) {
            return Ok(answer);
        }
        let answer = self.answer_once(opened).await?;
        federation.remember(opened, &answer);
        Ok(answer)
    }

    async fn answer_once(&self, opened: &Opened) -> Result<Vec<u8>, DsError> {
        let sender = Sender::Peer(opened.sender.clone());
        match opened.event {
            EventType::ConnectionKeyPackages => {
                let request: ConnectionKeyPackageRequest = body_of(opened)?;
                if request.requester.domain() != opened.sender {
                    return Err(not_authorized("the requester is no user of the sender's"));
                }
                Ok(encode(&self.hand_out_for_connection(&sender, request).await?))
            }
            EventType::GroupKeyPackages => {
                let request: GroupKeyPackageRequest = body_of(opened)?;
                Ok(encode(&self.hand_out_for_group(&sender, request).await?))
            }
            EventType::ConnectionRequest => {
                // sealed offers, or a Welcome as DS §6.1 has it: the first fills the body with one vector
                if let Ok(request) = decode::<ConnectionRequest>(&opened.body) {
                    return Ok(encode(&self.take_offers(&sender, request).await?));
                }
                let request: QueueingServiceRequest = body_of(opened)?;
                Ok(encode(&self.queueing_service_request(request, &opened.sender).await?))
            }
            EventType::DeliveryService(_)
            | EventType::Deliver
            | EventType::DeliverBatch
            | EventType::RecipientsGone
            | EventType::Complaint
            | EventType::MigrationRequest
            | EventType::MigrationContent
            | EventType::MigrationAbort
            | EventType::MigrationConfirmation => Err(malformed("another event")),
        }
    }
}

fn body_of<T: DeserializeBytes>(opened: &Opened) -> Result<T, DsError> {
    decode(&opened.body).map_err(malformed)
}
