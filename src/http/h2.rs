//! HTTP/2 within bounds (RFC 9113): so many streams at once, headers of so many bytes, streams that are reset again and
//! again, and answers that nobody reads.
//!
//! actix-http's own server of HTTP/2 has none of these bounds and no way to set them: a connection may have any number of
//! streams there, each with 16 MiB of headers, each answer may stay unread for ever, and a stream that was reset goes on.

use std::{
    cell::Cell,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::{Payload, Request, Response, error::PayloadError};
use actix_service::Service;
use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    http::{
        Method, Version,
        header::{self, Date, HeaderValue, TryIntoHeaderValue},
    },
    rt,
    web::Bytes,
};
use futures_util::stream;
use h2::{
    Reason, RecvStream, SendStream,
    server::{self, SendResponse},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    connection::{Bounded, Bounds, State},
    pace::Pace,
};

/// What every connection shares.
#[derive(Clone)]
pub(super) struct Http2 {
    pub bounds: Bounds,
    /// From the end of the TLS handshake to HTTP/2's preface.
    pub preface_max: Duration,
}

impl Http2 {
    /// Serves `io` until it ends, or until `drain` says that no new streams are taken.
    pub async fn serve<S, B>(
        &self,
        io: Bounded,
        app: Rc<S>,
        peer: Option<SocketAddr>,
        drain: impl Future<Output = ()>,
    ) where
        S: Service<Request> + 'static,
        S::Response: Into<Response<B>>,
        S::Error: Into<Response<BoxBody>>,
        B: MessageBody + 'static,
    {
        let state = io.state();
        let mut builder = server::Builder::new();
        builder
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let handshake = timeout(self.preface_max, builder.handshake::<_, Bytes>(io)).await;
        let Ok(Ok(mut connection)) = handshake else {
            return self.bounds.cut("preface");
        };
        let resets = Rc::new(Resets::default());
        let mut drain = pin!(drain);
        let mut draining = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut drain, if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                    continue;
                }
                accepted = connection.accept() => accepted,
            };
            let (request, respond) = match accepted {
                Some(Ok(accepted)) => accepted,
                Some(Err(error)) => {
                    // h2 sees some of them before they come here
                    if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                        self.bounds.cut("resets");
                    }
                    return;
                }
                None => return,
            };
            if resets.are_too_many() {
                self.bounds.cut("resets");
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                // a peer that does not read why is cut off all the same
                let closed = poll_fn(|cx| connection.poll_closed(cx));
                let _ = timeout(self.preface_max, closed).await;
                return;
            }
            let stream = Stream {
                bounds: self.bounds.clone(),
                resets: Rc::clone(&resets),
                is_head: request.method() == Method::HEAD,
                respond,
            };
            rt::spawn(stream.run(Rc::clone(&state), Rc::clone(&app), into_request(request, peer)));
        }
    }
}

/// Streams that the peer reset before they were answered, and those that were.
#[derive(Default)]
struct Resets {
    reset: Cell<u32>,
    answered: Cell<u32>,
}

impl Resets {
    fn are_too_many(&self) -> bool {
        self.reset.get() > RESETS_MAX + self.answered.get()
    }
}

struct Stream {
    bounds: Bounds,
    resets: Rc<Resets>,
    is_head: bool,
    respond: SendResponse<Bytes>,
}

impl Stream {
    async fn run<S, B>(mut self, state: Rc<State>, app: Rc<S>, request: Request)
    where
        S: Service<Request>,
        S::Response: Into<Response<B>>,
        S::Error: Into<Response<BoxBody>>,
        B: MessageBody,
    {
        let _at_work = state.enter();
        let answered = tokio::select! {
            biased;
            // nobody waits for the answer any more
            _ = poll_fn(|cx| self.respond.poll_reset(cx)) => {
                self.resets.reset.set(self.resets.reset.get().saturating_add(1));
                return;
            }
            answered = app.call(request) => answered,
        };
        self.resets.answered.set(self.resets.answered.get().saturating_add(1));
        // an error means that the stream or its connection is gone
        let _ = match answered {
            Ok(response) => self.answer(response.into()).await,
            Err(error) => self.answer(error.into()).await,
        };
    }

    async fn answer<B: MessageBody>(mut self, response: Response<B>) -> Result<(), h2::Error> {
        let (response, body) = response.into_parts();
        let ends = self.is_head || body.size().is_eof();
        let mut stream = self.respond.send_response(head(&response, body.size()), ends)?;
        if ends {
            return Ok(());
        }
        let mut pace = Pace::begin(std::time::Instant::now());
        let mut body = pin!(body);
        while let Some(part) = poll_fn(|cx| body.as_mut().poll_next(cx)).await {
            let Ok(mut part) = part else {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            };
            while !part.is_empty() {
                stream.reserve_capacity(part.len().min(PART_BYTES));
                let until = Instant::from_std(pace.deadline(self.bounds.read_grace));
                let capacity = poll_fn(|cx| poll_room(&mut stream, cx));
                let Ok(capacity) = timeout_at(until, capacity).await else {
                    self.bounds.cut("slow_stream");
                    stream.send_reset(Reason::CANCEL);
                    return Ok(());
                };
                let Some(capacity) = capacity.transpose()? else { return Ok(()) };
                let sent = part.split_to(part.len().min(capacity));
                pace.took(sent.len());
                stream.send_data(sent, false)?;
            }
        }
        stream.send_data(Bytes::new(), true)
    }
}

/// How much of what was reserved may be sent, once it is something; none where the stream is gone.
fn poll_room(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<usize, h2::Error>>> {
    // h2 tells of more room only when some comes, and not of what there is
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            gone => return Poll::Ready(gone),
        }
    }
    Poll::Ready(Some(Ok(stream.capacity())))
}

fn into_request(request: http::Request<RecvStream>, peer: Option<SocketAddr>) -> Request {
    let (parts, body) = request.into_parts();
    let body = stream::unfold(body, async |mut body| {
        let part = match body.data().await? {
            Ok(part) => {
                // what was read may be sent again
                let released = body.flow_control().release_capacity(part.len());
                released.map(|()| part)
            }
            Err(error) => Err(error),
        };
        Some((part.map_err(PayloadError::Http2Payload), body))
    });
    let mut request = Request::with_payload(Payload::Stream { payload: Box::pin(body) as _ });
    let head = request.head_mut();
    head.uri = parts.uri;
    head.method = parts.method;
    head.version = Version::HTTP_2;
    head.headers = parts.headers.into();
    head.peer_addr = peer;
    request
}

fn head(response: &Response<()>, size: BodySize) -> http::Response<()> {
    let mut head = http::Response::new(());
    *head.status_mut() = response.status();
    let headers = head.headers_mut();
    for (name, value) in response.headers() {
        // they are HTTP/1's (RFC 9113 §8.2.2)
        if ![header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE].contains(name) {
            headers.append(name, value.clone());
        }
    }
    if let BodySize::Sized(bytes) = size {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    if let Ok(date) = Date::now().try_into_value() {
        headers.insert(header::DATE, date);
    }
    head
}

/// Streams of one connection at the same time.
const STREAMS_MAX: u32 = 128;
/// Headers of one request, decoded.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// What waits of one stream for its connection.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// What a peer may send before it was read, of one stream and of a connection.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const PART_BYTES: usize = 16 * 1024;
/// Streams that a peer may reset more than it lets be answered (CVE-2023-44487).
const RESETS_MAX: u32 = 200;
