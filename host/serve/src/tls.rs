use std::fmt;
use std::path::Path;
use std::sync::Arc;

use host_core::{Error, ErrorKind, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig};
use rustls::{SignatureScheme, version};
use sha2::{Digest as _, Sha256};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// ALPN protocol of gRPC: HTTP/2.
const ALPN: &[u8] = b"h2";

/// A server's certificate and key, for TLS 1.3.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<ServerConfig>,
    fingerprint: Fingerprint,
}

/// A self-signed certificate and its key, in PEM.
#[derive(Clone)]
pub struct SelfSigned {
    /// The certificate, which is public.
    pub certificate: String,
    /// The key, which is secret.
    pub key: String,
}

/// The SHA-256 of a certificate. As text it is hexadecimal, optionally with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// How a client verifies a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// One of these certificate authorities (PEM) must have signed the certificate. The certificate must
    /// contain the server's name.
    Authorities(Vec<u8>),
    /// The certificate must have this fingerprint. The server's name is not checked.
    Fingerprint(Fingerprint),
}

impl TlsIdentity {
    /// Reads an identity from two PEM files. One contains the certificate, followed by its issuers'
    /// certificates; the other contains the key.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or if the key does not belong to the certificate.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let read = |what, path: &Path| std::fs::read(path).map_err(|e| Error::io(what, path, &e));
        Self::from_pem(
            &read("read the certificate", certificate)?,
            &read("read the certificate's key", key)?,
        )
        .map_err(|why| {
            Error::new(
                ErrorKind::Config,
                format!(
                    "cannot use the certificate: {why}: {}",
                    certificate.display()
                ),
            )
            .hint("pass two PEM files: the certificate with --tls-cert and its key with --tls-key")
        })
    }

    /// Reads an identity from PEM.
    ///
    /// # Errors
    /// Returns the reason, for use in an error message.
    fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        let first = chain.first().ok_or("no certificate found")?;
        let fingerprint = Fingerprint::of(first);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("bad key: {e}"))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|e| e.to_string())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            config: Arc::new(config),
            fingerprint,
        })
    }

    /// Returns the certificate's fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl SelfSigned {
    /// Creates a key and a self-signed certificate for `localhost`, `127.0.0.1` and the given names and
    /// addresses.
    ///
    /// # Errors
    /// Returns an error if a name is not allowed in a certificate.
    pub fn new(names: &[String]) -> Result<Self> {
        let failed = |e: &dyn fmt::Display| {
            Error::new(
                ErrorKind::System,
                format!("cannot create a certificate: {e}"),
            )
        };
        let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        all.extend(
            names
                .iter()
                .filter(|name| !all.contains(name))
                .cloned()
                .collect::<Vec<_>>(),
        );
        let made = rcgen::generate_simple_self_signed(all).map_err(|e| failed(&e))?;
        Ok(Self {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        })
    }

    /// Returns the server identity with this certificate and key.
    ///
    /// # Errors
    /// Returns an error if the certificate and key are not from [`SelfSigned::new`].
    pub fn identity(&self) -> Result<TlsIdentity> {
        TlsIdentity::from_pem(self.certificate.as_bytes(), self.key.as_bytes()).map_err(|why| {
            Error::new(
                ErrorKind::System,
                format!("cannot use the self-signed certificate: {why}"),
            )
        })
    }
}

impl fmt::Debug for SelfSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelfSigned").finish_non_exhaustive()
    }
}

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Returns the fingerprint of the first certificate in a PEM text.
    ///
    /// # Errors
    /// Returns an error if the text contains no certificate.
    pub fn of_pem(pem: &[u8]) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(pem)
            .map_err(|e| Error::new(ErrorKind::Config, format!("invalid certificate: {e}")))?;
        Ok(Self::of(&certificate))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(ErrorKind::Config, format!("invalid fingerprint: {text:?}"))
                .hint("pass the 64 hexadecimal digits printed by the server")
        };
        let digits: Vec<u8> = text
            .chars()
            .filter(|&c| c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair.last().copied().unwrap_or(0))
            .collect();
        match bytes.try_into() {
            Ok(bytes) if digits.len() == 64 => Ok(Self(bytes)),
            _ => Err(wrong()),
        }
    }
}

impl Trust {
    /// Returns a connector that verifies servers as specified.
    ///
    /// # Errors
    /// Returns an error if the authorities are not valid certificates.
    pub(crate) fn connector(&self) -> Result<TlsConnector> {
        let failed = |e: &dyn fmt::Display| {
            Error::new(
                ErrorKind::Config,
                format!("cannot use the certificate authorities: {e}"),
            )
            .hint("pass a PEM file with the certificate of the server's certificate authority")
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| failed(&e))?;
        let mut config = match self {
            Self::Authorities(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|e| failed(&e))?;
                    roots.add(certificate).map_err(|e| failed(&e))?;
                }
                if roots.is_empty() {
                    return Err(failed(&"no certificate found"));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Self::Fingerprint(fingerprint) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pinned(*fingerprint)))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Accepts only the certificate with this fingerprint. Accepts only signatures that the certificate's key
/// made.
#[derive(Debug)]
struct Pinned(Fingerprint);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Fingerprint::of(certificate) == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_s_text_can_be_parsed() {
        let made = SelfSigned::new(&["run.example".to_owned()]).expect("made");
        let fingerprint = made.identity().expect("an identity").fingerprint();
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 64);
        assert_eq!(text.parse::<Fingerprint>().ok(), Some(fingerprint));
        let colons: Vec<&str> = (0..32).map(|n| &text[2 * n..2 * n + 2]).collect();
        assert_eq!(
            colons.join(":").to_uppercase().parse::<Fingerprint>().ok(),
            Some(fingerprint)
        );
        assert_eq!(
            Fingerprint::of_pem(made.certificate.as_bytes()).ok(),
            Some(fingerprint)
        );
        for wrong in [
            "",
            "00",
            &text[1..],
            &format!("{text}00"),
            &format!("g{}", &text[1..]),
        ] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let [one, other] = [0, 1].map(|_| SelfSigned::new(&[]).expect("made"));
        let mixed = TlsIdentity::from_pem(one.certificate.as_bytes(), other.key.as_bytes());
        assert!(mixed.is_err());
        assert!(TlsIdentity::from_pem(b"", one.key.as_bytes()).is_err());
    }
}
