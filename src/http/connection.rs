//! A connection's bounds below HTTP, whichever version is spoken on it: how long nothing may be asked for, and how slowly
//! the peer may read.
//!
//! actix judges the time of a first request's head and of keep-alive; a second head that never ends, an answer that is never
//! read and an HTTP/2 connection without streams it would keep for ever. All of these are seen here, where bytes go by.
//! A connection that breaks a bound ends with an I/O error, and whatever was going on in it with it.

use std::{
    cell::Cell,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use actix_web::rt::net::TcpStream;
use prometheus::IntCounterVec;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tokio_rustls::server::TlsStream;

use super::pace::Pace;

/// What requests and their connection know of each other.
#[derive(Debug)]
pub(super) struct State {
    at_work: Cell<usize>,
    idle_since: Cell<Instant>,
}

impl State {
    fn new() -> Rc<Self> {
        Rc::new(Self { at_work: Cell::new(0), idle_since: Cell::new(Instant::now()) })
    }

    /// From now until the guard is dropped a request is at work.
    pub fn enter(self: &Rc<Self>) -> AtWork {
        self.at_work.set(self.at_work.get() + 1);
        AtWork(Rc::clone(self))
    }
}

/// A request that is at work on its connection, to the end of its answer.
#[derive(Debug)]
pub(super) struct AtWork(Rc<State>);

impl Drop for AtWork {
    fn drop(&mut self) {
        let at_work = self.0.at_work.get() - 1;
        self.0.at_work.set(at_work);
        if at_work == 0 {
            self.0.idle_since.set(Instant::now());
        }
    }
}

/// The bounds of every connection of a listener.
#[derive(Clone)]
pub(super) struct Bounds {
    pub listener: &'static str,
    /// From the end of one request to the next one that is whole.
    pub idle_max: Duration,
    /// How long a peer may read nothing.
    pub read_grace: Duration,
    pub cuts: IntCounterVec,
}

impl Bounds {
    pub fn cut(&self, reason: &str) {
        self.cuts.with_label_values(&[self.listener, reason]).inc();
        tracing::debug!(listener = self.listener, reason, "a connection was cut");
    }

    fn cut_off(&self, reason: &'static str) -> io::Error {
        self.cut(reason);
        io::Error::new(io::ErrorKind::TimedOut, reason)
    }
}

/// The connection within its bounds.
pub(super) struct Bounded {
    tls: TlsStream<TcpStream>,
    state: Rc<State>,
    bounds: Bounds,
    idle: Pin<Box<Sleep>>,
    behind: Option<Behind>,
    turn: Turn,
}

struct Behind {
    pace: Pace,
    timer: Pin<Box<Sleep>>,
}

impl Bounded {
    pub fn new(tls: TlsStream<TcpStream>, bounds: Bounds) -> Self {
        let idle = Box::pin(tokio::time::sleep(bounds.idle_max));
        Self { tls, state: State::new(), bounds, idle, behind: None, turn: Turn::default() }
    }

    pub fn state(&self) -> Rc<State> {
        Rc::clone(&self.state)
    }

    /// Whether no request has been at work for too long.
    fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        if self.state.at_work.get() > 0 {
            return false;
        }
        let until = (self.state.idle_since.get() + self.bounds.idle_max).into();
        if self.idle.deadline() != until {
            self.idle.as_mut().reset(until);
        }
        self.idle.as_mut().poll(cx).is_ready()
    }

    /// The peer does not take what is to be sent.
    fn fell_behind(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let now = Instant::now();
        let grace = self.bounds.read_grace;
        let behind = self.behind.get_or_insert_with(|| Behind {
            pace: Pace::begin(now),
            timer: Box::pin(tokio::time::sleep(grace)),
        });
        let until = behind.pace.deadline(grace);
        if behind.timer.deadline() != until.into() {
            behind.timer.as_mut().reset(until.into());
        }
        if behind.timer.as_mut().poll(cx).is_ready() {
            return Err(self.bounds.cut_off("slow_reader"));
        }
        Ok(())
    }

    fn written(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match wrote {
            Poll::Pending => match self.fell_behind(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            Poll::Ready(Ok(bytes)) => {
                if let Some(behind) = &mut self.behind {
                    behind.pace.took(bytes);
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

/// How much a connection has read since others had their turn.
///
/// An HTTP/2 connection is read for as long as there is something to read, and tokio's own budget counts reads: a peer that never stops
/// sending frames of a few bytes had the thread, and all other connections of it, for a quarter of a second at a time.
#[derive(Debug, Default)]
struct Turn {
    bytes: usize,
}

/// Some two thousand frames of the smallest kind: a millisecond or two.
const TURN_BYTES: usize = 16 * 1024;

impl Turn {
    fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Whether the others are next. Then the task is woken once all that wait have been looked after, sockets among them.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.bytes < TURN_BYTES {
            return false;
        }
        self.bytes = 0;
        // its first poll has the task woken; a waker that is called here and now would come before sockets are looked at
        pin!(tokio::task::yield_now()).poll(cx).is_pending()
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = if self.turn.is_over(cx) {
            Poll::Pending
        } else {
            let before = buffer.filled().len();
            let read = Pin::new(&mut self.tls).poll_read(cx, buffer);
            match read {
                Poll::Ready(_) => self.turn.read(buffer.filled().len() - before),
                Poll::Pending => self.turn = Turn::default(),
            }
            read
        };
        if read.is_pending() && self.is_idle(cx) {
            return Poll::Ready(Err(self.bounds.cut_off("idle")));
        }
        read
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.tls).poll_write(cx, buffer);
        self.written(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.tls).poll_write_vectored(cx, buffers);
        self.written(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.tls).poll_flush(cx) {
            Poll::Pending => match self.fell_behind(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            Poll::Ready(Ok(())) => {
                self.behind = None;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.tls).poll_shutdown(cx) {
            Poll::Pending => match self.fell_behind(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            ready => ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, rc::Rc};

    use tokio::{io::AsyncReadExt as _, net::UnixStream, task::LocalSet};

    use super::*;

    /// Reads what never ends; as a connection of HTTP/2 does, in one task, for as long as there is something.
    async fn reads(bytes: usize, had: Rc<Cell<usize>>) {
        let (mut turn, mut left) = (Turn::default(), bytes);
        poll_fn(|cx| {
            while left > 0 {
                if turn.is_over(cx) {
                    return Poll::Pending;
                }
                let some = left.min(1000);
                turn.read(some);
                left -= some;
                had.set(had.get() + some);
            }
            Poll::Ready(())
        })
        .await;
    }

    #[test]
    fn whoever_never_stops_sending_leaves_the_others_their_turns_and_their_sockets() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let had = Rc::new(Cell::new(0));
            let (one, mut other) = UnixStream::pair().unwrap();
            let waits = Rc::new(Cell::new(usize::MAX));
            let (seen, at) = (Rc::clone(&waits), Rc::clone(&had));
            let (mut reader, _writer) = one.into_split();
            let honest = tokio::task::spawn_local(async move {
                let mut byte = [0];
                reader.read_exact(&mut byte).await.unwrap();
                seen.set(at.get());
            });
            // it waits for its socket, and something comes just as the flood begins
            tokio::task::yield_now().await;
            tokio::io::AsyncWriteExt::write_all(&mut other, b"x").await.unwrap();
            tokio::task::spawn_local(reads(1000 * TURN_BYTES, had)).await.unwrap();
            honest.await.unwrap();
            let before_it = waits.get();
            assert!(before_it <= 4 * TURN_BYTES, "{before_it} bytes of the flood came first");
        });
    }
}
