use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};

use crate::relay::Relay;

/// An HTTPS proxy in front of a server. No system trusts the authority of the proxy's certificate.
#[derive(Debug)]
pub struct TlsDoor {
    relay: Relay,
    authority: String,
}

impl TlsDoor {
    /// Starts a proxy in front of `127.0.0.1:PORT`.
    ///
    /// # Panics
    /// Panics if no certificate can be created.
    pub fn open(to: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "a company");
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().expect("a key");
        let names = ["localhost", "hub.invalid", "127.0.0.1"].map(str::to_owned);
        let own = CertificateParams::new(names).expect("names");
        let own = own.signed_by(&own_key, &issuer).expect("a certificate");
        let key = PrivateKeyDer::try_from(own_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .expect("a configuration");
        let (config, to) = (Arc::new(config), to.to_owned());
        let relay = Relay::start(move |stream| {
            let connection =
                ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            carry(connection, stream, TcpStream::connect(&to)?)
        });
        Self { relay, authority }
    }

    /// Returns the port that the proxy listens on.
    pub fn port(&self) -> u16 {
        self.relay.port
    }

    /// Returns the authority's certificate, in PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// Copies data between an encrypted and a plain connection until one of them has ended.
fn carry(mut tls: ServerConnection, mut outer: TcpStream, mut inner: TcpStream) -> io::Result<()> {
    let moment = Some(Duration::from_millis(2));
    outer.set_read_timeout(moment)?;
    inner.set_read_timeout(moment)?;
    let mut piece = vec![0; 64 << 10];
    let is_wait = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        )
    };
    loop {
        while tls.wants_write() {
            tls.write_tls(&mut outer)?;
        }
        match tls.read_tls(&mut outer) {
            Ok(0) => break,
            Ok(_) => {
                tls.process_new_packets().map_err(io::Error::other)?;
            }
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(error),
        }
        match tls.reader().read(&mut piece) {
            Ok(0) => break,
            Ok(read) => inner.write_all(&piece[..read])?,
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(error),
        }
        if tls.is_handshaking() {
            continue;
        }
        match inner.read(&mut piece) {
            Ok(0) => {
                tls.send_close_notify();
                while tls.wants_write() {
                    tls.write_tls(&mut outer)?;
                }
                break;
            }
            Ok(read) => tls.writer().write_all(&piece[..read])?,
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let _ = inner.shutdown(Shutdown::Both);
    outer.shutdown(Shutdown::Both)
}
