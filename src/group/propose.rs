//! Proposals: what may be pending, and that all of it can be committed together. PROTOCOL.md §2.

use std::collections::HashSet;

use openmls::framing::ContentType;
use openmls::prelude::{
    Capabilities, ProcessedMessageContent, Proposal, ProtocolMessage, QueuedProposal, Sender,
};

use crate::{
    policy::{
        self,
        capabilities::Required,
        change::{Act, Author, What, of_proposal},
        leaf::identify,
        pending::{PendingProblem, place},
        roster::RosterChange,
    },
    wire::{
        codec::{decode, encode},
        ds::{DsSenderId, MISSED_BYTES_MAX, Propose},
        extensions::JoinProof,
        ids::{LeafIndex, Timestamp},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

use super::{
    Bind, Decision, GroupState, Reject, Request, Staged, Step,
    record::{Change, Kind, Pending, PendingAdd},
    stage::{acts_of, verify_request},
};

impl GroupState {
    pub(super) fn stage_proposals(
        &self,
        request: &Request,
        propose: &Propose,
        now: Timestamp,
    ) -> Result<Decision, Reject> {
        if propose.proposals.is_empty() {
            return Err(Reject::Malformed("propose takes at least one proposal".into()));
        }
        let leaf = match &request.message.sender_id {
            DsSenderId::LeafIndex(_) => Some(self.authenticate_leaf(request, now)?),
            DsSenderId::KeyPackageRef(_) if propose.proposals.len() == 1 => None,
            DsSenderId::KeyPackageRef(_) => {
                return Err(Reject::Malformed("a newcomer proposes its own Add alone".into()));
            }
            DsSenderId::UserKeyHash(_) => {
                return Err(Reject::Unauthenticated("propose takes a leaf_index sender"));
            }
        };
        if leaf
            .is_some_and(|leaf| self.blockers.get(&leaf).is_some_and(|senders| senders.len() >= 2))
        {
            return Err(Reject::Blocking);
        }
        let mut accepted: Vec<Pending> = Vec::new();
        for message in propose.proposals.iter() {
            let new = self.judge_proposal(request, leaf, message, &accepted, now)?;
            accepted.push(new);
        }
        let mut steps = Vec::new();
        let mut binds = Vec::new();
        for (index, pending) in accepted.into_iter().enumerate() {
            // bound now, so that a token that leads nowhere is refused before everybody has to commit it
            if let (What::Add(identity), Some(added)) = (&pending.act.what, &pending.record.added) {
                binds.push(Bind {
                    client: identity.client.clone(),
                    user: identity.user.clone(),
                    config: added.config.clone(),
                    key_package: Some(u32::try_from(index).unwrap_or(u32::MAX)),
                    pending: false,
                });
            }
            let request_key = (index == 0).then(|| Self::request_key(&request.message));
            let except = leaf.and_then(|leaf| self.members.get(&leaf)).map(|m| m.recipient);
            steps.push(Step::proposal(pending, request_key, leaf, except));
        }
        let staged = Staged { at: now, steps, binds, renew_hub_proposals: false, answered: true };
        Ok(Decision::Write(Box::new(staged)))
    }

    fn judge_proposal(
        &self,
        request: &Request,
        leaf: Option<LeafIndex>,
        message: &MlsMessage,
        earlier: &[Pending],
        now: Timestamp,
    ) -> Result<Pending, Reject> {
        let limit = self.hub.settings.handshake_bytes_max.min(MISSED_BYTES_MAX);
        if message.as_slice().len() > limit {
            return Err(Reject::TooLarge { what: "the proposal", limit });
        }
        let (public, sender) =
            self.parse_handshake(message, ContentType::Proposal, leaf.is_some())?;
        let by_sender = match (&sender, leaf) {
            (Sender::Member(index), Some(leaf)) => index.u32() == leaf.0,
            (Sender::NewMemberProposal, None) => true,
            _ => false,
        };
        if !by_sender {
            return Err(Reject::Unauthenticated("the proposal is not the sender's own"));
        }
        let message_in = ProtocolMessage::PublicMessage(Box::new(public));
        let invalid = |error: super::mls::MlsProblem| Reject::InvalidProposal {
            why: error.to_string(),
            refs: Vec::new(),
        };
        let processed = self.tree.process(&self.hub.crypto, message_in).map_err(invalid)?;
        let aad = processed.aad().to_vec();
        let queued = match processed.into_content() {
            ProcessedMessageContent::ProposalMessage(queued)
            | ProcessedMessageContent::ExternalJoinProposalMessage(queued) => *queued,
            _ => return Err(Reject::InvalidMessage("the message is no proposal".into())),
        };
        let mut act = of_proposal(&queued, &self.roster, self.tree.context(), &self.policy)
            .map_err(|problem| refused(&problem, &queued))?;
        if let Author::Newcomer { proof } = &mut act.author {
            *proof = self.newcomer(request, &queued, &aad)?;
            self.count(request, now)?;
        }
        let pending = self.may_stand(queued, act, message, earlier, now)?;
        if let Act { author: Author::Newcomer { proof }, what: What::Add(identity) } = &pending.act
        {
            self.code_is_good(&identity.user, proof.as_ref(), now)?;
        }
        Ok(pending)
    }

    /// A newcomer's own Add: the KeyPackage's leaf key signs the request.
    fn newcomer(
        &self,
        request: &Request,
        queued: &QueuedProposal,
        aad: &[u8],
    ) -> Result<Option<JoinProof>, Reject> {
        let (Proposal::Add(add), DsSenderId::KeyPackageRef(reference)) =
            (queued.proposal(), &request.message.sender_id)
        else {
            return Err(Reject::InvalidMessage("a newcomer may propose its own Add only".into()));
        };
        let key_package = add.key_package();
        let own = key_package
            .hash_ref(&self.hub.crypto)
            .map_err(|error| Reject::Malformed(error.to_string()))?;
        if own.as_slice() != reference.0.as_slice() {
            return Err(Reject::Unauthenticated("the KeyPackage is not the sender's"));
        }
        let leaf = key_package.leaf_node();
        let identity = identify(leaf, &self.policy.credential_types)?;
        if identity.client.domain() != request.relay {
            return Err(Reject::Unauthenticated("the request comes through another provider"));
        }
        let key = leaf.signature_key().as_slice();
        verify_request(&request.message, self.tree.scheme(), key)?;
        if aad.is_empty() {
            return Ok(None);
        }
        let proof: JoinProof = decode(aad)
            .map_err(|_| Reject::Malformed("authenticated_data is not a JoinProof".into()))?;
        Ok(Some(proof))
    }

    /// Whether the proposal is allowed, and a commit of everything that is pending with it would be valid.
    fn may_stand(
        &self,
        queued: QueuedProposal,
        act: Act,
        message: &MlsMessage,
        earlier: &[Pending],
        now: Timestamp,
    ) -> Result<Pending, Reject> {
        if matches!(act.what, What::HubKey) {
            return Err(Reject::InvalidProposal {
                why: "the hub's key in external_senders is not for members to change".into(),
                refs: Vec::new(),
            });
        }
        let together = || self.pending.iter().chain(earlier);
        let acts = acts_of(together());
        let standing: Vec<&Act> = acts.iter().collect();
        let settings = &self.hub.settings;
        let displaced = place(&standing, &act, self.roster.len(), settings.pending_max)?;
        let bytes = kept(together(), &displaced).map(|it| it.message.as_slice().len());
        if bytes.sum::<usize>() + message.as_slice().len() > MISSED_BYTES_MAX {
            return Err(PendingProblem::Full.into());
        }
        // by itself first, so that the reason is its own; then with all that stays
        policy::judge(&self.policy, &self.roster, &self.id, None, std::slice::from_ref(&act))?;
        let mut all: Vec<Act> = kept(acts.iter(), &displaced).cloned().collect();
        all.push(act.clone());
        policy::judge(&self.policy, &self.roster, &self.id, None, &all)?;
        if !policy::an_admin_stays(&self.policy, &self.roster, &all)
            && policy::an_admin_stays(&self.policy, &self.roster, &acts)
        {
            return Err(policy::Denied::NoAdminLeft.into());
        }
        self.fits_in(&all)?;

        let added = match queued.proposal() {
            Proposal::Add(add) => {
                let invalid = |why: String| Reject::InvalidKeyPackage { index: 0, why };
                let key_package = add.key_package();
                if key_package.ciphersuite() != self.tree.ciphersuite() {
                    return Err(invalid("its ciphersuite is not the group's".into()));
                }
                Some(self.key_package(key_package, now).map_err(invalid)?)
            }
            _ => None,
        };
        let stays: Vec<&Pending> = kept(together(), &displaced).collect();
        self.fits_with(&queued, &act, added.as_ref(), &stays)?;
        let update_key = match queued.proposal() {
            Proposal::Update(update) => update.leaf_node().signature_key().as_slice().to_vec(),
            _ => Vec::new(),
        };
        Pending::new(queued, act, message.clone(), now, update_key, added).map_err(super::broken)
    }

    /// What only this hub limits: no set of proposals may stand that no commit could cover.
    fn fits_in(&self, all: &[Act]) -> Result<(), Reject> {
        let settings = &self.hub.settings;
        let adds = all.iter().filter(|act| matches!(act.what, What::Add(_))).count();
        if adds > settings.adds_per_commit_max {
            return Err(Reject::TooMany {
                what: "pending Adds",
                limit: settings.adds_per_commit_max,
            });
        }
        // who leaves may be taken back (a resync voids an inactivity removal): every Add needs a place
        if adds > 0 && self.roster.len() + adds > settings.members_max {
            return Err(Reject::NotAuthorized(format!(
                "a group here may have {} members",
                settings.members_max
            )));
        }
        Ok(())
    }

    /// What openmls would check of a commit of all of it, and what it would not (RFC 9420 §12.2).
    fn fits_with(
        &self,
        queued: &QueuedProposal,
        act: &Act,
        added: Option<&PendingAdd>,
        others: &[&Pending],
    ) -> Result<(), Reject> {
        let clash = |why: &str| Reject::InvalidProposal { why: why.to_owned(), refs: Vec::new() };
        let mut change = RosterChange::default();
        let mut place = u32::MAX;
        let pending = others.iter().map(|pending| (&pending.act, &pending.queued));
        for (act, queued) in pending.chain([(act, queued)]) {
            match (&act.what, queued.proposal()) {
                (What::Add(identity), _) => {
                    place -= 1;
                    change.added.push((LeafIndex(place), identity.as_ref().clone()));
                }
                (What::Update(leaf), Proposal::Update(update)) => {
                    let identity = policy::leaf::trusted(update.leaf_node())?;
                    change.updated.push((*leaf, identity));
                }
                (What::Remove(leaf) | What::Leave(leaf), _) => change.removed.push(*leaf),
                _ => {}
            }
        }
        self.roster
            .check(&change)
            .map_err(|problem| clash(&format!("with what is pending: {problem}")))?;

        // encryption and init keys are unique in the tree and among what is pending
        let mut keys: HashSet<Vec<u8>> =
            self.tree.leaves().map(|(_, leaf)| encode(leaf.encryption_key())).collect();
        for pending in others {
            keys.extend(hpke_keys(pending.queued.proposal()));
        }
        let new_keys = hpke_keys(queued.proposal());
        if new_keys.iter().any(|key| keys.contains(key)) {
            return Err(clash("an encryption key is in use in the group already"));
        }
        if others.iter().any(|pending| {
            added.is_some()
                && pending.record.added.as_ref().map(|a| &a.reference)
                    == added.map(|a| &a.reference)
        }) {
            return Err(clash("this KeyPackage is pending already"));
        }

        // every leaf that comes or changes supports what the group, or the group that is proposed, requires
        let new_context = match queued.proposal() {
            Proposal::GroupContextExtensions(new) => Some(new.extensions()),
            _ => others.iter().find_map(|pending| match pending.queued.proposal() {
                Proposal::GroupContextExtensions(new) => Some(new.extensions()),
                _ => None,
            }),
        };
        let context = self.tree.context().extensions();
        let comers =
            others.iter().map(|pending| pending.queued.proposal()).chain([queued.proposal()]);
        for extensions in [Some(context), new_context].into_iter().flatten() {
            let required = Required::of(extensions);
            for proposal in comers.clone() {
                if capabilities(proposal).is_some_and(|c| !required.are_met_by(c)) {
                    return Err(clash("a leaf does not support what the group requires"));
                }
            }
        }
        if let (Proposal::GroupContextExtensions(_), Some(extensions)) =
            (queued.proposal(), new_context)
        {
            let required = Required::of(extensions);
            if self.tree.leaves().any(|(_, leaf)| !required.are_met_by(leaf.capabilities())) {
                return Err(clash("a member does not support what the new GroupContext requires"));
            }
        }
        Ok(())
    }
}

impl Step {
    pub(super) fn proposal(
        pending: Pending,
        request: Option<crate::store::records::RequestKey>,
        sender: Option<LeafIndex>,
        except: Option<crate::wire::ids::RecipientId>,
    ) -> Self {
        let change = Change { request, sender, kind: Kind::Proposal(pending.record.clone()) };
        let mut step = Self::quiet(change);
        step.event = Some(QueueEvent::MlsMessage { message: pending.message.clone() });
        step.handshake = true;
        step.except = except;
        step.pending = Some(pending);
        step
    }
}

fn kept<'a, T: 'a>(
    items: impl Iterator<Item = T> + 'a,
    displaced: &'a [usize],
) -> impl Iterator<Item = T> + 'a {
    items.enumerate().filter(|(index, _)| !displaced.contains(index)).map(|(_, item)| item)
}

fn refused(problem: &policy::change::ChangeProblem, queued: &QueuedProposal) -> Reject {
    Reject::InvalidProposal {
        why: problem.to_string(),
        refs: vec![queued.proposal_reference_ref().as_slice().to_vec()],
    }
}

fn hpke_keys(proposal: &Proposal) -> Vec<Vec<u8>> {
    match proposal {
        Proposal::Add(add) => vec![
            encode(add.key_package().leaf_node().encryption_key()),
            encode(add.key_package().hpke_init_key()),
        ],
        Proposal::Update(update) => vec![encode(update.leaf_node().encryption_key())],
        _ => Vec::new(),
    }
}

fn capabilities(proposal: &Proposal) -> Option<&Capabilities> {
    match proposal {
        Proposal::Add(add) => Some(add.key_package().leaf_node().capabilities()),
        Proposal::Update(update) => Some(update.leaf_node().capabilities()),
        _ => None,
    }
}
