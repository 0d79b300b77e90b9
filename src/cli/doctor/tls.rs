//! TLS with a provider as `doctor` does it: with the trust of a provider, but with both eyes open, so that what is refused
//! can be explained.

use std::{
    fmt,
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    ProtocolVersion, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    version::{TLS12, TLS13},
};
use rustls_platform_verifier::Verifier;

use super::certificate::Certificate;

/// Whose certificates are believed: the machine's authorities, and the configuration's.
pub struct Trust {
    verifier: Arc<Verifier>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    /// # Errors
    /// What is wrong with a file of `roots`, for people.
    pub fn new(roots: &[PathBuf]) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut certificates = Vec::new();
        for path in roots {
            let read = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            certificates.extend(read);
        }
        let verifier = Verifier::new_with_extra_roots(certificates, Arc::clone(&provider))
            .map_err(|error| format!("no trusted certificates: {error}"))?;
        Ok(Self { verifier: Arc::new(verifier), provider })
    }
}

/// A host and where it is, as a name that a certificate must have.
#[derive(Debug, Clone)]
pub struct Target {
    /// Without the brackets of an IPv6 address.
    pub name: String,
    pub port: u16,
}

impl Target {
    pub fn address(&self) -> Option<IpAddr> {
        self.name.parse().ok()
    }

    /// For a URL.
    pub fn authority(&self) -> String {
        let name =
            if self.name.contains(':') { format!("[{}]", self.name) } else { self.name.clone() };
        if self.port == HTTPS { name } else { format!("{name}:{}", self.port) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

/// What was agreed on.
pub struct Session {
    pub version: &'static str,
    pub certificate: Certificate,
}

/// Why there is none, and what to do.
pub struct Problem {
    pub found: String,
    pub advice: String,
}

fn problem(found: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem { found: found.into(), advice: advice.into() }
}

/// Connects, shakes hands, and hangs up.
pub fn handshake(
    address: SocketAddr,
    target: &Target,
    trust: &Trust,
    timeout: Duration,
) -> Result<Session, Problem> {
    let mut socket = TcpStream::connect_timeout(&address, timeout).map_err(|error| {
        let advice = "is it running, is this the port of its federation listener, and does a firewall let it through?";
        problem(format!("no connection: {error}"), advice)
    })?;
    let no_session =
        |why: String| problem(why, "what answers there does not speak TLS as a provider does");
    let slow = socket.set_read_timeout(Some(timeout)).and(socket.set_write_timeout(Some(timeout)));
    slow.map_err(|error| no_session(error.to_string()))?;
    let name =
        ServerName::try_from(target.name.clone()).map_err(|error| no_session(error.to_string()))?;
    let seen = Arc::new(Seen { inner: Arc::clone(&trust.verifier), end: Mutex::default() });
    // also the version that is too old, to be able to say so
    let config = ClientConfig::builder_with_provider(Arc::clone(&trust.provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| no_session(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|error| no_session(error.to_string()))?;
    while connection.is_handshaking() {
        if let Err(error) = connection.complete_io(&mut socket) {
            return Err(no_session(format!("no TLS session: {error}")));
        }
    }
    if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        let advice = "its operator must allow TLS 1.3, which providers insist on";
        return Err(problem("it speaks no TLS newer than 1.2", advice));
    }
    let end = seen.end.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (der, verdict) = end.ok_or_else(|| no_session("it showed no certificate".to_owned()))?;
    let certificate = Certificate::read(&der)
        .ok_or_else(|| no_session("its certificate cannot be read".to_owned()))?;
    match verdict {
        Ok(()) => Ok(Session { version: "TLS 1.3", certificate }),
        Err(error) => Err(explain(&error, target, &certificate)),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls adds kinds; those that can be explained are named"
)]
fn explain(error: &Error, target: &Target, certificate: &Certificate) -> Problem {
    let Error::InvalidCertificate(why) = error else {
        return problem(error.to_string(), "its operator must mend its certificate");
    };
    match why {
        CertificateError::UnknownIssuer => problem(
            format!("nobody trusted vouches for its certificate (by {})", certificate.issuer),
            "it needs one of a public authority, with the chain; or add its authority, or the certificate itself, to \
             federation.roots",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            problem(
                format!(
                    "its certificate is for {}, not for {}",
                    certificate.names.join(", "),
                    target.name
                ),
                "it must be good for the host that discovery gives",
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => problem(
            format!("its certificate ended {}", certificate.ends),
            "its operator must renew it; or a clock is wrong",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => problem(
            "its certificate is not valid yet",
            "a clock is wrong, this machine's or that of who made the certificate",
        ),
        other => problem(
            format!("its certificate is refused: {other}"),
            "its operator must mend its certificate",
        ),
    }
}

/// Judges as `inner` does, remembers it, and lets everything pass: nothing is sent over such a session.
#[derive(Debug)]
struct Seen {
    inner: Arc<Verifier>,
    end: Mutex<Option<Judged>>,
}

/// A certificate and what is held against it.
type Judged = (Vec<u8>, Result<(), Error>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.inner.verify_server_cert(end, intermediates, name, ocsp, now);
        let seen = (end.as_ref().to_vec(), verdict.map(|_| ()));
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A client that speaks with `target` at `address` only, as a provider does: TLS 1.3, no redirects, no proxy.
pub fn client(
    trust: &Trust,
    target: &Target,
    address: SocketAddr,
    timeout: Duration,
) -> Result<reqwest::Client, String> {
    let config = ClientConfig::builder_with_provider(Arc::clone(&trust.provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(trust.verifier.clone())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .resolve(&target.name, address)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout)
        .timeout(timeout * 2)
        .build()
        .map_err(|error| error.to_string())
}

/// The body of an answer, of at most `bytes_max`.
pub async fn body(mut answer: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| super::causes(&error))? {
        if bytes.len() + chunk.len() > bytes_max {
            return Err(format!("its answer has more than {bytes_max} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

const HTTPS: u16 = 443;
