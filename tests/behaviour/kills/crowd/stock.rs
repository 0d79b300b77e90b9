//! KeyPackages under load: published, asked for and used to add somebody, each answer written down. The client library's calls for
//! these repeat themselves until there is an answer; here each is made once, so that the record knows of every one.

use mimid::{
    client::{
        Client, ClientError, Outcome,
        core::{Event, GroupView, Operation, SUITES},
        http::Caller,
        system_clock,
    },
    crypto,
    store::SharedStore,
    wire::{
        client::{Flag, KeyPackagesLeft, MintedTokens, PublishKeyPackages, QueueTokens},
        codec::{List, Secret, decode},
        encode,
        extensions::{
            CLIENT_QUEUE_CONFIG, GROUP_POLICY, KeyPackageClass, KeyPackageQueue, USER_KEY,
        },
        ids::{ClientUri, Domain, GroupId, UserUri},
        key_packages::{
            ConnectionKeyPackageRequest, ConnectionKeyPackageResponse, GroupKeyPackageRequest,
            GroupKeyPackageResponse,
        },
        mls::{KeyPackage, RequiredCapabilities},
    },
};
use openmls::prelude as mls;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use tls_codec::DeserializeBytes;

use super::{Crowd, Person};
use crate::kills::offers::{Class, Offer, Reference};

/// So many KeyPackages are published at once, at the most.
const PUBLISHED_MAX: usize = 4;
/// With more than this on offer nobody publishes more: a provider takes 500, and 100 for first contact.
const LEFT_MAX: (u32, u32) = (200, 60);
/// Queue tokens to ask for at a time.
const TOKENS: u8 = 20;
/// More than a client can have in a store.
const HELD_MAX: usize = 1_000;

/// KeyPackages that a client publishes with one request, which it repeats as it is.
#[derive(Clone)]
pub struct Publication {
    class: Class,
    body: Vec<u8>,
    references: Vec<Reference>,
    is_answered: bool,
}

impl Person {
    /// One call of its own provider, and one attempt at it.
    pub(super) async fn call<T: DeserializeBytes>(
        &self,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let key = self.client().member().identity().client_key.clone();
        let caller = Caller { client: &self.uri, key: &key, now: system_clock()() };
        self.http.call(&caller, endpoint, body, 0).await.map_err(ClientError::from)
    }

    /// As [`Self::call`], where there is nothing to answer.
    pub(super) async fn tell(&self, endpoint: &str, body: Vec<u8>) -> Result<(), ClientError> {
        let key = self.client().member().identity().client_key.clone();
        let caller = Caller { client: &self.uri, key: &key, now: system_clock()() };
        self.http.tell(&caller, endpoint, body).await.map_err(ClientError::from)
    }

    /// What there is to be handed out: publishing nothing says so.
    pub(super) async fn left(&self) -> Result<KeyPackagesLeft, ClientError> {
        self.call("/v1/key_packages", publication_of(Vec::new())).await
    }

    /// Makes KeyPackages, which nobody knows of yet.
    async fn makes(&self, class: Class, count: usize) -> Result<Publication, ClientError> {
        let of_wire = match class {
            Class::Group => KeyPackageClass::Group,
            Class::Connection => KeyPackageClass::Connection,
        };
        let client = self.client();
        if client.member().tokens(of_wire, false)? < count {
            let (last_resort, revoke) = (Flag::No, List::default());
            let asks = QueueTokens { class: of_wire, last_resort, count: TOKENS, revoke };
            let minted: MintedTokens = self.call("/v1/queue_tokens", encode(&asks)).await?;
            client.member().store_tokens(of_wire, false, &minted.tokens)?;
        }
        let now = system_clock()();
        let made = client.member().key_packages(of_wire, SUITES[0], false, count, now)?;
        let references = made.iter().map(|it| crypto::sha256(it.as_slice())).collect();
        Ok(Publication { class, body: publication_of(made), references, is_answered: false })
    }
}

fn publication_of(made: Vec<KeyPackage>) -> Vec<u8> {
    encode(&PublishKeyPackages { key_packages: List::new(made).unwrap() })
}

impl Crowd {
    /// New KeyPackages; or once more those of the last time, which must change nothing: some of them may be given away by now.
    pub(super) async fn publishes(&self, person: &Person, random: &mut StdRng) {
        let known = person.publication.lock().unwrap().clone();
        let repeats = known.is_some_and(|it| !it.is_answered || random.random_bool(0.3));
        let is_full = {
            let KeyPackagesLeft { group_left, connection_left } = *person.stock.lock().unwrap();
            group_left > LEFT_MAX.0 || connection_left > LEFT_MAX.1
        };
        if !repeats && !is_full {
            let class = if random.random_bool(0.7) { Class::Group } else { Class::Connection };
            let made = person.makes(class, random.random_range(1..=PUBLISHED_MAX)).await;
            match made {
                // kept before it is sent: one without an answer is repeated
                Ok(made) => drop(person.publication.lock().unwrap().replace(made)),
                Err(error) => return self.passes(Err(error)),
            }
        }
        let published = self.publishes_what_it_keeps(person).await;
        self.passes(published.map(drop));
    }

    async fn publishes_what_it_keeps(
        &self,
        person: &Person,
    ) -> Result<KeyPackagesLeft, ClientError> {
        let Some(Publication { class, body, references, .. }) =
            person.publication.lock().unwrap().clone()
        else {
            return person.left().await;
        };
        let left = person.call("/v1/key_packages", body).await?;
        self.offers.lock().unwrap().published(&person.uri, class, &references);
        if let Some(kept) = &mut *person.publication.lock().unwrap() {
            kept.is_answered = true;
        }
        *person.stock.lock().unwrap() = left;
        Ok(left)
    }

    /// KeyPackages of somebody, for a group or for first contact.
    pub(super) async fn fetches(&self, person: &Person, group: &GroupId, random: &mut StdRng) {
        let Some(other) = self.people.choose(random).map(|it| &it.user) else { return };
        let given = if random.random_bool(0.7) {
            self.fetches_for_group(person, group, other).await
        } else {
            self.fetches_for_contact(person, other).await
        };
        self.passes(given.map(drop));
    }

    /// One group KeyPackage of each client of `user`: none where this device does not know it, or is not to have any.
    pub(super) async fn fetches_for_group(
        &self,
        person: &Person,
        group: &GroupId,
        user: &UserUri,
    ) -> Result<Vec<(ClientUri, Vec<u8>)>, ClientError> {
        let client = person.client();
        let Some(token) = client.member().contact(user)?.their_token else { return Ok(Vec::new()) };
        let required = mls::RequiredCapabilitiesExtension::new(
            &[mls::ExtensionType::Unknown(USER_KEY), mls::ExtensionType::Unknown(GROUP_POLICY)],
            &[mls::ProposalType::SelfRemove],
            &[],
        );
        let suite = client.member().suite_of(group)?;
        let request = GroupKeyPackageRequest {
            target_user: user.clone(),
            consent_token: Secret::new(token).unwrap(),
            ciphersuites: List::new(vec![suite as u16]).unwrap(),
            required: Some(RequiredCapabilities::of(&required)),
        };
        let asks = async || {
            let answer: GroupKeyPackageResponse =
                person.call("/v1/group_key_packages", encode(&request)).await?;
            let given = answer.clients.into_vec().into_iter();
            Ok(given.filter_map(|it| Some(it.key_package?.into_vec())).collect())
        };
        self.asks_for(person, Class::Group, user, asks).await
    }

    async fn fetches_for_contact(
        &self,
        person: &Person,
        user: &UserUri,
    ) -> Result<Vec<(ClientUri, Vec<u8>)>, ClientError> {
        let requester = person.user.clone();
        let request = ConnectionKeyPackageRequest { target_user: user.clone(), requester };
        let asks = async || {
            let answer: ConnectionKeyPackageResponse =
                person.call("/v1/connection_key_packages", encode(&request)).await?;
            let given = answer.key_packages.into_vec().into_iter();
            Ok(given.map(KeyPackage::into_vec).collect())
        };
        self.asks_for(person, Class::Connection, user, asks).await
    }

    /// Writes down that somebody asks and what was given.
    async fn asks_for(
        &self,
        person: &Person,
        class: Class,
        user: &UserUri,
        asks: impl AsyncFnOnce() -> Result<Vec<Vec<u8>>, ClientError>,
    ) -> Result<Vec<(ClientUri, Vec<u8>)>, ClientError> {
        let of_user = self.people.iter().filter(|it| it.user == *user);
        let owners: Vec<ClientUri> = of_user.map(|it| it.uri.clone()).collect();
        // a provider asks another one twice where that does not answer, and each time may have used one up
        let times = if person.user.domain() == user.domain() { 1 } else { 2 };
        self.offers.lock().unwrap().asked(&owners, class, times);
        let given = asks().await?;
        let lost = times - 1;
        let offers: Vec<Offer> = given.iter().map(|bytes| offer_in(bytes)).collect();
        self.offers.lock().unwrap().answered(&owners, class, times, lost, &offers);
        Ok(offers.into_iter().map(|it| it.owner).zip(given).collect())
    }

    /// Adds users with all of their clients that are not in the group, as [`Client::add_users`] does.
    pub(super) async fn adds(
        &self,
        person: &Person,
        group: &GroupId,
        users: &[UserUri],
    ) -> Result<Outcome, ClientError> {
        self.adds_by(&person.client(), person, group, users).await
    }

    /// As [`Self::adds`], with a client of that person's home that has all the time there is.
    pub(super) async fn adds_by(
        &self,
        client: &Client,
        person: &Person,
        group: &GroupId,
        users: &[UserUri],
    ) -> Result<Outcome, ClientError> {
        let GroupView { members, .. } = client.member().group(group)?;
        let mut key_packages = Vec::new();
        for user in users.iter().filter(|it| !members.iter().any(|member| member.user == **it)) {
            let given = self.fetches_for_group(person, group, user).await?;
            key_packages.extend(given.into_iter().map(|(_, key_package)| key_package));
        }
        if key_packages.is_empty() {
            return Ok(Outcome::AlreadySo);
        }
        client.operate(group, Operation::AddUsers { key_packages }).await
    }

    /// Everybody's provider says what there is to be handed out, with nothing on its way; an error where one does not answer.
    pub async fn takes_stock(&self) -> Result<(), String> {
        for person in &self.people {
            let told = |error: ClientError| format!("{}: {error}", person.uri);
            let is_answered = person.publication.lock().unwrap().as_ref().map(|it| it.is_answered);
            if is_answered == Some(false) {
                self.publishes_what_it_keeps(person).await.map_err(told)?;
            }
            let left = person.left().await.map_err(told)?;
            let mut offers = self.offers.lock().unwrap();
            if person.events().iter().any(|it| matches!(it, Event::KeyPackagesLow { .. })) {
                offers.restocks(&person.uri);
            }
            offers.left(&person.uri, left);
        }
        Ok(())
    }

    /// What the store of a provider has on offer.
    pub(super) async fn held_by(&self, store: &SharedStore, domain: &Domain) -> Vec<Offer> {
        let mut held = Vec::new();
        for person in self.people.iter().filter(|it| it.user.domain() == *domain) {
            let of_person = store.key_packages(&person.uri, HELD_MAX).await.unwrap();
            held.extend(of_person.into_iter().map(|it| Offer {
                owner: person.uri.clone(),
                class: if it.connection { Class::Connection } else { Class::Group },
                reference: crypto::sha256(&it.bytes),
                last_resort: it.last_resort,
            }));
        }
        held
    }
}

/// What a KeyPackage says of itself.
fn offer_in(bytes: &[u8]) -> Offer {
    let key_package: mls::KeyPackageIn = decode(bytes).unwrap();
    let crypto = crypto::MlsCrypto::default();
    let key_package = key_package.validate(&crypto, mls::ProtocolVersion::Mls10).unwrap();
    let queue = key_package.extensions().unknown(CLIENT_QUEUE_CONFIG).unwrap();
    let queue: KeyPackageQueue = decode(&queue.0).unwrap();
    let owner = key_package.leaf_node().credential().serialized_content();
    let owner = ClientUri::new(String::from_utf8(owner.to_vec()).unwrap()).unwrap();
    Offer {
        owner,
        class: match queue.class {
            KeyPackageClass::Group => Class::Group,
            KeyPackageClass::Connection => Class::Connection,
        },
        reference: crypto::sha256(bytes),
        last_resort: key_package.last_resort(),
    }
}
