//! KeyPackages.
use super::{accounts::skeleton, limits::Limits, node::Node};
use crate::wire::{
    client::{KeyPackagesLeft, MintedTokens, PublishKeyPackages, QueueTokens},
    ds::DsError,
    ids::ClientUri,
    key_packages::{
        ConnectionKeyPackageRequest, ConnectionKeyPackageResponse, ConnectionRequest,
        GroupKeyPackageRequest, GroupKeyPackageResponse,
    },
    queueing::QueueingServiceResponse,
};

#[derive(Debug)]
pub struct Fetches;

impl Fetches {
    #[must_use]
    pub fn new(_limits: &Limits) -> Self {
        Self
    }
}

impl Node {
    pub async fn publish_key_packages(
        &self,
        _from: &ClientUri,
        _publish: PublishKeyPackages,
    ) -> Result<KeyPackagesLeft, DsError> {
        Err(skeleton())
    }

    pub async fn queue_tokens(
        &self,
        _from: &ClientUri,
        _request: QueueTokens,
    ) -> Result<MintedTokens, DsError> {
        Err(skeleton())
    }

    pub async fn connection_key_packages(
        &self,
        _from: &ClientUri,
        _request: ConnectionKeyPackageRequest,
    ) -> Result<ConnectionKeyPackageResponse, DsError> {
        Err(skeleton())
    }

    pub async fn group_key_packages(
        &self,
        _from: &ClientUri,
        _request: GroupKeyPackageRequest,
    ) -> Result<GroupKeyPackageResponse, DsError> {
        Err(skeleton())
    }

    pub async fn connection_request(
        &self,
        _from: &ClientUri,
        _request: ConnectionRequest,
    ) -> Result<QueueingServiceResponse, DsError> {
        Err(skeleton())
    }
}
