//! The hash chain of a log: each record says which one it follows, and the group's head which one is the last. A record that
//! stands for another, whole as it may be, two that have changed places, and a log that is older than its head do not agree.
//!
//! Here: what a record's link is, and how records are gone through. **A log that was trimmed needs no anchor**: its first record
//! holds the link of the one before it, and is itself proved by what follows. Links are of this store alone: they are not on the wire,
//! a group that moves to another provider goes on with the links of the copy there, a backup holds them as they are.
//!
//! Half of a SHA-256: no fault of a disk or a program makes two records alike in 128 bits, and nobody who could look for two
//! gains by it: whoever writes into the store could write the links anew, for they hold no secret.

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::records::{FeedEntry, GroupHead, LogRecord};

/// What stands for a record and all that its log has had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link(pub [u8; 16]);

impl Link {
    /// What the first record of a log with links follows.
    pub const START: Self = Self([0; 16]);
    /// Of a record without content that was put into the midst of a log later (`actors::arrivals`): nothing follows it, and it
    /// follows nothing.
    pub const BESIDE: Self = Self([0xff; 16]);

    /// The link of a record that follows this one.
    #[must_use]
    pub fn to(self, feed: &FeedEntry, change: &[u8]) -> Self {
        let FeedEntry { sequence, accepted_at, except, origin, handshake, event } = feed;
        let origin = origin.as_ref().map_or("", |origin| origin.as_str());
        // of one length, but for what comes last: nothing reads in two ways
        let mut fixed = [0; 16 + 5 * 8 + 2];
        let numbers = [
            sequence.0,
            accepted_at.0,
            except.map_or(0, |except| except.0),
            origin.len() as u64,
            event.len() as u64,
        ];
        let (link, rest) = fixed.split_at_mut(16);
        link.copy_from_slice(&self.0);
        for (place, number) in rest.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        let flags = [u8::from(except.is_some()), u8::from(*handshake)];
        fixed[16 + 5 * 8..].copy_from_slice(&flags);
        let mut hash = Context::new(&SHA256);
        for piece in [fixed.as_slice(), origin.as_bytes(), event, change] {
            hash.update(piece);
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finish().as_ref()[..16]);
        Self(short)
    }

    /// Links `record` to what a log ends with, `last`, which it then is.
    #[must_use]
    pub fn append(last: &mut Option<Self>, record: LogRecord) -> LogRecord {
        let follows = last.unwrap_or(Self::START);
        *last = Some(follows.to(&record.feed, &record.change));
        LogRecord { follows: Some(follows), ..record }
    }
}

impl GroupHead {
    /// Links `record` to the log of this head, which then ends with it. Its sequence is counted elsewhere.
    #[must_use]
    pub fn append(&mut self, record: LogRecord) -> LogRecord {
        Link::append(&mut self.last, record)
    }
}

/// A log, gone through record by record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Links {
    /// Nothing is known of what comes next.
    #[default]
    Fresh,
    /// So far no record had a link: they were written by a mimid that knew none.
    Without,
    /// What comes next follows this.
    At(Link),
}

/// Records that do not follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    #[error("it does not follow the record before it: one of them stands for another")]
    Follows,
    #[error("it has no link, and one before it has: an older record stands for it")]
    Older,
    #[error("it holds something, and was put in as one that holds nothing")]
    Beside,
    #[error(
        "the log does not end with the record that its head names: it is not the log of this head"
    )]
    End,
}

impl Links {
    /// # Errors
    /// [`Break`], where the record is not the one that follows.
    pub fn follow(
        &mut self,
        follows: Option<Link>,
        feed: &FeedEntry,
        change: &[u8],
    ) -> Result<(), Break> {
        self.may_follow(follows)?;
        match follows {
            None => *self = Self::Without,
            Some(Link::BESIDE) if feed.event.is_empty() && change.is_empty() => {}
            Some(Link::BESIDE) => return Err(Break::Beside),
            Some(follows) => *self = Self::At(follows.to(feed, change)),
        }
        Ok(())
    }

    /// Whether a record that says that it follows `follows` may come next.
    ///
    /// # Errors
    /// [`Break`]
    pub fn may_follow(&self, follows: Option<Link>) -> Result<(), Break> {
        match (self, follows) {
            (Self::At(_), None) => Err(Break::Older),
            (Self::At(last), Some(follows)) if *last != follows && follows != Link::BESIDE => {
                Err(Break::Follows)
            }
            (Self::Without, Some(follows)) if follows != Link::START && follows != Link::BESIDE => {
                Err(Break::Follows)
            }
            (Self::Fresh | Self::Without | Self::At(_), _) => Ok(()),
        }
    }

    /// Whether the log may end here, where its head says that it ends with `last`.
    ///
    /// # Errors
    /// [`Break::End`]
    pub fn may_end(&self, last: Option<Link>) -> Result<(), Break> {
        let is_end = match (self, last) {
            (Self::At(found), _) => last == Some(*found),
            (Self::Without, last) => last.is_none(),
            (Self::Fresh, _) => true,
        };
        if is_end { Ok(()) } else { Err(Break::End) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        store::{
            Batch, Page, Write,
            conformance::samples::{head, record},
            memory::Disk,
        },
        wire::ids::{Domain, RecipientId, Sequence, Timestamp},
    };

    fn log(records: u64) -> (GroupHead, Vec<LogRecord>) {
        let mut head = head("g", records + 1, 1);
        let made = (1..=records).map(|at| head.append(record(at, 40, 30))).collect();
        (head, made)
    }

    /// Where a log breaks; none where it is whole.
    fn broken(head: &GroupHead, log: &[LogRecord]) -> Option<Break> {
        let mut links = Links::default();
        for one in log {
            if let Err(error) = links.follow(one.follows, &one.feed, &one.change) {
                return Some(error);
            }
        }
        links.may_end(head.last).err()
    }

    #[test]
    fn a_log_and_each_end_of_it_are_whole() {
        let (head, log) = log(9);
        for first in 0..=log.len() {
            assert_eq!(broken(&head, &log[first..]), None, "from {first}");
        }
    }

    #[test]
    fn a_log_that_began_without_links_goes_on_with_them() {
        let mut head = head("g", 7, 1);
        let old = [record(1, 40, 30), record(2, 40, 30)];
        assert_eq!(broken(&head, &old), None);
        let new: Vec<_> = (3..=6).map(|at| head.append(record(at, 9, 9))).collect();
        let mut log = [old.as_slice(), new.as_slice()].concat();
        assert_eq!(broken(&head, &log), None);
        // the old records alone are an old log under a new head
        assert_eq!(broken(&head, &old), Some(Break::End));
        // and the last of them is not between the new ones
        log[4].follows = None;
        assert_eq!(broken(&head, &log), Some(Break::Older));
        log.remove(2);
        assert_eq!(broken(&head, &log), Some(Break::Follows));
    }

    #[test]
    fn a_hole_may_be_filled_with_records_that_hold_nothing() {
        let (head, mut log) = log(5);
        log.insert(3, LogRecord { follows: Some(Link::BESIDE), ..record(4, 0, 0) });
        log.push(LogRecord { follows: Some(Link::BESIDE), ..record(7, 0, 0) });
        assert_eq!(broken(&head, &log), None);
        assert_eq!(broken(&head, &log[3..]), None);
        log[3].feed.event = vec![1];
        assert_eq!(broken(&head, &log), Some(Break::Beside));
    }

    #[test]
    fn each_field_of_a_record_is_in_its_link() {
        let of = |change: &dyn Fn(&mut LogRecord)| {
            let mut one = record(300, 40, 30);
            change(&mut one);
            Link::START.to(&one.feed, &one.change)
        };
        let links = [
            of(&|_| ()),
            of(&|it| it.feed.sequence = Sequence(301)),
            of(&|it| it.feed.accepted_at = Timestamp(1)),
            of(&|it| it.feed.except = None),
            of(&|it| it.feed.except = Some(RecipientId(0))),
            of(&|it| it.feed.origin = None),
            of(&|it| it.feed.origin = Some(Domain::new("c.example").unwrap())),
            of(&|it| it.feed.handshake = !it.feed.handshake),
            of(&|it| it.feed.event[39] ^= 1),
            of(&|it| it.change[0] ^= 1),
            // what is where the one ends and the other begins
            of(&|it| it.change.insert(0, it.feed.event.pop().unwrap())),
        ];
        for (at, link) in links.iter().enumerate() {
            assert!(!links[..at].contains(link), "{at}");
        }
        let one = record(300, 40, 30);
        assert_ne!(Link([1; 16]).to(&one.feed, &one.change), links[0]);
    }

    /// Whichever page it is in, and however many records that has; what was read before it was right.
    #[tokio::test]
    async fn whoever_reads_a_record_that_stands_for_another_is_told_and_nobody_else() {
        let (head, log) = log(6);
        for place in 1..=6_u64 {
            let store = Disk::new().open().unwrap();
            let mut batch = Batch::new().and(Write::GroupHead(head.clone()));
            for one in &log {
                batch.push(Write::Log { group: head.group.clone(), record: one.clone() });
            }
            store.write(batch).await.unwrap();
            let mut other = log[place as usize - 1].clone();
            other.feed.event[0] ^= 1;
            let write = Write::Log { group: head.group.clone(), record: other };
            store.write(Batch::new().and(write)).await.unwrap();
            for (from, items_max) in (1..=6).flat_map(|from| (1..=6).map(move |max| (from, max))) {
                let page = Page { items_max, bytes_max: usize::MAX };
                let last = (from + items_max as u64 - 1).min(6);
                let at = format!("{place}: {items_max} from {from}");
                let records = store.log(&head.group, Sequence(from), page).await;
                assert_eq!(records.is_err(), (from..=last).contains(&place), "{at}");
                let entries = store.feed(&head.group, Sequence(from), page).await;
                // an entry at the end of a page is read alone
                assert_eq!(entries.is_err(), (from..last).contains(&place), "{at}");
            }
            assert_eq!(store.damaged().keys().copied().collect::<Vec<_>>(), ["log record"]);
        }
    }

    proptest! {
        /// Whatever one record is replaced by, and whichever change places: unless nothing changed it is told.
        #[test]
        fn no_other_log_is_taken_for_the_one_that_was_written(
            places in proptest::collection::vec(0..8_usize, 1..9),
        ) {
            let (head, log) = log(8);
            let other: Vec<_> = places.iter().map(|at| log[*at].clone()).collect();
            let whole = other == log[log.len() - other.len()..];
            prop_assert_eq!(broken(&head, &other).is_none(), whole);
        }
    }
}
