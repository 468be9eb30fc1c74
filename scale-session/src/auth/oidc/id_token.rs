//! ID tokens: verification of their signature and claims.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};

use crate::auth::access::VerifyingKey;
use crate::auth::same;
use crate::auth::signed_token::now;

/// Maximum length of a token; longer ones are refused unread.
const LONGEST: usize = 64 * 1_024;
/// Allowed difference of clocks, in seconds.
const LEEWAY: u64 = 60;

/// A token as the provider sent it, not verified yet.
pub(super) struct IdToken {
    text: String,
    algorithm: Algorithm,
    key_id: Option<String>,
}

impl IdToken {
    pub(super) fn read(text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let header = BASE64URL_NOPAD.decode(text.split('.').next()?.as_bytes()).ok()?;
        if serde_json::from_slice::<Map<String, Value>>(&header).ok()?.contains_key("crit") {
            return None;
        }
        let header = jsonwebtoken::decode_header(text).ok()?;
        Some(Self { text: text.to_owned(), algorithm: header.alg, key_id: header.kid })
    }

    /// Returns whether the token names this key. The key decides the algorithm.
    pub(super) fn is_by(&self, key: &VerifyingKey) -> bool {
        self.key_id.as_deref().is_none_or(|id| id == key.0.id) && self.algorithm == key.0.algorithm
    }

    /// Returns the token's claims, if the key has signed it.
    pub(super) fn claims(&self, key: &VerifyingKey) -> Option<Map<String, Value>> {
        let mut rules = Validation::new(key.0.algorithm);
        rules.required_spec_claims.clear();
        // `check` verifies these claims, by the rules of OpenID Connect.
        (rules.validate_exp, rules.validate_aud, rules.validate_nbf) = (false, false, false);
        jsonwebtoken::decode::<Map<String, Value>>(&self.text, &key.0.verifies, &rules)
            .ok()
            .map(|token| token.claims)
    }

    /// Checks the claims (OpenID Connect Core 1.0, 3.1.3.7).
    #[expect(clippy::unused_self, reason = "the claims belong to a token that was verified")]
    pub(super) fn check(
        &self,
        claims: &Map<String, Value>,
        issuer: &str,
        client_id: &str,
        nonce: &str,
    ) -> Result<(), &'static str> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("iss") != Some(issuer) {
            return Err("the ID token is from another issuer");
        }
        let audiences: Vec<&str> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !audiences.contains(&client_id) {
            return Err("the ID token is for another audience");
        }
        if (audiences.len() > 1 || claims.contains_key("azp")) && text("azp") != Some(client_id) {
            return Err("the ID token is for another authorized party");
        }
        let time = |name: &str| claims.get(name).and_then(Value::as_u64);
        if time("exp").is_none_or(|end| end.saturating_add(LEEWAY) <= now()) {
            return Err("the ID token has expired");
        }
        if time("iat").is_none_or(|made| made > now() + LEEWAY) {
            return Err("the ID token was issued in the future");
        }
        if claims.contains_key("nbf") && time("nbf").is_none_or(|start| start > now() + LEEWAY) {
            return Err("the ID token is not valid yet");
        }
        if !text("nonce").is_some_and(|claims| same(claims.as_bytes(), nonce.as_bytes())) {
            return Err("the ID token belongs to another log-in");
        }
        if text("sub").is_none_or(|subject| subject.is_empty() || subject.len() > 255) {
            return Err("the ID token has no valid subject");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_those_of_this_log_in() {
        let good = json!({
            "iss": "https://id.test",
            "aud": "shop",
            "sub": "7",
            "exp": now() + 60,
            "iat": now(),
            "nonce": "n",
        });
        let token = IdToken { text: String::new(), algorithm: Algorithm::RS256, key_id: None };
        let check = |claims: &Value| {
            token.check(claims.as_object().unwrap(), "https://id.test", "shop", "n")
        };
        let with = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            check(&claims)
        };
        assert_eq!(check(&good), Ok(()));
        assert!(with("aud", json!(["shop"])).is_ok() && with("azp", json!("shop")).is_ok());
        assert!(
            with("aud", json!(["shop", "other"])).is_err() && with("azp", json!("other")).is_err()
        );
        for (name, value) in [
            ("iss", json!("https://id.test/")),
            ("iss", json!(["https://id.test"])),
            ("aud", json!("other")),
            ("aud", json!([])),
            ("exp", json!(now() - 120)),
            ("exp", json!("9999999999")),
            ("iat", json!(now() + 600)),
            ("nbf", json!(now() + 600)),
            ("nbf", json!("x")),
            ("nonce", json!("m")),
            ("nonce", Value::Null),
            ("sub", json!("")),
            ("sub", json!(7)),
            ("sub", json!("x".repeat(300))),
        ] {
            assert!(with(name, value.clone()).is_err(), "{name} {value}");
        }
        for name in ["iss", "aud", "sub", "exp", "iat", "nonce"] {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(name);
            assert!(check(&claims).is_err(), "without {name}");
        }
    }
}
