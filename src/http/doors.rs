//! Both listeners of a node without sockets: what comes in is a body, what goes out an answer. For simulations.

use std::sync::Arc;

use super::{
    DrainSwitch, Endpoint, FederationLimits, HttpMetrics, Limits,
    answer::Answer,
    client::ClientApi,
    federation::{FederationApi, SIGNED, form},
};
use crate::{
    actors::{Node, live::Live},
    federation::{Federation, HttpAnswer},
    wire::{encode, federation::S2SEndpoint},
};

/// What clients and other providers of one node knock at.
pub(crate) struct Doors {
    client: ClientApi,
    federation: FederationApi,
    keys: Arc<Federation>,
    _drain: DrainSwitch,
}

impl Doors {
    pub(crate) fn new(node: &Node, federation: &Arc<Federation>) -> Self {
        let metrics = HttpMetrics::register(&prometheus::Registry::new()).unwrap();
        let (drain, draining) = DrainSwitch::new();
        let limits = FederationLimits::default();
        let shared = || Arc::new(Live::new(Limits::default()));
        Self {
            client: ClientApi::new(node.clone(), shared(), metrics.clone(), draining),
            federation: FederationApi::new(
                node.clone(),
                Arc::clone(federation),
                shared(),
                &limits,
                metrics,
            ),
            keys: Arc::clone(federation),
            _drain: drain,
        }
    }

    /// What a client's request is answered, with HTTP's status.
    pub(crate) async fn client(&self, path: &str, bytes: &[u8]) -> (u16, Vec<u8>) {
        let posted = Endpoint::POSTED.into_iter().find(|endpoint| endpoint.path() == path);
        let endpoint = posted.unwrap_or_else(|| panic!("clients do not post to {path}"));
        let answer = self.client.take(endpoint, bytes).await;
        let answer = answer.unwrap_or_else(|refusal| Answer::refused(endpoint.form(), refusal));
        (answer.http.as_u16(), answer.bytes)
    }

    /// What another provider's signed message is answered.
    pub(crate) async fn message(&self, path: &str, bytes: &[u8]) -> HttpAnswer {
        let signed = SIGNED.into_iter().find(|endpoint| endpoint.path() == path);
        let endpoint = signed.unwrap_or_else(|| panic!("providers do not post to {path}"));
        let answer = self.federation.take(endpoint, bytes).await;
        let answer = answer.unwrap_or_else(|refusal| Answer::refused(form(endpoint), refusal));
        let Answer { http, bytes, retry_after_ms, .. } = answer;
        // HTTP counts in seconds
        let retry_after_ms = retry_after_ms.map(|ms| ms.div_ceil(1000).max(1) * 1000);
        HttpAnswer { status: http.as_u16(), retry_after_ms, body: bytes }
    }

    /// This provider's keys.
    pub(crate) fn keys(&self, path: &str) -> HttpAnswer {
        let keys = match path == S2SEndpoint::SignatureKey.path() {
            true => self.keys.signature_keys(),
            false => self.keys.verification_keys(),
        };
        HttpAnswer { status: 200, retry_after_ms: None, body: encode(&keys) }
    }
}
