//! What a new password must be like.

use std::collections::HashSet;

use super::LONGEST;
use crate::auth::error::Error;

/// What a new password must be like. Not what it must be made of: ASVS 6.2.5 and NIST SP 800-63B-4 rule that out.
#[derive(Clone, Debug)]
pub struct Rules {
    least: usize,
    banned: HashSet<String>,
}

impl Default for Rules {
    /// At least 8 characters, at most 1,024 bytes. NIST asks for 15 where the password is the only factor.
    fn default() -> Self {
        Self { least: 8, banned: HashSet::new() }
    }
}

impl Rules {
    /// At least so many characters.
    pub fn at_least(self, characters: usize) -> Self {
        Self { least: characters.max(8), ..self }
    }

    /// None of these, in whatever case: the few thousand most common ones, say, and the site's own name.
    pub fn banned<T: AsRef<str>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.banned.extend(words.into_iter().map(|word| word.as_ref().to_lowercase()));
        self
    }

    /// Whether a password keeps them; `context` is what it must not be: the user's name and address.
    ///
    /// # Errors
    /// [`Error::Password`], with words to show.
    pub fn check(&self, password: &str, context: &[&str]) -> Result<(), Error> {
        if password.len() > LONGEST {
            return Err(Error::Password("is longer than 1,024 bytes"));
        }
        if password.chars().count() < self.least {
            return Err(Error::Password("is too short"));
        }
        let lower = password.to_lowercase();
        if self.banned.contains(&lower) {
            return Err(Error::Password("is one of the most common ones"));
        }
        if context.iter().any(|word| !word.is_empty() && word.to_lowercase() == lower) {
            return Err(Error::Password("is the name or the address"));
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
            assert_eq!(rules.check(password, &["Ann@Example.com", ""]).is_ok(), fits, "{password:.20}");
        }
    }
}
