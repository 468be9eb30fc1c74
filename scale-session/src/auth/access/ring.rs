//! Signatures by `ring`, for `jsonwebtoken`. That crate requires a crypto provider, and the
//! available ones depend on `rsa` (RUSTSEC-2023-0071) or on the library of a second TLS stack.
//! There is one provider per process, so this one supports all algorithms of `ring`, for other
//! users of `jsonwebtoken` in the process.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{Error as Refused, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair, UnparsedPublicKey};
use ring::{digest, hmac};
use simple_asn1::ASN1Block;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |der| {
            let key = RsaKeyPair::from_der(der).map_err(|_| ErrorKind::InvalidKeyFormat)?;
            let PublicKeyComponents::<Vec<u8>> { n, e } = key.public_key().into();
            Ok((n, e))
        },
        rsa_pub_components_from_public_key: |der| {
            rsa_numbers(der).ok_or_else(|| ErrorKind::InvalidKeyFormat.into())
        },
        ec_pub_components_from_private_key: |der, algorithm| {
            let (signs, _) = ecdsa(algorithm).ok_or(ErrorKind::InvalidEcdsaKey)?;
            let key = EcdsaKeyPair::from_pkcs8(signs, der, &SystemRandom::new())
                .map_err(|_| ErrorKind::InvalidEcdsaKey)?;
            let point = &key.public_key().as_ref()[1..];
            let curve = if algorithm == Algorithm::ES384 {
                EllipticCurve::P384
            } else {
                EllipticCurve::P256
            };
            let (x, y) = point.split_at(point.len() / 2);
            Ok((curve, x.to_vec(), y.to_vec()))
        },
        ed_pub_components_from_private_key: |der, _| {
            let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                .map_err(|_| ErrorKind::InvalidEddsaKey)?;
            Ok(key.public_key().as_ref().to_vec())
        },
        compute_digest: |bytes, hash| {
            let algorithm = match hash {
                ThumbprintHash::SHA256 => &digest::SHA256,
                ThumbprintHash::SHA384 => &digest::SHA384,
                ThumbprintHash::SHA512 => &digest::SHA512,
                _ => return Err(ErrorKind::InvalidAlgorithm.into()),
            };
            Ok(digest::digest(algorithm, bytes).as_ref().to_vec())
        },
    },
};

/// Installs the provider. If the application has installed another provider, that one is used.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

/// Returns the public half of a private key; `None` if the key does not fit the algorithm.
pub(super) fn public_half(algorithm: Algorithm, key: &EncodingKey) -> Option<DecodingKey> {
    match Signs::of(algorithm, key)? {
        Signs::Ed25519(key) => Some(DecodingKey::from_ed_der(key.public_key().as_ref())),
        Signs::Ecdsa(key) => Some(DecodingKey::from_ec_der(key.public_key().as_ref())),
        Signs::Rsa(key) => {
            let public: PublicKeyComponents<Vec<u8>> = key.public_key().into();
            Some(DecodingKey::from_rsa_raw_components(&public.n, &public.e))
        }
        Signs::Hmac(_) => None,
    }
}

/// Returns whether the key's size is right for a public key of that algorithm.
pub(super) fn is_sound(algorithm: Algorithm, key: &DecodingKey) -> bool {
    match (algorithm, key.kind()) {
        (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(bytes)) => bytes.len() == 32,
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(bytes)) => {
            bytes.len() == 65 && bytes[0] == 4
        }
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, .. }) => n.len() >= 256,
        (Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => {
            rsa_numbers(der).is_some_and(|(n, _)| n.len() >= 256)
        }
        _ => false,
    }
}

/// Returns modulus and exponent of a public key (PKCS #1), without leading zeros.
fn rsa_numbers(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    match simple_asn1::from_der(der).ok()?.as_slice() {
        [ASN1Block::Sequence(_, numbers)] => match numbers.as_slice() {
            [ASN1Block::Integer(_, n), ASN1Block::Integer(_, e)] => {
                Some((n.to_bytes_be().1, e.to_bytes_be().1))
            }
            _ => None,
        },
        _ => None,
    }
}

fn hash(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::HS256 => Some(hmac::HMAC_SHA256),
        Algorithm::HS384 => Some(hmac::HMAC_SHA384),
        Algorithm::HS512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

fn ecdsa(
    algorithm: Algorithm,
) -> Option<(
    &'static signature::EcdsaSigningAlgorithm,
    &'static signature::EcdsaVerificationAlgorithm,
)> {
    match algorithm {
        Algorithm::ES256 => {
            Some((&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &signature::ECDSA_P256_SHA256_FIXED))
        }
        Algorithm::ES384 => {
            Some((&signature::ECDSA_P384_SHA384_FIXED_SIGNING, &signature::ECDSA_P384_SHA384_FIXED))
        }
        _ => None,
    }
}

fn rsa(
    algorithm: Algorithm,
) -> Option<(&'static dyn signature::RsaEncoding, &'static signature::RsaParameters)> {
    Some(match algorithm {
        Algorithm::RS256 => (&signature::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => (&signature::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => (&signature::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => (&signature::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => (&signature::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => (&signature::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512),
        _ => return None,
    })
}

/// A parsed private key.
enum Signs {
    Hmac(hmac::Key),
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Signs {
    fn of(algorithm: Algorithm, key: &EncodingKey) -> Option<Self> {
        if algorithm.family() != key.family() {
            return None;
        }
        let key = key.as_bytes();
        match algorithm {
            Algorithm::EdDSA => {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(key).ok().map(Self::Ed25519)
            }
            Algorithm::ES256 | Algorithm::ES384 => {
                EcdsaKeyPair::from_pkcs8(ecdsa(algorithm)?.0, key, &SystemRandom::new())
                    .ok()
                    .map(Self::Ecdsa)
            }
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                Some(Self::Hmac(hmac::Key::new(hash(algorithm)?, key)))
            }
            _ => RsaKeyPair::from_der(key).ok().map(Self::Rsa),
        }
    }
}

struct Signing {
    algorithm: Algorithm,
    key: Signs,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that `CryptoProvider` needs")]
fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    let key = Signs::of(*algorithm, key).ok_or(ErrorKind::InvalidKeyFormat)?;
    Ok(Box::new(Signing { algorithm: *algorithm, key }))
}

impl Signer<Vec<u8>> for Signing {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Refused> {
        let (random, refused) = (SystemRandom::new(), |_| Refused::new());
        match &self.key {
            Signs::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Signs::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            Signs::Ecdsa(key) => {
                key.sign(&random, message).map(|made| made.as_ref().to_vec()).map_err(refused)
            }
            Signs::Rsa(key) => {
                let (encoding, _) = rsa(self.algorithm).ok_or_else(Refused::new)?;
                let mut made = vec![0; key.public().modulus_len()];
                key.sign(encoding, &random, message, &mut made).map(|()| made).map_err(refused)
            }
        }
    }
}

impl JwtSigner for Signing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

struct Verifying {
    algorithm: Algorithm,
    key: DecodingKeyKind,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that `CryptoProvider` needs")]
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if algorithm.family() != key.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(Verifying { algorithm: *algorithm, key: key.kind().clone() }))
}

impl Verifier<Vec<u8>> for Verifying {
    fn verify(&self, message: &[u8], made: &Vec<u8>) -> std::result::Result<(), Refused> {
        let by = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, made)
        };
        let verified = match &self.key {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                let (_, parameters) = rsa(self.algorithm).ok_or_else(Refused::new)?;
                PublicKeyComponents { n, e }.verify(parameters, message, made)
            }
            DecodingKeyKind::SecretOrDer(key) => {
                if let Some(hash) = hash(self.algorithm) {
                    hmac::verify(&hmac::Key::new(hash, key), message, made)
                } else if let Some((_, algorithm)) = ecdsa(self.algorithm) {
                    by(algorithm, key)
                } else if let Some((_, parameters)) = rsa(self.algorithm) {
                    by(parameters, key)
                } else {
                    by(&signature::ED25519, key)
                }
            }
        };
        verified.map_err(|_| Refused::new())
    }
}

impl JwtVerifier for Verifying {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
