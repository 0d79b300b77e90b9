//! What becomes of a request body that was not read to its end when its request is answered (PROTOCOL.md §2, "Answers").
//!
//! actix by itself reads such a body on: without a bound where it is chunked, for as long as a disconnect may take else. Here the
//! connection takes so many bytes more and no others, and closes: when the body has ended, when the client has gone, or at
//! the latest after [`LINGER`]. Bytes that nobody takes stay in the client's own buffers, and it has that time to read the
//! answer. A connection that is closed upon unread bytes is reset, which may lose an answer that was not read yet: hence the time.
//!
//! Of HTTP/1 alone. On HTTP/2 dropping the body resets its stream (RFC 9113 §8.1) and grants it no window any more.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_web::{
    Error, HttpMessage,
    body::{BodySize, BoxBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    error::PayloadError,
    http::Version,
    middleware::Next,
    web::Bytes,
};
use futures_util::Stream;
use tokio::time::Sleep;

/// How long a client has to read the answer to a request whose body was not read.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// A middleware: answers as `next` does and then takes at most `bytes_max` of what was left of the body. The server's own
/// disconnect timeout must be zero, or it reads on after this.
///
/// # Errors
/// Those of `next`.
pub(super) async fn linger<B: MessageBody + 'static>(
    bytes_max: usize,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse, Error> {
    if request.version() >= Version::HTTP_2 {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let payload = request.take_payload();
    if matches!(payload, Payload::None) {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let unread = Shared::new(payload);
    let handed: Pin<Box<dyn Stream<Item = Taken>>> = Box::pin(unread.clone());
    request.set_payload(Payload::Stream { payload: handed });
    let response = next.call(request).await?;
    if unread.has_ended() {
        return Ok(response.map_into_boxed_body());
    }
    Ok(response.map_body(|_, body| {
        BoxBody::new(Lingering { body: body.boxed(), unread, bytes_left: bytes_max, until: None })
    }))
}

type Taken = Result<Bytes, PayloadError>;

/// A request's body for two readers: whoever works on the request, and us behind it. While one of them has it, actix
/// knows that it is unread and says `Connection: close`.
#[derive(Clone)]
struct Shared(Rc<RefCell<Unread>>);

struct Unread {
    payload: Payload,
    ended: bool,
}

impl Shared {
    fn new(payload: Payload) -> Self {
        Self(Rc::new(RefCell::new(Unread { payload, ended: false })))
    }

    fn has_ended(&self) -> bool {
        self.0.borrow().ended
    }
}

impl Stream for Shared {
    type Item = Taken;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Taken>> {
        let mut unread = self.0.borrow_mut();
        if unread.ended {
            return Poll::Ready(None);
        }
        let taken = ready!(Pin::new(&mut unread.payload).poll_next(cx));
        unread.ended = !matches!(taken, Some(Ok(_)));
        Poll::Ready(taken)
    }
}

/// The body of an answer that ends when the connection may close. Its size is that of the answer, so that the client has
/// all of it before.
struct Lingering {
    body: BoxBody,
    unread: Shared,
    bytes_left: usize,
    /// From the end of the answer on.
    until: Option<Pin<Box<Sleep>>>,
}

impl MessageBody for Lingering {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = &mut *self;
        let until = match &mut this.until {
            Some(until) => until,
            None => {
                if let Some(part) = ready!(Pin::new(&mut this.body).poll_next(cx)) {
                    return Poll::Ready(Some(part));
                }
                this.until.insert(Box::pin(tokio::time::sleep(LINGER)))
            }
        };
        while until.as_mut().poll(cx).is_pending() {
            if this.bytes_left == 0 {
                return Poll::Pending;
            }
            let Some(Ok(taken)) = ready!(Pin::new(&mut this.unread).poll_next(cx)) else { break };
            this.bytes_left = this.bytes_left.saturating_sub(taken.len());
        }
        Poll::Ready(None)
    }
}
