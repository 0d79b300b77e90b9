//! The TLS of a listener: version 1.3 and nothing older, by aws-lc-rs.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a certificate and a key do not make a listener.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate file holds no PEM certificate (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    #[error("the key file holds no PEM private key (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A certificate chain with its key that can be replaced while it is in use.
#[derive(Debug)]
pub struct Certificates(RwLock<Arc<CertifiedKey>>);

/// A certificate chain and its key that belong together.
#[derive(Debug)]
pub struct Certified(Arc<CertifiedKey>);

impl Certified {
    /// # Errors
    /// As [`Certificates::new`].
    pub fn new(chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(certified(chain_pem, key_pem)?)))
    }
}

impl Certificates {
    /// This chain (the server's own certificate first) and its key, both PEM.
    ///
    /// # Errors
    /// [`TlsError`] where the files are not what they should be, or do not belong together.
    pub fn new(chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(Arc::new(certified(chain_pem, key_pem)?))))
    }

    /// From now on new connections see these. Gives whether they are others than before.
    ///
    /// # Errors
    /// As [`Self::new`]; what was before stays then.
    pub fn replace(&self, chain_pem: &[u8], key_pem: &[u8]) -> Result<bool, TlsError> {
        Ok(self.take(Certified::new(chain_pem, key_pem)?))
    }

    /// The same with what is known to be good.
    pub fn take(&self, Certified(new): Certified) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_other = current.cert != new.cert;
        *current = new;
        is_other
    }

    /// When the server's own certificate ends; none where it does not say so in a way that is understood.
    #[must_use]
    pub fn not_after(&self) -> Option<SystemTime> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (_, certificate) = X509Certificate::from_der(current.cert.first()?).ok()?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn certified(chain_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = CertificateDer::pem_slice_iter(chain_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| TlsError::NoCertificate)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| TlsError::NoKey)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(CertifiedKey::from_der(chain, key, &provider)?)
}

/// A server that speaks TLS 1.3 with this chain (the server's own certificate first) and its key, both PEM.
///
/// # Errors
/// [`TlsError`]
pub fn server_tls(chain_pem: &[u8], key_pem: &[u8]) -> Result<ServerConfig, TlsError> {
    replaceable_tls(Arc::new(Certificates::new(chain_pem, key_pem)?))
}

/// The same with `certificates`, whatever they are at the time.
///
/// # Errors
/// [`TlsError::Unusable`]
pub fn replaceable_tls(certificates: Arc<Certificates>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificates))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_that_of_the_one_in_use() {
        let made = |year| {
            let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 2, 3);
            let key = KeyPair::generate().unwrap();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let (chain, key) = made(2031);
        let certificates = Certificates::new(chain.as_bytes(), key.as_bytes()).unwrap();
        let end = |at: u64| Some(UNIX_EPOCH + Duration::from_secs(at));
        assert_eq!(certificates.not_after(), end(1_927_843_200));
        let (chain, key) = made(2032);
        assert!(certificates.replace(chain.as_bytes(), key.as_bytes()).unwrap());
        assert_eq!(certificates.not_after(), end(1_959_379_200));
    }
}
