//! How an outcome becomes an HTTP answer: one table from `DSStatus` to HTTP's status. PROTOCOL.md §2, "Answers".

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    HttpResponse,
    body::{BodySize, MessageBody},
    http::{StatusCode, header},
    web::Bytes,
};

use super::{
    body::{BodyBudget, Share},
    endpoint::Form,
};
use crate::wire::{
    client::ClientResponse,
    codec::Opaque,
    ds::{Detail, DsError, DsResponse, Outcome, ProtocolVersion},
    encode,
};

/// The only type of every body.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// Why a request gets no `ok`: the error that the answer carries, and HTTP's word for it where that is more exact
/// than the error's own.
#[derive(Debug)]
pub struct Refusal {
    pub error: DsError,
    pub http: StatusCode,
}

impl From<DsError> for Refusal {
    fn from(error: DsError) -> Self {
        Self { http: http_status(&error), error }
    }
}

impl Refusal {
    /// A fault of the request that HTTP has a status for.
    pub fn http(http: StatusCode, detail: &str) -> Self {
        Self { error: DsError::Malformed { detail: Detail::truncated(detail) }, http }
    }

    pub fn too_large(limit: usize) -> Self {
        DsError::TooLarge {
            detail: Detail::truncated("the body is larger than this endpoint takes"),
            limit: limit as u64,
        }
        .into()
    }
}

/// An answer to be sent.
pub struct Answer {
    pub http: StatusCode,
    pub bytes: Vec<u8>,
    pub retry_after_ms: Option<u64>,
    /// "ok" or the error's name.
    pub status: &'static str,
    /// Of the memory for large answers, until it is sent.
    share: Option<Share>,
}

impl Answer {
    /// `body` is the encoded answer of an endpoint that speaks in ClientResponses.
    pub fn client(body: Vec<u8>) -> Result<Self, Refusal> {
        let body = Opaque::new(body).map_err(|error| Refusal::too_large(error.max))?;
        let response = ClientResponse { outcome: Outcome::Ok(body) };
        Ok(Self::ok(encode(&response)))
    }

    /// `bytes` are the encoded answer, as it is.
    pub fn ok(bytes: Vec<u8>) -> Self {
        Self { http: StatusCode::OK, bytes, retry_after_ms: None, status: "ok", share: None }
    }

    pub fn ds(response: &DsResponse) -> Self {
        let bytes = encode(response);
        match &response.outcome {
            Outcome::Ok(_) => Self::ok(bytes),
            Outcome::Err(error) => Self {
                http: http_status(error),
                bytes,
                retry_after_ms: retry_after_ms(error),
                status: error.name(),
                share: None,
            },
        }
    }

    pub fn refused(form: Form, Refusal { error, http }: Refusal) -> Self {
        let (retry_after_ms, status) = (retry_after_ms(&error), error.name());
        let bytes = match form {
            Form::DsResponse => encode(&DsResponse {
                version: ProtocolVersion::MIMI10,
                outcome: Outcome::Err(error),
            }),
            Form::ClientResponse => encode(&ClientResponse { outcome: Outcome::Err(error) }),
        };
        Self { http, bytes, retry_after_ms, status, share: None }
    }

    /// With its share of the memory for large answers. They change nothing, so that one may be asked for again.
    pub fn within(mut self, budget: &BodyBudget) -> Result<Self, Refusal> {
        self.share = budget.share_of_large(self.bytes.len()).ok_or_else(|| {
            Refusal::from(DsError::Unavailable {
                detail: Detail::truncated("too many large answers are not read yet; retry"),
                retry_after_ms: 1000,
            })
        })?;
        Ok(self)
    }

    pub fn into_response(self) -> HttpResponse {
        let mut response = HttpResponse::build(self.http);
        response.insert_header((header::CONTENT_TYPE, OCTET_STREAM));
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        if let Some(ms) = self.retry_after_ms {
            response.insert_header((header::RETRY_AFTER, ms.div_ceil(1000).max(1)));
        }
        response.body(Parts { bytes: self.bytes.into(), _share: self.share })
    }
}

/// An answer's bytes in parts: what is not sent yet stays here with its share, and not in a connection's buffer.
struct Parts {
    bytes: Bytes,
    _share: Option<Share>,
}

impl MessageBody for Parts {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.bytes.len() as u64)
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.bytes.len().min(PART_BYTES);
        Poll::Ready(Some(Ok(self.bytes.split_to(len))))
    }
}

const PART_BYTES: usize = 32 * 1024;

/// HTTP's status for each error: the table of PROTOCOL.md §2.
fn http_status(error: &DsError) -> StatusCode {
    match error {
        DsError::Malformed { .. } | DsError::UnsupportedVersion { .. } => StatusCode::BAD_REQUEST,
        DsError::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
        DsError::NotAuthorized { .. } => StatusCode::FORBIDDEN,
        DsError::GroupNotFound { .. } => StatusCode::NOT_FOUND,
        DsError::InvalidGroupId { .. }
        | DsError::WrongEpoch { .. }
        | DsError::PendingProposals { .. }
        | DsError::StaleRequest { .. } => StatusCode::CONFLICT,
        DsError::InvalidKeyPackage { .. }
        | DsError::InvalidGroupInfo { .. }
        | DsError::InvalidCommit { .. }
        | DsError::InvalidProposal { .. }
        | DsError::InvalidMessage { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        DsError::GroupMoved { .. } => StatusCode::MISDIRECTED_REQUEST,
        DsError::GroupMigrating { .. } | DsError::Unavailable { .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        DsError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        DsError::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
        DsError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn retry_after_ms(error: &DsError) -> Option<u64> {
    match error {
        DsError::GroupMigrating { retry_after_ms, .. }
        | DsError::RateLimited { retry_after_ms, .. }
        | DsError::Unavailable { retry_after_ms, .. } => Some(*retry_after_ms),
        DsError::Malformed { .. }
        | DsError::UnsupportedVersion { .. }
        | DsError::Unauthenticated { .. }
        | DsError::NotAuthorized { .. }
        | DsError::GroupNotFound { .. }
        | DsError::InvalidGroupId { .. }
        | DsError::InvalidKeyPackage { .. }
        | DsError::InvalidGroupInfo { .. }
        | DsError::WrongEpoch { .. }
        | DsError::InvalidCommit { .. }
        | DsError::InvalidProposal { .. }
        | DsError::PendingProposals { .. }
        | DsError::InvalidMessage { .. }
        | DsError::GroupMoved { .. }
        | DsError::TooLarge { .. }
        | DsError::Internal { .. }
        | DsError::StaleRequest { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::decode;

    fn unavailable(retry_after_ms: u64) -> DsError {
        DsError::Unavailable { detail: Detail::truncated("later"), retry_after_ms }
    }

    #[test]
    fn a_retry_hint_is_whole_seconds_and_never_early() {
        let hint = |ms| {
            let answer = Answer::refused(Form::ClientResponse, unavailable(ms).into());
            let response = answer.into_response();
            response.headers().get(header::RETRY_AFTER).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(hint(0), "1");
        assert_eq!(hint(1000), "1");
        assert_eq!(hint(1001), "2");
    }

    #[test]
    fn a_refusal_has_the_form_of_its_endpoint() {
        let ds = Answer::refused(Form::DsResponse, unavailable(5).into());
        let decoded: DsResponse = decode(&ds.bytes).unwrap();
        assert_eq!(decoded.outcome, Outcome::Err(unavailable(5)));
        let client = Answer::refused(Form::ClientResponse, unavailable(5).into());
        let decoded: ClientResponse = decode(&client.bytes).unwrap();
        assert_eq!(decoded.outcome, Outcome::Err(unavailable(5)));
        assert_eq!(client.http, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn http_can_be_more_exact_than_the_error() {
        let refusal = Refusal::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, "no");
        let answer = Answer::refused(Form::ClientResponse, refusal);
        assert_eq!((answer.http.as_u16(), answer.status), (415, "malformed"));
    }
}
