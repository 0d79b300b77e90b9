//! How much one address may ask for: a token bucket each, in bounded memory. PROTOCOL.md §2, check 1.
//!
//! Loopback is not limited: what comes from there is a proxy that stands for many, or the operator.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Buckets of all addresses of late.
pub struct Addresses {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

/// Addresses remembered at the same time. Beyond, strangers share one bucket until some have rested.
const ADDRESSES_MAX: usize = 100_000;
/// The bucket that they share.
const EVERYONE_ELSE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// A bucket holds what is given in so many seconds.
const BURST_SECONDS: f64 = 5.0;

impl Addresses {
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, burst: per_second * BURST_SECONDS, buckets: Mutex::default() }
    }

    /// Counts one request of `peer`; where it is one too many, how long to wait.
    pub fn admit(&self, peer: SocketAddr, now: Instant) -> Result<(), Duration> {
        let address = who(peer.ip());
        if address.is_loopback() {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&address) {
            // a bucket that is full again says no more than none
            buckets.retain(|_, bucket| self.tokens(bucket, now) < self.burst);
        }
        let key = if buckets.len() < ADDRESSES_MAX || buckets.contains_key(&address) {
            address
        } else {
            EVERYONE_ELSE
        };
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: self.burst, filled_at: now });
        bucket.tokens = self.tokens(bucket, now);
        bucket.filled_at = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_second));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn tokens(&self, bucket: &Bucket, now: Instant) -> f64 {
        let rested = now.saturating_duration_since(bucket.filled_at).as_secs_f64();
        (bucket.tokens + rested * self.per_second).min(self.burst)
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

    fn at(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 1)
    }

    #[test]
    fn an_address_that_asks_too_much_waits_and_others_do_not() {
        let (addresses, start) = (Addresses::new(2), Instant::now());
        for _ in 0..10 {
            addresses.admit(at("192.0.2.1"), start).unwrap();
        }
        let wait = addresses.admit(at("192.0.2.1"), start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        addresses.admit(at("192.0.2.2"), start).unwrap();
        addresses.admit(at("192.0.2.1"), start + wait).unwrap();
        addresses.admit(at("192.0.2.1"), start + wait).unwrap_err();
    }

    #[test]
    fn one_network_of_ipv6_is_one_address_and_loopback_is_not_limited() {
        let (addresses, now) = (Addresses::new(1), Instant::now());
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
    fn memory_is_bounded_and_strangers_then_share() {
        let (addresses, now) = (Addresses::new(1), Instant::now());
        for number in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 5 {
            let peer = SocketAddr::from((std::net::Ipv4Addr::from(0x0b00_0000 + number), 1));
            addresses.admit(peer, now).unwrap();
        }
        assert!(addresses.buckets.lock().unwrap().len() <= ADDRESSES_MAX + 1);
        addresses.admit(at("192.0.2.9"), now).unwrap_err();
        let rested = now + Duration::from_secs(60);
        addresses.admit(at("192.0.2.9"), rested).unwrap();
        assert_eq!(addresses.buckets.lock().unwrap().len(), 1, "who has rested is forgotten");
    }
}
