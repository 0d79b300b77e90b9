//! The links between the entries of a client's feeds: `previous` names what came before, so that a client can see that nothing was
//! left out. Nothing here knows a provider: numbers in, what is wrong with them out. PROTOCOL.md §3.

use std::collections::{HashMap, hash_map::Entry};

/// One entry as it was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub feed: u64,
    pub sequence: u64,
    pub previous: u64,
    /// It says itself that something is missing before it.
    pub gap: bool,
}

/// What one client was told of its feeds, over all restarts. Looking at an answer takes time linear in its length.
#[derive(Debug, Default)]
pub struct Links {
    /// By feed and sequence.
    before: HashMap<(u64, u64), Link>,
    /// By feed and what came before.
    behind: HashMap<(u64, u64), Link>,
    broken: Vec<String>,
}

impl Links {
    /// Takes in one answer of the provider, in its order. What was delivered before may come again, and is then as it was.
    pub fn answer(&mut self, entries: &[Link]) {
        let mut last: HashMap<u64, Link> = HashMap::new();
        for link in entries {
            if link.previous >= link.sequence {
                self.broken.push(format!("{link:?} stands before what it names as previous"));
            }
            if let Some(before) = last.insert(link.feed, *link)
                && before.sequence != link.previous
            {
                self.broken.push(format!("{link:?} came right behind {before:?}"));
            }
            self.once(link);
        }
    }

    fn once(&mut self, link: &Link) {
        match self.before.entry((link.feed, link.sequence)) {
            Entry::Vacant(place) => drop(place.insert(*link)),
            // a gap is told of where an entry had stood
            Entry::Occupied(mut place) if link.gap => drop(place.insert(*link)),
            Entry::Occupied(place) => {
                let first = place.get();
                if first.previous != link.previous && !first.gap {
                    self.broken.push(format!("{link:?} was {first:?} before"));
                }
            }
        }
        match self.behind.entry((link.feed, link.previous)) {
            Entry::Vacant(place) => drop(place.insert(*link)),
            Entry::Occupied(mut place) if link.gap => drop(place.insert(*link)),
            Entry::Occupied(place) => {
                let first = place.get();
                if first.sequence != link.sequence && !first.gap {
                    self.broken.push(format!("{link:?} and {first:?} both come next"));
                }
            }
        }
    }

    /// What was wrong.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// Feeds that are over need no memory.
    pub fn forget(&mut self) {
        self.before.clear();
        self.behind.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(sequence: u64, previous: u64) -> Link {
        Link { feed: 1, sequence, previous, gap: false }
    }

    fn judge(answers: &[&[Link]]) -> usize {
        let mut links = Links::default();
        for answer in answers {
            links.answer(answer);
        }
        links.broken().len()
    }

    #[test]
    fn what_comes_again_as_it_was_and_other_feeds_between_are_well() {
        let other = Link { feed: 2, ..link(3, 0) };
        let all = [link(3, 0), other, link(5, 3), link(6, 5)];
        assert_eq!(judge(&[&all, &all[2..], &[link(9, 6)], &all]), 0);
    }

    #[test]
    fn an_entry_that_is_left_out_is_seen() {
        assert!(judge(&[&[link(3, 0), link(6, 5)]]) > 0, "in one answer");
        // and over a restart: 5 was there once, and then never
        assert!(judge(&[&[link(3, 0), link(5, 3)], &[link(6, 3)]]) > 0);
        // its link hidden as well
        assert!(judge(&[&[link(5, 3), link(6, 5)], &[link(6, 3)]]) > 0);
    }

    #[test]
    fn entries_that_change_places_or_double_in_one_answer_are_seen() {
        assert!(judge(&[&[link(5, 3), link(3, 0)]]) > 0);
        assert!(judge(&[&[link(3, 0), link(3, 0)]]) > 0);
        assert!(judge(&[&[link(3, 3)]]) > 0);
    }

    #[test]
    fn a_gap_that_is_told_of_is_no_break() {
        let gap = Link { gap: true, ..link(8, 3) };
        assert_eq!(judge(&[&[link(3, 0), link(5, 3)], &[gap, link(9, 8)]]), 0);
    }
}
