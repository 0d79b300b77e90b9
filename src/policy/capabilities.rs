//! What a group requires of each of its leaves. RFC 9420 §7.2, §12.1.7.

use std::{collections::HashSet, hash::Hash};

use openmls::prelude::{
    Capabilities, CredentialType, ExtensionType, Extensions, GroupContext, ProposalType,
    RequiredCapabilitiesExtension,
};

/// Types that a leaf must list. What every client must support (RFC 9420 §7.2) need not be listed and is not in here. Sets, as
/// both what is required and what is listed may be as long as a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Required {
    extensions: HashSet<ExtensionType>,
    proposals: HashSet<ProposalType>,
    credentials: HashSet<CredentialType>,
}

impl Required {
    #[must_use]
    pub fn new(
        extensions: impl IntoIterator<Item = ExtensionType>,
        proposals: impl IntoIterator<Item = ProposalType>,
        credentials: impl IntoIterator<Item = CredentialType>,
    ) -> Self {
        let extensions = extensions.into_iter();
        let proposals = proposals.into_iter();
        Self {
            extensions: extensions.filter(|it| !(1..=5).contains(&u16::from(*it))).collect(),
            proposals: proposals.filter(|it| !(1..=7).contains(&u16::from(*it))).collect(),
            credentials: credentials.into_iter().collect(),
        }
    }

    /// What the group of `context` requires: required_capabilities, and every extension of the GroupContext.
    #[must_use]
    pub fn of(context: &Extensions<GroupContext>) -> Self {
        let present = context.iter().map(openmls::prelude::Extension::extension_type);
        let mut all = context.required_capabilities().map(Self::from).unwrap_or_default();
        all.extensions.extend(Self::new(present, [], []).extensions);
        all
    }

    /// Whether a leaf with `capabilities` can be in such a group.
    #[must_use]
    pub fn are_met_by(&self, capabilities: &Capabilities) -> bool {
        lists(capabilities.extensions(), &self.extensions)
            && lists(capabilities.proposals(), &self.proposals)
            && lists(capabilities.credentials(), &self.credentials)
    }
}

impl From<&RequiredCapabilitiesExtension> for Required {
    fn from(required: &RequiredCapabilitiesExtension) -> Self {
        Self::new(
            required.extension_types().iter().copied(),
            required.proposal_types().iter().copied(),
            required.credential_types().iter().copied(),
        )
    }
}

fn lists<T: Copy + Eq + Hash>(listed: &[T], required: &HashSet<T>) -> bool {
    if required.is_empty() {
        return true;
    }
    let listed: HashSet<T> = listed.iter().copied().filter(|it| required.contains(it)).collect();
    listed.len() == required.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_that_every_client_has_need_not_be_listed() {
        let capabilities = Capabilities::builder()
            .extensions(vec![ExtensionType::Unknown(0xF1A1)])
            .proposals(vec![ProposalType::SelfRemove])
            .credentials(vec![CredentialType::Basic])
            .build();
        let ours = [ExtensionType::Unknown(0xF1A1), ExtensionType::ApplicationId];
        let proposals = [ProposalType::SelfRemove, ProposalType::Add];
        let of_ours = Required::new(ours, proposals, [CredentialType::Basic]);
        assert!(of_ours.are_met_by(&capabilities));
        let policy = Required::new([ExtensionType::Unknown(0xF1A3)], [], []);
        assert!(!policy.are_met_by(&capabilities));
        let custom = Required::new([], [ProposalType::Custom(0xFF00)], []);
        assert!(!custom.are_met_by(&capabilities));
        let x509 = Required::new([], [], [CredentialType::X509]);
        assert!(!x509.are_met_by(&capabilities));
    }

    #[test]
    fn a_type_that_is_listed_twice_is_one() {
        let twice = [ExtensionType::Unknown(0xF1A1), ExtensionType::Unknown(0xF1A1)];
        let capabilities = Capabilities::builder().extensions(twice.to_vec()).build();
        assert!(Required::new(twice, [], []).are_met_by(&capabilities));
        let both = [ExtensionType::Unknown(0xF1A1), ExtensionType::Unknown(0xF1A3)];
        assert!(!Required::new(both, [], []).are_met_by(&capabilities));
    }
}
