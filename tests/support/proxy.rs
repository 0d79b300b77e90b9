//! What lies between two providers: a TCP proxy that lets everything pass, or not, as it is told.
//!
//! Here: connections and bytes. Which weather comes when is the test's plan, drawn from a seed.

#![allow(dead_code, reason = "each binary uses a part of it")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What happens to connections. A change reaches those that are open, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Clear,
    /// Every connection is closed at once.
    Down,
    /// Connections come about, and nothing moves on them.
    Silent,
    /// Every piece takes so long.
    Slow {
        ms: u64,
    },
    /// A connection is cut off when so many bytes of answers have passed: in the middle of one, sooner or later.
    Cut {
        after_bytes: usize,
    },
    /// Each new connection is held up for a time of its own up to this, so that later ones overtake it.
    Shuffled {
        max_ms: u64,
    },
}

impl Weather {
    /// Some bad weather.
    pub fn bad(random: &mut StdRng) -> Self {
        match random.random_range(0..5) {
            0 => Self::Down,
            1 => Self::Silent,
            2 => Self::Slow { ms: random.random_range(20..400) },
            3 => Self::Cut { after_bytes: random.random_range(0..6_000) },
            _ => Self::Shuffled { max_ms: random.random_range(100..1_500) },
        }
    }
}

/// A proxy to one address. Dropping it closes everything.
pub struct Proxy {
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    passed: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on loopback. `seed` decides what chance decides.
    pub async fn start(target: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, seen) = watch::channel(Weather::Clear);
        let passed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&passed);
        let accepting = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            // dropped with this task, and with it every connection
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                while connections.try_join_next().is_some() {}
                let (seen, chance) = (seen.clone(), random.random());
                connections.spawn(carry(stream, target, seen, chance, Arc::clone(&counter)));
            }
        });
        Self { address, weather, passed, accepting }
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Bytes that went towards the target so far.
    pub fn bytes(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until either side or the weather ends it.
async fn carry(
    mut near: TcpStream,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    chance: u64,
    passed: Arc<AtomicU64>,
) {
    let now = *weather.borrow_and_update();
    if now == Weather::Down {
        return;
    }
    if let Weather::Shuffled { max_ms } = now {
        tokio::time::sleep(Duration::from_millis(chance % (max_ms + 1))).await;
    }
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (mut up, mut down) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let mut answered = 0;
    loop {
        let now = *weather.borrow_and_update();
        // it may have come while something was passed on
        if now == Weather::Down {
            return;
        }
        if now == Weather::Silent {
            if weather.changed().await.is_err() {
                return;
            }
            answered = 0;
            continue;
        }
        let (len, upwards) = tokio::select! {
            changed = weather.changed() => {
                let is_down = matches!(*weather.borrow(), Weather::Down | Weather::Shuffled { .. });
                if changed.is_err() || is_down {
                    return;
                }
                answered = 0;
                continue;
            }
            read = near.read(&mut up) => (read.unwrap_or(0), true),
            read = far.read(&mut down) => (read.unwrap_or(0), false),
        };
        if len == 0 {
            return;
        }
        if let Weather::Slow { ms } = now {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        if upwards {
            passed.fetch_add(len as u64, Ordering::SeqCst);
            if far.write_all(&up[..len]).await.is_err() {
                return;
            }
            continue;
        }
        let mut piece = &down[..len];
        let mut ends = false;
        if let Weather::Cut { after_bytes } = now {
            let left = after_bytes.saturating_sub(answered);
            ends = len >= left;
            piece = &piece[..len.min(left)];
        }
        answered += len;
        if near.write_all(piece).await.is_err() || ends {
            return;
        }
    }
}
