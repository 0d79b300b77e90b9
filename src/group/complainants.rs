//! Who complains of one commit, by user.
//!
//! The complaints of users who are in the group and of those who have left it since are kept apart: the latter do not count,
//! unless their users come back. Both are counted as they come and go, so that no complaint costs a look through all others.
//!
//! Deliberately absent: whose complaint may count, and how many are enough (`super::lies`).

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{policy::roster::Roster, wire::ids::UserKeyHash};

/// Complaints of one commit, at most one of each user.
#[derive(Debug, Clone, Default)]
pub(super) struct Complainants {
    here: Part,
    away: Part,
}

/// What a user says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// Only the GroupInfo is bad: the user could process the commit.
    pub(super) of_info: bool,
    /// As it came; empty when no evidence can be asked for any more.
    pub(super) complaint: Vec<u8>,
}

/// Which complaints are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    All,
    /// Of those who could not process the commit.
    OfCommit,
    /// Of those who could, and say that nobody can come in by its GroupInfo.
    OfInfo,
}

#[derive(Debug, Clone, Default)]
struct Part {
    by_user: BTreeMap<UserKeyHash, Said>,
    of_info: usize,
}

impl Part {
    fn put(&mut self, user: UserKeyHash, said: Said) {
        self.take(&user);
        self.of_info += usize::from(said.of_info);
        self.by_user.insert(user, said);
    }

    fn take(&mut self, user: &UserKeyHash) -> Option<Said> {
        let said = self.by_user.remove(user)?;
        self.of_info -= usize::from(said.of_info);
        Some(said)
    }
}

impl Complainants {
    pub(super) fn len(&self) -> usize {
        self.here.by_user.len() + self.away.by_user.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn of(&self, user: &UserKeyHash) -> Option<&Said> {
        self.here.by_user.get(user).or_else(|| self.away.by_user.get(user))
    }

    /// Notes what `user` says, in place of what it said before.
    pub(super) fn put(&mut self, user: UserKeyHash, said: Said, is_here: bool) {
        self.here.take(&user);
        self.away.take(&user);
        let part = if is_here { &mut self.here } else { &mut self.away };
        part.put(user, said);
    }

    /// Complaints of users who are in the group.
    pub(super) fn count(&self, count: Count) -> usize {
        match count {
            Count::All => self.here.by_user.len(),
            Count::OfCommit => self.here.by_user.len() - self.here.of_info,
            Count::OfInfo => self.here.of_info,
        }
    }

    /// Complaints of the commit as they came, by users who are in the group.
    pub(super) fn evidence(&self) -> impl Iterator<Item = &[u8]> {
        let of_commit = self.here.by_user.values().filter(|said| !said.of_info);
        of_commit.map(|said| said.complaint.as_slice())
    }

    /// Nobody will be asked for evidence.
    pub(super) fn drop_evidence(&mut self) {
        let all = self.here.by_user.values_mut().chain(self.away.by_user.values_mut());
        all.for_each(|said| said.complaint = Vec::new());
    }

    /// Some of `users` may have come or gone: `roster` says who is there.
    pub(super) fn moved<'a>(
        &mut self,
        users: impl ExactSizeIterator<Item = &'a UserKeyHash>,
        roster: &Roster,
    ) {
        if users.len() > self.len() {
            return self.sort_out(roster);
        }
        for user in users {
            let is_here = roster.has_user(user);
            let from = if is_here { &mut self.away } else { &mut self.here };
            if let Some(said) = from.take(user) {
                self.put(user.clone(), said, is_here);
            }
        }
    }

    /// As [`Self::moved`], of all.
    pub(super) fn sort_out(&mut self, roster: &Roster) {
        let Self { here, away } = std::mem::take(self);
        for (user, said) in here.by_user.into_iter().chain(away.by_user) {
            let is_here = roster.has_user(&user);
            let part = if is_here { &mut self.here } else { &mut self.away };
            part.put(user, said);
        }
    }

    fn by_user(&self) -> BTreeMap<&UserKeyHash, &Said> {
        self.here.by_user.iter().chain(&self.away.by_user).collect()
    }
}

/// Who is in the group is the roster's.
impl PartialEq for Complainants {
    fn eq(&self, other: &Self) -> bool {
        self.by_user() == other.by_user()
    }
}

impl Eq for Complainants {}

/// One complaint in a snapshot, where they are a list: of one user at most one, and by now in the order of users.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    user: Cow<'a, UserKeyHash>,
    of_info: bool,
    complaint: Cow<'a, [u8]>,
}

impl Serialize for Complainants {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.by_user().into_iter().map(|(user, said)| Stored {
            user: Cow::Borrowed(user),
            of_info: said.of_info,
            complaint: Cow::Borrowed(said.complaint.as_slice()),
        }))
    }
}

/// All are taken to be in the group until [`Complainants::sort_out`].
impl<'de> Deserialize<'de> for Complainants {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut complainants = Self::default();
        for stored in Vec::<Stored<'static>>::deserialize(deserializer)? {
            let Stored { user, of_info, complaint } = stored;
            let said = Said { of_info, complaint: complaint.into_owned() };
            complainants.here.put(user.into_owned(), said);
        }
        Ok(complainants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        group::mls::{from_record, to_record},
        policy::leaf::LeafIdentity,
        wire::{codec::Opaque, ids::ClientUri, ids::LeafIndex},
    };

    fn user(n: u8) -> UserKeyHash {
        UserKeyHash(Opaque::new([n; 32]).unwrap())
    }

    fn said(n: u8) -> Said {
        Said { of_info: n.is_multiple_of(3), complaint: vec![n; n.into()] }
    }

    fn roster(users: &[u8]) -> Roster {
        Roster::of(users.iter().map(|n| {
            let identity = LeafIdentity {
                client: ClientUri::new(format!("mimi://a.example/d/u{n}/phone")).unwrap(),
                user: user(*n),
                signature_key: vec![*n],
                credential_type: 1,
                print: [*n; 32],
            };
            (LeafIndex((*n).into()), identity)
        }))
        .unwrap()
    }

    /// What was in snapshots before, in the order in which the complaints came.
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Complained {
        user: UserKeyHash,
        of_info: bool,
        complaint: Vec<u8>,
    }

    #[test]
    fn what_was_written_as_a_list_is_read_and_written_as_that_list_in_order() {
        let list = |order: [u8; 4]| -> Vec<Complained> {
            let one = |n| {
                let Said { of_info, complaint } = said(n);
                Complained { user: user(n), of_info, complaint }
            };
            order.map(one).into()
        };
        let before = to_record(&list([9, 2, 6, 4])).unwrap();
        let mut read: Complainants = from_record(&before).unwrap();
        let written = to_record(&list([2, 4, 6, 9])).unwrap();
        assert_eq!(to_record(&read).unwrap(), written);
        assert_eq!(read.len(), 4);
        let kept = read.clone();
        read.sort_out(&roster(&[2, 9]));
        assert_eq!(to_record(&read).unwrap(), written, "whoever is there");
        assert_eq!(read, kept);
        assert_eq!(read.count(Count::All), 2);
    }

    #[test]
    fn counts_are_of_who_is_there_whoever_comes_and_goes() {
        let everybody: Vec<u8> = (1..=8).collect();
        let mut complainants = Complainants::default();
        for n in &everybody {
            complainants.put(user(*n), said(*n), true);
        }
        let counts =
            |of: &Complainants| [Count::All, Count::OfCommit, Count::OfInfo].map(|c| of.count(c));
        assert_eq!(counts(&complainants), [8, 6, 2]);
        for there in [&[1, 3, 5][..], &[], &[2, 3, 6, 8], &everybody, &[6]] {
            let roster = roster(there);
            let users: Vec<UserKeyHash> = everybody.iter().map(|n| user(*n)).collect();
            let mut looked_through = complainants.clone();
            looked_through.sort_out(&roster);
            complainants.moved(users.iter(), &roster);
            let of_info = there.iter().filter(|n| said(**n).of_info).count();
            let expected = [there.len(), there.len() - of_info, of_info];
            assert_eq!(counts(&complainants), expected);
            assert_eq!(counts(&looked_through), expected);
            assert_eq!(complainants.evidence().count(), there.len() - of_info);
            assert_eq!(complainants.len(), 8);
        }
        // one that weighs more takes the place of the one before
        complainants.put(user(6), Said { of_info: false, ..said(6) }, true);
        assert_eq!(counts(&complainants), [1, 1, 0]);
        assert_eq!(complainants.of(&user(6)).map(|said| said.of_info), Some(false));
    }
}
