//! Who has an account.

use anyhow::{Result, anyhow};
use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use crate::app::Database;

/// Somebody who is logged in, as the session knows them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) email: String,
    pub(crate) name: String,
}

#[derive(FromRow)]
struct User {
    name: String,
    password: String,
}

/// argon2id with OWASP's parameters: 19 MiB, two passes.
fn argon2() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default())
}

pub(crate) fn hash(password: &str) -> Result<String> {
    let salt = SaltString::generate(&mut OsRng);
    let hash = argon2().hash_password(password.as_bytes(), &salt);
    Ok(hash.map_err(|e| anyhow!("hashing a password: {e}"))?.to_string())
}

/// The account, if e-mail and password belong together. An unknown address takes as long as a wrong password.
pub(crate) async fn log_in(db: &Database, email: &str, password: String) -> Result<Option<Account>> {
    let email = email.trim().to_lowercase();
    let user: Option<User> =
        sqlx::query_as("select name, password from users where email = $1").bind(email.clone()).fetch_optional(db).await?;
    let known = user.is_some();
    let (name, stored) = user.map_or_else(|| (String::new(), NOBODY.to_owned()), |u| (u.name, u.password));
    let fits = tokio::task::spawn_blocking(move || {
        PasswordHash::new(&stored).is_ok_and(|hash| argon2().verify_password(password.as_bytes(), &hash).is_ok())
    });
    Ok((fits.await? && known).then_some(Account { email, name }))
}

/// A hash of a password nobody has, with the parameters of all others.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2NhbGUtc2hvcC1ub2JvZHk$T5f6WdvfwhPVYkHSSqlS1bMPIYoTDMCSo1EGkYWQyqU";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_costs_what_everybody_costs() -> Result<()> {
        let nobody = PasswordHash::new(NOBODY).map_err(|e| anyhow!("{e}"))?;
        let real = hash("x")?;
        let real = PasswordHash::new(&real).map_err(|e| anyhow!("{e}"))?;
        assert_eq!((nobody.algorithm, nobody.params), (real.algorithm, real.params));
        Ok(())
    }
}
