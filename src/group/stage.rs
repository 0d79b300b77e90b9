//! What a hub checks of a request, in PROTOCOL.md §2's order, up to its epoch and wire format. What a commit and a
//! proposal may do is in `super::commit` and `super::propose`. Nothing here changes anything.

use openmls::{
    framing::ContentType,
    prelude::{MlsMessageBodyIn, PublicMessageIn, Sender},
};

use crate::{
    crypto::verify_with_label,
    policy::{
        self,
        change::Act,
        leaf::{client_of, user_key_of, verify_user_key},
        pending::goes,
    },
    rate::Asker,
    wire::{
        ds::{
            DsMessage, DsRequest, DsResponseBody, DsSenderId, ExternalCommitInfo, FanoutFilter,
            GroupUpdate, Info, ProtocolVersion, WelcomeInfo,
        },
        extensions::{ClientQueueConfig, JoinCode, JoinPolicy, JoinProof, SignatureScheme},
        ids::{Epoch, LeafIndex, Timestamp, UserKeyHash},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

use super::{
    Bind, Decision, GroupState, Reject, Request, Settings, Staged, Step,
    commit::Operation,
    record::{Change, Kind},
};

impl GroupState {
    /// Decides what `request` does, at `now`.
    ///
    /// # Errors
    /// The [`Reject`] of the first check that fails. Nothing has changed then.
    pub fn stage(&self, request: &Request, now: Timestamp) -> Result<Decision, Reject> {
        let message = &request.message;
        if let Some(accepted) = self.remembered.get(&Self::request_key(message)) {
            return Ok(Decision::Answer(DsResponseBody::Accepted(*accepted)));
        }
        if self.deleted && !matches!(message.request, DsRequest::CreateGroup(_)) {
            return Err(Reject::NotFound);
        }
        check_context(&self.hub.settings, message, now)?;
        if message.context.group_id != self.id {
            return Err(Reject::Unauthenticated("the request is for another group"));
        }
        match &message.request {
            DsRequest::CreateGroup(_) => {
                Err(Reject::InvalidGroupId("the group id is taken; choose 128 other random bits"))
            }
            DsRequest::StartMigration(start) => {
                let leaf = self.authenticate_leaf(request, now)?;
                self.may_start_migration(leaf, &start.init, now)?;
                let (operation, update) = (Operation::Migrate, &start.update);
                match self.stage_commit(request, Some(leaf), operation, update, None, now)? {
                    Decision::Write(staged) => Ok(Decision::Move(staged)),
                    other => Ok(other),
                }
            }
            DsRequest::WelcomeInfo(info) => self.welcome_info(request, info, now),
            DsRequest::ExternalCommitInfo(info) => self.external_commit_info(request, info, now),
            DsRequest::JoinGroup(join) => {
                self.same_group(&join.group_id)?;
                let config = Some(&join.client_queue_config);
                self.stage_commit(request, None, Operation::Join, &join.update, config, now)
            }
            DsRequest::Propose(propose) => self.stage_proposals(request, propose, now),
            DsRequest::UpdateQueueInfo(update) => {
                self.same_group(&update.group_id)?;
                let leaf = self.authenticate_leaf(request, now)?;
                let filter = self.member(leaf)?.filter;
                self.stage_queue(request, leaf, &update.client_queue_config, filter, now)
            }
            DsRequest::UpdateClientFanoutInfo(update) => {
                self.same_group(&update.group_id)?;
                let leaf = self.authenticate_leaf(request, now)?;
                self.is_sender_key(leaf, update.sender.as_slice())?;
                let config = &update.client_queue_config;
                self.stage_queue(request, leaf, config, update.filter, now)
            }
            DsRequest::SendMessage(send) => {
                let leaf = self.authenticate_leaf(request, now)?;
                self.stage_message(request, leaf, &send.application_message, now)
            }
            DsRequest::ResyncClient(resync) => {
                self.same_group(&resync.group_id)?;
                let leaf = self.authenticate_leaf(request, now)?;
                self.is_sender_key(leaf, resync.sender.as_slice())?;
                let config = Some(&resync.client_queue_config);
                let update = &resync.update;
                self.stage_commit(request, Some(leaf), Operation::Resync, update, config, now)
            }
            DsRequest::AddUsers(add) | DsRequest::AddClients(add) => {
                let leaf = self.authenticate_leaf(request, now)?;
                let operation = match &message.request {
                    DsRequest::AddUsers(_) => Operation::AddUsers,
                    _ => Operation::AddClients,
                };
                let update = GroupUpdate {
                    commit: add.commit.clone(),
                    group_info: add.group_info.clone(),
                    welcome: Some(add.welcome.clone()),
                };
                self.stage_commit(request, Some(leaf), operation, &update, None, now)
            }
            DsRequest::RemoveUsers(update) => {
                let leaf = self.authenticate_leaf(request, now)?;
                self.stage_commit(request, Some(leaf), Operation::RemoveUsers, update, None, now)
            }
            DsRequest::RemoveClients(update) => {
                let leaf = self.authenticate_leaf(request, now)?;
                self.stage_commit(request, Some(leaf), Operation::RemoveClients, update, None, now)
            }
            DsRequest::UpdateClient(update) => {
                let leaf = self.authenticate_leaf(request, now)?;
                self.stage_commit(request, Some(leaf), Operation::UpdateClient, update, None, now)
            }
            DsRequest::UpdateGroup(group) => {
                let leaf = self.authenticate_leaf(request, now)?;
                let update = &group.update;
                self.stage_commit(request, Some(leaf), Operation::UpdateGroup, update, None, now)
            }
            DsRequest::DeleteGroup(delete) => {
                self.same_group(&delete.group_id)?;
                let leaf = self.authenticate_leaf(request, now)?;
                let update = &delete.update;
                self.stage_commit(request, Some(leaf), Operation::DeleteGroup, update, None, now)
            }
        }
    }

    fn same_group(&self, id: &crate::wire::ids::GroupId) -> Result<(), Reject> {
        if *id == self.id {
            Ok(())
        } else {
            Err(Reject::Unauthenticated("the request names two groups"))
        }
    }

    pub(super) fn member(&self, leaf: LeafIndex) -> Result<&super::record::Member, Reject> {
        self.members.get(&leaf).ok_or(Reject::Unauthenticated("no such leaf in this group"))
    }

    fn is_sender_key(&self, leaf: LeafIndex, key: &[u8]) -> Result<(), Reject> {
        match self.roster.get(leaf) {
            Some(identity) if identity.signature_key == key => Ok(()),
            _ => Err(Reject::Unauthenticated("`sender` is not the key that signs")),
        }
    }

    /// A sender by leaf index: its leaf key signs, and its own provider relays. Counts the request.
    pub(super) fn authenticate_leaf(
        &self,
        request: &Request,
        now: Timestamp,
    ) -> Result<LeafIndex, Reject> {
        let DsSenderId::LeafIndex(leaf) = request.message.sender_id else {
            return Err(Reject::Unauthenticated("this operation takes a leaf_index sender"));
        };
        let identity = self
            .roster
            .get(leaf)
            .ok_or(Reject::Unauthenticated("no such leaf in this group; resync or join"))?;
        if identity.client.domain() != request.relay {
            return Err(Reject::Unauthenticated("the request comes through another provider"));
        }
        verify_request(&request.message, self.tree.scheme(), &identity.signature_key)?;
        self.count(request, now)?;
        let resyncs = matches!(request.message.request, DsRequest::ResyncClient(_));
        if self.behind.contains(&leaf) && !resyncs {
            // its epoch may bear the number of this one and be another: nothing that it missed leads from there to here
            return Err(Reject::WrongEpoch { current: self.epoch(), missed: Vec::new() });
        }
        Ok(leaf)
    }

    /// Check 5, behind the sender's authentication.
    pub(super) fn count(&self, request: &Request, now: Timestamp) -> Result<(), Reject> {
        let sender = &request.message.sender_id;
        let has_part = match sender {
            DsSenderId::LeafIndex(_) => true,
            DsSenderId::UserKeyHash(user) => self.roster.has_user(user),
            DsSenderId::KeyPackageRef(reference) => self.joiners.contains_key(reference),
        };
        let asker = if has_part {
            Asker::Member(sender.clone())
        } else {
            Asker::Strangers(request.relay.clone())
        };
        let counted = self.hub.rates.check(&self.id, asker, now);
        counted.map_err(|too_many| Reject::RateLimited(too_many.retry_after_ms()))
    }

    fn welcome_info(
        &self,
        request: &Request,
        info: &WelcomeInfo,
        now: Timestamp,
    ) -> Result<Decision, Reject> {
        self.same_group(&info.group_id)?;
        let DsSenderId::KeyPackageRef(reference) = &request.message.sender_id else {
            return Err(Reject::Unauthenticated("welcome_info takes a key_package_ref sender"));
        };
        let joiner = self.joiners.get(reference).filter(|joiner| joiner.not_after >= now).ok_or(
            Reject::Unauthenticated(
                "no pending joiner has this KeyPackage; resync or ask to be added again",
            ),
        )?;
        if self.member(joiner.leaf)?.client.domain() != request.relay {
            return Err(Reject::Unauthenticated("the request comes through another provider"));
        }
        verify_request(&request.message, self.tree.scheme(), &joiner.key)?;
        self.count(request, now)?;
        if info.sender.as_slice() != joiner.key {
            return Err(Reject::Unauthenticated("`sender` is not the key that signs"));
        }
        if info.epoch != joiner.epoch {
            return Err(Reject::NotAuthorized(format!(
                "this joiner was added in epoch {}: ask for that one",
                joiner.epoch
            )));
        }
        if info.epoch != self.epoch() {
            let since = self.member(joiner.leaf)?.since;
            return Ok(Decision::History(info.epoch, since));
        }
        Ok(Decision::Answer(DsResponseBody::Info(Box::new(self.joiner_info()?))))
    }

    /// The information that a Welcome's joiner needs of this epoch. What is pending reaches it by its feed.
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn joiner_info(&self) -> Result<Info, Reject> {
        Ok(Info { pending: crate::wire::codec::List::default(), ..self.info()? })
    }

    fn external_commit_info(
        &self,
        request: &Request,
        info: &ExternalCommitInfo,
        now: Timestamp,
    ) -> Result<Decision, Reject> {
        self.same_group(&info.group_id)?;
        let DsSenderId::UserKeyHash(hash) = &request.message.sender_id else {
            return Err(Reject::Unauthenticated(
                "external_commit_info takes a user_key_hash sender",
            ));
        };
        let credential =
            info.credential.parse().map_err(|error| Reject::Malformed(error.to_string()))?;
        let client = client_of(&credential)
            .map_err(|_| Reject::Unauthenticated("the credential names no client"))?;
        if client.domain() != request.relay {
            return Err(Reject::Unauthenticated("the request comes through another provider"));
        }
        let user_key = match &info.user_key {
            Some(user_key) => {
                let given = verify_user_key(user_key, &info.sender, &info.credential);
                if given.as_ref() != Ok(hash) {
                    return Err(Reject::Unauthenticated(
                        "the user key is not the sender's or does not vouch for it",
                    ));
                }
                user_key.clone()
            }
            None => {
                let leaf = self.roster.leaves_of(hash).next();
                let leaf = leaf.and_then(|leaf| self.tree.leaf(leaf));
                let leaf = leaf.ok_or(Reject::Unauthenticated("no leaf has this user key"))?;
                user_key_of(leaf).map_err(|_| Reject::Unauthenticated("no user key"))?
            }
        };
        verify_request(&request.message, user_key.scheme, user_key.user_public_key.as_slice())?;
        self.count(request, now)?;
        let banned = policy::role_of(&self.policy, hash) == crate::wire::extensions::Role::Banned;
        // a member's client may resync whatever the join policy says
        let resyncs = self
            .roster
            .leaf_of(&client)
            .and_then(|leaf| self.roster.get(leaf))
            .is_some_and(|identity| identity.user == *hash);
        if banned || !resyncs {
            let proof = info.join_proof.as_ref();
            policy::may_join(&self.policy, &self.roster, &self.id, hash, &info.sender, proof)?;
            self.code_is_good(hash, proof, now)?;
        }
        if self.info_is_bad() {
            return Err(Reject::BadInfo);
        }
        Ok(Decision::Answer(DsResponseBody::Info(Box::new(self.info()?))))
    }

    /// A joining code's end, which only the hub judges: members' clocks may differ. Behind [`policy::may_join`].
    pub(super) fn code_is_good(
        &self,
        user: &UserKeyHash,
        proof: Option<&JoinProof>,
        now: Timestamp,
    ) -> Result<(), Reject> {
        if self.policy.join != JoinPolicy::Code || self.roster.has_user(user) {
            return Ok(());
        }
        let of = |code: &&JoinCode| proof.is_some_and(|proof| proof.public_key == code.public_key);
        match self.policy.codes.iter().find(of) {
            Some(code) if code.expires_at > now => Ok(()),
            _ => Err(Reject::NotAuthorized("the joining code has expired; ask for another".into())),
        }
    }

    fn stage_queue(
        &self,
        request: &Request,
        leaf: LeafIndex,
        config: &ClientQueueConfig,
        filter: FanoutFilter,
        now: Timestamp,
    ) -> Result<Decision, Reject> {
        let member = self.member(leaf)?;
        let timestamp = request.message.context.timestamp;
        if timestamp < member.queue_timestamp {
            return Err(Reject::Stale { now });
        }
        if config.domain != member.client.domain() {
            return Err(Reject::NotAuthorized(
                "a client's queue must be at its own provider".into(),
            ));
        }
        let change = Change {
            request: Some(Self::request_key(&request.message)),
            sender: Some(leaf),
            kind: Kind::Queue { leaf, config: config.clone(), filter, timestamp },
        };
        let identity = self.roster.get(leaf).ok_or(Reject::NotFound)?;
        let bind = Bind {
            client: member.client.clone(),
            user: identity.user.clone(),
            config: config.clone(),
            key_package: None,
            pending: false,
        };
        let staged = Staged {
            at: now,
            steps: vec![Step::quiet(change)],
            binds: vec![bind],
            renew_hub_proposals: false,
            answered: true,
        };
        Ok(Decision::Write(Box::new(staged)))
    }

    fn stage_message(
        &self,
        request: &Request,
        leaf: LeafIndex,
        message: &MlsMessage,
        now: Timestamp,
    ) -> Result<Decision, Reject> {
        let limit = self.hub.settings.application_bytes_max;
        if message.as_slice().len() > limit {
            return Err(Reject::TooLarge { what: "the application message", limit });
        }
        let parsed = message.parse().map_err(|error| Reject::Malformed(error.to_string()))?;
        let MlsMessageBodyIn::PrivateMessage(private) = parsed.extract() else {
            return Err(Reject::InvalidMessage("application messages are PrivateMessages".into()));
        };
        if private.content_type() != ContentType::Application {
            return Err(Reject::InvalidMessage(
                "send_message takes application messages; handshake messages are public".into(),
            ));
        }
        if private.group_id().as_slice() != self.id.as_bytes() {
            return Err(Reject::Unauthenticated("the message is for another group"));
        }
        self.is_current(Epoch(private.epoch().as_u64()), true)?;
        let identity = self.roster.get(leaf).ok_or(Reject::NotFound)?;
        let role = policy::role_of(&self.policy, &identity.user);
        if role < self.policy.may_send {
            return Err(Reject::NotAuthorized(format!(
                "sending takes the role {:?} here and yours is {role:?}",
                self.policy.may_send
            )));
        }
        self.may_talk(leaf, now)?;
        let change = Change {
            request: Some(Self::request_key(&request.message)),
            sender: Some(leaf),
            kind: Kind::Message,
        };
        let mut step = Step::quiet(change);
        step.event = Some(QueueEvent::MlsMessage { message: message.clone() });
        step.except = Some(self.member(leaf)?.recipient);
        let staged = Staged {
            at: now,
            steps: vec![step],
            binds: Vec::new(),
            renew_hub_proposals: false,
            answered: true,
        };
        Ok(Decision::Write(Box::new(staged)))
    }

    /// Whether removals that the hub proposed block this member's application messages.
    fn may_talk(&self, leaf: LeafIndex, now: Timestamp) -> Result<(), Reject> {
        let strict = self.hub.settings.strict_after_ms;
        let blocks = self.pending.iter().filter(|pending| pending.record.hub).any(|pending| {
            // a new key of the hub's own is urgent to nobody
            let Some(goes) = goes(&pending.act) else { return false };
            let late = strict.is_some_and(|ms| now.ms_since(pending.record.since) >= ms);
            late || goes == leaf
        });
        if blocks {
            let why = "the hub's removals must be committed before this message";
            return Err(self.pending_reject(why, false));
        }
        Ok(())
    }

    pub(super) fn pending_reject(&self, why: &'static str, commit: bool) -> Reject {
        Reject::Pending { why, pending: self.pending_messages().cloned().collect(), commit }
    }

    /// Check 6. What a sender missed is told only to whom is known to be in the group.
    pub(super) fn is_current(&self, epoch: Epoch, known: bool) -> Result<(), Reject> {
        if epoch == self.epoch() {
            return Ok(());
        }
        let missed =
            if known && epoch < self.epoch() { self.recent.since(epoch) } else { Vec::new() };
        Err(Reject::WrongEpoch { current: self.epoch(), missed })
    }

    /// Checks 6 and 7 of a handshake message.
    pub(super) fn parse_handshake(
        &self,
        message: &MlsMessage,
        content: ContentType,
        known: bool,
    ) -> Result<(PublicMessageIn, Sender), Reject> {
        let parsed = message.parse().map_err(|error| Reject::Malformed(error.to_string()))?;
        let MlsMessageBodyIn::PublicMessage(public) = parsed.extract() else {
            return Err(Reject::InvalidMessage("handshake messages are PublicMessages".into()));
        };
        if public.content_type() != content {
            return Err(Reject::InvalidMessage(format!("the message is not a {content:?}")));
        }
        if public.group_id().as_slice() != self.id.as_bytes() {
            return Err(Reject::Unauthenticated("the message is for another group"));
        }
        self.is_current(Epoch(public.epoch().as_u64()), known)?;
        let sender = public.sender().clone();
        Ok((public, sender))
    }
}

impl Step {
    /// A step that nobody receives anything of.
    pub(super) fn quiet(change: Change) -> Self {
        Self {
            change,
            event: None,
            handshake: false,
            except: None,
            commit: None,
            pending: None,
            welcomes: std::collections::BTreeMap::new(),
        }
    }
}

/// Check 4, without the signature: version, hub and time. PROTOCOL.md §2, "context".
pub(super) fn check_context(
    settings: &Settings,
    message: &DsMessage,
    now: Timestamp,
) -> Result<(), Reject> {
    let context = &message.context;
    if context.version != ProtocolVersion::MIMI10 {
        return Err(Reject::UnsupportedVersion);
    }
    if context.hub_domain != settings.hub {
        return Err(Reject::Unauthenticated("the request is addressed to another hub"));
    }
    if context.timestamp.0.abs_diff(now.0) > settings.window_ms {
        return Err(Reject::Stale { now });
    }
    Ok(())
}

pub(super) fn verify_request(
    message: &DsMessage,
    scheme: SignatureScheme,
    key: &[u8],
) -> Result<(), Reject> {
    let content = message.to_be_signed();
    verify_with_label(scheme, key, "DSMessageTBS", &content, message.signature.as_slice())
        .map_err(|_| Reject::Unauthenticated("the request's signature does not verify"))
}

/// The acts of one proposal, for who judges several together.
pub(super) fn acts_of<'a>(pending: impl Iterator<Item = &'a super::record::Pending>) -> Vec<Act> {
    pending.map(|pending| pending.act.clone()).collect()
}
