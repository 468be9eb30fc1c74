//! A certificate authority for servers with TLS.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::home::Home;

/// Signs certificates for `127.0.0.1` and `localhost` only.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    home: Home,
}

/// Files of a server's certificate and key, owned by the server's user.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    /// Creates a new authority, which no client trusts yet.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "scale testkit");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let home = Home::new(None)?;
        std::fs::write(home.join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, home })
    }

    /// Returns the file of the authority's certificate, for clients that should trust it.
    pub fn file(&self) -> PathBuf {
        self.home.join("ca.pem")
    }

    /// Signs a certificate, and writes it and its key into a folder of `user`.
    pub(crate) fn identify(&self, folder: &Path, user: &str) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files =
            Identity { certificate: folder.join("server.crt"), key: folder.join("server.key") };
        for (file, text) in
            [(&files.certificate, certificate.pem()), (&files.key, key.serialize_pem())]
        {
            std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
            Home::give(file, user, 0o600)?;
        }
        Ok(files)
    }
}
