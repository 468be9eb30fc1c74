//! Keys of access tokens: parsed from PEM, and read and written as JSON Web Key Sets.

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};

use super::ring;
use crate::auth::error::Error;

/// Maximum length of a key set; longer ones are refused unread.
const LONGEST_SET: usize = 256 * 1_024;

pub(in crate::auth) struct Key {
    pub(in crate::auth) id: String,
    pub(in crate::auth) algorithm: Algorithm,
    pub(super) signs: Option<EncodingKey>,
    pub(in crate::auth) verifies: DecodingKey,
}

/// A key that signs tokens, with the id (`kid`) that tokens refer to it by.
pub struct SigningKey(pub(super) Key);

/// A key that only verifies tokens.
pub struct VerifyingKey(pub(in crate::auth) Key);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.0.id)
    }
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyingKey({})", self.0.id)
    }
}

impl SigningKey {
    /// Returns a key for HMAC-SHA-256, for services that both create and verify tokens.
    ///
    /// # Errors
    /// [`Error::Setting`] for fewer than 32 bytes.
    pub fn secret(id: &str, secret: &[u8]) -> Result<Self, Error> {
        ring::install();
        if secret.len() < 32 {
            return Err(Error::Setting("the key is too short: at least 32 bytes are needed"));
        }
        let (signs, verifies) =
            (Some(EncodingKey::from_secret(secret)), DecodingKey::from_secret(secret));
        Ok(Self(Key { id: id.into(), algorithm: Algorithm::HS256, signs, verifies }))
    }

    /// Parses an Ed25519 private key in PEM, as written by `openssl genpkey -algorithm ed25519`.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else.
    pub fn ed25519(id: &str, private_pem: &[u8]) -> Result<Self, Error> {
        let wrong = Error::Setting("not a private Ed25519 key in PEM");
        Self::of(id, Algorithm::EdDSA, EncodingKey::from_ed_pem(private_pem), wrong)
    }

    /// Parses an ECDSA private key on P-256 in PEM, as written by
    /// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else.
    pub fn es256(id: &str, private_pem: &[u8]) -> Result<Self, Error> {
        let wrong = Error::Setting("not a private P-256 key in PEM (PKCS #8)");
        Self::of(id, Algorithm::ES256, EncodingKey::from_ec_pem(private_pem), wrong)
    }

    /// Parses an RSA private key of 2,048 to 4,096 bits in PEM, for RSA with SHA-256, as written by
    /// `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072`.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else.
    pub fn rs256(id: &str, private_pem: &[u8]) -> Result<Self, Error> {
        let wrong = Error::Setting("not a private RSA key of 2,048 to 4,096 bits in PEM");
        Self::of(id, Algorithm::RS256, EncodingKey::from_rsa_pem(private_pem), wrong)
    }

    fn of(
        id: &str,
        algorithm: Algorithm,
        key: jsonwebtoken::errors::Result<EncodingKey>,
        wrong: Error,
    ) -> Result<Self, Error> {
        ring::install();
        let Some((signs, verifies)) =
            key.ok().and_then(|key| ring::public_half(algorithm, &key).map(|public| (key, public)))
        else {
            return Err(wrong);
        };
        Ok(Self(Key { id: id.into(), algorithm, signs: Some(signs), verifies }))
    }
}

impl VerifyingKey {
    /// Parses an Ed25519 public key in PEM.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else.
    pub fn ed25519(id: &str, public_pem: &[u8]) -> Result<Self, Error> {
        let wrong = Error::Setting("not a public Ed25519 key in PEM");
        Self::of(id, Algorithm::EdDSA, DecodingKey::from_ed_pem(public_pem), wrong)
    }

    /// Parses an ECDSA public key on P-256 in PEM.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else.
    pub fn es256(id: &str, public_pem: &[u8]) -> Result<Self, Error> {
        Self::of(
            id,
            Algorithm::ES256,
            DecodingKey::from_ec_pem(public_pem),
            Error::Setting("not a public P-256 key in PEM"),
        )
    }

    /// Parses an RSA public key in PEM, for RSA with SHA-256.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else.
    pub fn rs256(id: &str, public_pem: &[u8]) -> Result<Self, Error> {
        Self::of(
            id,
            Algorithm::RS256,
            DecodingKey::from_rsa_pem(public_pem),
            Error::Setting("not a public RSA key in PEM"),
        )
    }

    /// Parses the JSON Web Key Set of another issuer. Skips keys that cannot be used here: secrets,
    /// keys for encryption, and keys of algorithms other than RS256, ES256 and EdDSA.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything but a key set, or a set of more than 256 KiB.
    pub fn from_jwks(json: &str) -> Result<Vec<Self>, Error> {
        ring::install();
        let wrong = || Error::Setting("not a JSON Web Key Set of up to 256 KiB");
        if json.len() > LONGEST_SET {
            return Err(wrong());
        }
        // Parses each key on its own: a key of an unknown kind must not make the set unusable.
        let set: serde_json::Value = serde_json::from_str(json).map_err(|_| wrong())?;
        let keys = set.get("keys").and_then(serde_json::Value::as_array).ok_or_else(wrong)?;
        Ok(keys
            .iter()
            .filter_map(|key| Self::from_jwk(&serde_json::from_value(key.clone()).ok()?))
            .collect())
    }

    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            _ => return None,
        };
        let is_other =
            jwk.common.key_algorithm.is_some_and(|stated| stated != KeyAlgorithm::from(algorithm));
        if is_other || !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        Self::of(
            jwk.common.key_id.as_deref().unwrap_or_default(),
            algorithm,
            DecodingKey::from_jwk(jwk),
            Error::Random,
        )
        .ok()
    }

    fn of(
        id: &str,
        algorithm: Algorithm,
        key: jsonwebtoken::errors::Result<DecodingKey>,
        wrong: Error,
    ) -> Result<Self, Error> {
        ring::install();
        match key {
            Ok(verifies) if ring::is_sound(algorithm, &verifies) => {
                Ok(Self(Key { id: id.into(), algorithm, signs: None, verifies }))
            }
            _ => Err(wrong),
        }
    }
}

impl From<SigningKey> for VerifyingKey {
    fn from(key: SigningKey) -> Self {
        Self(Key { signs: None, ..key.0 })
    }
}

/// Returns the public halves of the keys, as a set.
pub(super) fn written(keys: &[Key]) -> Result<String, Error> {
    let mut set = JwkSet::default();
    for key in keys.iter().filter(|key| key.algorithm != Algorithm::HS256) {
        let wrong = |_| Error::Setting("a key cannot be encoded as a JSON Web Key");
        let mut jwk = Jwk::from_decoding_key(&key.verifies, Some(key.algorithm)).map_err(wrong)?;
        jwk.common.key_id = Some(key.id.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        set.keys.push(jwk);
    }
    serde_json::to_string(&set).map_err(|_| Error::Setting("the key set cannot be encoded"))
}
