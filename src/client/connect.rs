//! First contact with a user, and the consent that comes of it. PROTOCOL.md §5.

use std::collections::BTreeMap;

use super::{
    Client, ClientError,
    core::{Content, GroupState, OfferTarget, Operation, PolicyChange, Request, SUITES},
};
use crate::{
    crypto::{self, SigningKey},
    policy,
    wire::{
        client::{ConnectionRequestTo, Consent},
        codec::{List, Opaque},
        encode,
        extensions::{JoinCode, JoinPolicy},
        ids::{GroupId, Timestamp, UserUri},
        key_packages::{ConnectionKeyPackageRequest, ConnectionKeyPackageResponse},
    },
};

/// How long a joining code is good unless said otherwise.
const CODE_DAYS: u64 = 30;
const DAY_MS: u64 = 86_400_000;

impl Client {
    /// Asks a user to connect: makes a group of two, or takes the one made before, and offers it. When the user
    /// accepts, its consent token comes through the queue.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError`]
    pub async fn connect(&self, user: &UserUri) -> Result<GroupId, ClientError> {
        if *user == self.member().client().user() {
            return Err(ClientError::Invalid(
                "that is you; devices are added without asking".into(),
            ));
        }
        let ask = ConnectionKeyPackageRequest {
            target_user: user.clone(),
            requester: self.member().client().user(),
        };
        let answer: ConnectionKeyPackageResponse =
            self.call("/v1/connection_key_packages", encode(&ask)).await?;
        if answer.key_packages.is_empty() {
            return Err(ClientError::Unreachable(user.clone()));
        }
        let (group, code) = self.connection_group(user).await?;
        let token = self.own_token(user).await?;
        let target = OfferTarget {
            recipient: user.clone(),
            hub: self.member().group(&group)?.hub,
            group: group.clone(),
            join_code: code,
            consent_token: token
                .try_into()
                .map_err(|_| ClientError::Invalid("a consent token has 32 bytes".to_owned()))?,
        };
        let request = self.member().offer(&target, &answer.key_packages)?;
        let request = ConnectionRequestTo { recipient_domain: user.domain(), request };
        self.tell("/v1/connection_request", encode(&request)).await?;
        Ok(group)
    }

    /// The group that connects this user with `user`, and its joining code.
    async fn connection_group(&self, user: &UserUri) -> Result<(GroupId, [u8; 32]), ClientError> {
        let known: Option<(GroupId, [u8; 32])> = self.member().setting(&code_setting(user))?;
        if let Some((group, code)) = known
            && self.member().group(&group).is_ok_and(|view| view.state == GroupState::Active)
        {
            return Ok((group, code));
        }
        let code: [u8; 32] = crypto::random();
        let mut policy = policy::default_policy(&self.member().identity().user_key_hash());
        policy.join = JoinPolicy::Code;
        policy.codes = self.listed(code)?;
        let name = self.short_name(user);
        let group = self.create_group(&name, SUITES[0], Some(policy)).await?;
        let member = self.member();
        member.set(&code_setting(user), &(group.clone(), code))?;
        let mut contact = member.contact(user)?;
        contact.group = Some(group.clone());
        member.set_contact(user, &contact)?;
        Ok((group, code))
    }

    fn listed(&self, code: [u8; 32]) -> Result<ListOfCodes, ClientError> {
        let key = SigningKey::from_seed(code).map_err(super::CoreError::from)?;
        let code = JoinCode {
            scheme: key.scheme(),
            public_key: key.public().clone(),
            expires_at: self.now().plus_ms(CODE_DAYS * DAY_MS),
        };
        List::new(vec![code]).map_err(|_| ClientError::Invalid("a code is too long".to_owned()))
    }

    /// Accepts a connection request: joins the offered group and answers with this user's own consent token.
    ///
    /// # Errors
    /// [`ClientError::NoRequest`], [`ClientError::NotOfTwo`], [`ClientError`]
    pub async fn accept(&self, from: &UserUri) -> Result<GroupId, ClientError> {
        let request: Request = self
            .member()
            .requests()?
            .into_iter()
            .find(|request| request.from == *from)
            .ok_or_else(|| ClientError::NoRequest(from.clone()))?;
        let inside =
            self.member().group(&request.group).is_ok_and(|view| view.state == GroupState::Active);
        if !inside {
            let name = self.short_name(from);
            self.join(&request.group, &request.hub, &name, Some(request.join_code)).await?;
        }
        // whatever the offer says: what is sent there is read by everyone in it
        self.expect_only_us(&request)?;
        {
            let member = self.member();
            let mut contact = member.contact(from)?;
            contact.their_token = Some(request.their_token);
            contact.group = Some(request.group.clone());
            member.set_contact(from, &contact)?;
        }
        let token = self.own_token(from).await?;
        self.send_content(&request.group, &Content::consent_token(&token)).await?;
        self.member().forget_request(from)?;
        Ok(request.group)
    }

    fn expect_only_us(&self, request: &Request) -> Result<(), ClientError> {
        let member = self.member();
        let me = member.client().user();
        let members = member.group(&request.group)?.members;
        let is_in = |user: &UserUri| members.iter().any(|it| it.user == *user);
        let only_us = members.iter().all(|it| it.user == me || it.user == request.from);
        if only_us && is_in(&request.from) {
            return Ok(());
        }
        Err(ClientError::NotOfTwo { from: request.from.clone(), group: request.group.clone() })
    }

    /// The consent token that `user` has or gets of this user; the provider knows it when this returns.
    pub(super) async fn own_token(&self, user: &UserUri) -> Result<Vec<u8>, ClientError> {
        let token = {
            let member = self.member();
            let mut contact = member.contact(user)?;
            match contact.our_token {
                Some(token) => token,
                None => {
                    let token = crypto::random::<32>().to_vec();
                    contact.our_token = Some(token.clone());
                    member.set_contact(user, &contact)?;
                    token
                }
            }
        };
        self.consent(&[&token], &[]).await?;
        Ok(token)
    }

    /// Takes back what `user` was given: it gets no group KeyPackages of this user any more.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn revoke(&self, user: &UserUri) -> Result<(), ClientError> {
        let mut contact = self.member().contact(user)?;
        if let Some(token) = contact.our_token.take() {
            self.consent(&[], &[&token]).await?;
            self.member().set_contact(user, &contact)?;
        }
        Ok(())
    }

    async fn consent(&self, add: &[&[u8]], revoke: &[&[u8]]) -> Result<(), ClientError> {
        let hashes = |tokens: &[&[u8]]| {
            let hashes: Vec<Opaque<32, 32>> =
                tokens.iter().filter_map(|token| Opaque::new(crypto::sha256(token)).ok()).collect();
            List::new(hashes).map_err(|_| ClientError::Invalid("too many tokens".to_owned()))
        };
        let consent = Consent { add: hashes(add)?, revoke: hashes(revoke)? };
        self.tell("/v1/consent", encode(&consent)).await
    }

    /// Makes a joining code for a group and lists it in the group's policy. The code is a secret: who has it may join.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn add_code(&self, group: &GroupId, days: u64) -> Result<[u8; 32], ClientError> {
        let code: [u8; 32] = crypto::random();
        let key = SigningKey::from_seed(code).map_err(super::CoreError::from)?;
        let mut codes: BTreeMap<String, [u8; 32]> =
            self.member().setting(&codes_setting(group))?.unwrap_or_default();
        codes.insert(hex::encode(key.public().as_slice()), code);
        self.member().set(&codes_setting(group), &codes)?;
        let expires_at = self.expiry(days);
        let add = PolicyChange::AddCode { public: key.public().as_slice().to_vec(), expires_at };
        let open = self.member().group(group)?.policy.map(|policy| policy.join);
        let mut changes = vec![add];
        if open.is_some_and(|join| join < JoinPolicy::Code) {
            changes.push(PolicyChange::Join(JoinPolicy::Code));
        }
        self.operate(group, Operation::UpdateGroup { changes }).await?;
        Ok(code)
    }

    fn expiry(&self, days: u64) -> Timestamp {
        self.now().plus_ms(days.saturating_mul(DAY_MS))
    }
}

type ListOfCodes = List<JoinCode, { 64 * 1024 }>;

fn code_setting(user: &UserUri) -> String {
    format!("connection {user}")
}

fn codes_setting(group: &GroupId) -> String {
    format!("codes {group}")
}
