//! Accounts.
use super::{limits::Limits, node::Node};
use crate::wire::{
    client::{ClientMessage, Consent, DeleteDevice, ProviderKeysAnswer, Register, Registered},
    ds::{Detail, DsError},
    ids::{ClientUri, Domain},
};

#[derive(Debug)]
pub struct Nonces;

impl Nonces {
    #[must_use]
    pub fn new(_limits: &Limits) -> Self {
        Self
    }
}

pub(super) fn skeleton() -> DsError {
    DsError::Unavailable { detail: Detail::truncated("not here yet"), retry_after_ms: 1000 }
}

impl Node {
    /// Who sent `message`: a registered client of this provider whose device is there. `endpoint` is the path called.
    ///
    /// # Errors
    /// unsupported_version, unauthenticated, stale_request, rate_limited, unavailable.
    pub async fn authenticate(
        &self,
        _message: &ClientMessage,
        _endpoint: &str,
    ) -> Result<ClientUri, DsError> {
        Err(skeleton())
    }

    pub async fn register(
        &self,
        _message: &ClientMessage,
        _register: Register,
    ) -> Result<Registered, DsError> {
        Err(skeleton())
    }

    pub async fn delete_device(
        &self,
        _from: &ClientUri,
        _delete: DeleteDevice,
    ) -> Result<(), DsError> {
        Err(skeleton())
    }

    pub async fn delete_account(&self, _from: &ClientUri) -> Result<(), DsError> {
        Err(skeleton())
    }

    pub async fn consent(&self, _from: &ClientUri, _consent: Consent) -> Result<(), DsError> {
        Err(skeleton())
    }

    pub fn provider_keys(&self, _domain: &Domain) -> Result<ProviderKeysAnswer, DsError> {
        Err(skeleton())
    }
}
