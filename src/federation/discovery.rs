//! Where a provider's Delivery Service is: what `https://<domain>/.well-known/mimi/ds-domain` says, and for how long.
//! PROTOCOL.md §4; TR.
//!
//! Pure: the time is an argument, `https` does the asking. Bounded: beyond its limit the domain that was learnt first is
//! forgotten, failures before others.

use std::{collections::HashMap, fmt, net::IpAddr, str::FromStr};

use headers::{Age, CacheControl, HeaderMap, HeaderMapExt};

use crate::wire::ids::{DOMAIN_MAX, Domain, Timestamp};

/// Where a domain says it.
pub const PATH: &str = "/.well-known/mimi/ds-domain";
/// More than any answer takes.
pub const ANSWER_BYTES_MAX: usize = DOMAIN_MAX + 16;
/// How long an answer holds that does not say.
pub const DEFAULT_MS: u64 = 3600 * 1000;
/// Whatever it says, it is not asked for more often than this, nor more seldom than that.
pub const LIFETIME_MIN_MS: u64 = 60 * 1000;
pub const LIFETIME_MAX_MS: u64 = 24 * 3600 * 1000;
/// How long a failure holds.
pub const FAILURE_MS: u64 = 30 * 1000;

/// A host and a port. The host is what a certificate must be good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHost {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(Domain),
    Address(IpAddr),
}

/// Text that names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host with an optional port, e.g. mimi.a.example or mimi.a.example:8448")]
pub struct HostError;

impl ServiceHost {
    /// What a domain answers: an FQDN and an optional port, as text; one line end behind it is overlooked.
    ///
    /// # Errors
    /// [`HostError`], also for an address in place of a name.
    pub fn from_answer(body: &[u8]) -> Result<Self, HostError> {
        let text = std::str::from_utf8(body).map_err(|_| HostError)?;
        let text = text.strip_suffix('\n').map_or(text, |t| t.strip_suffix('\r').unwrap_or(t));
        let found: Self = text.parse()?;
        match found.host {
            Host::Name(_) => Ok(found),
            Host::Address(_) => Err(HostError),
        }
    }

    /// The address, where it is one and no name.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self.host {
            Host::Name(_) => None,
            Host::Address(address) => Some(address),
        }
    }

    /// For a URL.
    #[must_use]
    pub fn authority(&self) -> String {
        match (&self.host, self.port) {
            (Host::Name(name), HTTPS) => name.to_string(),
            (Host::Name(name), port) => format!("{name}:{port}"),
            (Host::Address(IpAddr::V4(address)), port) => format!("{address}:{port}"),
            (Host::Address(IpAddr::V6(address)), port) => format!("[{address}]:{port}"),
        }
    }
}

impl FromStr for ServiceHost {
    type Err = HostError;

    /// A name or an address (`[::1]:8448`) with an optional port.
    fn from_str(text: &str) -> Result<Self, HostError> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(HostError)?;
            let address = address.parse().map_err(|_| HostError)?;
            let port = rest.strip_prefix(':');
            if port.is_none() && !rest.is_empty() {
                return Err(HostError);
            }
            (Host::Address(IpAddr::V6(address)), port)
        } else {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            match host.parse() {
                Ok(address) => (Host::Address(IpAddr::V4(address)), port),
                Err(_) => (Host::Name(named(host)?), port),
            }
        };
        let port = match port {
            None => HTTPS,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or(HostError)?
            }
            Some(_) => return Err(HostError),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for ServiceHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

/// A host that is a name wherever it is read: one whose last label begins with a digit is taken for an address by
/// some ("127.1", "0x7f.1"), and no top-level domain does.
pub fn named(host: &str) -> Result<Domain, HostError> {
    let last = host.rsplit('.').next().unwrap_or_default();
    match Domain::new(host) {
        Ok(name) if !last.starts_with(|c: char| c.is_ascii_digit()) => Ok(name),
        Ok(_) | Err(_) => Err(HostError),
    }
}

/// How long an answer with these headers holds.
#[must_use]
pub fn lifetime_ms(headers: &HeaderMap) -> u64 {
    let Some(control) = headers.typed_get::<CacheControl>() else { return DEFAULT_MS };
    if control.no_store() || control.no_cache() {
        return LIFETIME_MIN_MS;
    }
    let Some(max_age) = control.max_age() else { return DEFAULT_MS };
    let age = headers.typed_get::<Age>().map_or(0, |age| age.as_secs());
    let left = max_age.as_secs().saturating_sub(age).saturating_mul(1000);
    left.clamp(LIFETIME_MIN_MS, LIFETIME_MAX_MS)
}

/// What was learnt lately.
#[derive(Debug)]
pub struct Discoveries {
    domains_max: usize,
    known: HashMap<Domain, Learnt>,
}

#[derive(Debug)]
struct Learnt {
    /// Or why there is none.
    host: Result<ServiceHost, String>,
    at: Timestamp,
    until: Timestamp,
}

impl Discoveries {
    #[must_use]
    pub fn new(domains_max: usize) -> Self {
        Self { domains_max, known: HashMap::new() }
    }

    /// What is known of `domain`: none where it is to be asked.
    #[must_use]
    pub fn of(&self, domain: &Domain, now: Timestamp) -> Option<Result<ServiceHost, String>> {
        let learnt = self.known.get(domain)?;
        (learnt.at <= now && now < learnt.until).then(|| learnt.host.clone())
    }

    /// Takes note of what `domain` said, for as long as it holds, or of a failure.
    pub fn learn(
        &mut self,
        domain: Domain,
        outcome: Result<(ServiceHost, u64), String>,
        now: Timestamp,
    ) {
        self.known.remove(&domain);
        if self.known.len() >= self.domains_max.max(1) {
            let first = self.known.iter().min_by_key(|(_, l)| (l.host.is_ok(), l.at));
            if let Some(first) = first.map(|(domain, _)| domain.clone()) {
                self.known.remove(&first);
            }
        }
        let (host, lifetime_ms) = match outcome {
            Ok((host, lifetime_ms)) => (Ok(host), lifetime_ms),
            Err(why) => (Err(why), FAILURE_MS),
        };
        self.known.insert(domain, Learnt { host, at: now, until: now.plus_ms(lifetime_ms) });
    }

    /// The host of `domain` could not be reached: it is asked anew next time, unless it was just now.
    pub fn doubt(&mut self, domain: &Domain, now: Timestamp) {
        if self
            .known
            .get(domain)
            .is_some_and(|l| l.host.is_ok() && now.ms_since(l.at) >= LIFETIME_MIN_MS)
        {
            self.known.remove(domain);
        }
    }
}

const HTTPS: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn host(text: &str) -> ServiceHost {
        text.parse().unwrap()
    }

    fn domain(name: &str) -> Domain {
        Domain::new(name).unwrap()
    }

    #[test]
    fn an_answer_is_a_name_and_an_optional_port_and_nothing_else() {
        for (answer, authority) in [
            ("mimi.a.example", "mimi.a.example"),
            ("mimi.a.example:443", "mimi.a.example"),
            ("mimi.a.example:8448", "mimi.a.example:8448"),
            ("mimi.a.example\n", "mimi.a.example"),
            ("mimi.a.example:1\r\n", "mimi.a.example:1"),
        ] {
            let found = ServiceHost::from_answer(answer.as_bytes()).unwrap();
            assert_eq!(found.authority(), authority, "{answer:?}");
        }
        for bad in [
            "",
            "\n",
            " a.example",
            "a.example ",
            "a.example\n\n",
            "A.example",
            "a.example.",
            "a..b",
            "https://a.example",
            "a.example/x",
            "u@a.example",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:+1",
            "a.example: 1",
            "a.example:1:2",
            "a.example:x",
            "127.0.0.1",
            "127.0.0.1:443",
            "127.1",
            "1",
            "0x7f.1",
            "a.0x7f",
            "a.1",
            "[::1]",
            "[::1]:443",
            "::1",
            "é.example",
            "<html>",
        ] {
            assert_eq!(ServiceHost::from_answer(bad.as_bytes()), Err(HostError), "{bad:?}");
        }
        assert_eq!(ServiceHost::from_answer(&[0xff]), Err(HostError));
    }

    #[test]
    fn an_operator_may_name_an_address() {
        for (text, authority) in [
            ("127.0.0.1:8448", "127.0.0.1:8448"),
            ("[::1]:8448", "[::1]:8448"),
            ("[::1]", "[::1]:443"),
            ("localhost:1", "localhost:1"),
        ] {
            assert_eq!(host(text).authority(), authority);
        }
        assert_eq!(host("[::1]:8448").address(), Some("::1".parse().unwrap()));
        for bad in ["[::1", "[::1]x", "[a.example]", "::1", "[127.0.0.1]:1"] {
            assert_eq!(bad.parse::<ServiceHost>(), Err(HostError), "{bad}");
        }
    }

    #[test]
    fn an_answer_holds_as_long_as_it_says_within_bounds() {
        let lifetime = |control: &str, age: Option<&str>| {
            let mut headers = HeaderMap::new();
            if !control.is_empty() {
                headers.insert("cache-control", control.parse().unwrap());
            }
            if let Some(age) = age {
                headers.insert("age", age.parse().unwrap());
            }
            lifetime_ms(&headers)
        };
        assert_eq!(lifetime("", None), DEFAULT_MS);
        assert_eq!(lifetime("public", None), DEFAULT_MS);
        assert_eq!(lifetime("max-age=600", None), 600_000);
        assert_eq!(lifetime("public, max-age=600, immutable", None), 600_000);
        assert_eq!(lifetime("max-age=600", Some("100")), 500_000);
        assert_eq!(lifetime("max-age=0", None), LIFETIME_MIN_MS);
        assert_eq!(lifetime("max-age=600", Some("900")), LIFETIME_MIN_MS);
        assert_eq!(lifetime("max-age=99999999999", None), LIFETIME_MAX_MS);
        assert_eq!(lifetime("no-store, max-age=600", None), LIFETIME_MIN_MS);
        assert_eq!(lifetime("no-cache", None), LIFETIME_MIN_MS);
        assert_eq!(lifetime("max-age=soon", None), DEFAULT_MS);
    }

    #[test]
    fn a_failure_is_forgotten_sooner_than_a_host() {
        let mut known = Discoveries::new(10);
        let (a, b) = (domain("a.example"), domain("b.example"));
        known.learn(a.clone(), Ok((host("ds.a.example"), 600_000)), NOW);
        known.learn(b.clone(), Err("no".to_owned()), NOW);
        let later = NOW.plus_ms(FAILURE_MS - 1);
        assert_eq!(known.of(&a, later), Some(Ok(host("ds.a.example"))));
        assert_eq!(known.of(&b, later), Some(Err("no".to_owned())));
        assert_eq!(known.of(&b, NOW.plus_ms(FAILURE_MS)), None);
        assert_eq!(known.of(&a, NOW.plus_ms(600_000)), None);
        assert_eq!(known.of(&a, Timestamp(NOW.0 - 1)), None, "the clock was set back");
    }

    #[test]
    fn a_host_that_cannot_be_reached_is_looked_up_again_once_a_minute() {
        let mut known = Discoveries::new(10);
        let a = domain("a.example");
        known.learn(a.clone(), Ok((host("ds.a.example"), 600_000)), NOW);
        known.doubt(&a, NOW.plus_ms(LIFETIME_MIN_MS - 1));
        assert!(known.of(&a, NOW.plus_ms(LIFETIME_MIN_MS)).is_some());
        known.doubt(&a, NOW.plus_ms(LIFETIME_MIN_MS));
        assert!(known.of(&a, NOW.plus_ms(LIFETIME_MIN_MS)).is_none());
    }

    #[test]
    fn what_is_known_is_bounded_and_failures_go_first() {
        let mut known = Discoveries::new(3);
        let name = |n: u64| domain(&format!("d{n}.example"));
        known.learn(name(0), Ok((host("ds.example"), 600_000)), NOW);
        for n in 1..50 {
            known.learn(name(n), Err("no".to_owned()), NOW.plus_ms(n));
            assert!(known.known.len() <= 3);
        }
        assert!(known.of(&name(0), NOW.plus_ms(50)).is_some());
        assert!(known.of(&name(49), NOW.plus_ms(50)).is_some());
        assert!(known.of(&name(40), NOW.plus_ms(50)).is_none());
    }
}
