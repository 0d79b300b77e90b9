//! What an application does with groups. Each call is done when the hub has accepted it.

use std::time::Duration;

use openmls::prelude::Ciphersuite;

use super::{
    Client, ClientError, Outcome,
    core::{
        Content, CoreError, GroupState, GroupView, Hub, NewGroup, NewProposal, Operation,
        PolicyChange, Refusal, check_promise,
    },
};
use crate::{
    policy::leaf::scheme_of,
    wire::{
        client::ProviderKeysAnswer,
        codec::{List, Secret},
        ds::{DsError, FanoutFilter},
        encode,
        extensions::{
            GROUP_POLICY, GroupPolicy, KeyPackageClass, PublicKey, SignatureScheme, USER_KEY,
        },
        ids::{ClientUri, Domain, GroupId, Timestamp, UserUri},
        key_packages::{GroupKeyPackageRequest, GroupKeyPackageResponse, KeyPackageStatus},
        mls::RequiredCapabilities,
        portability::{MigrationRequest, MigrationResponse},
    },
};

/// How often the target is asked anew because another commit came first.
const MOVES_MAX: u32 = 5;
/// How long a target is asked for its word. Nothing has begun then, so somebody who waits had better hear that it is away.
const PROMISE_PATIENCE: Duration = Duration::from_secs(20);

impl Client {
    /// Creates a group at this client's own provider.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_group(
        &self,
        name: &str,
        suite: Ciphersuite,
        policy: Option<GroupPolicy>,
    ) -> Result<GroupId, ClientError> {
        let hub = self.member().client().domain();
        self.create_group_at(&hub, name, suite, policy).await
    }

    /// Creates a group that another provider hosts.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_group_at(
        &self,
        hub: &Domain,
        name: &str,
        suite: Ciphersuite,
        policy: Option<GroupPolicy>,
    ) -> Result<GroupId, ClientError> {
        let hub = self.hub(hub, suite).await?;
        self.have_group_tokens().await?;
        let new = NewGroup { name: name.to_owned(), suite, policy };
        let now = self.now();
        let (group, request) = self.member().create_group(&hub, &new, now)?;
        self.drive(request).await?;
        Ok(group)
    }

    /// Deletes a group for everyone.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn delete_group(&self, group: &GroupId) -> Result<Outcome, ClientError> {
        self.operate(group, Operation::DeleteGroup).await
    }

    /// Adds users with all their clients. Each must have handed this user a consent token ([`Client::connect`]).
    ///
    /// # Errors
    /// [`ClientError::NotConnected`], [`ClientError::NoKeyPackages`], [`ClientError`]
    pub async fn add_users(
        &self,
        group: &GroupId,
        users: &[UserUri],
    ) -> Result<Outcome, ClientError> {
        let present = self.member().group(group)?.members;
        let mut key_packages = Vec::new();
        for user in users {
            if !present.iter().any(|member| member.user == *user) {
                key_packages.extend(self.group_key_packages(group, user).await?);
            }
        }
        if key_packages.is_empty() {
            return Ok(Outcome::AlreadySo);
        }
        let key_packages = key_packages.into_iter().map(|(_, key_package)| key_package).collect();
        self.operate(group, Operation::AddUsers { key_packages }).await
    }

    /// Adds the user's own other clients: all of them, or those named.
    ///
    /// # Errors
    /// [`ClientError::NoKeyPackages`], [`ClientError`]
    pub async fn add_own_clients(
        &self,
        group: &GroupId,
        only: &[ClientUri],
    ) -> Result<Outcome, ClientError> {
        let user = self.member().client().user();
        // one's own consent token is given to oneself
        let token = self.own_token(&user).await?;
        let mut contact = self.member().contact(&user)?;
        contact.their_token = Some(token);
        self.member().set_contact(&user, &contact)?;
        let present = self.member().group(group)?.members;
        let key_packages: Vec<Vec<u8>> = self
            .group_key_packages(group, &user)
            .await?
            .into_iter()
            .filter(|(client, _)| only.is_empty() || only.contains(client))
            .filter(|(client, _)| !present.iter().any(|member| member.client == *client))
            .map(|(_, key_package)| key_package)
            .collect();
        if key_packages.is_empty() {
            return Ok(Outcome::AlreadySo);
        }
        self.operate(group, Operation::AddClients { key_packages }).await
    }

    /// One group KeyPackage of each client of `user`, for `group`.
    ///
    /// # Errors
    /// [`ClientError::NotConnected`], [`ClientError::NoKeyPackages`] where not one client has one.
    pub async fn group_key_packages(
        &self,
        group: &GroupId,
        user: &UserUri,
    ) -> Result<Vec<(ClientUri, Vec<u8>)>, ClientError> {
        let token = self.member().contact(user)?.their_token;
        let token = token.ok_or_else(|| ClientError::NotConnected(user.clone()))?;
        let suite = self.member().suite_of(group)?;
        let required =
            RequiredCapabilities::of(&openmls::prelude::RequiredCapabilitiesExtension::new(
                &[
                    openmls::prelude::ExtensionType::Unknown(USER_KEY),
                    openmls::prelude::ExtensionType::Unknown(GROUP_POLICY),
                ],
                &[openmls::prelude::ProposalType::SelfRemove],
                &[],
            ));
        let request = GroupKeyPackageRequest {
            target_user: user.clone(),
            consent_token: Secret::new(token)
                .map_err(|_| ClientError::Invalid("a consent token is too long".to_owned()))?,
            ciphersuites: List::new(vec![suite as u16])
                .map_err(|_| ClientError::Invalid("too many ciphersuites".to_owned()))?,
            required: Some(required),
        };
        let answer: GroupKeyPackageResponse =
            self.call("/v1/group_key_packages", encode(&request)).await?;
        let mut status = answer.status;
        let mut found = Vec::new();
        for client in answer.clients.into_vec() {
            match client.key_package {
                Some(key_package) if client.status == KeyPackageStatus::Ok => {
                    let key_package = key_package.into_vec();
                    let (owner, class) = self.member().owner_of(&key_package)?;
                    // a provider must not bring somebody else in under this user's name
                    let as_asked = owner == client.client && owner.user() == *user;
                    if !as_asked || class != KeyPackageClass::Group {
                        return Err(ClientError::Invalid(format!(
                            "the provider answered with a KeyPackage that is none of {user} for groups"
                        )));
                    }
                    found.push((client.client, key_package));
                }
                _ => status = client.status,
            }
        }
        if found.is_empty() {
            return Err(ClientError::NoKeyPackages { user: user.clone(), status });
        }
        Ok(found)
    }

    /// Removes users with all their clients.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_users(
        &self,
        group: &GroupId,
        users: Vec<UserUri>,
    ) -> Result<Outcome, ClientError> {
        self.operate(group, Operation::RemoveUsers { users }).await
    }

    /// Removes clients of the own user.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_clients(
        &self,
        group: &GroupId,
        clients: Vec<ClientUri>,
    ) -> Result<Outcome, ClientError> {
        self.operate(group, Operation::RemoveClients { clients }).await
    }

    /// Removes some of another user's clients: proposes it and commits that.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_others_clients(
        &self,
        group: &GroupId,
        clients: Vec<ClientUri>,
    ) -> Result<Outcome, ClientError> {
        let proposals = clients.into_iter().map(NewProposal::Remove).collect();
        self.operate(group, Operation::Propose { proposals }).await?;
        self.update(group, false).await
    }

    /// Proposes that this client leaves; another member's next commit makes it so.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn leave(&self, group: &GroupId) -> Result<Outcome, ClientError> {
        let proposals = vec![NewProposal::Leave];
        self.operate(group, Operation::Propose { proposals }).await
    }

    /// New keys for this client's leaf; commits what is pending.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn update(&self, group: &GroupId, rotate_key: bool) -> Result<Outcome, ClientError> {
        self.operate(group, Operation::UpdateClient { rotate_key }).await
    }

    /// Changes the group's policy.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn change_policy(
        &self,
        group: &GroupId,
        changes: Vec<PolicyChange>,
    ) -> Result<Outcome, ClientError> {
        self.operate(group, Operation::UpdateGroup { changes }).await
    }

    /// Moves the group from the provider that hosts it to `target`. It is done when the hub says that `target` has it;
    /// everybody in the group follows by themselves. Where it does not come to that, the group stays where it is.
    ///
    /// # Errors
    /// [`ClientError::NotTaken`] where `target` does not want it, [`ClientError::NotMoved`] where others always came
    /// first, [`ClientError::Core`] where the group's policy does not let this user move it,
    /// [`ClientError::Unanswered`]: it may still move; [`Client::resume`] goes on with it.
    pub async fn migrate(&self, group: &GroupId, target: &Domain) -> Result<Outcome, ClientError> {
        for attempt in 0..MOVES_MAX {
            if attempt > 0 {
                // what came first is what the target is to be asked about now
                self.pull(0).await?;
            }
            let wanted = self.member().wish_to_move(group, target);
            let wanted = match wanted {
                Ok(wanted) => wanted,
                Err(CoreError::NothingToDo(_)) => return Ok(Outcome::AlreadySo),
                Err(error) => return Err(error.into()),
            };
            let response = self.promise(&wanted).await?;
            match self.operate(group, Operation::Migrate { response: encode(&response) }).await {
                Err(ClientError::Core(CoreError::PromiseOutdated(_))) => {}
                done => return done,
            }
        }
        Err(ClientError::NotMoved { group: group.clone() })
    }

    /// The target's word that it takes the group.
    pub(crate) async fn promise(
        &self,
        wanted: &MigrationRequest,
    ) -> Result<MigrationResponse, ClientError> {
        let target = wanted.target_domain_name.clone();
        let patience = self.patience.min(PROMISE_PATIENCE);
        let response: MigrationResponse =
            match self.call_within(patience, "/v1/migration_request", encode(wanted)).await {
                Err(ClientError::Refused(Refusal(DsError::NotAuthorized { detail }))) => {
                    return Err(ClientError::NotTaken { target, why: detail.as_str().to_owned() });
                }
                answer => answer?,
            };
        check_promise(wanted, &response, self.now()).map_err(|error| {
            let why = format!("what it answered is not good: {error}");
            ClientError::NotTaken { target, why }
        })?;
        Ok(response)
    }

    /// Enters the group anew by an external commit that replaces this client's leaf.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn resync(&self, group: &GroupId) -> Result<Outcome, ClientError> {
        self.have_group_tokens().await?;
        self.operate(group, Operation::Resync).await
    }

    /// Enters a group as a new client, by external commit.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn join(
        &self,
        group: &GroupId,
        hub: &Domain,
        name: &str,
        code: Option<[u8; 32]>,
    ) -> Result<Outcome, ClientError> {
        let now = self.now();
        let operation = Operation::Join { code };
        let request = self.member().join(group, hub, name, operation, now)?;
        self.drive(request).await
    }

    /// Proposes to be added to a group; a member's next commit makes it so.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn ask_to_join(
        &self,
        group: &GroupId,
        hub: &Domain,
        name: &str,
    ) -> Result<Outcome, ClientError> {
        let now = self.now();
        let request = self.member().join(group, hub, name, Operation::AskToJoin, now)?;
        self.drive(request).await
    }

    /// Sends a message that shows `text`.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn send_text(&self, group: &GroupId, text: &str) -> Result<Outcome, ClientError> {
        self.send_content(group, &Content::text(text)).await
    }

    /// # Errors
    /// [`ClientError`]
    pub async fn send_content(
        &self,
        group: &GroupId,
        content: &Content,
    ) -> Result<Outcome, ClientError> {
        self.operate(group, Operation::Send { content: content.encode() }).await
    }

    /// Stops or starts the delivery of application messages of a group to this client.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn mute(&self, group: &GroupId, muted: bool) -> Result<Outcome, ClientError> {
        let filter = if muted { FanoutFilter::HandshakeOnly } else { FanoutFilter::All };
        self.operate(group, Operation::UpdateFanoutInfo { filter }).await
    }

    /// Gives the hub a new queue token.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn update_queue_info(&self, group: &GroupId) -> Result<Outcome, ClientError> {
        self.operate(group, Operation::UpdateQueueInfo).await
    }

    /// The group that `name` means: its own name, its id, or the beginning of its id's last part.
    ///
    /// # Errors
    /// [`ClientError::NoSuchGroup`], [`ClientError::Ambiguous`]
    pub fn find_group(&self, name: &str) -> Result<GroupView, ClientError> {
        let gone =
            |group: &GroupView| matches!(group.state, GroupState::Left | GroupState::Deleted);
        let fits = |group: &GroupView| {
            let tail = group.id.as_str().rsplit('/').next().unwrap_or_default();
            group.name == name || group.id.as_str() == name || tail.starts_with(name)
        };
        let mut found: Vec<GroupView> = self.member().groups()?.into_iter().filter(fits).collect();
        if found.iter().any(|group| !gone(group)) {
            found.retain(|group| !gone(group));
        }
        match found.len() {
            0 => Err(ClientError::NoSuchGroup(name.to_owned())),
            1 => Ok(found.remove(0)),
            _ => Err(ClientError::Ambiguous {
                name: name.to_owned(),
                matches: found.into_iter().map(|group| group.id).collect(),
            }),
        }
    }

    async fn hub(&self, domain: &Domain, suite: Ciphersuite) -> Result<Hub, ClientError> {
        let keys = self.provider_keys(domain).await?;
        let external_sender = hub_key(&keys, scheme_of(suite), self.now()).ok_or_else(|| {
            ClientError::Invalid(format!(
                "{domain} hosts no groups of ciphersuite {:#06x}",
                suite as u16
            ))
        })?;
        Ok(Hub { domain: domain.clone(), external_sender })
    }

    async fn have_group_tokens(&self) -> Result<(), ClientError> {
        if self.member().tokens(KeyPackageClass::Group, false)? < 2 {
            self.mint(KeyPackageClass::Group, false, self.until()).await?;
        }
        Ok(())
    }
}

/// What a hub signs with in groups that are made `now`, by the keys that it publishes.
pub(crate) fn hub_key(
    keys: &ProviderKeysAnswer,
    scheme: SignatureScheme,
    now: Timestamp,
) -> Option<PublicKey> {
    let all = keys.signature.keys.iter().chain(keys.verification.keys.iter());
    let key = all
        .filter(|key| key.purpose.as_slice() == b"external-sender" && key.scheme == scheme)
        .filter(|key| key.not_before <= now && now < key.not_after)
        // the hub's older ones are listed until no group has them any more
        .max_by_key(|key| key.not_before)?;
    PublicKey::new(key.public_key.as_slice()).ok()
}
