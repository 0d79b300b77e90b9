//! The roster of one peer in one group, forth and back along its rows: as it was behind a sequence, and with rows drawn
//! together whose log is gone. PROTOCOL.md §3, "Replication of a group's feed".
//!
//! Pure. Deliberately absent: reading and writing rows.

use std::collections::BTreeMap;

use crate::wire::{
    extensions::QueueToken,
    ids::{RecipientId, Sequence},
    queueing::RosterChange,
};

/// A row of the roster, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub sequence: Sequence,
    /// The peer had no client in the group before.
    pub opens: bool,
    pub changes: Vec<RosterChange>,
}

/// The peer's clients, as adds, behind some sequence: from `roster`, which is of later, and all `rows` between the two, in
/// order. Who was removed by one is taken from `leaving`; who is not in it either comes with a token that leads to nobody,
/// so that the row which removes it fits all the same.
#[must_use]
pub fn roster_before(
    roster: Vec<RosterChange>,
    rows: &[Row],
    leaving: &[RosterChange],
) -> Vec<RosterChange> {
    let mut then: BTreeMap<RecipientId, RosterChange> =
        roster.into_iter().filter_map(keyed).collect();
    let leaving: BTreeMap<RecipientId, RosterChange> =
        leaving.iter().cloned().filter_map(keyed).collect();
    for change in rows.iter().rev().flat_map(|row| row.changes.iter().rev()) {
        match change {
            RosterChange::Add { recipient, .. } => {
                then.remove(recipient);
            }
            RosterChange::Remove { recipient } => {
                let unknown = || RosterChange::Add {
                    recipient: *recipient,
                    client_queue_information: nobody(),
                    filter: crate::wire::ds::FanoutFilter::All,
                    welcome: None,
                };
                let add = leaving.get(recipient).cloned().unwrap_or_else(unknown);
                then.insert(*recipient, add);
            }
            // the newer token is good for what came before, too
            RosterChange::Update { .. } => {}
        }
    }
    then.into_values().collect()
}

/// One row for `rows`, all of which the log does not reach back to any more: only a snapshot helps the peer, and what that
/// cannot know by itself is that its copy was never opened, and the Welcomes that joiners have not got. None where there
/// is nothing to be won. Of Welcomes the newest are kept, up to `welcome_bytes_max`: the others' joiners resync.
///
/// It stands where the copy is to be opened, so that the snapshot which follows says what is missing behind that; else at
/// the end.
#[must_use]
pub fn draw_together(rows: &[Row], welcome_bytes_max: usize) -> Option<Row> {
    let last = rows.last().filter(|_| rows.len() > 1)?;
    let opens = rows.iter().rposition(|row| row.opens);
    let of_now = rows.get(opens.unwrap_or(0)..)?;
    let mut adds: BTreeMap<RecipientId, RosterChange> = BTreeMap::new();
    for change in of_now.iter().flat_map(|row| &row.changes) {
        match change {
            RosterChange::Add { recipient, .. } => {
                adds.insert(*recipient, change.clone());
            }
            RosterChange::Remove { recipient } => {
                adds.remove(recipient);
            }
            RosterChange::Update { recipient, client_queue_information: token, filter: to } => {
                if let Some(RosterChange::Add { client_queue_information, filter, .. }) =
                    adds.get_mut(recipient)
                {
                    (*client_queue_information, *filter) = (token.clone(), *to);
                }
            }
        }
    }
    // numbers are given in the order in which clients come
    let mut bytes = 0;
    for add in adds.values_mut().rev() {
        if let RosterChange::Add { welcome, .. } = add
            && let Some(message) = welcome
        {
            bytes += message.as_slice().len();
            if bytes > welcome_bytes_max {
                *welcome = None;
            }
        }
    }
    let with_welcome =
        |add: &RosterChange| matches!(add, RosterChange::Add { welcome: Some(_), .. });
    Some(match opens.and_then(|at| rows.get(at)) {
        Some(first) => {
            let changes = adds.into_values().collect();
            Row { sequence: first.sequence, opens: true, changes }
        }
        None => {
            let changes = adds.into_values().filter(with_welcome).collect();
            Row { sequence: last.sequence, opens: false, changes }
        }
    })
}

/// A token that no provider has minted: it is shorter than any.
#[expect(clippy::expect_used, reason = "a constant")]
fn nobody() -> QueueToken {
    QueueToken::new(vec![0]).expect("a token has at least one byte")
}

fn keyed(change: RosterChange) -> Option<(RecipientId, RosterChange)> {
    match change {
        RosterChange::Add { recipient, client_queue_information, filter, .. } => {
            let welcome = None;
            let add = RosterChange::Add { recipient, client_queue_information, filter, welcome };
            Some((recipient, add))
        }
        RosterChange::Remove { .. } | RosterChange::Update { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tls_codec::VLBytes;

    use super::*;
    use crate::wire::{codec::Opaque, ds::FanoutFilter, mls::MlsMessage};

    fn add(recipient: u64, token: u8, welcome: usize) -> RosterChange {
        // with a byte for its length
        let message = VLBytes::new(vec![token; welcome.max(1) - 1]);
        RosterChange::Add {
            recipient: RecipientId(recipient),
            client_queue_information: Opaque::new(vec![token]).unwrap(),
            filter: FanoutFilter::All,
            welcome: (welcome > 0).then(|| MlsMessage::of(&message)),
        }
    }

    fn remove(recipient: u64) -> RosterChange {
        RosterChange::Remove { recipient: RecipientId(recipient) }
    }

    fn update(recipient: u64, token: u8) -> RosterChange {
        RosterChange::Update {
            recipient: RecipientId(recipient),
            client_queue_information: Opaque::new(vec![token]).unwrap(),
            filter: FanoutFilter::All,
        }
    }

    fn row(sequence: u64, opens: bool, changes: Vec<RosterChange>) -> Row {
        Row { sequence: Sequence(sequence), opens, changes }
    }

    #[test]
    fn drawn_together_rows_that_open_a_copy_keep_where_and_with_whom() {
        let rows = [
            row(3, true, vec![add(1, 1, 0)]),
            row(4, false, vec![remove(1)]),
            row(7, true, vec![add(2, 2, 10)]),
            row(8, false, vec![add(3, 3, 10), update(2, 9)]),
            row(9, false, vec![add(4, 4, 0), remove(3)]),
        ];
        let drawn = draw_together(&rows, 100).unwrap();
        let mut two = add(2, 9, 10);
        if let RosterChange::Add { welcome, .. } = &mut two {
            *welcome = Some(MlsMessage::of(&VLBytes::new(vec![2; 9])));
        }
        assert_eq!(drawn, row(7, true, vec![two, add(4, 4, 0)]));
        assert_eq!(draw_together(&[drawn], 100), None, "there is nothing more to be won");
    }

    #[test]
    fn drawn_together_rows_of_a_copy_that_is_there_keep_the_newest_welcomes() {
        let rows = [
            row(3, false, vec![add(1, 1, 60), add(2, 2, 0)]),
            row(4, false, vec![add(3, 3, 60), add(4, 4, 60)]),
            row(6, false, vec![remove(4), add(5, 5, 30)]),
        ];
        let drawn = draw_together(&rows, 100).unwrap();
        assert_eq!(drawn, row(6, false, vec![add(3, 3, 60), add(5, 5, 30)]));
    }

    proptest! {
        #[test]
        fn a_roster_goes_back_to_what_it_was(
            steps in proptest::collection::vec((0_u8..3, any::<u8>()), 0..40),
            from in 0_usize..40,
        ) {
            let (mut rosters, mut rows) = (vec![BTreeMap::new()], Vec::new());
            let mut left = Vec::new();
            for (index, (step, seed)) in steps.into_iter().enumerate() {
                let mut roster: BTreeMap<u64, u8> = rosters[index].clone();
                let some = roster.keys().nth(usize::from(seed) % roster.len().max(1)).copied();
                let change = match (step, some) {
                    (1, Some(one)) => {
                        let token = roster.remove(&one).unwrap();
                        left.push(add(one, token, 0));
                        remove(one)
                    }
                    _ => {
                        let one = index as u64;
                        roster.insert(one, seed);
                        add(one, seed, 1)
                    }
                };
                rows.push(row(index as u64 + 1, false, vec![change]));
                rosters.push(roster);
            }
            let from = from.min(rows.len());
            let of = |roster: &BTreeMap<u64, u8>| -> Vec<RosterChange> {
                roster.iter().map(|(one, token)| add(*one, *token, 0)).collect()
            };
            let now = of(rosters.last().unwrap());
            prop_assert_eq!(roster_before(now.clone(), &rows[from..], &left), of(&rosters[from]));
            // whose token is not known any more is there all the same
            let then = roster_before(now, &rows[from..], &[]);
            prop_assert_eq!(then.len(), rosters[from].len());
        }
    }
}
