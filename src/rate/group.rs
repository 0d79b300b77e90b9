//! What a hub lets a group, and each member of one, ask of it. PROTOCOL.md §2, check 5: counted once the sender is
//! known, so that nobody spends what is another's.

use super::{Limiter, Quota, TooMany};
use crate::wire::{
    ds::DsSenderId,
    ids::{Domain, GroupId, Timestamp},
};

/// Who asks something of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asker {
    /// Who has a part in it.
    Member(DsSenderId),
    /// All together who have none, and come through this provider: each has made its key itself, and could make another for
    /// each request.
    Strangers(Domain),
}

/// The quotas; absent by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupQuotas {
    /// Of all members of one group together.
    pub group: Quota,
    /// Of one member of one group, and of all strangers to it who come through one provider.
    pub member: Quota,
}

/// Shared by all groups of a hub.
#[derive(Debug)]
pub struct GroupRates {
    groups: Limiter<GroupId>,
    members: Limiter<(GroupId, Asker)>,
}

impl GroupRates {
    #[must_use]
    pub fn new(quotas: GroupQuotas) -> Self {
        Self {
            groups: Limiter::new(quotas.group, GROUPS_MAX),
            members: Limiter::new(quotas.member, MEMBERS_MAX),
        }
    }

    /// From now on these hold; see [`Limiter::replace`].
    pub fn replace(&self, quotas: GroupQuotas) {
        self.groups.replace(quotas.group);
        self.members.replace(quotas.member);
    }

    /// Counts a request of `asker` to `group`. The asker comes first: one that asks too much takes nothing from the group.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn check(&self, group: &GroupId, asker: Asker, now: Timestamp) -> Result<(), TooMany> {
        self.members.check(&(group.clone(), asker), now)?;
        self.groups.check(group, now)
    }
}

impl Default for GroupRates {
    fn default() -> Self {
        Self::new(GroupQuotas::default())
    }
}

/// Groups and members that are remembered because they asked for something of late.
const GROUPS_MAX: usize = 100_000;
const MEMBERS_MAX: usize = 500_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ids::{Domain, LeafIndex};

    #[test]
    fn a_member_that_asks_too_much_takes_nothing_from_its_group() {
        let quota = |per_second| Quota { per_second, burst: per_second };
        let rates = GroupRates::new(GroupQuotas { group: quota(4), member: quota(2) });
        let (now, domain) = (Timestamp(1_700_000_000_000), Domain::new("a.example").unwrap());
        let (group, other) = (GroupId::of(&domain, [1; 16]), GroupId::of(&domain, [2; 16]));
        let member = |leaf| Asker::Member(DsSenderId::LeafIndex(LeafIndex(leaf)));
        let check = |group, leaf| rates.check(group, member(leaf), now);
        check(&group, 0).unwrap();
        check(&group, 0).unwrap();
        for _ in 0..10 {
            check(&group, 0).unwrap_err();
        }
        check(&other, 0).unwrap();
        check(&group, 1).unwrap();
        check(&group, 2).unwrap();
        assert_eq!(check(&group, 3).unwrap_err().retry_after_ms(), 250);
        rates.check(&group, member(3), now.plus_ms(250)).unwrap();
    }

    #[test]
    fn strangers_of_one_provider_are_one_and_take_nothing_from_members_nor_those_of_another() {
        let quota = |per_second| Quota { per_second, burst: per_second };
        let rates = GroupRates::new(GroupQuotas { group: quota(9), member: quota(2) });
        let now = Timestamp(1_700_000_000_000);
        let [a, b] = ["a.example", "b.example"].map(|name| Domain::new(name).unwrap());
        let group = GroupId::of(&a, [1; 16]);
        let strangers =
            |through: &Domain| rates.check(&group, Asker::Strangers(through.clone()), now).is_ok();
        assert_eq!([(); 4].map(|()| strangers(&a)), [true, true, false, false]);
        assert!(strangers(&b));
        let member = Asker::Member(DsSenderId::LeafIndex(LeafIndex(0)));
        rates.check(&group, member, now).unwrap();
    }
}
