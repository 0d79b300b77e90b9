//! KeyPackages on offer: what was answered as published is there until it is handed out, and is handed out once. Nothing here knows a
//! provider: answers in, what is wrong with them out. PROTOCOL.md §5.

use std::collections::{BTreeMap, HashMap, HashSet};

use mimid::wire::{client::KeyPackagesLeft, ids::ClientUri};

/// SHA-256 of an encoded KeyPackage.
pub type Reference = [u8; 32];

/// What a KeyPackage is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Group,
    Connection,
}

/// A KeyPackage as it was handed out, or as it stands in a provider's store.
#[derive(Debug, Clone)]
pub struct Offer {
    pub owner: ClientUri,
    pub class: Class,
    pub reference: Reference,
    pub last_resort: bool,
}

/// What everybody was answered, over all restarts. Last-resort KeyPackages are given to many, and count nowhere.
#[derive(Debug, Default)]
pub struct Offers {
    stocks: BTreeMap<(ClientUri, Class), Stock>,
    published: HashMap<Reference, (ClientUri, Class)>,
    handed_out: HashSet<Reference>,
    broken: Vec<String>,
}

/// Of one client and class.
#[derive(Debug, Default)]
struct Stock {
    /// What its provider said while nothing was on its way; none: that is still to be asked.
    began_with: Option<u32>,
    published: u32,
    handed_out: u32,
    /// So many may have been handed out to somebody whose answer was lost.
    unanswered: u32,
    /// Of these, before [`Self::began_with`] was said.
    unanswered_before: u32,
}

/// How many answers are in the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answered {
    pub published: usize,
    pub handed_out: usize,
}

impl Offers {
    /// The provider has answered that it has taken these; what is said again is the same.
    pub fn published(&mut self, owner: &ClientUri, class: Class, references: &[Reference]) {
        for reference in references {
            if self.published.insert(*reference, (owner.clone(), class)).is_none() {
                self.stock(owner, class).published += 1;
            }
        }
    }

    /// Somebody asks for a KeyPackage of each of `clients`: until there is an answer each may have given `times`.
    pub fn asked(&mut self, clients: &[ClientUri], class: Class, times: u32) {
        for client in clients {
            self.stock(client, class).unanswered += times;
        }
    }

    /// What [`Self::asked`] was told of has its answer: nothing was given but that, and `lost` that the answer does not show.
    pub fn answered(
        &mut self,
        clients: &[ClientUri],
        class: Class,
        times: u32,
        lost: u32,
        given: &[Offer],
    ) {
        for client in clients {
            let stock = self.stock(client, class);
            stock.unanswered = stock.unanswered - times + lost;
        }
        for offer in given {
            let Offer { owner, class, reference, last_resort } = offer;
            if *last_resort {
                // its owner restocks by itself, and how much is not in the record
                self.stock(owner, *class).began_with = None;
                continue;
            }
            self.stock(owner, *class).handed_out += 1;
            if !self.handed_out.insert(*reference) {
                self.broken.push(format!("a KeyPackage of {owner} was given twice"));
            }
        }
    }

    /// The library of `owner` publishes by itself: what there is then is asked for anew.
    pub fn restocks(&mut self, owner: &ClientUri) {
        for class in [Class::Group, Class::Connection] {
            self.stock(owner, class).began_with = None;
        }
    }

    /// What the provider says to be left, with nothing on its way: neither too few nor too many.
    pub fn left(&mut self, owner: &ClientUri, said: KeyPackagesLeft) {
        for (class, left) in
            [(Class::Group, said.group_left), (Class::Connection, said.connection_left)]
        {
            let stock = self.stock(owner, class);
            let Some(began_with) = stock.began_with else {
                let unanswered = stock.unanswered;
                let (began_with, unanswered_before) = (Some(left), unanswered);
                *stock = Stock { began_with, unanswered, unanswered_before, ..Stock::default() };
                continue;
            };
            let most = (began_with + stock.published).saturating_sub(stock.handed_out);
            let least = most.saturating_sub(stock.unanswered - stock.unanswered_before);
            if !(least..=most).contains(&left) {
                let what = format!(
                    "{owner} has {left} KeyPackages left, and {least} to {most} are to be there: {class:?} {stock:?}"
                );
                self.broken.push(what);
            }
        }
    }

    /// What stands in the stores of all `owners`: nothing that somebody has got, and what was published, but for what answers that were
    /// lost may have shown.
    pub fn held(&self, held: &[Offer]) -> Vec<String> {
        let mut found = Vec::new();
        for offer in held.iter().filter(|it| !it.last_resort) {
            if self.handed_out.contains(&offer.reference) {
                found.push(format!("{} still offers what somebody has got", offer.owner));
            }
        }
        let there: HashSet<&Reference> = held.iter().map(|it| &it.reference).collect();
        let mut missing: BTreeMap<&(ClientUri, Class), u32> = BTreeMap::new();
        for (reference, owner) in &self.published {
            if !there.contains(reference) && !self.handed_out.contains(reference) {
                *missing.entry(owner).or_default() += 1;
            }
        }
        for (owner, count) in missing {
            let unanswered = self.stocks.get(owner).map_or(0, |stock| stock.unanswered);
            if count > unanswered {
                let (client, class) = owner;
                found.push(format!(
                    "{count} published KeyPackages of {client} ({class:?}) are gone, {unanswered} of them may have been given to somebody"
                ));
            }
        }
        found
    }

    pub fn counts(&self) -> Answered {
        Answered { published: self.published.len(), handed_out: self.handed_out.len() }
    }

    /// What was wrong.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    fn stock(&mut self, owner: &ClientUri, class: Class) -> &mut Stock {
        self.stocks.entry((owner.clone(), class)).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> ClientUri {
        ClientUri::new("mimi://a.example/d/alice/phone".to_owned()).unwrap()
    }

    fn offer(reference: u8, last_resort: bool) -> Offer {
        Offer { owner: alice(), class: Class::Group, reference: [reference; 32], last_resort }
    }

    fn left(group_left: u32) -> KeyPackagesLeft {
        KeyPackagesLeft { group_left, connection_left: 2 }
    }

    /// She had 5, has published 1, 2 and 3, and gave 1 and one from before to somebody.
    fn offers() -> Offers {
        let mut offers = Offers::default();
        offers.left(&alice(), left(5));
        offers.published(&alice(), Class::Group, &[[1; 32], [2; 32], [3; 32]]);
        for reference in [1, 9] {
            offers.asked(&[alice()], Class::Group, 1);
            offers.answered(&[alice()], Class::Group, 1, 0, &[offer(reference, false)]);
        }
        offers
    }

    #[test]
    fn all_that_was_published_and_not_handed_out_is_left() {
        let mut offers = offers();
        offers.published(&alice(), Class::Group, &[[1; 32]]);
        offers.left(&alice(), left(6));
        assert!(offers.broken().is_empty(), "{:?}", offers.broken());
        assert_eq!(offers.held(&[offer(2, false), offer(3, false), offer(8, true)]), [""; 0]);
        assert_eq!(offers.counts(), Answered { published: 3, handed_out: 2 });
    }

    #[test]
    fn one_too_few_and_one_too_many_are_seen() {
        for count in [5, 7] {
            let mut offers = offers();
            offers.left(&alice(), left(count));
            assert_eq!(offers.broken().len(), 1);
        }
        // connection ones as well
        let mut offers = offers();
        offers.left(&alice(), KeyPackagesLeft { group_left: 6, connection_left: 1 });
        assert_eq!(offers.broken().len(), 1);
    }

    #[test]
    fn whoever_got_no_answer_may_have_been_given_one_and_no_more() {
        for (count, broken) in [(4, 1), (5, 0), (6, 0), (7, 1)] {
            let mut offers = offers();
            offers.asked(&[alice()], Class::Group, 1);
            offers.left(&alice(), left(count));
            assert_eq!(offers.broken().len(), broken);
        }
    }

    #[test]
    fn what_its_owner_adds_by_itself_begins_a_new_count() {
        let mut offers = offers();
        offers.restocks(&alice());
        offers.left(&alice(), left(40));
        offers.left(&alice(), left(40));
        assert!(offers.broken().is_empty());
        offers.left(&alice(), left(39));
        assert_eq!(offers.broken().len(), 1);
    }

    #[test]
    fn one_that_is_given_twice_is_seen_but_for_a_last_resort() {
        let mut offers = offers();
        for _ in 0..2 {
            offers.answered(&[], Class::Group, 0, 0, &[offer(7, true)]);
        }
        assert!(offers.broken().is_empty());
        offers.answered(&[], Class::Group, 0, 0, &[offer(1, false)]);
        assert_eq!(offers.broken().len(), 1);
    }

    #[test]
    fn a_store_that_has_lost_one_or_offers_one_again_is_seen() {
        let mut offers = offers();
        let [one, two, three] = [1, 2, 3].map(|it| offer(it, false));
        assert_eq!(offers.held(std::slice::from_ref(&two)).len(), 1);
        assert_eq!(offers.held(&[one, two.clone(), three]).len(), 1);
        offers.asked(&[alice()], Class::Group, 1);
        assert_eq!(offers.held(&[two]), [""; 0]);
        assert_eq!(offers.held(&[]).len(), 1);
    }
}
