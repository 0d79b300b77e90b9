//! How much one address may ask for. PROTOCOL.md §2, check 1.
//!
//! Loopback is not limited: what comes from there is a proxy that stands for many, or the operator.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{
    rate::{Limiter, Quota, TooMany},
    wire::ids::Timestamp,
};

/// The addresses that asked for something of late.
pub struct Addresses(Limiter<IpAddr>);

/// Addresses remembered at the same time. Beyond, strangers share one bucket until some have rested.
const ADDRESSES_MAX: usize = 100_000;

impl Addresses {
    pub fn new(quota: Quota) -> Self {
        Self(Limiter::new(quota, ADDRESSES_MAX))
    }

    /// Counts one request of `peer`.
    pub fn admit(&self, peer: SocketAddr, now: Timestamp) -> Result<(), TooMany> {
        let address = who(peer.ip());
        if address.is_loopback() { Ok(()) } else { self.0.check(&address, now) }
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

    #[test]
    fn one_network_of_ipv6_is_one_address_and_loopback_is_not_limited() {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 1);
        let addresses = Addresses::new(Quota { per_second: 1, burst: 5 });
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
}
