//! Access tokens for APIs and apps: signed, short-lived, verified without a request to the issuer.
//! Refresh tokens are those of [`Remember`](super::Remember).
//!
//! | a token | is |
//! | --- | --- |
//! | with a header that names another algorithm than its key's (`none` among them) | refused: the key decides the algorithm, never the token |
//! | with a `kid` that is missing or unknown | refused: keys come from the configuration only, never from an address in the token |
//! | without `exp`, `sub`, `iss` or `aud`, or with a malformed `exp` or `nbf` | refused |
//! | of another issuer or for another audience | refused |
//! | that has expired | refused; clocks may differ by [`leeway`](Access::leeway), 5 s |
//! | of more than 8 KiB | refused unread |
//! | signed by an older key | accepted as long as that key is configured as [`older`](Access::older) |
//!
//! An access token cannot be ended before its expiry, so give it a lifetime of minutes. The
//! long-lived part is the refresh token, for which [`Remember`](super::Remember) serves: its tokens
//! (there called cookies) are exchanged at each use, and their family ends when one is presented a
//! second time (RFC 9700, 4.14.2). To end a user's tokens sooner, put [an
//! epoch](super::SessionEpochs) into the claims.
//!
//! | key | algorithm | for |
//! | --- | --- | --- |
//! | [`SigningKey::secret`] | HS256 | one service, or a few that share the secret |
//! | [`SigningKey::ed25519`] | EdDSA | services that verify tokens but cannot create them; the recommended choice |
//! | [`SigningKey::es256`], [`SigningKey::rs256`] | ES256, RS256 | verifiers without support for EdDSA |
//!
//! [`Access::jwks`] returns the keys for other verifiers, to be served at `/.well-known/jwks.json`.

mod keys;
mod ring;

use std::time::Duration;

use jsonwebtoken::{Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::keys::Key;
pub use self::keys::{SigningKey, VerifyingKey};
use super::error::Error;
use super::signed_token::now;

/// Maximum length of a token; longer ones are refused unread.
const LONGEST: usize = 8 * 1_024;
/// Largest time that programs with 53-bit numbers can represent.
const LATEST: u64 = (1 << 53) - 1;

/// Creates and verifies access tokens.
///
/// ```
/// # fn main() -> Result<(), scale_session::auth::Error> {
/// use scale_session::auth::{Access, access::SigningKey};
/// use serde::{Deserialize, Serialize};
/// use std::time::Duration;
///
/// #[derive(Clone, Serialize, Deserialize)]
/// struct Scope { scope: String }
///
/// // or SigningKey::ed25519("2026-11", PRIVATE_PEM)
/// let key = SigningKey::secret("2026-11", &[7; 32])?;
/// let access = Access::new("https://id.example.org", "shop-api", key)
///     .lifetime(Duration::from_secs(300));
///
/// let token = access.issue("user:7", &Scope { scope: "orders".into() })?;
/// let claims = access.verify::<Scope>(&token).expect("the token is valid");
/// assert_eq!((claims.sub.as_str(), claims.more.scope.as_str()), ("user:7", "orders"));
/// # Ok(()) }
/// ```
pub struct Access {
    issuer: String,
    audience: String,
    keys: Vec<Key>,
    lifetime: Duration,
    leeway: Duration,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<_> = self.keys.iter().map(|key| &key.id).collect();
        f.debug_struct("Access")
            .field("issuer", &self.issuer)
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}

/// Claims that the application must not set.
const REGISTERED: [&str; 7] = ["sub", "iss", "aud", "exp", "iat", "nbf", "jti"];

/// Claims of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Claims<T> {
    /// Subject of the token.
    pub sub: String,
    /// Issuer of the token.
    pub iss: String,
    /// Audience of the token.
    pub aud: String,
    /// Expiry, in seconds since 1970.
    pub exp: u64,
    /// Time of issue, in seconds since 1970.
    pub iat: u64,
    /// Claims of the application.
    #[serde(flatten)]
    pub more: T,
}

impl Access {
    /// Signs with `key`. Tokens are valid for five minutes.
    pub fn new(issuer: &str, audience: &str, key: SigningKey) -> Self {
        let (lifetime, leeway) = (Duration::from_mins(5), Duration::from_secs(5));
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            keys: vec![key.0],
            lifetime,
            leeway,
        }
    }

    /// Only verifies tokens: for a service that has the public key.
    pub fn reader(issuer: &str, audience: &str, key: VerifyingKey) -> Self {
        let (lifetime, leeway) = (Duration::from_mins(5), Duration::from_secs(5));
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            keys: vec![key.0],
            lifetime,
            leeway,
        }
    }

    /// Adds a key that signed before, or will sign soon. Distribute a new key to all verifiers
    /// before the first service signs with it.
    pub fn older(mut self, key: impl Into<VerifyingKey>) -> Self {
        self.keys.push(key.into().0);
        self
    }

    /// Sets the lifetime of a token.
    pub fn lifetime(mut self, time: Duration) -> Self {
        self.lifetime = time;
        self
    }

    /// Sets the allowed difference of clocks.
    pub fn leeway(mut self, time: Duration) -> Self {
        self.leeway = time;
        self
    }

    /// Creates a token about `subject`, with claims of the application: a map or a struct without
    /// any of the registered names.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no key that signs, the claims are not a map, or they contain
    /// a registered claim.
    pub fn issue<T: Serialize>(&self, subject: &str, more: &T) -> Result<String, Error> {
        let key = self.keys.first().and_then(|key| Some((key, key.signs.as_ref()?)));
        let (key, signs) = key.ok_or(Error::Setting("no signing key is configured"))?;
        let header = Header { kid: Some(key.id.clone()), ..Header::new(key.algorithm) };
        let iat = now();
        let exp = iat.saturating_add(self.lifetime.as_secs()).min(LATEST);
        let no_map = Error::Setting("the claims cannot be encoded as a map");
        let Ok(serde_json::Value::Object(more)) = serde_json::to_value(more) else {
            return Err(no_map);
        };
        if REGISTERED.iter().any(|name| more.contains_key(*name)) {
            return Err(Error::Setting(
                "the application must not set a registered claim: sub, iss, aud, exp, \
                 iat, nbf, jti",
            ));
        }
        let claims = Claims {
            sub: subject.into(),
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            exp,
            iat,
            more,
        };
        jsonwebtoken::encode(&header, &claims, signs)
            .map_err(|_| Error::Setting("the claims cannot be encoded as a map"))
    }

    /// Returns the public halves of all keys as a JSON Web Key Set (RFC 7517), for verifiers that
    /// use other libraries. HMAC secrets are left out.
    ///
    /// # Errors
    /// [`Error::Setting`] for a key that cannot be encoded.
    pub fn jwks(&self) -> Result<String, Error> {
        keys::written(&self.keys)
    }

    /// Returns the claims of a token, if the token was signed with one of the keys and has not
    /// expired.
    pub fn verify<T: DeserializeOwned + Clone>(&self, token: &str) -> Option<Claims<T>> {
        if token.len() > LONGEST {
            return None;
        }
        let header = jsonwebtoken::decode_header(token).ok()?;
        // RFC 8725, 3.11, and RFC 7515, 4.1.11: refuses other types of tokens, and tokens with
        // critical extensions, because none is supported.
        if !header.typ.as_deref().is_some_and(|typ| {
            typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("at+jwt")
        }) {
            return None;
        }
        let text =
            data_encoding::BASE64URL_NOPAD.decode(token.split('.').next()?.as_bytes()).ok()?;
        if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text)
            .ok()?
            .contains_key("crit")
        {
            return None;
        }
        let id = header.kid?;
        // Tries all keys with this id: a rotation may have kept the id.
        self.keys.iter().filter(|key| key.id == id).find_map(|key| self.claims(token, key))
    }

    fn claims<T: DeserializeOwned + Clone>(&self, token: &str, key: &Key) -> Option<Claims<T>> {
        let mut rules = Validation::new(key.algorithm);
        rules.set_required_spec_claims(&["exp", "sub", "iss", "aud"]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(&[&self.audience]);
        rules.validate_nbf = true;
        rules.leeway = self.leeway.as_secs();
        Some(jsonwebtoken::decode::<Claims<T>>(token, &key.verifies, &rules).ok()?.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64URL_NOPAD;
    use hmac::{Hmac, KeyInit, Mac};
    use serde_json::{Value, json};

    const SECRET: [u8; 32] = [7; 32];
    const PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIPHlU0IzW8QNznDTVODgOrH66+PruOI4Y9Pkh8LFYvlN\n\
        -----END PRIVATE KEY-----\n";
    const PUBLIC: &[u8] = b"-----BEGIN PUBLIC \
            KEY-----\nMCowBQYDK2VwAyEAdBIPafRs7bFga10DujzW+AGvV+nkn2yecYBYBmDvJBw=\n\
            -----END PUBLIC KEY-----\n";

    fn access() -> Access {
        Access::new("me", "api", SigningKey::secret("k1", &SECRET).unwrap())
    }

    /// A token that anybody could assemble, signed with HMAC under the given key.
    fn forged(header: &Value, claims: &Value, key: &[u8]) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let text = format!("{}.{}", part(header), part(claims));
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
        mac.update(text.as_bytes());
        format!("{text}.{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()))
    }

    fn header() -> Value {
        json!({ "alg": "HS256", "typ": "JWT", "kid": "k1" })
    }

    fn claims() -> Value {
        json!({ "sub": "ann", "iss": "me", "aud": "api", "exp": now() + 60, "iat": now() })
    }

    fn good(token: &str) -> bool {
        access().verify::<Value>(token).is_some()
    }

    #[test]
    fn a_token_says_what_was_put_into_it() {
        let token = access().issue("ann", &json!({ "scope": "orders" })).unwrap();
        let read = access().verify::<Value>(&token).unwrap();
        assert_eq!(
            (read.sub.as_str(), &read.more["scope"], read.exp - read.iat),
            ("ann", &json!("orders"), 300)
        );
        assert!(
            good(&forged(&header(), &claims(), &SECRET)),
            "the forger of these tests does it right"
        );
        assert!(access().issue("ann", &7).is_err(), "no map");
        for name in REGISTERED {
            assert!(access().issue("ann", &json!({ name: "x" })).is_err(), "twice `{name}`");
        }
        let with = |name: &str, value: Value| {
            let mut header = header();
            header[name] = value;
            forged(&header, &claims(), &SECRET)
        };
        assert!(
            good(&with("typ", json!("at+jwt")))
                && !good(&with("typ", json!("dpop+jwt")))
                && !good(&with("typ", Value::Null))
        );
        assert!(!good(&with("crit", json!(["exp"]))));
        assert_eq!(format!("{:?}", access()), r#"Access { issuer: "me", keys: ["k1"], .. }"#);
    }

    #[test]
    fn algorithms_and_keys_are_ours_to_choose() {
        let with = |name: &str, value: Value| {
            let mut header = header();
            header[name] = value;
            header
        };
        for bad in [
            with("alg", json!("none")),
            with("alg", json!("HS512")),
            with("alg", json!("EdDSA")),
            with("alg", json!("NONE")),
        ] {
            assert!(!good(&forged(&bad, &claims(), &SECRET)), "{bad}");
        }
        for bad in [
            with("kid", json!("k2")),
            with("kid", Value::Null),
            with("kid", json!("../../etc/passwd")),
            json!({ "alg": "HS256" }),
        ] {
            assert!(!good(&forged(&bad, &claims(), &SECRET)), "{bad}");
        }
        // A key from the token itself, or from an address in the token.
        let mut embedded = with("jku", json!("https://evil.example/keys"));
        embedded["jwk"] = json!({ "kty": "oct", "k": BASE64URL_NOPAD.encode(&[9; 32]) });
        assert!(!good(&forged(&embedded, &claims(), &[9; 32])));
        let unsigned = forged(&with("alg", json!("none")), &claims(), &SECRET);
        assert!(!good(&unsigned[..=unsigned.rfind('.').unwrap()]));
        assert!(!good(&forged(&header(), &claims(), &[8; 32])), "another secret");
        // Key confusion: signed with HMAC under the public half of a key pair.
        let pair = Access::new("me", "api", SigningKey::ed25519("k1", PRIVATE).unwrap());
        let confused = forged(&header(), &claims(), PUBLIC);
        assert!(pair.verify::<Value>(&confused).is_none());
        assert!(!good(&pair.issue("ann", &json!({})).unwrap()));
    }

    #[test]
    fn claims_are_there_and_what_they_should_be() {
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            good(&forged(&header(), &claims, &SECRET))
        };
        for name in ["exp", "sub", "iss", "aud"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(name);
            assert!(!good(&forged(&header(), &claims, &SECRET)), "without {name}");
            assert!(!with(name, Value::Null), "{name} null");
        }
        for malformed in [
            json!("9999999999"),
            json!(-1),
            json!({}),
            json!([9_999_999_999_u64]),
            json!(true),
            json!("x"),
            json!(1e300),
        ] {
            assert!(!with("exp", malformed.clone()), "exp {malformed}");
            if malformed != json!(-1) {
                assert!(!with("nbf", malformed.clone()), "nbf {malformed}");
            }
        }
        assert!(!with("exp", json!(now() - 60)) && with("exp", json!(now() + 1)));
        assert!(!with("nbf", json!(now() + 60)) && with("nbf", json!(now() - 60)));
        assert!(
            !with("iss", json!("you"))
                && !with("aud", json!("other"))
                && !with("aud", json!(["other"]))
        );
    }

    #[test]
    fn keys_change_and_readers_only_read() {
        let old = access();
        let new = || SigningKey::ed25519("k2", PRIVATE).unwrap();
        let both =
            Access::new("me", "api", new()).older(SigningKey::secret("k1", &SECRET).unwrap());
        assert!(both.verify::<Value>(&old.issue("ann", &json!({})).unwrap()).is_some());
        let token = both.issue("ann", &json!({})).unwrap();
        assert!(old.verify::<Value>(&token).is_none());
        let reader = Access::reader("me", "api", VerifyingKey::ed25519("k2", PUBLIC).unwrap());
        assert!(
            reader.verify::<Value>(&token).is_some() && reader.issue("ann", &json!({})).is_err()
        );
        assert!(
            SigningKey::secret("k", &[7; 31]).is_err()
                && VerifyingKey::ed25519("k", b"junk").is_err()
        );
        assert!(both.verify::<Value>(&"a".repeat(LONGEST + 1)).is_none());
    }

    #[test]
    fn a_key_that_kept_its_name_is_read_and_time_has_an_end() {
        let old = Access::new("me", "api", SigningKey::secret("k", &SECRET).unwrap())
            .lifetime(Duration::MAX);
        let new = || Access::new("me", "api", SigningKey::secret("k", &[8; 32]).unwrap());
        let both = new().older(SigningKey::secret("k", &SECRET).unwrap());
        let token = old.issue("ann", &json!({})).unwrap();
        assert!(new().verify::<Value>(&token).is_none());
        assert_eq!(both.verify::<Value>(&token).unwrap().exp, LATEST);
    }

    #[test]
    fn every_algorithm_signs_and_is_read_by_the_public_half_alone() {
        let rsa = || SigningKey::rs256("rsa", include_bytes!("test_keys/rsa.pem")).unwrap();
        let ec = || SigningKey::es256("ec", include_bytes!("test_keys/ec.pem")).unwrap();
        let ed = || SigningKey::ed25519("ed", PRIVATE).unwrap();
        let all = Access::new("me", "api", rsa())
            .older(ec())
            .older(ed())
            .older(SigningKey::secret("hs", &SECRET).unwrap());
        let jwks = all.jwks().unwrap();
        let set: Value = serde_json::from_str(&jwks).unwrap();
        let ids: Vec<_> = set["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["kid"].as_str().unwrap())
            .collect();
        assert_eq!(ids, ["rsa", "ec", "ed"], "no secret is published");
        assert!(
            !jwks.contains("\"d\"") && !jwks.contains("\"k\"") && jwks.contains("\"use\":\"sig\""),
            "{jwks}"
        );
        for key in [rsa(), ec(), ed()] {
            let id = format!("{key:?}");
            let maker = Access::new("me", "api", key);
            let token = maker.issue("ann", &json!({ "scope": "x" })).unwrap();
            let read = VerifyingKey::from_jwks(&jwks).unwrap().into_iter();
            let readers: Vec<bool> = read
                .map(|key| Access::reader("me", "api", key).verify::<Value>(&token).is_some())
                .collect();
            assert_eq!(readers.iter().filter(|read| **read).count(), 1, "{id}");
            assert!(all.verify::<Value>(&token).is_some(), "{id}");
            let end = token.len() - 10;
            let other = if token.as_bytes()[end] == b'A' { "B" } else { "A" };
            assert!(
                all.verify::<Value>(&format!("{}{other}{}", &token[..end], &token[end + 1..]))
                    .is_none(),
                "{id}"
            );
        }
        // Tokens signed by Node.js with the same keys.
        let publics = [
            (
                include_str!("test_keys/rsa.jwt"),
                VerifyingKey::rs256("rsa", include_bytes!("test_keys/rsa.pub.pem")),
            ),
            (
                include_str!("test_keys/ec.jwt"),
                VerifyingKey::es256("ec", include_bytes!("test_keys/ec.pub.pem")),
            ),
        ];
        for (token, key) in publics {
            let reader = Access::reader("node", "api", key.unwrap());
            let read = reader.verify::<Value>(token.trim()).unwrap();
            let again = VerifyingKey::from_jwks(&reader.jwks().unwrap()).unwrap().remove(0);
            assert!(Access::reader("node", "api", again).verify::<Value>(token.trim()).is_some());
            assert_eq!((read.sub.as_str(), &read.more["scope"]), ("ann", &json!("x")));
        }
        // A key of one kind passed off as another kind.
        assert!(
            SigningKey::rs256("x", PRIVATE).is_err()
                && SigningKey::es256("x", include_bytes!("test_keys/rsa.pem")).is_err()
        );
        assert!(
            VerifyingKey::es256("x", PUBLIC).is_err() && SigningKey::ed25519("x", b"").is_err()
        );
    }

    #[test]
    fn key_sets_of_others_are_read_with_care() {
        let read = |keys: Value| {
            VerifyingKey::from_jwks(&json!({ "keys": keys }).to_string()).map(|keys| keys.len())
        };
        let ed = json!({
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": "a",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        });
        let secret = json!({ "kty": "oct", "kid": "b", "k": "AAAA" });
        let enc = json!({
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": "c",
            "use": "enc",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        });
        let unnamed = json!({
            "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
        });
        let unknown = json!({ "kty": "XYZ", "kid": "d" });
        assert_eq!(
            read(json!([ed, secret, enc, unnamed, unknown])).unwrap(),
            2,
            "what cannot verify here is left out"
        );
        for bad in ["", "{}", "[]", "{\"keys\":7}", &"x".repeat(2_000_000)] {
            assert!(VerifyingKey::from_jwks(bad).is_err(), "{bad:.20}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}", parts: (Vec<u8>, Vec<u8>, Vec<u8>)) {
            let token = [parts.0, parts.1, parts.2]
                .map(|part| BASE64URL_NOPAD.encode(&part))
                .join(".");
            proptest::prop_assert!(!good(&text) && !good(&token));
        }
    }
}
