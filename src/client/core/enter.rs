//! Entering a group from outside: external commits, a newcomer's proposal, and the check of everyone who is there.
//!
//! Here: what is built on the information that a hub gave. Not here: Welcomes ([`super::settle`]).
//! PROTOCOL.md §2, "Operations", "Policy"; RFC 9420 §12.4.3.2.

use openmls::{
    group::{PURE_PLAINTEXT_WIRE_FORMAT_POLICY, PastEpochDeletionPolicy},
    prelude as mls,
    prelude::OpenMlsProvider,
};

use super::{
    CoreError, Member,
    build::{Draft, PAST_EPOCHS_MAX, bounded, list, partial},
    home::{LiftedGroup, Provider},
    identity::{self, StoredKey, capabilities},
    moving::hub_in,
    records::{Effect, GroupRecord, Pending},
    view::policy_of,
};
use crate::{
    crypto::SigningKey,
    policy::{self, roster::Roster},
    wire::{
        codec::{Raw, decode, encode},
        ds::{DsRequest, DsSenderId, GroupUpdate, Info, JoinGroup, Propose, ResyncClient},
        extensions::{JoinProof, JoinProofTbs, KeyPackageClass, PublicKey},
        ids::{Domain, GroupId, KeyPackageRef, LeafIndex, Timestamp},
    },
};

impl Member {
    pub(super) fn join_proof(
        &self,
        group: &GroupId,
        code: [u8; 32],
        leaf_key: &PublicKey,
    ) -> Result<JoinProof, CoreError> {
        let code = SigningKey::from_seed(code)?;
        let tbs = JoinProofTbs {
            group_id: group.clone(),
            user_key_hash: self.identity.user_key_hash(),
            leaf_key: leaf_key.clone(),
        };
        let signature = code.sign_with_label("JoinProofTBS", &encode(&tbs))?;
        Ok(JoinProof { public_key: code.public().clone(), signature })
    }

    pub(super) fn resync(
        &self,
        pending: &mut Pending,
        record: &GroupRecord,
    ) -> Result<Draft, CoreError> {
        let info = take_info(pending)?;
        let signer = record.leaf_key.open()?;
        // a leaf index changes by a resync only, so the old state knows it however old it is
        let old = LeafIndex(self.load(&pending.group)?.own_leaf_index().u32());
        let config = self.take_token(KeyPackageClass::Group, false)?;
        let hub = pending.hub(record);
        let (update, state) =
            self.external_commit(&pending.group, hub, info, &signer, Vec::new())?;
        let request = ResyncClient {
            group_id: pending.group.clone(),
            sender: signer.public().clone(),
            update,
            client_queue_config: config,
        };
        Ok(Draft {
            sender: DsSenderId::LeafIndex(old),
            request: DsRequest::ResyncClient(request),
            effect: Effect::Enter { state, leaf_key: StoredKey::of(&signer) },
            signer,
        })
    }

    pub(super) fn enter(
        &self,
        pending: &mut Pending,
        record: &mut GroupRecord,
        code: Option<[u8; 32]>,
    ) -> Result<Draft, CoreError> {
        let info = take_info(pending)?;
        let suite = info.group_info.parse()?.ciphersuite();
        let leaf_key = self.identity.leaf_key(suite)?;
        let aad = match code {
            Some(code) => encode(&self.join_proof(&pending.group, code, leaf_key.public())?),
            None => Vec::new(),
        };
        let config = self.take_token(KeyPackageClass::Group, false)?;
        record.queue = Some(config.clone());
        let hub = pending.hub(record);
        let (update, state) = self.external_commit(&pending.group, hub, info, leaf_key, aad)?;
        let request =
            JoinGroup { group_id: pending.group.clone(), update, client_queue_config: config };
        Ok(Draft {
            sender: DsSenderId::UserKeyHash(self.identity.user_key_hash()),
            request: DsRequest::JoinGroup(request),
            signer: self.identity.user_key.clone(),
            effect: Effect::Enter { state, leaf_key: StoredKey::of(leaf_key) },
        })
    }

    /// An external commit, and the state that the group has behind it; what the home holds of the group stays. `hub` is
    /// who showed `info`.
    fn external_commit(
        &self,
        id: &GroupId,
        hub: &Domain,
        info: Info,
        signer: &SigningKey,
        aad: Vec<u8>,
    ) -> Result<(GroupUpdate, LiftedGroup), CoreError> {
        let before = self.home.lift(id)?;
        let provider = self.home.provider();
        let group_info = info.group_info.parse()?;
        if group_info.group_id().as_slice() != id.as_bytes() {
            return Err(CoreError::Invalid("the hub answered with another group"));
        }
        let proposals = info
            .pending
            .iter()
            .filter_map(|message| {
                let mls::MlsMessageBodyIn::PublicMessage(message) = message.parse().ok()?.extract()
                else {
                    return None;
                };
                Some(message)
            })
            .collect();
        let suite = group_info.ciphersuite();
        let leaf = mls::LeafNodeParameters::builder()
            .with_capabilities(capabilities())
            .with_extensions(self.identity.leaf_extensions(signer)?)
            .build();
        let (group, bundle) = mls::MlsGroup::external_commit_builder()
            .with_proposals(proposals)
            .with_ratchet_tree(info.ratchet_tree.parse()?)
            .with_config(join_config())
            .with_aad(aad)
            .skip_lifetime_validation()
            .build_group(&provider, group_info, self.identity.credential_with_key(signer))
            .map_err(CoreError::mls)?
            .leaf_node_parameters(leaf)
            .load_psks(provider.storage())
            .map_err(CoreError::mls)?
            .build(provider.rand(), provider.crypto(), signer, |_| true)
            .map_err(CoreError::mls)?
            .finalize(&provider)
            .map_err(CoreError::mls)?;
        self.check_everyone(&group)?;
        expect_hub(group.extensions(), hub)?;
        let exported =
            group.export_group_info(provider.crypto(), signer, false).map_err(CoreError::mls)?;
        let update = GroupUpdate {
            commit: Raw::of(bundle.commit()),
            group_info: partial(&exported, suite)?,
            welcome: None,
        };
        let state = self.home.lift(id)?;
        self.home.drop_in(id, &before)?;
        Ok((update, state))
    }

    pub(super) fn ask_to_join(
        &self,
        pending: &mut Pending,
        record: &mut GroupRecord,
        now: Timestamp,
    ) -> Result<Draft, CoreError> {
        let info = take_info(pending)?;
        let group_info = info.group_info.parse()?;
        expect_hub(group_info.group_context().extensions(), pending.hub(record))?;
        let suite = group_info.ciphersuite();
        let signer = self.identity.leaf_key(suite)?.clone();
        let config = self.take_token(KeyPackageClass::Group, false)?;
        record.queue = Some(config.clone());
        record.leaf_key = StoredKey::of(&signer);
        let queue = identity::queue_of(KeyPackageClass::Group, config);
        let key_package = self.identity.key_package(&self.home, suite, queue, false, now)?;
        let reference = identity::key_package_ref(&self.home, &key_package)?;
        let message = mls::JoinProposal::new::<<Provider<'_> as OpenMlsProvider>::StorageProvider>(
            key_package,
            group_info.group_id().clone(),
            group_info.epoch(),
            &signer,
        )
        .map_err(CoreError::mls)?;
        Ok(Draft {
            sender: DsSenderId::KeyPackageRef(KeyPackageRef(bounded(reference)?)),
            request: DsRequest::Propose(Propose { proposals: list(vec![Raw::of(&message)])? }),
            signer,
            effect: Effect::Nothing,
        })
    }

    /// Checks every leaf of a group that this client enters: what the hub showed it is not taken on trust.
    pub(super) fn check_everyone(&self, group: &mls::MlsGroup) -> Result<(), CoreError> {
        let policy = policy_of(group)?;
        let leaves = group
            .public_group()
            .treesync()
            .full_leaves()
            .map(|(index, leaf)| {
                let identity = policy::identify(leaf, &policy.credential_types)?;
                Ok((LeafIndex(index.u32()), identity))
            })
            .collect::<Result<Vec<_>, policy::LeafProblem>>()
            .map_err(CoreError::mls)?;
        Roster::of(leaves).map(|_| ()).map_err(CoreError::mls)
    }
}

/// Checks that a group names `hub`, which this client was told of, as the one external sender that it has. It need not be
/// the provider in the group's id: a group may have moved.
pub(super) fn expect_hub(
    extensions: &mls::Extensions<mls::GroupContext>,
    hub: &Domain,
) -> Result<(), CoreError> {
    match hub_in(extensions) {
        Ok((_, domain)) if domain == *hub => Ok(()),
        Ok(_) | Err(_) => {
            Err(CoreError::Invalid("the group names another hub than this client was told of"))
        }
    }
}

pub(crate) fn join_config() -> mls::MlsGroupJoinConfig {
    mls::MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(false)
        .set_past_epoch_deletion_policy(PastEpochDeletionPolicy::MaxEpochs(PAST_EPOCHS_MAX))
        .build()
}

fn take_info(pending: &mut Pending) -> Result<Info, CoreError> {
    let bytes = pending.info.take().ok_or(CoreError::Invalid("the hub has not answered yet"))?;
    Ok(decode(&bytes)?)
}
