//! A client's account at its provider: registering, further devices, KeyPackages and queue tokens, leaving.
//! PROTOCOL.md §3, §5.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Client, ClientError, Clock, REGISTERED, SERVER, Server,
    core::{
        Contact, CoreError, GroupState, Home, Identity, Member, Operation, SUITES,
        last_resort_setting,
    },
};
use crate::{
    crypto::SigningKey,
    wire::{
        client::{
            DeleteDevice, Flag, KeyPackagesLeft, MintedTokens, ProviderKeys, ProviderKeysAnswer,
            PublishKeyPackages, QueueTokens, Register, Registered,
        },
        codec::{List, Opaque, Raw, Secret, Text},
        encode,
        extensions::{KeyPackageClass, SignatureScheme},
        ids::{ClientUri, Domain, GroupId, UserUri},
        mls::KeyPackage,
    },
};

/// Tokens to ask for at a time.
const TOKENS_BATCH: u8 = 20;
/// KeyPackages to publish, by ciphersuite in the order of [`SUITES`]. Those of the preferred one are most, so that
/// the provider's word that few are left (of all together) comes before they have run out.
const GROUP_STOCK: [usize; 3] = [40, 4, 4];
const CONNECTION_STOCK: usize = 20;
/// Where more than this are waiting none are added: a provider takes five hundred, and a hundred for first contact.
const GROUP_LEFT_MAX: usize = 200;
const CONNECTION_LEFT_MAX: u32 = 60;

/// What a new client is registered as.
#[derive(Clone)]
pub struct Registration {
    pub client: ClientUri,
    pub server: Server,
    /// What the operator gave out, where registration asks for it.
    pub token: Vec<u8>,
    /// From a device that the user has already; none: the user is new.
    pub authorization: Option<Authorization>,
}

/// What a device of a user gives to a further one: the user's key and where the user is. It is a secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authorization {
    pub user: UserUri,
    pub server: Server,
    user_key_scheme: u16,
    user_key: String,
    groups: Vec<(GroupId, Domain, String)>,
    contacts: Vec<(UserUri, Contact)>,
}

impl Registration {
    fn identity(&self) -> Result<Identity, ClientError> {
        let Some(authorization) = &self.authorization else {
            return Ok(Identity::generate(self.client.clone())?);
        };
        if authorization.user != self.client.user() {
            return Err(ClientError::Invalid(format!(
                "the authorization is for {} and the device for {}",
                authorization.user,
                self.client.user()
            )));
        }
        let bytes = hex::decode(&authorization.user_key)
            .map_err(|_| ClientError::Invalid("the authorization is damaged".to_owned()))?;
        let scheme = SignatureScheme(authorization.user_key_scheme);
        let user_key = SigningKey::from_bytes(scheme, &bytes).map_err(CoreError::from)?;
        Ok(Identity::with_user_key(self.client.clone(), user_key)?)
    }
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registration({})", self.client)
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authorization({})", self.user)
    }
}

impl Client {
    /// Registers a new client and puts its KeyPackages up. A home in which this was begun and not finished goes on
    /// with the keys that it made then; one that is registered learns its provider's new address, where it has one.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the provider does not take the client; the home can be thrown away then.
    pub async fn register(
        home: Home,
        registration: Registration,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        let member = if Member::is_in(&home)? {
            Member::open(home)?
        } else {
            let identity = registration.identity()?;
            Member::new(home, identity)?
        };
        Self::register_member(member, registration, clock).await
    }

    async fn register_member(
        member: Member,
        registration: Registration,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        if member.client() != &registration.client {
            return Err(ClientError::Invalid(format!(
                "this home belongs to {}: use another one (--home), or delete it",
                member.client()
            )));
        }
        if member.setting(REGISTERED)? == Some(true) {
            return Self::found_elsewhere(member, &registration.server, clock).await;
        }
        member.set(SERVER, &registration.server)?;
        // before anything is asked: one that is cut off goes on with what it was given
        if let Some(authorization) = &registration.authorization {
            for (user, contact) in &authorization.contacts {
                member.set_contact(user, contact)?;
            }
            member.set(TO_JOIN, &authorization.groups)?;
        }
        let client = Self::with_server(member, &registration.server, clock)?;
        let register = {
            let member = client.member();
            let identity = member.identity();
            Register {
                user: identity.client.user(),
                device: Text::new(identity.client.device())
                    .map_err(|_| ClientError::Invalid("the device's name is too long".into()))?,
                credential: Raw::of(&identity.credential()),
                user_key: identity.vouch(identity.client_key.public())?,
                scheme: identity.client_key.scheme(),
                client_key: identity.client_key.public().clone(),
                token: Secret::new(registration.token)
                    .map_err(|_| ClientError::Invalid("the token is too long".into()))?,
                csr: Opaque::default(),
            }
        };
        let _: Registered = client.call("/v1/register", encode(&register)).await?;
        client.stock_up().await?;
        client.member().set(REGISTERED, &true)?;
        client.join_groups_of_user().await?;
        Ok(client)
    }

    /// A client that is registered finds its provider at another address from now on, if the one there knows it.
    async fn found_elsewhere(
        member: Member,
        server: &Server,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        let uri = member.client().clone();
        let known: Server = member.setting(SERVER)?.ok_or(ClientError::NotRegistered)?;
        if known == *server {
            return Err(ClientError::Invalid(format!(
                "{uri} is registered already; a further client needs a home of its own (--home)"
            )));
        }
        let client = Self::with_server(member, server, clock)?;
        if let Err(error) = client.publish(Vec::new()).await {
            return Err(ClientError::Invalid(format!(
                "{uri} is registered already, and is not known at {} ({error}); nothing has changed, it still goes to {}",
                server.url, known.url
            )));
        }
        client.member().set(SERVER, server)?;
        Ok(client)
    }

    /// Joins the groups that this device was told of when it was authorised, as far as that has not been done.
    ///
    /// # Errors
    /// [`ClientError::Core`]. What has no answer goes on with [`Client::resume`].
    pub async fn join_groups_of_user(&self) -> Result<usize, ClientError> {
        let groups: Vec<(GroupId, Domain, String)> =
            self.member().setting(TO_JOIN)?.unwrap_or_default();
        let mut joined = 0;
        let mut out_of_reach = false;
        for (at, (group, hub, name)) in groups.iter().enumerate() {
            let now = self.now();
            let join = Operation::Join { code: None };
            let begun = self.member().join(group, hub, name, join, now);
            match begun {
                // it is kept and goes on with the rest
                Ok(_) if out_of_reach => {}
                Ok(request) => match self.drive(request).await {
                    Ok(_) => joined += 1,
                    Err(error @ (ClientError::Unanswered { .. } | ClientError::Http(_))) => {
                        tracing::warn!(%group, %error, "a group of the user is joined later");
                        out_of_reach = true;
                    }
                    Err(ClientError::Refused(refusal)) => {
                        // by now the user may not be in it any more
                        tracing::warn!(%group, %refusal, "a group of the user was not joined");
                    }
                    Err(error @ ClientError::Core(CoreError::Store(_))) => return Err(error),
                    Err(error) => {
                        tracing::warn!(%group, %error, "a group of the user was not joined");
                    }
                },
                Err(CoreError::AlreadyIn(_) | CoreError::ComingIn(_)) => {}
                Err(error) => return Err(error.into()),
            }
            self.member().set(TO_JOIN, &groups[at + 1..].to_vec())?;
        }
        Ok(joined)
    }

    /// What a further device of this user needs to register and to join the user's groups. It holds the user's
    /// key: whoever has it is the user.
    ///
    /// # Errors
    /// [`ClientError::Core`]
    pub fn authorize_device(&self) -> Result<Authorization, ClientError> {
        let member = self.member();
        let identity = member.identity();
        let groups = member
            .groups()?
            .into_iter()
            .filter(|group| group.state == GroupState::Active)
            .map(|group| (group.id, group.hub, group.name))
            .collect();
        Ok(Authorization {
            user: identity.client.user(),
            server: member.setting(SERVER)?.ok_or(ClientError::NotRegistered)?,
            user_key_scheme: identity.user_key.scheme().0,
            user_key: hex::encode(&*identity.user_key.to_bytes()),
            groups,
            contacts: member.contacts()?,
        })
    }

    /// Deletes a device of this user at the provider; hubs remove it from its groups.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Http`]
    pub async fn delete_device(&self, client: &ClientUri) -> Result<(), ClientError> {
        self.tell("/v1/devices/delete", encode(&DeleteDevice { client: client.clone() })).await
    }

    /// Deletes the user with all its devices.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Http`]
    pub async fn delete_account(&self) -> Result<(), ClientError> {
        self.tell("/v1/account/delete", Vec::new()).await
    }

    /// The keys of a provider: what signs for its hub, among others.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Http`]
    pub async fn provider_keys(&self, domain: &Domain) -> Result<ProviderKeysAnswer, ClientError> {
        self.call("/v1/provider_keys", encode(&ProviderKeys { domain: domain.clone() })).await
    }

    /// Publishes KeyPackages until there are as many as wanted: of each ciphersuite, a last-resort one each, and
    /// those for first contact. Where what is there is old, as many as if nothing were: no KeyPackage waits until it is over.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Http`]
    pub async fn stock_up(&self) -> Result<KeyPackagesLeft, ClientError> {
        // publishing nothing says what there is
        let (group_stock, connection_stock) = self.stock();
        let left = self.publish(Vec::new()).await?;
        let began = self.now();
        let is_old = self.member().is_stock_old(began)?;
        let counts =
            |left: u32| if is_old { 0 } else { usize::try_from(left).unwrap_or(usize::MAX) };
        let (group_left, connection_left) = (counts(left.group_left), counts(left.connection_left));
        let is_full = usize::try_from(left.group_left).is_ok_and(|left| left > GROUP_LEFT_MAX);
        let connection_full = left.connection_left > CONNECTION_LEFT_MAX;
        let connection_wanted =
            if connection_full { 0 } else { connection_stock.saturating_sub(connection_left) };
        let mut wanted = vec![(KeyPackageClass::Connection, SUITES[0], false, connection_wanted)];
        for (suite, stock) in SUITES.into_iter().zip(group_stock) {
            // the count says nothing of suites: what is left counts for the preferred one
            let there = if suite == SUITES[0] { group_left } else { 0 };
            let count = if is_full { 0 } else { stock.saturating_sub(there) };
            wanted.push((KeyPackageClass::Group, suite, false, count));
            if is_old || self.member().setting(&last_resort_setting(suite))? != Some(true) {
                wanted.push((KeyPackageClass::Group, suite, true, 1));
            }
        }
        let (mut made, mut last_resorts) = (Vec::new(), Vec::new());
        for (class, suite, last_resort, count) in wanted {
            self.have_tokens(class, last_resort, count).await?;
            let now = self.now();
            made.extend(self.member().key_packages(class, suite, last_resort, count, now)?);
            last_resorts.extend(last_resort.then_some(suite));
        }
        let left = self.publish(made).await?;
        // another that was used meanwhile is still to be replaced
        for suite in last_resorts {
            self.member().set(&last_resort_setting(suite), &true)?;
        }
        if is_old {
            self.member().stocked(began)?;
        }
        Ok(left)
    }

    /// How many KeyPackages there are to be, of each ciphersuite for groups and for first contact.
    fn stock(&self) -> ([usize; 3], usize) {
        #[cfg(test)]
        if self.http.is_simulated() {
            // making them is most of what a simulated client would do
            return ([6, 0, 0], 1);
        }
        (GROUP_STOCK, CONNECTION_STOCK)
    }

    async fn publish(&self, made: Vec<KeyPackage>) -> Result<KeyPackagesLeft, ClientError> {
        let key_packages = List::new(made)
            .map_err(|_| ClientError::Invalid("too many KeyPackages at once".to_owned()))?;
        self.call("/v1/key_packages", encode(&PublishKeyPackages { key_packages })).await
    }

    async fn have_tokens(
        &self,
        class: KeyPackageClass,
        last_resort: bool,
        count: usize,
    ) -> Result<(), ClientError> {
        while self.member().tokens(class, last_resort)? < count {
            self.mint(class, last_resort, self.until()).await?;
        }
        Ok(())
    }

    /// Asks the provider for queue tokens, and no longer than `until`.
    pub(super) async fn mint(
        &self,
        class: KeyPackageClass,
        last_resort: bool,
        until: Instant,
    ) -> Result<(), ClientError> {
        let request = QueueTokens {
            class,
            last_resort: if last_resort { Flag::Yes } else { Flag::No },
            count: if last_resort { 3 } else { TOKENS_BATCH },
            revoke: List::default(),
        };
        let minted: MintedTokens =
            self.call_until(until, "/v1/queue_tokens", encode(&request)).await?;
        if minted.tokens.is_empty() {
            return Err(ClientError::Invalid("the provider gave no queue token".to_owned()));
        }
        Ok(self.member().store_tokens(class, last_resort, &minted.tokens)?)
    }
}

/// The groups that a further device still has to join.
const TO_JOIN: &str = "groups_to_join";
