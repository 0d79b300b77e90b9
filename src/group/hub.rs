//! What a hub does by itself: it creates groups, proposes removals, lets go of proposals that nobody can commit any
//! more, and deletes a group that nobody is to stay in. DS §2.3, §3.1; PROTOCOL.md §2.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    crypto::MlsCrypto,
    policy::{
        self,
        capabilities::Required,
        change::{What, policy_of},
        keys::{LIFE_LEFT_MIN_MS, is_one_leaf},
        leaf::identify,
        roster::Roster,
    },
    store::records::GoneReason,
    wire::{
        codec::Raw,
        ds::{CreateGroup, DsRequest, DsSenderId, FanoutFilter},
        extensions::{GROUP_POLICY, Role, USER_KEY},
        ids::{ClientUri, LeafIndex, RecipientId, Sequence, Timestamp},
        queueing::QueueEvent,
    },
};

use super::{
    Bind, Effects, GroupState, Hub, Reject, Request, Staged, Step,
    guests::guests_of,
    keys::founding,
    lies::Lies,
    memory::{RecentHandshakes, RequestMemory},
    mls::{InfoParts, Tree, info_parts, propose_removal},
    record::{Change, Kind, Member, Pending},
    stage::{check_context, verify_request},
};

/// A new group that is to be written, and then answered.
#[derive(Debug)]
pub struct Creation {
    pub state: GroupState,
    pub effects: Effects,
    pub binds: Vec<Bind>,
}

impl GroupState {
    /// Judges a create_group.
    ///
    /// # Errors
    /// [`Reject`]
    pub fn create(hub: &Arc<Hub>, request: &Request, now: Timestamp) -> Result<Creation, Reject> {
        let message = &request.message;
        let DsRequest::CreateGroup(create) = &message.request else {
            return Err(Reject::NotFound);
        };
        check_context(&hub.settings, message, now)?;
        let id = &create.group_id;
        if *id != message.context.group_id {
            return Err(Reject::Unauthenticated("the request names two groups"));
        }
        if id.domain() != hub.settings.hub {
            return Err(Reject::InvalidGroupId("a group's id names the provider that creates it"));
        }
        if message.sender_id != DsSenderId::LeafIndex(LeafIndex(0)) {
            return Err(Reject::Unauthenticated("a creator is leaf 0"));
        }
        let one_leaf =
            || Reject::InvalidGroupInfo("a new group has one leaf, its creator's".into());
        // a large tree is dear to verify, and nobody knows yet who sends it
        if !is_one_leaf(&create.ratchet_tree) {
            return Err(one_leaf());
        }
        let (tree, info) = founded(&hub.crypto, create)?;
        if tree.context().group_id().as_slice() != id.as_bytes() {
            return Err(Reject::InvalidGroupInfo("the GroupInfo is of another group".into()));
        }
        let leaf = tree.leaf(LeafIndex(0)).ok_or_else(one_leaf)?;
        verify_request(message, tree.scheme(), leaf.signature_key().as_slice())?;
        let policy = check_group(hub, &tree, now)?;
        let identity = identify(leaf, &policy.credential_types)
            .map_err(|problem| Reject::InvalidGroupInfo(problem.to_string()))?;
        if identity.client.domain() != request.relay {
            return Err(Reject::Unauthenticated("the request comes through another provider"));
        }
        if policy::role_of(&policy, &identity.user) != Role::Admin {
            return Err(Reject::InvalidGroupInfo(
                "the creator must be an admin of the group".into(),
            ));
        }
        same_client(&hub.crypto, create, &identity)?;
        if create.client_queue_config.domain != identity.client.domain() {
            return Err(Reject::NotAuthorized(
                "a client's queue must be at its own provider".into(),
            ));
        }
        let bind = Bind {
            client: identity.client.clone(),
            user: identity.user.clone(),
            config: create.client_queue_config.clone(),
            key_package: None,
            pending: false,
        };
        let member = (LeafIndex(0), identity.client.clone(), create.client_queue_config.clone());
        let mut state = Self::found(hub, id.clone(), tree, info, vec![member], now)?;
        let change = Change {
            request: Some(Self::request_key(message)),
            sender: Some(LeafIndex(0)),
            kind: Kind::Created,
        };
        let staged = Staged {
            at: now,
            steps: vec![Step::quiet(change)],
            binds: Vec::new(),
            renew_hub_proposals: false,
            answered: true,
        };
        let effects = state.merge(staged)?;
        Ok(Creation { state, effects, binds: vec![bind] })
    }

    /// A group with these members and nothing in its log.
    pub(super) fn found(
        hub: &Arc<Hub>,
        id: crate::wire::ids::GroupId,
        tree: Tree,
        info: InfoParts,
        members: Vec<(LeafIndex, ClientUri, crate::wire::extensions::ClientQueueConfig)>,
        now: Timestamp,
    ) -> Result<Self, Reject> {
        let policy = policy_of(tree.context().extensions())?;
        let mut leaves = Vec::new();
        for (leaf, node) in tree.leaves() {
            let identity = identify(node, &policy.credential_types)
                .map_err(|problem| Reject::InvalidGroupInfo(problem.to_string()))?;
            leaves.push((leaf, identity));
        }
        let roster =
            Roster::of(leaves).map_err(|problem| Reject::InvalidGroupInfo(problem.to_string()))?;
        let mut next_recipient = RecipientId(1);
        let mut kept = BTreeMap::new();
        for (leaf, client, config) in members {
            let member = Member {
                recipient: next_recipient,
                client,
                config,
                filter: FanoutFilter::All,
                queue_timestamp: Timestamp(0),
                last_active: now,
                since: Sequence(1),
            };
            next_recipient = next_recipient.next();
            kept.insert(leaf, member);
        }
        Ok(Self {
            hub: Arc::clone(hub),
            id,
            recent: RecentHandshakes::from_epoch(tree.epoch(), true),
            tree,
            roster,
            policy,
            info,
            guests: guests_of(hub, kept.values()),
            members: kept,
            pending: Vec::new(),
            joiners: BTreeMap::new(),
            joining: BTreeMap::new(),
            remembered: RequestMemory::default(),
            going: BTreeMap::new(),
            next_sequence: Sequence(1),
            next_recipient,
            created_at: now,
            deleted: false,
            blockers: BTreeMap::new(),
            behind: std::collections::BTreeSet::new(),
            inactive_not_before: Timestamp(0),
            lies: Lies::default(),
        })
    }

    /// What the hub wants to do by itself at `now`: propose removals (of `gone` clients and of inactive ones) and its own
    /// newer key, void Adds that come too late ([`GroupState::has_late_adds`]), or delete a group that nobody is to stay in. None:
    /// nothing.
    pub fn stage_hub(
        &mut self,
        gone: &[(ClientUri, GoneReason)],
        now: Timestamp,
    ) -> Option<Staged> {
        if self.deleted {
            return None;
        }
        let mut steps = Vec::new();
        let mut newly: Vec<(LeafIndex, GoneReason)> = Vec::new();
        for (client, reason) in gone {
            if let Some(leaf) = self.roster.leaf_of(client) {
                newly.push((leaf, *reason));
            }
        }
        newly.extend(self.liars(now).into_iter().map(|leaf| (leaf, GoneReason::Lied)));
        newly.extend(self.inactive(now).into_iter().map(|leaf| (leaf, GoneReason::Inactive)));
        // a resync voids an inactivity removal: who is inactive can still become a deleted one
        newly.retain(|(leaf, reason)| match self.going.get(leaf) {
            Some((known, _)) => *known == GoneReason::Inactive && *reason != GoneReason::Inactive,
            None => true,
        });
        newly.sort_by_key(|(leaf, _)| *leaf);
        newly.dedup_by_key(|(leaf, _)| *leaf);
        for (leaf, reason) in &newly {
            let kind = Kind::Going { leaf: *leaf, reason: *reason };
            steps.push(Step::quiet(Change { request: None, sender: None, kind }));
        }
        let late = self.pending.iter().filter(|pending| self.is_late(pending, now));
        let references: Vec<Vec<u8>> = late.map(|pending| pending.reference().to_vec()).collect();
        if !references.is_empty() {
            let kind = Kind::Voided { references };
            steps.push(Step::quiet(Change { request: None, sender: None, kind }));
        }
        if steps.is_empty() && self.to_propose().is_empty() && !self.wants_key() {
            return self.stage_end(now);
        }
        let renew_hub_proposals = true;
        Some(Staged { at: now, steps, binds: Vec::new(), renew_hub_proposals, answered: false })
    }

    /// Whether an Add is pending that no commit can hold any more, because its KeyPackage expires: nobody's commit could
    /// be accepted. [`GroupState::stage_hub`] voids it; that is to be done before the next request is judged.
    #[must_use]
    pub fn has_late_adds(&self, now: Timestamp) -> bool {
        !self.deleted && self.pending.iter().any(|pending| self.is_late(pending, now))
    }

    /// Half of what it had at least when it was proposed has passed: whoever commits it now must still be read by others.
    fn is_late(&self, pending: &Pending, now: Timestamp) -> bool {
        let left_ms = LIFE_LEFT_MIN_MS / 2;
        pending.record.added.as_ref().is_some_and(|added| added.not_after < now.plus_ms(left_ms))
    }

    fn stage_end(&self, now: Timestamp) -> Option<Staged> {
        let since = self.going.values().map(|(_, since)| *since).max()?;
        let all = self.roster.leaves().all(|leaf| self.going.contains_key(&leaf));
        if !all || now.ms_since(since) < self.hub.settings.delete_after_ms {
            return None;
        }
        let mut step = Step::quiet(Change { request: None, sender: None, kind: Kind::Deleted });
        step.event = Some(QueueEvent::GroupDeleted);
        step.handshake = true;
        Some(Staged {
            at: now,
            steps: vec![step],
            binds: Vec::new(),
            renew_hub_proposals: false,
            answered: false,
        })
    }

    /// When [`GroupState::stage_hub`] may next have something to do; none: not before somebody sends something.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        if self.deleted {
            return None;
        }
        let settings = &self.hub.settings;
        let inactive = settings.inactive_after_ms.and_then(|ms| {
            let active = self.members.iter().filter(|(leaf, _)| !self.going.contains_key(leaf));
            active.map(|(_, member)| member.last_active.plus_ms(ms)).min()
        });
        let ends = if self.roster.leaves().all(|leaf| self.going.contains_key(&leaf)) {
            let since = self.going.values().map(|(_, since)| *since).max();
            since.map(|since| since.plus_ms(settings.delete_after_ms))
        } else {
            None
        };
        inactive.into_iter().chain(ends).min()
    }

    fn inactive(&mut self, now: Timestamp) -> Vec<LeafIndex> {
        let Some(ms) = self.hub.settings.inactive_after_ms else { return Vec::new() };
        if now < self.inactive_not_before {
            return Vec::new();
        }
        let late = |member: &Member| now.ms_since(member.last_active) >= ms;
        let late_ones = self.members.iter().filter(|(_, m)| late(m)).map(|(leaf, _)| *leaf);
        let inactive: Vec<LeafIndex> =
            late_ones.filter(|leaf| !self.going.contains_key(leaf)).collect();
        if inactive.is_empty() {
            let next = self.members.values().filter(|m| !late(m)).map(|m| m.last_active).min();
            // activity only moves on, so nobody can become inactive before this
            self.inactive_not_before = next.unwrap_or(now).plus_ms(ms);
        }
        inactive
    }

    /// Leaves that the hub wants removed and that no pending proposal removes in this epoch.
    fn to_propose(&self) -> Vec<LeafIndex> {
        let leaving = |leaf: &LeafIndex| {
            self.pending.iter().any(|pending| {
                let by_hub = pending.record.hub;
                pending.act.what == What::Leave(*leaf)
                    || (by_hub && pending.act.what == What::Remove(*leaf))
            })
        };
        self.going.keys().copied().filter(|leaf| !leaving(leaf)).collect()
    }

    /// The hub's own proposals for this epoch. What cannot be made now (the key in the group is not there) is tried
    /// again in the next.
    pub(super) fn hub_proposals(&self, now: Timestamp) -> Vec<Step> {
        let keys = self.hub.keys.all();
        let Some(key) = self.signing_key(&keys) else { return Vec::new() };
        let make = |leaf: LeafIndex| {
            let message = propose_removal(self.tree.context(), leaf, key).ok()?;
            self.own_proposal(message, What::Remove(leaf), now)
        };
        let removals = self.to_propose().into_iter().filter_map(make);
        removals.chain(self.key_proposal(&keys, now)).collect()
    }
}

/// Tree and GroupInfo of a new group, validated.
fn founded(crypto: &MlsCrypto, create: &CreateGroup) -> Result<(Tree, InfoParts), Reject> {
    let invalid = |problem: super::mls::MlsProblem| Reject::InvalidGroupInfo(problem.to_string());
    let tree =
        Tree::from_external(crypto, &create.ratchet_tree, &create.group_info).map_err(invalid)?;
    let parts = info_parts(&create.group_info).map_err(invalid)?;
    if tree.epoch().0 != 0 {
        return Err(Reject::InvalidGroupInfo("a new group is in epoch 0".into()));
    }
    Ok((tree, parts))
}

/// What every group of this hub must have in its context, whoever brings it.
pub(super) fn check_group(
    hub: &Hub,
    tree: &Tree,
    now: Timestamp,
) -> Result<crate::wire::extensions::GroupPolicy, Reject> {
    let invalid = |why: &str| Reject::InvalidGroupInfo(why.to_owned());
    let suite = u16::from(tree.ciphersuite());
    if !hub.settings.ciphersuites.contains(&suite) {
        return Err(invalid("the group's ciphersuite is not one that this hub takes"));
    }
    let extensions = tree.context().extensions();
    let policy =
        policy_of(extensions).map_err(|problem| Reject::InvalidGroupInfo(problem.to_string()))?;
    policy::check_form(&policy).map_err(|problem| Reject::InvalidGroupInfo(problem.to_string()))?;
    let required = extensions
        .required_capabilities()
        .ok_or_else(|| invalid("required_capabilities are missing"))?;
    for needed in [USER_KEY, GROUP_POLICY] {
        let needed = openmls::prelude::ExtensionType::Unknown(needed);
        if !required.extension_types().contains(&needed) {
            return Err(invalid("required_capabilities must list user_key and group_policy"));
        }
    }
    let senders = extensions
        .external_senders()
        .ok_or_else(|| invalid("external_senders must name this hub"))?;
    let keys = hub.keys.all();
    let own = founding(&keys, tree.scheme(), now);
    if own.is_empty() {
        return Err(invalid("the hub has no key for this suite"));
    }
    let [sender] = senders.as_slice() else {
        return Err(invalid("external_senders must name exactly one sender, this hub"));
    };
    let sender = Raw::<openmls::prelude::ExternalSender>::of(sender);
    if !own.iter().any(|own| Raw::of(&external_sender(&hub.settings.hub, &own.key)) == sender) {
        return Err(invalid(
            "external_senders does not hold this hub's key and domain; fetch its keys",
        ));
    }
    let required = Required::of(extensions);
    if tree.leaves().any(|(_, leaf)| !required.are_met_by(leaf.capabilities())) {
        return Err(invalid("a leaf does not support what the group requires"));
    }
    Ok(policy)
}

/// The hub as external sender: its key and a basic credential of its domain.
#[must_use]
pub fn external_sender(
    hub: &crate::wire::ids::Domain,
    key: &crate::crypto::SigningKey,
) -> openmls::prelude::ExternalSender {
    openmls::prelude::ExternalSender::new(
        key.public().as_slice().to_vec().into(),
        openmls::prelude::BasicCredential::new(hub.as_str().as_bytes().to_vec()).into(),
    )
}

/// The creator's KeyPackage is valid and of the client that leaf 0 is.
fn same_client(
    crypto: &MlsCrypto,
    create: &CreateGroup,
    creator: &policy::LeafIdentity,
) -> Result<(), Reject> {
    let invalid = |why: String| Reject::InvalidKeyPackage { index: 0, why };
    let parsed = create.key_package.parse().map_err(|error| invalid(error.to_string()))?;
    let key_package = parsed
        .validate(crypto, openmls::prelude::ProtocolVersion::Mls10)
        .map_err(|error| invalid(error.to_string()))?;
    let identity = identify(key_package.leaf_node(), &[creator.credential_type])
        .map_err(|problem| invalid(problem.to_string()))?;
    if identity.print == creator.print {
        Ok(())
    } else {
        Err(invalid("it is of another client than leaf 0".into()))
    }
}
