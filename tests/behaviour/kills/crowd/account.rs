//! What a provider keeps of its users under load: consent, clients that register and go again, groups that somebody makes for itself.

use std::sync::atomic::Ordering;

use mimid::{
    client::{
        Client, Registration,
        core::{Home, SUITES},
        system_clock,
    },
    crypto,
    store::{SharedStore, records::ConsentHash},
    wire::{
        client::Consent,
        codec::{List, Opaque},
        encode,
        ids::{ClientUri, Domain, GroupId, UserUri},
    },
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{Crowd, Person, counts_if};

/// What was answered of accounts, over all restarts.
#[derive(Default)]
pub struct Accounts {
    tokens: Vec<Token>,
    newcomers: Vec<Newcomer>,
    /// Of one member each, until they were looked at.
    groups: Vec<(ClientUri, GroupId)>,
}

/// A consent token that somebody has given out.
struct Token {
    of: UserUri,
    hash: [u8; 32],
    /// As was answered last; none: there was no answer.
    stands: Option<bool>,
}

/// Somebody who registered while providers were killed.
struct Newcomer {
    uri: ClientUri,
    client: Client,
    /// Whether it was answered that its account is deleted; none: that was asked for.
    is_there: Option<bool>,
}

impl Crowd {
    /// Gives out a consent token, or takes one back.
    pub(super) async fn consents(&self, person: &Person, random: &mut StdRng) {
        let known = {
            let accounts = self.accounts.lock().unwrap();
            let own = |at: &usize| {
                let token = &accounts.tokens[*at];
                token.of == person.user && token.stands == Some(true)
            };
            (0..accounts.tokens.len()).filter(own).collect::<Vec<_>>()
        };
        let revoked = known.choose(random).copied().filter(|_| random.random());
        let (at, hash) = {
            let tokens = &mut self.accounts.lock().unwrap().tokens;
            let at = revoked.unwrap_or_else(|| {
                let of = person.user.clone();
                tokens.push(Token {
                    of,
                    hash: crypto::sha256(&crypto::random::<32>()),
                    stands: None,
                });
                tokens.len() - 1
            });
            tokens[at].stands = None;
            (at, tokens[at].hash)
        };
        let hashes = List::new(vec![Opaque::new(hash).unwrap()]).unwrap();
        let (add, revoke) = match revoked {
            Some(_) => (List::default(), hashes),
            None => (hashes, List::default()),
        };
        let told = person.tell("/v1/consent", encode(&Consent { add, revoke })).await;
        counts_if(&told, &self.counts.consents);
        if told.is_ok() {
            self.accounts.lock().unwrap().tokens[at].stands = Some(revoked.is_none());
        }
        self.passes(told);
    }

    /// Makes a group of its own, which nobody else ever hears of.
    pub(super) async fn makes_a_group(&self, person: &Person) {
        let made = person.client().create_group("alone", SUITES[0], None).await;
        counts_if(&made, &self.counts.accounts);
        if let Ok(group) = &made {
            let made = (person.uri.clone(), group.clone());
            self.accounts.lock().unwrap().groups.push(made);
        }
        self.passes(made.map(drop));
    }

    /// While providers are killed the newcomer of the last round deletes its account, and another one registers.
    pub async fn comes_and_goes(&self, round: u64) {
        let leaver = self.accounts.lock().unwrap().newcomers.pop();
        if let Some(mut leaver) = leaver {
            if leaver.is_there == Some(true) {
                let deleted = leaver.client.delete_account().await;
                counts_if(&deleted, &self.counts.accounts);
                leaver.is_there = deleted.is_ok().then_some(false);
            }
            self.accounts.lock().unwrap().newcomers.push(leaver);
        }
        let providers = &self.providers.all;
        let provider = &providers[usize::try_from(round).unwrap() % providers.len()];
        let user = UserUri::of(&provider.domain, &format!("newcomer{round}")).unwrap();
        let uri = ClientUri::of(&user, "phone").unwrap();
        let home = self.providers.folder().join(format!("homes/newcomer{round}"));
        let registration = Registration {
            client: uri.clone(),
            server: provider.server(),
            token: Vec::new(),
            authorization: None,
        };
        let client = Client::register(Home::open(&home).unwrap(), registration, system_clock());
        if let Ok(client) = client.await {
            self.counts.accounts.fetch_add(1, Ordering::Relaxed);
            let newcomer = Newcomer { uri, client, is_there: Some(true) };
            self.accounts.lock().unwrap().newcomers.push(newcomer);
        }
    }

    /// Groups that were made by somebody alone are there: their makers can speak in them, and then delete them.
    pub async fn own_groups(&self) -> Result<(), String> {
        let groups = self.accounts.lock().unwrap().groups.clone();
        for (maker, group) in groups {
            let person = self.people.iter().find(|it| it.uri == maker).unwrap();
            let client = person.at_peace();
            let told = |error| format!("{maker}, of its own group {group}: {error}");
            client.send_text(&group, "is it there?").await.map_err(told)?;
            client.delete_group(&group).await.map_err(told)?;
            self.accounts.lock().unwrap().groups.retain(|(_, it)| *it != group);
        }
        Ok(())
    }

    /// What a provider has written down of consent and newcomers is what was answered.
    pub(super) async fn accounts_in(&self, store: &SharedStore, domain: &Domain) -> Vec<String> {
        let (tokens, newcomers): (Vec<_>, Vec<_>) = {
            let accounts = self.accounts.lock().unwrap();
            let tokens = accounts.tokens.iter().filter(|it| it.of.domain() == *domain);
            let newcomers = accounts.newcomers.iter().filter(|it| it.uri.domain() == *domain);
            (
                tokens.filter_map(|it| Some((it.of.clone(), it.hash, it.stands?))).collect(),
                newcomers.filter_map(|it| Some((it.uri.clone(), it.is_there?))).collect(),
            )
        };
        let mut found = Vec::new();
        for (of, hash, stands) in tokens {
            if store.has_consent(&of, &ConsentHash(hash)).await.unwrap() != stands {
                found
                    .push(format!("consent of {of} was answered to stand: {stands}, and does not"));
            }
        }
        for (uri, is_there) in newcomers {
            let account = store.account(&uri.user()).await.unwrap();
            let has_account = account.is_some_and(|it| it.deleted_at.is_none());
            let device = store.device(&uri).await.unwrap();
            let has_device = device.is_some_and(|it| it.deleted_at.is_none());
            let stock = store.key_packages(&uri, 1).await.unwrap();
            if [has_account, has_device, !stock.is_empty()] != [is_there; 3] {
                found.push(format!(
                    "{uri} was answered to be there: {is_there}; account {has_account}, device {has_device}, a KeyPackage {}",
                    !stock.is_empty()
                ));
            }
        }
        found
    }
}
