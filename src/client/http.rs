//! How a client speaks with its own provider: signed messages over HTTPS, and the stream. PROTOCOL.md §3.
//!
//! Here: one attempt at a call, with its limits and timeouts. Not here: what is said, and trying again
//! ([`super::Client`]).

#[cfg(test)]
pub(crate) mod simulated;

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tls_codec::DeserializeBytes;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

use crate::{
    crypto::{self, SigningKey},
    wire::{
        DecodeError,
        client::{ClientMessage, ClientMessageTbs, ClientResponse, OpenStream},
        codec::{Opaque, Text},
        decode,
        ds::{Detail, DsError, DsResponse, INFO_BYTES_MAX, ProtocolVersion},
        encode,
        ids::{ClientUri, Timestamp},
        queueing::{FeedAck, QueueEntry},
    },
};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take, beyond what the request itself asks to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// A stream on which nothing comes, no ping either, for this long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Largest answer: an Info and what is around it.
const ANSWER_BYTES_MAX: usize = INFO_BYTES_MAX + 65_536;
/// Unacknowledged bytes that a stream may have on their way.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the certificate to trust is not a PEM certificate: {0}")]
    Certificate(String),
    #[error(
        "no connection to the provider ({why}); is it running at {url}? Where it has another address now, \
         `register` again with that"
    )]
    Unreachable {
        url: String,
        why: String,
        /// Nothing says no: the time for it was over.
        is_timeout: bool,
    },
    #[error(
        "what answers at {url} is not the provider that this client trusts ({why}); `register` takes the \
         certificate to trust with --ca FILE, or --endpoints FILE of a provider on this machine"
    )]
    Untrusted { url: String, why: String },
    /// A stream was refused for the time that this client's clock shows.
    #[error("this client's clock is not the provider's: {0}")]
    ClockOff(String),
    #[error("the provider's answer cannot be read: {0}")]
    Answer(#[from] DecodeError),
    #[error("the provider answered with HTTP status {0}, which says nothing more")]
    Status(u16),
    #[error("the provider's answer is too large")]
    TooLarge,
    #[error("the request is too large")]
    RequestTooLarge,
    #[error("signing failed: {0}")]
    Signing(#[from] crypto::CryptoError),
    #[error("{0}")]
    Refused(#[from] DsError),
    #[error("the stream ended: {0}")]
    StreamEnded(String),
}

impl HttpError {
    /// Whether the same call may succeed later; `Some` is how long the provider asks to wait.
    #[must_use]
    pub fn passes(&self) -> Option<u64> {
        if let Self::Refused(error) = self {
            return retry_after_ms(error);
        }
        let passes = matches!(
            self,
            Self::Unreachable { .. } | Self::Status(429 | 500..=599) | Self::StreamEnded(_)
        );
        passes.then_some(0)
    }
}

/// How long a refusal that passes asks to wait.
pub(super) fn retry_after_ms(error: &DsError) -> Option<u64> {
    if let DsError::RateLimited { retry_after_ms, .. }
    | DsError::Unavailable { retry_after_ms, .. }
    | DsError::GroupMigrating { retry_after_ms, .. } = error
    {
        return Some(*retry_after_ms);
    }
    None
}

/// Who calls.
pub struct Caller<'a> {
    pub client: &'a ClientUri,
    pub key: &'a SigningKey,
    pub now: Timestamp,
}

/// A provider's client listener.
#[derive(Clone)]
pub struct Http {
    base: String,
    client: reqwest::Client,
    stream_tls: Option<Arc<ClientConfig>>,
    #[cfg(test)]
    simulated: Option<simulated::Network>,
}

impl Http {
    /// `base` is the listener's URL ("https://127.0.0.1:8443"). `certificate` is the PEM certificate that
    /// vouches for it; none: those that the system trusts.
    ///
    /// # Errors
    /// [`HttpError::Certificate`]
    pub fn new(base: &str, certificate: Option<&[u8]>) -> Result<Self, HttpError> {
        #[cfg(test)]
        if let Some(http) = simulated::at(base) {
            return Ok(http);
        }
        let builder = reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(50));
        let (builder, stream_tls) = match certificate {
            Some(pem) => {
                let mut config = trusting(pem)?;
                let stream = Arc::new(config.clone());
                config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                (builder.tls_backend_preconfigured(config), Some(stream))
            }
            None => {
                // an error says that the process has a provider already, which will do
                let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
                (builder.tls_version_min(reqwest::tls::Version::TLS_1_3), None)
            }
        };
        let client =
            builder.build().map_err(|error| HttpError::Certificate(with_causes(&error)))?;
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            client,
            stream_tls,
            #[cfg(test)]
            simulated: None,
        })
    }

    #[cfg(test)]
    pub(crate) fn is_simulated(&self) -> bool {
        self.simulated.is_some()
    }

    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Calls an endpoint that answers with a ClientResponse.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn call<T: DeserializeBytes>(
        &self,
        caller: &Caller<'_>,
        endpoint: &str,
        body: Vec<u8>,
        wait_ms: u32,
    ) -> Result<T, HttpError> {
        let (status, answer) = self.post(caller, endpoint, body, wait_ms).await?;
        let response: ClientResponse =
            decode(&answer).map_err(|error| unreadable(status, error))?;
        Ok(decode(response.outcome.into_result()?.as_slice())?)
    }

    /// As [`Self::call`], for an endpoint that answers nothing.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn tell(
        &self,
        caller: &Caller<'_>,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<(), HttpError> {
        let (status, answer) = self.post(caller, endpoint, body, 0).await?;
        let response: ClientResponse =
            decode(&answer).map_err(|error| unreadable(status, error))?;
        response.outcome.into_result()?;
        Ok(())
    }

    /// Calls an endpoint that takes a DSMessage.
    ///
    /// # Errors
    /// [`HttpError`]; what the hub refuses is no error here.
    pub async fn ds(
        &self,
        caller: &Caller<'_>,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<DsResponse, HttpError> {
        let (status, answer) = self.post(caller, endpoint, body, 0).await?;
        decode(&answer).map_err(|error| unreadable(status, error))
    }

    async fn post(
        &self,
        caller: &Caller<'_>,
        endpoint: &str,
        body: Vec<u8>,
        wait_ms: u32,
    ) -> Result<(u16, Vec<u8>), HttpError> {
        let timeout = ANSWER_TIMEOUT + Duration::from_millis(u64::from(wait_ms));
        #[cfg(test)]
        if let Some(network) = &self.simulated {
            let answer = network(&self.base, endpoint, signed(caller, endpoint, body)?);
            let answer = tokio::time::timeout(timeout, answer).await;
            let answer = answer.map_err(|_| self.no_answer_in_time())?;
            let url = self.base.clone();
            return answer.map_err(|why| HttpError::Unreachable { url, why, is_timeout: false });
        }
        let url = format!("{}{endpoint}", self.base);
        let failed = |error: reqwest::Error| self.failed(&error.without_url());
        let mut response = self
            .client
            .post(&url)
            .header("content-type", "application/octet-stream")
            .timeout(timeout)
            .body(signed(caller, endpoint, body)?)
            .send()
            .await
            .map_err(failed)?;
        let status = response.status().as_u16();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(HttpError::TooLarge);
            }
            answer.extend_from_slice(&chunk);
        }
        Ok((status, answer))
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) -> HttpError {
        let (url, why) = (self.base.clone(), with_causes(error));
        if of_tls(error) {
            HttpError::Untrusted { url, why }
        } else {
            HttpError::Unreachable { url, why, is_timeout: of_time(error) }
        }
    }

    pub(super) fn no_answer_in_time(&self) -> HttpError {
        let (url, why) = (self.base.clone(), "no answer in time".to_owned());
        HttpError::Unreachable { url, why, is_timeout: true }
    }

    /// Asks for the queue's stream. Whether the provider opens it is known from [`Stream::opened`], or what [`Stream::next`] gives.
    ///
    /// # Errors
    /// [`HttpError::Unreachable`], [`HttpError::Untrusted`], [`HttpError::StreamEnded`]
    pub async fn stream(&self, caller: &Caller<'_>) -> Result<Stream, HttpError> {
        let url = format!("{}{STREAM}", self.base).replacen("https://", "wss://", 1);
        let config = WebSocketConfig::default()
            .max_message_size(Some(ANSWER_BYTES_MAX))
            .max_frame_size(Some(ANSWER_BYTES_MAX));
        let connector = self.stream_tls.clone().map(Connector::Rustls);
        let connecting = tokio_tungstenite::connect_async_tls_with_config(
            url.as_str(),
            Some(config),
            true,
            connector,
        );
        let (mut socket, _) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| self.no_answer_in_time())?
            .map_err(|error| {
                if let tungstenite::Error::Http(answer) = &error {
                    return HttpError::Status(answer.status().as_u16());
                }
                self.failed(&error)
            })?;
        let open = encode(&OpenStream { window: WINDOW_BYTES });
        let first = signed(caller, STREAM, open)?;
        socket.send(Message::binary(first)).await.map_err(ended)?;
        Ok(Stream { socket, early: None })
    }
}

/// A client's queue, as it comes.
pub struct Stream {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What came while it was waited for the stream to be open.
    early: Option<QueueEntry>,
}

impl Stream {
    /// Waits until the provider has opened the queue, or has refused to. A provider reads what follows the first frame when it has
    /// opened, so it is a ping's answer that says so, or an entry, which is then what [`Self::next`] gives first.
    ///
    /// # Errors
    /// As [`Self::next`], and [`HttpError::StreamEnded`] where it says neither in time.
    pub async fn opened(&mut self) -> Result<(), HttpError> {
        let answer = async {
            // where it is closed already the close frame says more than this error
            let _ = self.socket.send(Message::Ping(Vec::new().into())).await;
            self.came().await
        };
        let came = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        let silent = |_| HttpError::StreamEnded("the provider did not open it in time".to_owned());
        self.early = came.map_err(silent)??;
        Ok(())
    }

    /// The next entry. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`HttpError::Refused`], [`HttpError::ClockOff`], [`HttpError::StreamEnded`], [`HttpError::Answer`]
    pub async fn next(&mut self) -> Result<QueueEntry, HttpError> {
        if let Some(entry) = self.early.take() {
            return Ok(entry);
        }
        loop {
            if let Some(entry) = self.came().await? {
                return Ok(entry);
            }
        }
    }

    /// The next entry, or none where a ping was answered before one came.
    async fn came(&mut self) -> Result<Option<QueueEntry>, HttpError> {
        loop {
            let frame = tokio::time::timeout(SILENCE_MAX, self.socket.next())
                .await
                .map_err(|_| HttpError::StreamEnded("the provider has gone silent".to_owned()))?;
            match frame {
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(decode(&bytes)?)),
                Some(Ok(Message::Pong(_))) => return Ok(None),
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame.map_or_else(
                        || HttpError::StreamEnded("closed by the provider".to_owned()),
                        |frame| closed(frame.code.into(), frame.reason.as_str()),
                    ));
                }
                Some(Ok(Message::Ping(_) | Message::Text(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(ended(error)),
                None => return Err(HttpError::StreamEnded("the connection is gone".to_owned())),
            }
        }
    }

    /// Acknowledges what is safe.
    ///
    /// # Errors
    /// [`HttpError::StreamEnded`]
    pub async fn acknowledge(&mut self, acks: &[FeedAck]) -> Result<(), HttpError> {
        for ack in acks {
            self.socket.feed(Message::binary(encode(ack))).await.map_err(ended)?;
        }
        self.socket.flush().await.map_err(ended)
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.socket.close(None)).await;
    }
}

const STREAM: &str = "/v1/stream";

fn signed(caller: &Caller<'_>, endpoint: &str, body: Vec<u8>) -> Result<Vec<u8>, HttpError> {
    let endpoint = Text::new(endpoint).map_err(|_| HttpError::RequestTooLarge)?;
    let tbs = ClientMessageTbs {
        version: ProtocolVersion::MIMI10,
        client: caller.client.clone(),
        endpoint,
        timestamp: caller.now,
        nonce: crypto::random(),
        body: Opaque::new(body).map_err(|_| HttpError::RequestTooLarge)?,
    };
    let signature = caller.key.sign_with_label("ClientMessageTBS", &encode(&tbs))?;
    Ok(encode(&ClientMessage {
        version: tbs.version,
        client: tbs.client,
        endpoint: tbs.endpoint,
        timestamp: tbs.timestamp,
        nonce: tbs.nonce,
        body: tbs.body,
        signature,
    }))
}

/// TLS 1.3, and nobody trusted but who these certificates vouch for.
fn trusting(pem: &[u8]) -> Result<ClientConfig, HttpError> {
    let certificate = |why: String| HttpError::Certificate(why);
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|error| certificate(error.to_string()))?;
        roots.add(der).map_err(|error| certificate(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(certificate("the file holds none".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| certificate(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn unreadable(status: u16, error: DecodeError) -> HttpError {
    if status == 200 { HttpError::Answer(error) } else { HttpError::Status(status) }
}

/// What a close frame says: the codes above 4000 are statuses. PROTOCOL.md §3.
fn closed(code: u16, reason: &str) -> HttpError {
    let said = reason.split_once(": ").map_or(reason, |(_, detail)| detail);
    let detail = Detail::truncated(said);
    match code.checked_sub(4000) {
        Some(3) => DsError::Unauthenticated { detail }.into(),
        Some(4) => DsError::NotAuthorized { detail }.into(),
        Some(17) => DsError::RateLimited { detail, retry_after_ms: CLOSED_RETRY_MS }.into(),
        Some(18) => DsError::Unavailable { detail, retry_after_ms: CLOSED_RETRY_MS }.into(),
        Some(20) => HttpError::ClockOff(said.to_owned()),
        Some(_) | None => {
            HttpError::StreamEnded(format!("closed by the provider ({code}): {reason}"))
        }
    }
}

/// A close frame has no room for how long to wait.
const CLOSED_RETRY_MS: u64 = 1_000;

/// Whether TLS itself failed: that does not pass by waiting.
fn of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // an io::Error hides what it was made of from `source`
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(|it| of_tls(it)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether a time was over: the HTTP client's, or the system's for a connection.
fn of_time(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = |error: &std::io::Error| error.kind() == std::io::ErrorKind::TimedOut;
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout)
            || error.downcast_ref().is_some_and(io)
        {
            return true;
        }
        next = error.source();
    }
    false
}

fn ended(error: tungstenite::Error) -> HttpError {
    HttpError::StreamEnded(with_causes(&error))
}

/// An error's text with what caused it: the outermost alone says "error sending request".
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_code_says_whether_the_stream_is_opened_again() {
        let deleted = closed(4003, "unauthenticated: no such client");
        assert!(matches!(&deleted, HttpError::Refused(DsError::Unauthenticated { .. })));
        assert_eq!(deleted.passes(), None);
        assert!(deleted.to_string().ends_with(": no such client"), "{deleted}");
        assert_eq!(closed(4004, "").passes(), None);
        assert_eq!(closed(4020, "stale_request: off").passes(), None);
        for code in [1001, 1006, 4017, 4018, 4019] {
            assert!(closed(code, "x: y").passes().is_some(), "{code}");
        }
    }

    #[test]
    fn certificate_of_somebody_else_is_told_from_a_provider_that_is_down() {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, unknown);
        assert!(of_tls(&tungstenite::Error::Io(wrapped)));
        assert!(!of_tls(&std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
    }
}
