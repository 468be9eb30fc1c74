//! Rules for new passwords.

use std::collections::HashSet;

use super::LONGEST;
use crate::auth::error::Error;

/// Rules for new passwords. They do not require certain characters: ASVS 6.2.5 and NIST SP
/// 800-63B-4 advise against that.
#[must_use]
#[derive(Clone, Debug)]
pub struct Rules {
    least: usize,
    banned: HashSet<String>,
}

impl Default for Rules {
    /// Requires at least 8 characters and at most 1,024 bytes. NIST requires 15 characters where
    /// the password is the only factor.
    fn default() -> Self {
        Self { least: 8, banned: HashSet::new() }
    }
}

impl Rules {
    /// Sets the minimum number of characters, at least 8.
    pub fn at_least(self, characters: usize) -> Self {
        Self { least: characters.max(8), ..self }
    }

    /// Bans passwords, in any case: for example the few thousand most common ones, and the site's
    /// own name.
    pub fn banned<T: AsRef<str>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.banned.extend(words.into_iter().map(|word| word.as_ref().to_lowercase()));
        self
    }

    /// Checks a password against the rules. `context` contains words that the password must not
    /// equal: the user's name and address.
    ///
    /// # Errors
    /// [`Error::Password`], with a text to show.
    pub fn check(&self, password: &str, context: &[&str]) -> Result<(), Error> {
        if password.len() > LONGEST {
            return Err(Error::Password("is longer than 1,024 bytes"));
        }
        if password.chars().count() < self.least {
            return Err(Error::Password("is too short"));
        }
        let lower = password.to_lowercase();
        if self.banned.contains(&lower) {
            return Err(Error::Password("is one of the most common passwords"));
        }
        if context.iter().any(|word| !word.is_empty() && word.to_lowercase() == lower) {
            return Err(Error::Password("is the user's name or address"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_passwords() {
        let rules = Rules::default().banned(["Password1", "letmein1234"]);
        for (password, fits) in [
            ("correct horse", true),
            ("sevench", false),
            ("eight ch", true),
            ("пароль12", true),
            ("password1", false),
            ("ann@example.com", false),
            (&"x".repeat(64), true),
            (&"x".repeat(LONGEST + 1), false),
        ] {
            assert_eq!(
                rules.check(password, &["Ann@Example.com", ""]).is_ok(),
                fits,
                "{password:.20}"
            );
        }
    }
}
