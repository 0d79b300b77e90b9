//! `GET /v1/stream`: a client's queue over a WebSocket. PROTOCOL.md §3.
//!
//! The first frame up is a ClientMessage with an `OpenStream`; then each binary frame down is one `QueueEntry` and each
//! binary frame up is one `FeedAck`. How much may be unacknowledged is the queue's to judge. A stream ends with a close
//! code: 1001 when the node stops or the client stopped answering pings, 1003 for anything but binary frames, 1009 for
//! a frame that is too large, and 4000 + DSStatus for every refusal.

use std::time::{Duration, Instant};

use actix_web::{
    FromRequest as _, HttpRequest, HttpResponse, dev::Payload, error::PayloadError,
    http::StatusCode, rt, web,
};
use actix_ws::{CloseCode, CloseReason, Message, MessageStream, ProtocolError, Session};
use tokio::{sync::OwnedSemaphorePermit, time};
use tracing::Instrument;

use super::{
    answer::{Answer, Refusal},
    client::{ClientApi, LISTENER, body_of, client_message},
    endpoint::{Endpoint, Form},
    frames::Frames,
    front::busy,
    trace,
};
use crate::{
    actors::QueueStream,
    wire::{
        client::OpenStream,
        decode,
        ds::{Detail, DsError},
        encode,
        queueing::{FeedAck, QueueEntry},
    },
};

/// The largest frame up: a ClientMessage around four bytes.
const FRAME_UP_BYTES_MAX: usize = 4096;

/// Turns the request into a stream, or says why not.
pub async fn open(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<ClientApi>,
) -> HttpResponse {
    let started = Instant::now();
    let refuse = |refusal: Refusal| {
        let answer = Answer::refused(Form::ClientResponse, refusal);
        api.front.finish(Endpoint::Stream.path(), started, answer)
    };
    if let Err(error) = api.front.admit(&request) {
        return refuse(error.into());
    }
    if api.drain.is_draining() {
        return refuse(busy().into());
    }
    let frames = Frames::new(payload, FRAME_UP_BYTES_MAX as u64);
    let mut payload = Payload::Stream { payload: Box::pin(frames) as _ };
    let opened = match web::Payload::from_request(&request, &mut payload).await {
        Ok(payload) => actix_ws::handle(&request, payload),
        Err(error) => Err(error),
    };
    match opened {
        Ok((response, session, frames)) => {
            let http = response.status().as_u16();
            api.front.metrics.answered(LISTENER, Endpoint::Stream.path(), http, started.elapsed());
            let frames = frames.max_frame_size(FRAME_UP_BYTES_MAX);
            let trace = trace::of_client(&request, Endpoint::Stream.path());
            rt::spawn(run(api.clone(), session, frames).instrument(trace.span));
            response
        }
        Err(error) => refuse(Refusal::http(
            StatusCode::BAD_REQUEST,
            &format!("this endpoint is a WebSocket over HTTP/1.1: {error}"),
        )),
    }
}

/// Every reason that [`End::into_close`] gives.
pub(super) const REASONS: [&str; 8] = [
    "gone",
    "draining",
    "pings_unanswered",
    "stalled",
    "not_binary",
    "frame_too_large",
    "bad_frame",
    "refused",
];

/// Why a stream ends.
enum End {
    /// The client closed it, or its connection is gone.
    Gone,
    Draining,
    PingsUnanswered,
    /// A frame that was not read for longer than the limit.
    Stalled,
    NotBinary,
    FrameTooLarge,
    BadFrame(String),
    Refused(DsError),
}

async fn run(api: web::Data<ClientApi>, mut session: Session, mut frames: MessageStream) {
    api.front.metrics.streams.inc();
    let end = match begin(&api, &mut frames).await {
        Ok((queue, _permit)) => deliver(&api, &mut session, &mut frames, queue).await,
        Err(end) => end,
    };
    api.front.metrics.streams.dec();
    let (reason, close) = end.into_close();
    api.front.metrics.stream_closes.with_label_values(&[reason]).inc();
    tracing::debug!(
        listener = LISTENER,
        endpoint = Endpoint::Stream.path(),
        reason,
        "stream ended"
    );
    if let Some(close) = close {
        // a client that does not read its close frame is cut off with the connection
        let _ = time::timeout(CLOSE_TIMEOUT, session.close(Some(close))).await;
    }
}

/// Waits for the first frame, authenticates it and opens the queue. Until then the stream has no place among
/// those that wait: a stranger cannot take them all, only connections.
async fn begin(
    api: &ClientApi,
    frames: &mut MessageStream,
) -> Result<(QueueStream, OwnedSemaphorePermit), End> {
    let first = tokio::select! {
        biased;
        () = api.drain.started() => return Err(End::Draining),
        first = time::timeout(api.front.limits.stream_open_timeout, first_frame(frames)) => first,
    };
    let first = first.unwrap_or_else(|_| {
        let detail = Detail::truncated("the first frame, a ClientMessage, did not arrive in time");
        Err(End::Refused(DsError::Malformed { detail }))
    })?;
    let open = async {
        let message = client_message(&first)?;
        let OpenStream { window } = body_of(&message)?;
        let ticket = api.node.admit(Endpoint::Stream.class())?;
        let client = api.node.authenticate(&message, Endpoint::Stream.path()).await?;
        drop(ticket);
        let permit = api.waiting.try_acquire_owned().map_err(|_| {
            api.node.metrics().shed(Endpoint::Stream.class(), "permits");
            busy()
        })?;
        Ok((api.node.open_stream(&client, window).await?, permit))
    };
    let opened = time::timeout(api.front.limits.answer_timeout, open).await.unwrap_or_else(|_| {
        Err(DsError::Unavailable {
            detail: Detail::truncated("the queue was not opened in time; reconnect"),
            retry_after_ms: 1000,
        })
    });
    opened.map_err(End::Refused)
}

async fn first_frame(frames: &mut MessageStream) -> Result<Vec<u8>, End> {
    loop {
        match up(frames.recv().await)? {
            Up::Binary(bytes) => return Ok(bytes.to_vec()),
            Up::Ping(_) | Up::Pong => {}
        }
    }
}

/// Entries down, acknowledgements up, until one side has had enough.
async fn deliver(
    api: &ClientApi,
    session: &mut Session,
    frames: &mut MessageStream,
    mut queue: QueueStream,
) -> End {
    let mut ping = time::interval(api.front.limits.stream_ping);
    ping.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    ping.reset();
    let mut pings_unanswered = 0;
    loop {
        tokio::select! {
            biased;
            () = api.drain.started() => return End::Draining,
            frame = frames.recv() => match up(frame) {
                Ok(Up::Binary(bytes)) => match decode::<FeedAck>(&bytes) {
                    Ok(ack) => queue.ack(ack),
                    Err(error) => return End::BadFrame(error.to_string()),
                },
                Ok(Up::Ping(bytes)) => {
                    if let Err(end) = in_time(api, session.pong(&bytes)).await {
                        return end;
                    }
                }
                Ok(Up::Pong) => pings_unanswered = 0,
                Err(end) => return end,
            },
            _ = ping.tick() => {
                if pings_unanswered == PINGS_UNANSWERED_MAX {
                    return End::PingsUnanswered;
                }
                pings_unanswered += 1;
                if let Err(end) = in_time(api, session.ping(b"")).await {
                    return end;
                }
            }
            entries = queue.next() => match entries {
                Some(entries) => {
                    if let Err(end) = send(api, session, &entries).await {
                        return end;
                    }
                }
                None => return over(api),
            },
        }
    }
}

/// The queue ended the session, and does not say why: a client that comes back learns whether its device is gone.
fn over(api: &ClientApi) -> End {
    if api.drain.is_draining() {
        return End::Draining;
    }
    End::Refused(DsError::Unavailable {
        detail: Detail::truncated("another session took over, or reconnect"),
        retry_after_ms: 1000,
    })
}

async fn send(api: &ClientApi, session: &mut Session, entries: &[QueueEntry]) -> Result<(), End> {
    for entry in entries {
        in_time(api, session.binary(encode(entry))).await?;
        api.front.metrics.stream_entries.inc();
    }
    Ok(())
}

/// A client that does not read holds up nobody but itself, and not for ever.
async fn in_time(
    api: &ClientApi,
    sent: impl Future<Output = Result<(), actix_ws::Closed>>,
) -> Result<(), End> {
    match time::timeout(api.front.limits.stream_stall, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Stalled),
    }
}

enum Up {
    Binary(web::Bytes),
    Ping(web::Bytes),
    Pong,
}

fn up(frame: Option<Result<Message, ProtocolError>>) -> Result<Up, End> {
    match frame {
        None | Some(Ok(Message::Close(_))) => Err(End::Gone),
        Some(Err(ProtocolError::Io(error))) => Err(why_gone(&error)),
        Some(Ok(Message::Binary(bytes))) => Ok(Up::Binary(bytes)),
        Some(Ok(Message::Ping(bytes))) => Ok(Up::Ping(bytes)),
        Some(Ok(Message::Pong(_) | Message::Nop)) => Ok(Up::Pong),
        Some(Ok(Message::Text(_) | Message::Continuation(_))) => Err(End::NotBinary),
        Some(Err(ProtocolError::Overflow)) => Err(End::FrameTooLarge),
        Some(Err(error)) => Err(End::BadFrame(error.to_string())),
    }
}

/// What an I/O error of a stream means: its own bytes may be one.
fn why_gone(error: &std::io::Error) -> End {
    let payload = error.get_ref().and_then(|error| error.downcast_ref::<PayloadError>());
    match payload {
        Some(PayloadError::Overflow) => End::FrameTooLarge,
        None if error.kind() == std::io::ErrorKind::InvalidData => End::BadFrame(error.to_string()),
        Some(_) | None => End::Gone,
    }
}

impl End {
    /// A name for metrics, and what the client is told, if it still listens.
    fn into_close(self) -> (&'static str, Option<CloseReason>) {
        let told = |code, text: &str| {
            // RFC 6455 §5.5: a control frame holds 125 bytes, two of them the code
            Some(CloseReason {
                code,
                description: Some(Detail::truncated(text).as_str().chars().take(60).collect()),
            })
        };
        match self {
            Self::Gone => ("gone", None),
            Self::Draining => {
                ("draining", told(CloseCode::Away, "the provider is stopping; reconnect"))
            }
            Self::PingsUnanswered => {
                ("pings_unanswered", told(CloseCode::Away, "two pings were not answered"))
            }
            Self::Stalled => ("stalled", told(CloseCode::Policy, "entries were not read in time")),
            Self::NotBinary => {
                ("not_binary", told(CloseCode::Unsupported, "frames are binary and in one piece"))
            }
            Self::FrameTooLarge => {
                ("frame_too_large", told(CloseCode::Size, "a frame up holds at most 4096 bytes"))
            }
            Self::BadFrame(error) => ("bad_frame", told(CloseCode::Other(4001), &error)),
            Self::Refused(error) => {
                // DSStatus is the first byte of an encoded error
                let status = encode(&error).first().copied().unwrap_or_default();
                let code = CloseCode::Other(4000 + u16::from(status));
                ("refused", told(code, &format!("{}: {}", error.name(), error.detail())))
            }
        }
    }
}

const PINGS_UNANSWERED_MAX: u32 = 2;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_closes_with_its_status() {
        let detail = Detail::truncated(&"ü".repeat(500));
        let (reason, close) = End::Refused(DsError::Unauthenticated { detail }).into_close();
        let close = close.unwrap();
        assert_eq!((reason, close.code), ("refused", CloseCode::Other(4003)));
        assert!(close.description.unwrap().len() <= 123, "it fits into a control frame");
    }
}
