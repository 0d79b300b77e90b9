//! Proposals under load, each written down with its answer.

use std::sync::atomic::Ordering;

use mimid::{
    client::{
        ClientError, Outcome,
        core::{GroupView, NewProposal, Operation},
    },
    wire::ids::{ClientUri, GroupId, UserUri},
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{Crowd, Person};
use crate::kills::{
    history::Answer,
    proposals::{Proposal, Wish},
};

impl Crowd {
    /// New keys, that somebody goes, or that somebody comes: what the policy allows this person (who made the group may take out
    /// anyone, others only their own devices).
    pub(super) async fn proposes(&self, person: &Person, group: &GroupId, random: &mut StdRng) {
        let Ok(GroupView { members, .. }) = person.client().member().group(group) else { return };
        let is_maker = self.history.lock().unwrap().makers.get(group) == Some(&person.uri);
        let may_remove: Vec<&ClientUri> = members
            .iter()
            .filter(|it| it.client != person.uri && (is_maker || it.user == person.user))
            .map(|it| &it.client)
            .collect();
        let is_in = |person: &Person| members.iter().any(|member| member.client == person.uri);
        let absent: Vec<&UserUri> =
            self.people.iter().filter(|it| !is_in(it)).map(|it| &it.user).collect();
        let what = random.random_range(0..10);
        if let Some(client) = may_remove.choose(random).filter(|_| what < 3) {
            let (wish, proposal) =
                (Wish::Remove((*client).clone()), NewProposal::Remove((*client).clone()));
            return self.passes(self.proposed(person, group, wish, proposal).await.map(drop));
        }
        if let Some(user) = absent.choose(random).filter(|_| what < 7) {
            let given = match self.fetches_for_group(person, group, user).await {
                Ok(given) => given,
                Err(error) => return self.passes(Err(error)),
            };
            for (client, key_package) in given {
                if members.iter().any(|member| member.client == client) {
                    continue;
                }
                let (wish, proposal) = (Wish::Add(client), NewProposal::Add(key_package));
                self.passes(self.proposed(person, group, wish, proposal).await.map(drop));
            }
            return;
        }
        let outcome = self.proposed(person, group, Wish::Update, NewProposal::Update).await;
        self.passes(outcome.map(drop));
    }

    /// Asks for one proposal.
    pub(super) async fn proposed(
        &self,
        person: &Person,
        group: &GroupId,
        wish: Wish,
        proposal: NewProposal,
    ) -> Result<Outcome, ClientError> {
        let (group, by) = (group.clone(), person.uri.clone());
        let asked = Proposal { group: group.clone(), by, wish, answer: Answer::Unknown };
        // written down first: whoever is shown it before its answer is here is right
        let at = {
            let mut history = self.history.lock().unwrap();
            history.proposals.push(asked);
            history.proposals.len() - 1
        };
        let proposes = Operation::Propose { proposals: vec![proposal] };
        let outcome = person.client().operate(&group, proposes).await;
        let answer = match &outcome {
            Ok(Outcome::Accepted(accepted)) => {
                self.counts.proposals.fetch_add(1, Ordering::Relaxed);
                Answer::Accepted { sequence: accepted.group_sequence.0, epoch: accepted.epoch.0 }
            }
            Err(ClientError::Refused(_)) => Answer::Refused,
            Ok(Outcome::AlreadySo) | Err(_) => Answer::Unknown,
        };
        self.history.lock().unwrap().proposals[at].answer = answer;
        outcome
    }
}
