//! What a certificate says of itself, for people: whom it is for and how long.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The parts of a certificate that can be wrong for a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject alternative names; nothing else counts.
    pub names: Vec<String>,
    pub issuer: String,
    /// For people.
    pub ends: String,
    ends_at: SystemTime,
}

impl Certificate {
    /// None for bytes that are no certificate.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let names = alternatives.map_or_else(Vec::new, |names| {
            names.value.general_names.iter().filter_map(name).collect()
        });
        let end = certificate.validity().not_after;
        let seconds = u64::try_from(end.timestamp()).unwrap_or(0);
        Some(Self {
            names,
            issuer: certificate.issuer().to_string(),
            ends: end.to_string(),
            ends_at: UNIX_EPOCH + Duration::from_secs(seconds),
        })
    }

    /// How long it holds from `now` on; zero where it is over.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Duration {
        self.ends_at.duration_since(now).unwrap_or_default()
    }
}

/// As people write it; none for kinds that name no server.
fn name(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    let v4 = <[u8; 4]>::try_from(*bytes).map(|octets| Ipv4Addr::from(octets).to_string());
    let v6 = || <[u8; 16]>::try_from(*bytes).map(|octets| Ipv6Addr::from(octets).to_string());
    v4.or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn names_issuer_and_end_are_read() {
        let names = ["mimi.a.example", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let read = Certificate::read(made.der()).unwrap();
        assert_eq!(read.names, names);
        assert!(read.ends.contains("2031"), "{}", read.ends);
        let end = UNIX_EPOCH + Duration::from_secs(1_927_843_200);
        assert_eq!(read.left(end - Duration::from_secs(5)), Duration::from_secs(5));
        assert_eq!(read.left(end + Duration::from_secs(5)), Duration::ZERO);
        assert_eq!(Certificate::read(b"no certificate"), None);
    }
}
