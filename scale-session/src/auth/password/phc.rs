//! Stored form of hashes: a PHC string.

use data_encoding::BASE64_NOPAD;

use super::cost::{Cost, HASH};

/// Hash in the form `$argon2id$v=19$m=19456,t=2,p=1,keyid=…$salt$hash`.
#[derive(Debug, PartialEq)]
pub(super) struct Phc {
    pub(super) cost: Cost,
    pub(super) pepper: Option<String>,
    pub(super) salt: Vec<u8>,
    pub(super) hash: Vec<u8>,
}

/// Limits on the cost of stored hashes (KiB, passes, lanes), which may come from an import.
const MOST: (u32, u32, u32) = (1 << 20, 100, 16);

impl Phc {
    pub(super) fn write(&self) -> String {
        let Cost { memory, passes, lanes } = self.cost;
        let pepper = self.pepper.as_ref().map(|id| format!(",keyid={id}")).unwrap_or_default();
        let (salt, hash) = (BASE64_NOPAD.encode(&self.salt), BASE64_NOPAD.encode(&self.hash));
        format!("$argon2id$v=19$m={memory},t={passes},p={lanes}{pepper}${salt}${hash}")
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("$argon2id$v=19$")?.split('$');
        let (settings, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
        let mut cost = Cost { memory: 0, passes: 0, lanes: 0 };
        let mut pepper = None;
        for setting in settings.split(',') {
            match setting.split_once('=')? {
                ("m", n) => cost.memory = n.parse().ok().filter(|n| *n <= MOST.0)?,
                ("t", n) => cost.passes = n.parse().ok().filter(|n| *n <= MOST.1)?,
                ("p", n) => cost.lanes = n.parse().ok().filter(|n| *n <= MOST.2)?,
                ("keyid", id) => pepper = Some(id.to_owned()),
                _ => return None,
            }
        }
        cost.params().ok()?;
        let salt =
            BASE64_NOPAD.decode(salt.as_bytes()).ok().filter(|s| (8..=64).contains(&s.len()))?;
        let hash = BASE64_NOPAD.decode(hash.as_bytes()).ok().filter(|h| h.len() == HASH)?;
        parts.next().is_none().then_some(Self { cost, pepper, salt, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_stored_string_is_survived(text in ".{0,120}") {
            let _ = Phc::read(&text);
            let _ = Phc::read(&format!("$argon2id$v=19${text}"));
        }
    }
}
