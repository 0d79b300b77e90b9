//! Queue tokens at work: minted and revoked for clients, bound for groups; and how far a group's feed was
//! acknowledged. The rules are in [`crate::queue::token`]. PROTOCOL.md §1.

use super::{
    errors::{internal, not_authorized, of_store, of_token, too_large},
    node::Node,
};
use crate::{
    crypto,
    queue::token::{self, Token, TokenClass, TokenProblem},
    store::{
        Batch, Condition, StoreError, Write,
        records::{Account, Device, Leaver, TokenRecord},
    },
    wire::{
        client::{Flag, MintedTokens, QueueTokens},
        codec::List,
        ds::DsError,
        extensions::{ClientQueueConfig, PublicKey, QueueToken, SignatureScheme},
        ids::{ClientUri, Domain, GroupId, RecipientId, Sequence, UserKeyHash},
    },
};

/// What goes into the batch that uses a token, so that using it and binding it are one write.
#[derive(Debug, Default)]
pub struct TokenUse {
    pub conditions: Vec<Condition>,
    pub writes: Vec<Write>,
}

/// Why a token cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(transparent)]
    Token(#[from] TokenProblem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A token of this provider whose client is there.
pub(super) struct Opened {
    pub token: Token,
    pub client: ClientUri,
    /// Of the user key of its account.
    pub user: UserKeyHash,
    pub record: Option<TokenRecord>,
    /// Holds for as long as no device of the client's user is registered or deleted.
    pub while_there: Condition,
}

impl Node {
    /// Mints tokens and revokes others. A revoked token is good for nothing new; a group that it is bound to already
    /// keeps delivering until the client gives it another one or leaves.
    ///
    /// # Errors
    /// malformed, not_authorized (a token that is not this client's), too_large, unavailable.
    pub async fn queue_tokens(
        &self,
        from: &ClientUri,
        request: QueueTokens,
    ) -> Result<MintedTokens, DsError> {
        let max = self.limits.tokens_per_request_max;
        if request.count > max {
            return Err(too_large("too many tokens at once", usize::from(max)));
        }
        let device = self.device_of(from).await?;
        let mut batch = Batch::new();
        for revoked in request.revoke.iter() {
            let token = self.token_keys.open(revoked).map_err(of_token)?;
            if token.queue != device.queue {
                return Err(of_token(TokenProblem::OtherClient));
            }
            let record = self.store.token(&token.id).await.map_err(of_store)?;
            if let Some(revoked) = token::revoke(record.as_ref(), from) {
                let at = token::revision(record.as_ref());
                batch = batch.when(Condition::TokenAt { token: token.id, revision: at });
                batch.push(Write::Token { token: token.id, record: revoked });
            }
        }
        if !batch.writes.is_empty() {
            self.store.write(batch).await.map_err(of_store)?;
        }
        let class = TokenClass::of(request.class, request.last_resort == Flag::Yes);
        let now = self.clock.now();
        let tokens: Result<Vec<QueueToken>, _> =
            (0..request.count).map(|_| self.token_keys.mint(device.queue, class, now)).collect();
        let tokens = tokens.map_err(internal)?;
        Ok(MintedTokens { tokens: List::new(tokens).map_err(internal)? })
    }

    /// Whether `config` leads to a queue of `client`, for `group` at `hub`, and `user` is the key of its user: a leaf
    /// may say that it is anyone's, and only the account says whose it is. What it returns goes into the batch that
    /// accepts the request; where a condition of it does not hold then, ask again.
    ///
    /// # Errors
    /// [`BindError`]
    pub async fn bind_token(
        &self,
        config: &ClientQueueConfig,
        client: &ClientUri,
        user: &UserKeyHash,
        hub: &Domain,
        group: &GroupId,
    ) -> Result<TokenUse, BindError> {
        if config.domain != self.domain {
            return Err(TokenProblem::Unknown.into());
        }
        let opened = self.open_token(&config.queue_token).await?;
        if &opened.client != client {
            return Err(TokenProblem::OtherClient.into());
        }
        if &opened.user != user {
            return Err(TokenProblem::OtherUserKey.into());
        }
        let Opened { token, record, while_there, .. } = opened;
        let groups_max = self.limits.last_resort_bindings_max;
        let bound = token::bind(&token, record.as_ref(), client, hub, group, groups_max)?;
        let revision = token::revision(record.as_ref());
        let write = bound.map(|record| Write::Token { token: token.id, record });
        Ok(TokenUse {
            conditions: vec![Condition::TokenAt { token: token.id, revision }, while_there],
            writes: write.into_iter().collect(),
        })
    }

    /// Opens a token, whatever its class, and finds whose it is.
    pub(super) async fn open_token(&self, token: &QueueToken) -> Result<Opened, BindError> {
        let token = self.token_keys.open(token)?;
        let client = self.store.client_of_queue(&token.queue).await?;
        let client = client.ok_or(TokenProblem::ClientGone)?;
        let account = self.store.account(&client.user()).await?;
        let there = account.filter(|account| account.devices.contains(&client));
        let account = there.ok_or(TokenProblem::ClientGone)?;
        let record = self.store.token(&token.id).await?;
        let while_there = Condition::AccountAt { user: client.user(), revision: account.revision };
        let user = user_key_hash(&account)?;
        Ok(Opened { token, client, user, record, while_there })
    }

    /// Up to where every one of `members` (client, its number in the group, and the first sequence that it is to get)
    /// has acknowledged the group's feed, as far as that is persisted. A client that is gone holds nothing back.
    /// Without members nothing is held: the highest sequence there is. Whoever holds back everything from `enough` on
    /// ends the search: behind that it does not matter how far the others are.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn slowest_cursor(
        &self,
        group: &GroupId,
        members: &[(ClientUri, RecipientId, Sequence)],
        enough: Sequence,
    ) -> Result<Sequence, StoreError> {
        let mut slowest = Sequence(u64::MAX);
        for (client, recipient, from) in members {
            if slowest < enough {
                break;
            }
            let member = (client, *recipient, *from);
            slowest = slowest.min(self.cursor_of(group, member).await?.unwrap_or(slowest));
        }
        Ok(slowest)
    }

    /// The same for those who have left `group` without all that they are owed, of whom `first` and what is behind it is still
    /// there. And who of them is owed nothing any more. Of so many (1,024) that not all are looked at, the others hold
    /// back everything.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn slowest_leaver(
        &self,
        group: &GroupId,
        first: Sequence,
    ) -> Result<(Sequence, Vec<RecipientId>), StoreError> {
        let (mut slowest, mut over) = (Sequence(u64::MAX), Vec::new());
        let (mut after, mut looked_at) = (None, 0);
        loop {
            let page = self.store.leavers(group, after, LEAVERS_PAGE).await?;
            let Some(last) = page.last() else { return Ok((slowest, over)) };
            if looked_at >= LEAVERS_MAX {
                return Ok((slowest.min(before(first)), over));
            }
            looked_at += page.len();
            after = Some(last.recipient);
            for Leaver { recipient, client, last } in page {
                if last < first {
                    over.push(recipient);
                    continue;
                }
                match self.cursor_of(group, (&client, recipient, first)).await? {
                    // it may still be owed that it has left, which is not in the log
                    Some(cursor) if cursor >= last => {}
                    Some(cursor) => slowest = slowest.min(cursor),
                    None => over.push(recipient),
                }
                if slowest < first {
                    return Ok((slowest, over));
                }
            }
        }
    }

    /// How far a client has acknowledged the feed of a membership; none where the client is gone. Nobody can say of damaged
    /// records: they hold back what everybody may, so that one client's do not have its groups keep their logs for ever.
    async fn cursor_of(
        &self,
        group: &GroupId,
        (client, recipient, from): (&ClientUri, RecipientId, Sequence),
    ) -> Result<Option<Sequence>, StoreError> {
        match self.store.subscription_to(client, group, recipient).await {
            Ok(Some(subscription)) => return Ok(Some(subscription.acknowledged)),
            Ok(None) => {}
            Err(StoreError::Corrupt { .. }) => return Ok(Some(before(from))),
            Err(error) => return Err(error),
        }
        match self.is_gone(client).await {
            Ok(true) => Ok(None),
            // the queue has not taken up the membership yet
            Ok(false) | Err(StoreError::Corrupt { .. }) => Ok(Some(before(from))),
            Err(error) => Err(error),
        }
    }

    async fn is_gone(&self, client: &ClientUri) -> Result<bool, StoreError> {
        let device = self.store.device(client).await?;
        Ok(device.is_none_or(|device| device.deleted_at.is_some()))
    }

    pub(super) async fn device_of(&self, client: &ClientUri) -> Result<Device, DsError> {
        let device = self.store.device(client).await.map_err(of_store)?;
        device
            .filter(|device| device.deleted_at.is_none())
            .ok_or_else(|| not_authorized("this device is not registered here"))
    }
}

/// What a leaf of this account's user is known by.
pub(super) fn user_key_hash(account: &Account) -> Result<UserKeyHash, StoreError> {
    let key = PublicKey::new(account.user_key.as_slice())
        .map_err(|error| StoreError::Corrupt { what: error.to_string() })?;
    Ok(crypto::user_key_hash(SignatureScheme(account.user_key_scheme), &key))
}

fn before(sequence: Sequence) -> Sequence {
    Sequence(sequence.0.saturating_sub(1))
}

const LEAVERS_PAGE: usize = 256;
/// So many of those who have left a group are looked at whenever its log is cut. Who is over goes then, and makes place for others;
/// where nobody goes, what is too old or too much of the log does.
pub(super) const LEAVERS_MAX: usize = 1024;
