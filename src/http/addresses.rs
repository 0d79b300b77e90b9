//! How much one address may ask for, and how many connections it may have. PROTOCOL.md §2, check 1.
//!
//! Loopback is not limited, unless told otherwise: what comes from there is a proxy that stands for many, or the operator.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::limits::Limits;
use crate::{
    actors::Clock,
    rate::{Limiter, Quota, TooMany},
    wire::ids::Timestamp,
};

/// The addresses that asked for something of late.
pub struct Addresses {
    limiter: Limiter<IpAddr>,
    loopback_is_proxy: AtomicBool,
}

/// Addresses remembered at the same time. Beyond, strangers share one bucket until some have rested.
const ADDRESSES_MAX: usize = 100_000;

impl Addresses {
    pub fn new(quota: Quota, loopback_is_proxy: bool) -> Self {
        let loopback_is_proxy = AtomicBool::new(loopback_is_proxy);
        Self { limiter: Limiter::new(quota, ADDRESSES_MAX), loopback_is_proxy }
    }

    /// From now on these bounds hold.
    pub fn adjust(&self, limits: &Limits) {
        self.limiter.replace(limits.requests_per_address);
        self.loopback_is_proxy.store(limits.loopback_is_proxy, Ordering::Relaxed);
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        address.is_loopback() && self.loopback_is_proxy.load(Ordering::Relaxed)
    }

    /// Counts one request of `peer`.
    pub fn admit(&self, peer: SocketAddr, now: Timestamp) -> Result<(), TooMany> {
        let address = who(peer.ip());
        if self.is_proxy(address) {
            return Ok(());
        }
        self.limiter.check(&address, now)
    }
}

/// Who may have one more connection: of each address so many at the same time, and as many new ones in a second as it may
/// ask for something.
pub struct Gate {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_address_max: AtomicUsize,
    rates: Addresses,
    clock: Arc<dyn Clock>,
}

/// A connection's place, until it is dropped.
pub struct Place {
    of: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Gate {
    pub fn new(limits: &Limits, clock: Arc<dyn Clock>) -> Self {
        Self {
            open: Arc::default(),
            per_address_max: AtomicUsize::new(limits.connections_per_address_max),
            rates: Addresses::new(limits.requests_per_address, limits.loopback_is_proxy),
            clock,
        }
    }

    /// From now on these bounds hold, for who comes.
    pub fn adjust(&self, limits: &Limits) {
        self.per_address_max.store(limits.connections_per_address_max, Ordering::Relaxed);
        self.rates.adjust(limits);
    }

    /// A place for a connection of `peer`, or why it gets none. There are as many as there are connections.
    pub fn enter(&self, peer: SocketAddr) -> Result<Place, &'static str> {
        self.rates.admit(peer, self.clock.now()).map_err(|_| "address_rate")?;
        let address = who(peer.ip());
        let is_proxy = self.rates.is_proxy(address);
        let per_address_max = self.per_address_max.load(Ordering::Relaxed);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= per_address_max && !is_proxy {
            return Err("address_full");
        }
        *count += 1;
        Ok(Place { of: Arc::clone(&self.open), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Whom an address stands for: one host has a whole IPv6 network of 64 bits to itself.
fn who(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let mut octets = v6.octets();
            octets[8..].fill(0);
            Ipv6Addr::from(octets).into()
        }
        v4_or_loopback @ (IpAddr::V4(_) | IpAddr::V6(_)) => v4_or_loopback,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::clock::SystemClock;

    #[test]
    fn one_network_of_ipv6_is_one_address_and_loopback_is_not_limited() {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 1);
        let addresses = Addresses::new(Quota { per_second: 1, burst: 5 }, true);
        let now = Timestamp(1_700_000_000_000);
        for host in 0..5 {
            addresses.admit(at(&format!("2001:db8::{host}")), now).unwrap();
        }
        addresses.admit(at("2001:db8::ffff"), now).unwrap_err();
        addresses.admit(at("2001:db8:0:1::1"), now).unwrap();
        for _ in 0..100 {
            addresses.admit(at("127.0.0.1"), now).unwrap();
            addresses.admit(at("::1"), now).unwrap();
            addresses.admit(at("::ffff:127.0.0.1"), now).unwrap();
        }
    }

    #[test]
    fn an_address_has_so_many_connections_and_gets_their_places_back() {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 1);
        let gate = |loopback_is_proxy| {
            let limits = Limits {
                connections_per_address_max: 2,
                requests_per_address: Quota { per_second: 0, burst: 0 },
                loopback_is_proxy,
                ..Limits::default()
            };
            Gate::new(&limits, Arc::new(SystemClock))
        };
        let one = gate(true);
        let held = (one.enter(at("192.0.2.1")).ok().unwrap(), one.enter(at("192.0.2.1")).ok());
        assert_eq!(one.enter(at("192.0.2.1")).err(), Some("address_full"));
        assert!(one.enter(at("192.0.2.2")).is_ok(), "another address");
        let proxied: Vec<_> = (0..5).map(|_| one.enter(at("127.0.0.1")).ok().unwrap()).collect();
        drop(held.0);
        assert!(one.enter(at("192.0.2.1")).is_ok(), "a place that came back");
        drop((held.1, proxied));
        assert!(one.open.lock().unwrap().is_empty(), "nobody is remembered for nothing");
        let other = gate(false);
        let _held = (other.enter(at("127.0.0.1")).ok(), other.enter(at("127.0.0.1")).ok());
        assert_eq!(other.enter(at("127.0.0.1")).err(), Some("address_full"));
    }
}
