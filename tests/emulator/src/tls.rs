//! HTTPS: a server certificate of its own, from a certificate authority of its own.

use std::io;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ServerConfig};

/// How an emulator speaks HTTPS: for which names, and in which versions.
///
/// Its certificate is always for `127.0.0.1`, `::1` and `localhost`, and valid for centuries.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    names: Vec<String>,
    only_1_2: bool,
    expired: bool,
}

/// What a server needs to be believed, just made.
pub(crate) struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    /// The certificate of the authority, for clients.
    pub(crate) ca_pem: String,
}

// === impl Tls ===

impl Tls {
    /// TLS 1.2 and 1.3, for the names of this machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Also for this DNS name or IP address; `*` may stand for the first label, as in `*.us-east-1.amazonaws.com`.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// TLS 1.2 and nothing newer.
    #[must_use]
    pub fn only_1_2(mut self) -> Self {
        self.only_1_2 = true;
        self
    }

    /// With a server certificate that ended in the year 2000.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }

    /// Makes a certificate authority and a certificate that nobody has seen before.
    pub(crate) fn identity(&self) -> io::Result<Identity> {
        let (issuer, ca_pem) = authority().map_err(io::Error::other)?;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = self.leaf().and_then(|leaf| leaf.signed_by(&key, &issuer)).map_err(io::Error::other)?;
        let chain = vec![certificate.der().clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let versions: &[&rustls::SupportedProtocolVersion] = if self.only_1_2 { &[&TLS12] } else { &[&TLS13, &TLS12] };
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Identity { acceptor: TlsAcceptor::from(Arc::new(config)), ca_pem })
    }

    fn leaf(&self) -> Result<CertificateParams, rcgen::Error> {
        let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let names: Vec<String> = own.into_iter().chain(self.names.iter().cloned()).collect();
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, "keytide-emulator");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        if self.expired {
            leaf.not_after = date_time_ymd(2000, 1, 1);
        }
        Ok(leaf)
    }
}

fn authority() -> Result<(Issuer<'static, KeyPair>, String), rcgen::Error> {
    let mut ca = CertificateParams::new(Vec::new())?;
    // A name of its own: the authorities of several emulators may stand in one bundle.
    ca.distinguished_name.push(DnType::CommonName, format!("keytide-emulator CA {:016x}", fastrand::u64(..)));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let pem = ca.self_signed(&key)?.pem();
    Ok((Issuer::new(ca, key), pem))
}
