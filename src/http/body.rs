//! Reading a request body within its limits: type and size are judged before a byte is read, time while it comes.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest,
    http::{StatusCode, header},
    web,
};
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    answer::{OCTET_STREAM, Refusal},
    limits::SMALL_BODY_BYTES,
    permits::Permits,
};
use crate::wire::ds::{Detail, DsError};

/// Memory for bodies, shared by all requests of a listener: for large ones, and as much again for small ones, so that
/// neither takes the other's.
#[derive(Clone)]
pub struct BodyBudget {
    large: Arc<Permits>,
    small: Arc<Permits>,
}

/// What one body takes of it.
pub type Share = OwnedSemaphorePermit;

impl BodyBudget {
    pub fn new(bytes_max: usize) -> Self {
        let (large, small) = kib_of(bytes_max);
        Self { large: Arc::new(Permits::new(large)), small: Arc::new(Permits::new(small)) }
    }

    /// From now on there is so much.
    pub fn resize(&self, bytes_max: usize) {
        let (large, small) = kib_of(bytes_max);
        self.large.resize(large);
        self.small.resize(small);
    }

    /// The share of a body of so many bytes that is in memory already. None where there is none left; nothing where the
    /// body is a small one.
    pub fn share_of_large(&self, bytes: usize) -> Option<Option<Share>> {
        if bytes <= SMALL_BODY_BYTES {
            return Some(None);
        }
        take(&self.large, bytes.div_ceil(KIB)).map(Some)
    }
}

fn kib_of(bytes_max: usize) -> (usize, usize) {
    let kib = bytes_max.div_ceil(KIB);
    // some hundred small ones fit into the smallest
    (kib, kib.max(SMALL_KIB_MIN))
}

fn take(of: &Permits, kib: usize) -> Option<Share> {
    of.try_acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)).ok()
}

/// A body in memory, with the share of the budget that it takes.
pub struct Body {
    pub bytes: Vec<u8>,
    _share: Share,
}

/// Reads the whole body.
pub async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    bytes_max: usize,
    timeout: Duration,
    budget: &BodyBudget,
) -> Result<Body, Refusal> {
    let declared = check_head(request, bytes_max)?;
    match tokio::time::timeout(timeout, collect(payload, declared, bytes_max, budget)).await {
        Ok(body) => body,
        Err(_) => Err(Refusal::http(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time; send it faster or in smaller requests",
        )),
    }
}

/// The declared length, where there is one.
fn check_head(request: &HttpRequest, bytes_max: usize) -> Result<Option<usize>, Refusal> {
    let headers = request.headers();
    let is_octets = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(OCTET_STREAM.as_bytes()));
    if !is_octets {
        return Err(Refusal::http(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Content-Type must be application/octet-stream",
        ));
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::http(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "bodies have no content coding: leave Content-Encoding out",
        ));
    }
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    match length.map(usize::try_from) {
        Some(Ok(length)) if length <= bytes_max => Ok(Some(length)),
        Some(_) => Err(Refusal::too_large(bytes_max)),
        None => Err(Refusal::http(StatusCode::BAD_REQUEST, "Content-Length is not a number")),
    }
}

async fn collect(
    mut payload: web::Payload,
    declared: Option<usize>,
    bytes_max: usize,
    budget: &BodyBudget,
) -> Result<Body, Refusal> {
    let mut bytes = Vec::with_capacity(declared.unwrap_or(0).min(FIRST_BYTES));
    // what has come counts, and not what was announced: who announces and sends nothing takes nobody's place
    let mut share = take(&budget.small, 1).ok_or_else(too_many)?;
    let mut is_large = false;
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| {
            tracing::debug!(%error, "a request body broke off");
            Refusal::http(StatusCode::BAD_REQUEST, "the body broke off")
        })?;
        let len = bytes.len() + chunk.len();
        if len > bytes_max {
            return Err(Refusal::too_large(bytes_max));
        }
        if !is_large && len > SMALL_BODY_BYTES {
            let kib = declared.unwrap_or(bytes_max).div_ceil(KIB);
            share = take(&budget.large, kib).ok_or_else(too_many)?;
            is_large = true;
        } else if !is_large && len.div_ceil(KIB) > share.num_permits() {
            let more = len.div_ceil(KIB) - share.num_permits();
            share.merge(take(&budget.small, more).ok_or_else(too_many)?);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Body { bytes, _share: share })
}

fn too_many() -> Refusal {
    DsError::Unavailable {
        detail: Detail::truncated("too many requests of this size at once; retry"),
        retry_after_ms: 1000,
    }
    .into()
}

/// For small bodies, at the least.
const SMALL_KIB_MIN: usize = 8 * 1024;
/// What is set aside for a body before any of it has come.
const FIRST_BYTES: usize = 4 * 1024;
const KIB: usize = 1024;

#[cfg(test)]
mod tests {
    use actix_web::{FromRequest, test::TestRequest};

    use super::*;

    async fn read_with(
        request: TestRequest,
        bytes_max: usize,
        budget: &BodyBudget,
    ) -> Result<Vec<u8>, u16> {
        let (request, mut payload) = request.to_http_parts();
        let payload = web::Payload::from_request(&request, &mut payload).await.unwrap();
        read(&request, payload, bytes_max, Duration::from_secs(60), budget)
            .await
            .map(|body| body.bytes)
            .map_err(|refusal| refusal.http.as_u16())
    }

    fn octets(body: Vec<u8>) -> TestRequest {
        TestRequest::post().insert_header((header::CONTENT_TYPE, OCTET_STREAM)).set_payload(body)
    }

    #[actix_web::test]
    async fn a_body_at_its_limit_is_read_and_one_above_is_not() {
        let budget = BodyBudget::new(0);
        assert_eq!(read_with(octets(vec![7; 10]), 10, &budget).await, Ok(vec![7; 10]));
        assert_eq!(read_with(octets(vec![7; 11]), 10, &budget).await, Err(413));
    }

    #[actix_web::test]
    async fn another_type_or_a_coding_is_refused_whatever_the_body() {
        let budget = BodyBudget::new(0);
        let json = TestRequest::post().insert_header((header::CONTENT_TYPE, "application/json"));
        assert_eq!(read_with(json, 10, &budget).await, Err(415));
        assert_eq!(read_with(TestRequest::post(), 10, &budget).await, Err(415));
        let coded = octets(vec![1]).insert_header((header::CONTENT_ENCODING, "identity"));
        assert_eq!(read_with(coded, 10, &budget).await, Err(415));
    }

    #[actix_web::test]
    async fn large_bodies_share_a_budget_that_comes_back() {
        let large = SMALL_BODY_BYTES + 1;
        let budget = BodyBudget::new(large);
        let (request, mut payload) = octets(vec![0; large]).to_http_parts();
        let payload = web::Payload::from_request(&request, &mut payload).await.unwrap();
        let held = read(&request, payload, large, Duration::from_secs(60), &budget).await.unwrap();
        assert_eq!(read_with(octets(vec![0; large]), large, &budget).await, Err(503));
        assert!(read_with(octets(vec![0; 10]), large, &budget).await.is_ok(), "small ones go on");
        drop(held);
        assert!(read_with(octets(vec![0; large]), large, &budget).await.is_ok());
    }
}
