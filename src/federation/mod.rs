//! Stand-in.

pub mod trace;

use crate::wire::{
    client::VerificationKeyResponse,
    ds::DsError,
    federation::{EventType, S2SEndpoint},
    ids::{Domain, RequestId},
};

pub struct Federation {
    pub keys: VerificationKeyResponse,
}

pub struct Opened {
    pub sender: Domain,
    pub event: EventType,
    pub request_id: RequestId,
    pub body: Vec<u8>,
    pub is_repeat: bool,
}

impl Federation {
    pub async fn open(&self, _endpoint: S2SEndpoint, _bytes: &[u8]) -> Result<Opened, DsError> {
        Err(crate::wire::ds::DsError::Malformed {
            detail: crate::wire::ds::Detail::truncated("stand-in"),
        })
    }
    pub fn verification_keys(&self) -> VerificationKeyResponse {
        self.keys.clone()
    }
    pub fn signature_keys(&self) -> VerificationKeyResponse {
        self.keys.clone()
    }
}
