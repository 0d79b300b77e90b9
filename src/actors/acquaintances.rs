//! Whom this provider deals with, from its store: so that after a start, when nobody's keys are in memory, the providers
//! that share groups with it are not taken for strangers.
//!
//! Deliberately absent: what the difference is (`federation::keys`, `http::federation`).

use std::collections::{HashMap, HashSet};

use super::{copies::is_copy, node::Node};
use crate::{
    store::{StoreError, unless_damaged},
    wire::ids::{Domain, GroupId},
};

impl Node {
    /// Tells the way out who they are. To be called at start and now and then.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn acquaint(&self) -> Result<(), StoreError> {
        if let Some(federation) = &self.federation {
            federation.acquaint(self.acquaintances().await?);
        }
        Ok(())
    }

    /// Providers with clients in groups here, then those whose groups have clients from here; [`ACQUAINTANCES_MAX`] at
    /// the most. A hub that names clients that nobody here is does not make itself one.
    pub(super) async fn acquaintances(&self) -> Result<HashSet<Domain>, StoreError> {
        let mut found = HashSet::new();
        let mut after: Option<Domain> = None;
        loop {
            let peers = self.store.replica_peers(after.as_ref(), PAGE).await?;
            let Some(last) = peers.last() else { break };
            after = Some(last.clone());
            if !add(&mut found, peers) {
                return Ok(found);
            }
        }
        let mut after: Option<Domain> = None;
        loop {
            let peers = self.store.outbound_peers(after.as_ref(), PAGE).await?;
            let Some(last) = peers.last() else { break };
            after = Some(last.clone());
            if !add(&mut found, peers) {
                return Ok(found);
            }
        }
        let mut looked: HashMap<Domain, usize> = HashMap::new();
        let mut after: Option<GroupId> = None;
        loop {
            let heads = self.store.group_heads(after.as_ref(), PAGE).await?;
            let Some(last) = heads.last() else { return Ok(found) };
            after = Some(last.group.clone());
            for head in heads.iter().filter(|head| is_copy(head, &self.domain)) {
                let hub = unless_damaged(self.hub_of_copy(&head.group).await.map(Some))?;
                let Some(hub) = hub else { continue };
                if found.contains(&hub) {
                    continue;
                }
                let looked = looked.entry(hub.clone()).or_default();
                *looked += 1;
                let is_one = *looked <= LOOKS_MAX && self.has_readers(&head.group).await?;
                if is_one && !add(&mut found, vec![hub]) {
                    return Ok(found);
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

/// `false`: there is no room for more.
fn add(found: &mut HashSet<Domain>, more: Vec<Domain>) -> bool {
    let room = ACQUAINTANCES_MAX.saturating_sub(found.len());
    found.extend(more.into_iter().take(room));
    found.len() < ACQUAINTANCES_MAX
}

const ACQUAINTANCES_MAX: usize = 50_000;
/// Copies of one hub that are looked at for a client from here.
const LOOKS_MAX: usize = 64;
const PAGE: usize = 256;
