//! Codes of an authenticator app: TOTP (RFC 6238) with SHA-1, six digits and thirty seconds, as all
//! apps use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use super::error::Error;
use super::one_time_store::OneTimeStore;
use super::{random, same};

const STEP: u64 = 30;
const DIGITS: u32 = 6;

/// A user's second factor. Store [`secret`](Self::secret) encrypted, with the user.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{OneTimeStore, Totp};
///
/// let one_time = OneTimeStore::memory(); // or OneTimeStore::connect("redis://…", "shop")
/// let totp = Totp::generate()?;
/// // shown once, then confirmed with a first code
/// let qr = totp.qr_svg("Shop", "ann@example.com")?;
/// assert!(qr.starts_with("<?xml") || qr.starts_with("<svg"));
/// assert!(!totp.verify(&one_time, "ann", "000000x").await?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Totp {
    secret: Vec<u8>,
    skew: u64,
}

impl std::fmt::Debug for Totp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Totp(secret)")
    }
}

impl Totp {
    /// Generates a new secret of 160 bits.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn generate() -> Result<Self, Error> {
        Ok(Self { secret: random::<20>()?.to_vec(), skew: 1 })
    }

    /// Parses the output of [`secret`](Self::secret), or the secret of another system: base32 of 10
    /// to 64 bytes, in upper or lower case, with spaces or padding.
    ///
    /// # Errors
    /// [`Error::Stored`].
    pub fn from_secret(text: &str) -> Result<Self, Error> {
        let plain = |c: &char| !c.is_whitespace() && !matches!(c, '=' | '-');
        let text: String =
            text.chars().filter(plain).take(200).map(|c| c.to_ascii_uppercase()).collect();
        let secret =
            BASE32_NOPAD.decode(text.as_bytes()).map_err(|_| Error::Stored("second factor"))?;
        if (10..=64).contains(&secret.len()) {
            Ok(Self { secret, skew: 1 })
        } else {
            Err(Error::Stored("second factor"))
        }
    }

    /// Returns the secret in base32, for users who cannot scan a QR code.
    pub fn secret(&self) -> String {
        BASE32_NOPAD.encode(&self.secret)
    }

    /// Sets how many steps of thirty seconds a code is valid before and after its own step, two at
    /// most: for inaccurate clocks and slow typing. Default: 1, as RFC 6238 advises; 0 is the
    /// strictest.
    pub fn skew(self, steps: u64) -> Self {
        Self { skew: steps.min(2), ..self }
    }

    /// Returns the URI that an app scans.
    pub fn uri(&self, issuer: &str, account: &str) -> String {
        let (issuer, account) = (escaped(issuer), escaped(account));
        format!("otpauth://totp/{issuer}:{account}?secret={}&issuer={issuer}", self.secret())
    }

    /// Returns the URI as a QR code, in SVG.
    ///
    /// # Errors
    /// [`Error::Setting`] if the names are too long for a QR code.
    pub fn qr_svg(&self, issuer: &str, account: &str) -> Result<String, Error> {
        let code = qrcode::QrCode::new(self.uri(issuer, account))
            .map_err(|_| Error::Setting("issuer and account are too long for a QR code"))?;
        Ok(code.render::<qrcode::render::svg::Color<'_>>().min_dimensions(200, 200).build())
    }

    /// Returns whether a code is right at this time and has not been used before. `user` is the
    /// account's name as stored. Limit guesses before this call.
    ///
    /// # Errors
    /// [`Error::OneTimeStore`].
    pub async fn verify(
        &self,
        one_time: &OneTimeStore,
        user: &str,
        code: &str,
    ) -> Result<bool, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        self.verify_at(one_time, user, code, now).await
    }

    async fn verify_at(
        &self,
        one_time: &OneTimeStore,
        user: &str,
        code: &str,
        now: u64,
    ) -> Result<bool, Error> {
        let code: String =
            code.chars().filter(|c| !c.is_whitespace()).take(DIGITS as usize + 1).collect();
        let step = now / STEP;
        let mut fits = None;
        // All steps are compared, even after a match.
        for step in step.saturating_sub(self.skew)..=step + self.skew {
            if same(self.code(step).as_bytes(), code.as_bytes()) {
                fits = Some(step);
            }
        }
        let Some(step) = fits else { return Ok(false) };
        // Claimed until no clock accepts the code any more.
        let time = Duration::from_secs(STEP * (2 * self.skew + 2));
        one_time.claim("totp", &format!("{user}\0{step}"), time).await
    }

    fn code(&self, step: u64) -> String {
        let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(&self.secret) else { return String::new() };
        mac.update(&step.to_be_bytes());
        let digest = mac.finalize().into_bytes();
        let offset = usize::from(digest[19] & 15);
        let number = u32::from_be_bytes([
            digest[offset] & 0x7f,
            digest[offset + 1],
            digest[offset + 2],
            digest[offset + 3],
        ]);
        format!("{:06}", number % 10_u32.pow(DIGITS))
    }
}

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |out, byte| match byte {
        b if b.is_ascii_alphanumeric() || b"-._~@".contains(&b) => out + &char::from(b).to_string(),
        b => out + &format!("%{b:02X}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn codes_of_rfc_6238() {
        // RFC 6238, appendix B, last six digits.
        let totp = Totp { secret: b"12345678901234567890".to_vec(), skew: 1 };
        for (time, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(totp.code(time / STEP), code, "{time}");
            for (at, fits) in [
                (time, true),
                (time + STEP, true),
                (time - 30, true),
                (time + 2 * STEP, false),
                (time + 600, false),
            ] {
                let one_time = OneTimeStore::memory();
                assert_eq!(
                    totp.verify_at(&one_time, "ann", code, at).await.unwrap(),
                    fits,
                    "{code} at {at}"
                );
            }
            let strict = totp.clone().skew(0);
            assert!(
                !strict.verify_at(&OneTimeStore::memory(), "ann", code, time + STEP).await.unwrap()
            );
        }
    }

    #[tokio::test]
    async fn a_code_is_good_once_for_each_user() {
        let (totp, one_time) =
            (Totp { secret: b"12345678901234567890".to_vec(), skew: 1 }, OneTimeStore::memory());
        assert!(totp.verify_at(&one_time, "ann", " 287 082 ", 59).await.unwrap());
        for at in [59, 60, 89] {
            assert!(!totp.verify_at(&one_time, "ann", "287082", at).await.unwrap());
        }
        assert!(
            totp.verify_at(&one_time, "ben", "287082", 59).await.unwrap(),
            "another user with the same secret"
        );
        for wrong in ["", "28708", "2870820", "287083", "28708２"] {
            assert!(!totp.verify_at(&one_time, "cem", wrong, 59).await.unwrap(), "{wrong}");
        }
    }

    #[test]
    fn secrets_come_back_and_are_not_shown() {
        let totp = Totp::generate().unwrap();
        assert_eq!(Totp::from_secret(&totp.secret()).unwrap().secret, totp.secret);
        assert_eq!(format!("{totp:?}"), "Totp(secret)");
        assert!(
            Totp::from_secret("short").is_err() && Totp::from_secret(&"A".repeat(2_000)).is_err()
        );
        // Secrets of other systems: ten bytes, fifteen, thirty-two; lower case, groups, padding.
        for (text, bytes) in [
            ("JBSWY3DPEHPK3PXP", 10),
            ("jbsw y3dp ehpk 3pxp", 10),
            ("GEZDGNBVGY3TQOJQGEZDGNBV", 15),
            ("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZA====", 32),
        ] {
            assert_eq!(Totp::from_secret(text).unwrap().secret.len(), bytes, "{text}");
        }
        let uri = totp.uri("My Shop", "ann+x@example.com");
        assert!(
            uri.starts_with("otpauth://totp/My%20Shop:ann%2Bx@example.com?secret=")
                && uri.ends_with("&issuer=My%20Shop"),
            "{uri}"
        );
        assert!(totp.qr_svg("Shop", "ann@example.com").unwrap().contains("<svg"));
    }
}
