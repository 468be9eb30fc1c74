//! Targets of `fuzz/`, which the tests below run on mutated inputs.

use http::HeaderValue;

use crate::cookie::CookiePolicy;
use crate::id::Id;

/// Reads any bytes as a `Cookie` header: at most one session cookie is used, and neither its id nor
/// an encrypted session is one that the server did not make.
pub fn session_cookie(data: &[u8]) {
    let Ok(line) = HeaderValue::from_bytes(data) else { return };
    let policy = CookiePolicy::default();
    let text = String::from_utf8_lossy(data);
    let cookie = policy.read(std::slice::from_ref(&line)).map(str::to_owned);
    if cookie.is_some() {
        assert!(policy.presents(std::slice::from_ref(&line)));
        assert!(policy.read(&[line.clone(), line]).is_none(), "two cookies are none");
    }
    for text in [cookie.as_deref().unwrap_or_default(), &text] {
        if let Some(id) = Id::parse(text) {
            assert_eq!(Id::parse(&id.text()), Some(id), "an id has one form");
        }
        #[cfg(feature = "cookie")]
        {
            use crate::store::{CookieKeys, EncryptedCookieStore, Store};
            let store = EncryptedCookieStore::new(CookieKeys::new(&[7; 32]));
            assert!(store.presented(text).is_none(), "forged: {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::id::{Id, Owner};

    #[test]
    fn any_cookie_header_is_read() {
        let anonymous = Id::random(None).unwrap();
        let owned = Id::random(Some(Owner::of("ada"))).unwrap();
        let lines = [anonymous, owned].map(|id| format!("a=1; __Host-sid={}; b=\"2\"", id.text()));
        let seeds: [&[u8]; 4] =
            [lines[0].as_bytes(), lines[1].as_bytes(), b"__Host-sid=", b"a; ; =; \xFF=\xFE"];
        testkit::mutated(&seeds, 20_000, super::session_cookie);
    }
}
