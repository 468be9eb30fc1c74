//! Password hashes of other systems: verified as they are. After a match the caller stores a new
//! hash.
//!
//! | system | form |
//! | --- | --- |
//! | Laravel, PHP's `password_hash` | `$2y$…`, `$argon2i$…`, `$argon2id$…` |
//! | Rails' `has_secure_password`, Devise without a pepper | `$2a$…` |
//! | Django | `pbkdf2_sha256$…`, `pbkdf2_sha1$…`, `argon2$argon2id$…`, `bcrypt_sha256$$2b$…`, `bcrypt$$2b$…`, `scrypt$…` |
//! | ASP.NET Identity, 2 and 3 | base64 of a marker, the parameters, the salt and PBKDF2 |
//! | others | PHC strings of scrypt: `$scrypt$ln=…,r=…,p=…$…` |

use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER};
use hmac::Hmac;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::super::same;

/// Limits on the cost of stored hashes, which may come from an import: bcrypt's exponent,
/// iterations, bytes of scrypt.
const BCRYPT: u32 = 16;
const ITERATIONS: u32 = 10_000_000;
const SCRYPT: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prf {
    Sha1,
    Sha256,
    Sha512,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// Hash in the modular crypt format. `bcrypt_sha256` of Django first hashes the password with
    /// SHA-256, since bcrypt reads 72 bytes only.
    Bcrypt {
        text: String,
        sha256_first: bool,
    },
    Pbkdf2 {
        prf: Prf,
        iterations: u32,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Scrypt {
        log_n: u8,
        r: u32,
        p: u32,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Argon2 {
        is_id: bool,
        memory: u32,
        passes: u32,
        lanes: u32,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
}

impl Foreign {
    /// Parses a hash. Returns `None` for other text, and for a hash whose cost exceeds the limits.
    pub(super) fn read(text: &str) -> Option<Self> {
        if text.len() > 512 || !text.is_ascii() {
            return None;
        }
        let (first, rest) = text.split_once('$').unwrap_or((text, ""));
        match first {
            "" => modular(text),
            "bcrypt" => bcrypt(rest, false),
            "bcrypt_sha256" => bcrypt(rest, true),
            "argon2" => argon2(&format!("${rest}")),
            "pbkdf2_sha256" => pbkdf2(Prf::Sha256, rest),
            "pbkdf2_sha1" => pbkdf2(Prf::Sha1, rest),
            "scrypt" => django_scrypt(rest),
            _ => identity(text),
        }
    }

    /// Returns a hash of the same cost that no password matches.
    pub(super) fn of_nobody(&self) -> Self {
        let mut other = self.clone();
        match &mut other {
            Self::Bcrypt { text, .. } => {
                let keep = text.len().min(7);
                text.truncate(keep);
                text.push_str(&".".repeat(53));
            }
            Self::Pbkdf2 { salt, hash, .. }
            | Self::Scrypt { salt, hash, .. }
            | Self::Argon2 { salt, hash, .. } => {
                salt.fill(0);
                hash.fill(0);
            }
        }
        other
    }

    /// Returns whether the hash covers the whole password: bcrypt reads 72 bytes.
    pub(super) fn reads_all(&self, password: &str) -> bool {
        !matches!(self, Self::Bcrypt { sha256_first: false, .. }) || password.len() <= 72
    }

    pub(super) fn fits(&self, password: &str, blocks: &mut Vec<Block>) -> bool {
        match self {
            Self::Bcrypt { text, sha256_first } => {
                let digest =
                    sha256_first.then(|| HEXLOWER.encode(&Sha256::digest(password.as_bytes())));
                bcrypt::verify(digest.as_deref().unwrap_or(password), text).unwrap_or(false)
            }
            Self::Pbkdf2 { prf, iterations, salt, hash } => {
                let mut own = vec![0; hash.len()];
                let derived = match prf {
                    Prf::Sha1 => pbkdf2::pbkdf2::<Hmac<Sha1>>(
                        password.as_bytes(),
                        salt,
                        *iterations,
                        &mut own,
                    )
                    .is_ok(),
                    Prf::Sha256 => pbkdf2::pbkdf2::<Hmac<Sha256>>(
                        password.as_bytes(),
                        salt,
                        *iterations,
                        &mut own,
                    )
                    .is_ok(),
                    Prf::Sha512 => pbkdf2::pbkdf2::<Hmac<Sha512>>(
                        password.as_bytes(),
                        salt,
                        *iterations,
                        &mut own,
                    )
                    .is_ok(),
                };
                derived && same(&own, hash)
            }
            Self::Scrypt { log_n, r, p, salt, hash } => {
                let Ok(params) = scrypt::Params::new(*log_n, *r, *p) else { return false };
                let mut own = vec![0; hash.len()];
                scrypt::scrypt(password.as_bytes(), salt, &params, &mut own).is_ok()
                    && same(&own, hash)
            }
            Self::Argon2 { is_id, memory, passes, lanes, salt, hash } => {
                let Ok(params) = Params::new(*memory, *passes, *lanes, Some(hash.len())) else {
                    return false;
                };
                let count = params.block_count();
                if blocks.len() < count {
                    blocks.resize(count, Block::default());
                }
                let algorithm = if *is_id { Algorithm::Argon2id } else { Algorithm::Argon2i };
                let mut own = vec![0; hash.len()];
                let argon2 = Argon2::new(algorithm, Version::V0x13, params);
                let hashed = argon2.hash_password_into_with_memory(
                    password.as_bytes(),
                    salt,
                    &mut own,
                    &mut blocks[..count],
                );
                hashed.is_ok() && same(&own, hash)
            }
        }
    }
}

fn modular(text: &str) -> Option<Foreign> {
    match text.split('$').nth(1)? {
        "2a" | "2b" | "2y" | "2x" => bcrypt(text, false),
        "argon2i" | "argon2id" => argon2(text),
        "scrypt" => phc_scrypt(text),
        _ => None,
    }
}

/// Parses a version, two digits of cost, 22 letters of salt and 31 of hash.
fn bcrypt(text: &str, sha256_first: bool) -> Option<Foreign> {
    let mut parts = text.strip_prefix('$')?.split('$');
    let (version, cost, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let cost: u32 = cost.parse().ok().filter(|_| cost.len() == 2)?;
    let is_fine = matches!(version, "2a" | "2b" | "2y")
        && (4..=BCRYPT).contains(&cost)
        && rest.len() == 53
        && parts.next().is_none();
    is_fine.then(|| Foreign::Bcrypt { text: text.to_owned(), sha256_first })
}

fn argon2(text: &str) -> Option<Foreign> {
    let mut parts = text.strip_prefix('$')?.split('$');
    let is_id = match parts.next()? {
        "argon2id" => true,
        "argon2i" => false,
        _ => return None,
    };
    if parts.next()? != "v=19" {
        return None;
    }
    let (settings, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let (mut memory, mut passes, mut lanes) = (0, 0, 0);
    for setting in settings.split(',') {
        match setting.split_once('=')? {
            ("m", n) => memory = n.parse().ok().filter(|n| *n <= 1 << 20)?,
            ("t", n) => passes = n.parse().ok().filter(|n| *n <= 100)?,
            ("p", n) => lanes = n.parse().ok().filter(|n| *n <= 16)?,
            _ => return None,
        }
    }
    let salt =
        BASE64_NOPAD.decode(salt.as_bytes()).ok().filter(|salt| (8..=64).contains(&salt.len()))?;
    let hash =
        BASE64_NOPAD.decode(hash.as_bytes()).ok().filter(|hash| (16..=64).contains(&hash.len()))?;
    Params::new(memory, passes, lanes, Some(hash.len())).ok()?;
    parts.next().is_none().then_some(Foreign::Argon2 { is_id, memory, passes, lanes, salt, hash })
}

fn pbkdf2(prf: Prf, rest: &str) -> Option<Foreign> {
    let mut parts = rest.split('$');
    let (iterations, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let iterations = iterations.parse().ok().filter(|n| (1..=ITERATIONS).contains(n))?;
    let hash =
        BASE64.decode(hash.as_bytes()).ok().filter(|hash| (16..=64).contains(&hash.len()))?;
    parts.next().is_none().then(|| Foreign::Pbkdf2 {
        prf,
        iterations,
        salt: salt.as_bytes().to_vec(),
        hash,
    })
}

fn checked_scrypt(log_n: u8, r: u32, p: u32, salt: Vec<u8>, hash: Vec<u8>) -> Option<Foreign> {
    let fits = (1..=24).contains(&log_n) && (1..=64).contains(&r) && (1..=64).contains(&p);
    let memory = 128_u64.checked_shl(u32::from(log_n))?.checked_mul(u64::from(r))?;
    (fits && memory <= SCRYPT && (16..=64).contains(&hash.len())).then_some(Foreign::Scrypt {
        log_n,
        r,
        p,
        salt,
        hash,
    })
}

fn django_scrypt(rest: &str) -> Option<Foreign> {
    let mut parts = rest.split('$');
    let (n, salt, r, p) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let n: u64 = n.parse().ok().filter(|n: &u64| n.is_power_of_two())?;
    let hash = BASE64.decode(parts.next()?.as_bytes()).ok()?;
    let salt = salt.as_bytes().to_vec();
    parts.next().is_none().then(|| {
        checked_scrypt(n.trailing_zeros() as u8, r.parse().ok()?, p.parse().ok()?, salt, hash)
    })?
}

fn phc_scrypt(text: &str) -> Option<Foreign> {
    let mut parts = text.strip_prefix("$scrypt$")?.split('$');
    let (settings, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let (mut log_n, mut r, mut p) = (0, 0, 0);
    for setting in settings.split(',') {
        match setting.split_once('=')? {
            ("ln", n) => log_n = n.parse().ok()?,
            ("r", n) => r = n.parse().ok()?,
            ("p", n) => p = n.parse().ok()?,
            _ => return None,
        }
    }
    let (salt, hash) =
        (BASE64_NOPAD.decode(salt.as_bytes()).ok()?, BASE64_NOPAD.decode(hash.as_bytes()).ok()?);
    parts.next().is_none().then(|| checked_scrypt(log_n, r, p, salt, hash))?
}

/// Parses a hash of ASP.NET Identity. Version 3 contains its parameters; those of version 2 are
/// fixed.
fn identity(text: &str) -> Option<Foreign> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    let (marker, rest) = bytes.split_first()?;
    if *marker == 0 {
        let (salt, hash) = rest.split_at_checked(16)?;
        let (salt, hash) = (salt.to_vec(), hash.to_vec());
        return (hash.len() == 32).then_some(Foreign::Pbkdf2 {
            prf: Prf::Sha1,
            iterations: 1_000,
            salt,
            hash,
        });
    }
    let (numbers, rest) = rest.split_at_checked(12).filter(|_| *marker == 1)?;
    let number = |at: usize| Some(u32::from_be_bytes(numbers.get(at..at + 4)?.try_into().ok()?));
    let prf = match number(0)? {
        0 => Prf::Sha1,
        1 => Prf::Sha256,
        2 => Prf::Sha512,
        _ => return None,
    };
    let iterations = number(4).filter(|n| (1..=ITERATIONS).contains(n))?;
    let (salt, hash) = rest.split_at_checked(number(8)? as usize)?;
    let fits = (8..=64).contains(&salt.len()) && (16..=64).contains(&hash.len());
    fits.then(|| Foreign::Pbkdf2 { prf, iterations, salt: salt.to_vec(), hash: hash.to_vec() })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Hashes of "Pässwörd 1" at low cost, made by the libraries of those systems: PHP 8.2's
    /// `password_hash`, Ruby's bcrypt 3.1, Django 5.2. Those of ASP.NET Identity were assembled by
    /// its published layout with Python's `hashlib`.
    pub(in super::super) const MADE: [&str; 13] = [
        "$2y$05$.n6Yy84.NdvagA8W2oq0LOvCvmdEo9TOXGNOpYE7KJ93Gw2JRs/2.",
        "$argon2i$v=19$m=1024,t=2,p=1$MFRKY0J2QkNWa0JHNmk3VQ$RhpKN2qWiPa8Ojz+ouhwSRDVnKaXNeF9SVXdgNc4ZxU",
        "$argon2id$v=19$m=1024,t=2,p=1$Zmg1M3I3b0szaS5GNllKRg$2IuVfOFuNgm9VAPm1s08UeSh2I98tuKsM7op+DOu2ZM",
        "$2a$05$.An0DXbboMR5fIhYZg5TVeqd8.5zt8u3WByXAQORBKPawyGaO8Bsa",
        "pbkdf2_sha256$20000$N8zcoT9V6Iskc5DyLEfxiJ$pfNQW+u+1YD+3LrfZVH160050JcTgF+icurmmd/i6/g=",
        "pbkdf2_sha1$20000$WSKyzkz0HCsNMvaemxliSz$AePntkcsW38frNZLk2xX4VONOPo=",
        "argon2$argon2id$v=19$m=1024,t=2,p=8$c0MydWtScGVMaXZJcEc0ajc0WEI2NA$s3rLpcn9kTeUYtsUNZ/mQIJ24zlK4pE3mHUdhUIAS/A",
        "bcrypt_sha256$$2b$05$MNpVtsXMkNGxTTZ0uGHXteHsIuvYARo1XDA7Vvc1lDcf7afMCYjce",
        "bcrypt$$2b$05$AWhh3ExHCBk6VwRsxCvqA.przMJSNotnAK.xDKEn8o2EPyq1GJ2IG",
        "scrypt$1024$TWJ8nLvDw4wA1TcLKVI0XT$8$5$hzJ0dsvLklEkBQ8zdgz0VRzlaTiG89/0VY0w+/pjJtP1SSAcVvS6r0x3/bVzF2oPLozMeLAZm3mP9dpYiJCXrQ==",
        "AQAAAAEAACcQAAAAEAABAgMEBQYHCAkKCwwNDg9VMAYd+Ep6F/sMxZl0FFXfEacB6KKR6Ankw/FDHm2OgA==",
        "AQAAAAIAACcQAAAAEAABAgMEBQYHCAkKCwwNDg8GJ8fG97HFXrmGf8BpH0LOOTP3QxL/exAm1mpbPZdjIQ==",
        "AAABAgMEBQYHCAkKCwwNDg+6pol2JSbbUpfyKArWnx1J8e+oodQp1fBUXu4/eBubiQ==",
    ];

    #[test]
    fn hashes_of_other_systems_are_verified() {
        for stored in MADE {
            let foreign = Foreign::read(stored).unwrap_or_else(|| panic!("{stored}"));
            assert!(foreign.fits("Pässwörd 1", &mut Vec::new()), "{stored}");
            for wrong in ["Pässwörd 2", "", "passw\0rd"] {
                assert!(!foreign.fits(wrong, &mut Vec::new()), "{stored}");
            }
            assert!(!foreign.of_nobody().fits("Pässwörd 1", &mut Vec::new()));
            assert_eq!(
                std::mem::discriminant(&foreign),
                std::mem::discriminant(&foreign.of_nobody())
            );
        }
    }

    /// Uses the bcrypt crate of this test.
    #[test]
    fn what_bcrypt_has_not_read_is_not_kept() {
        let (start, made) = ("a".repeat(72), bcrypt::hash("a".repeat(72), 4).unwrap());
        let foreign = Foreign::read(&made).unwrap();
        let typo = format!("{start}typo");
        assert!(foreign.fits(&typo, &mut Vec::new()) && !foreign.reads_all(&typo));
        assert!(foreign.fits(&start, &mut Vec::new()) && foreign.reads_all(&start));
        let django = Foreign::read(
            "bcrypt_sha256$$2b$05$MNpVtsXMkNGxTTZ0uGHXteHsIuvYARo1XDA7Vvc1lDcf7afMCYjce",
        )
        .unwrap();
        assert!(django.reads_all(&typo), "of a digest");
    }

    #[test]
    fn what_asks_for_too_much_is_none() {
        for stored in [
            "$2y$31$.n6Yy84.NdvagA8W2oq0LOvCvmdEo9TOXGNOpYE7KJ93Gw2JRs/2.",
            "$2y$05$short",
            "$1$salt$qJH7.N4xYta3aEG/dfqo/0",
            "pbkdf2_sha256$4000000000$salt$pfNQW+u+1YD+3LrfZVH160050JcTgF+icurmmd/i6/g=",
            "scrypt$1073741824$salt$8$1$hzJ0dsvLklEkBQ8zdgz0VRzlaTiG89/0VY0w+/pjJtP1SSAcVvS6r0x3/bVzF2oPLozMeLAZm3mP9dpYiJCXrQ==",
            "scrypt$1000$salt$8$1$hzJ0dsvLklEkBQ8zdgz0VRzlaTiG89/0VY0w+/pjJtP1SSAcVvS6r0x3/bVzF2oPLozMeLAZm3mP9dpYiJCXrQ==",
            "$argon2id$v=19$m=99999999,t=2,p=1$Zmg1M3I3b0szaS5GNllKRg$2IuVfOFuNgm9VAPm1s08UeSh2I98tuKsM7op+DOu2ZM",
            "plain text",
            "",
        ] {
            assert_eq!(Foreign::read(stored), None, "{stored}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_stored_string_is_survived(text in ".{0,120}", at: usize) {
            let _ = Foreign::read(&text);
            let known = MADE[at % MADE.len()];
            let _ = Foreign::read(&format!("{}{text}", &known[..at % known.len()]));
        }
    }
}
