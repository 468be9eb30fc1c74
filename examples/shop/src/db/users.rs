//! Who has an account.

use anyhow::Result;
use scale_session::auth::Passwords;
use scale_session::auth::password::Verified;
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

/// The account, if e-mail and password belong together. An unknown address takes as long as a wrong password.
pub(crate) async fn log_in(db: &Database, passwords: &Passwords, email: &str, password: &str) -> Result<Option<Account>> {
    let email = email.trim().to_lowercase();
    let user: Option<User> =
        sqlx::query_as("select name, password from users where email = $1").bind(email.clone()).fetch_optional(db).await?;
    let verified = passwords.verify(password, user.as_ref().map(|user| user.password.as_str())).await?;
    let (Some(user), Verified::Yes { rehashed }) = (user, verified) else { return Ok(None) };
    if let Some(hash) = rehashed {
        sqlx::query("update users set password = $2 where email = $1").bind(email.clone()).bind(hash).execute(db).await?;
    }
    Ok(Some(Account { email, name: user.name }))
}

/// The hash of the account's password, as the primary has it: what links by mail are bound to.
pub(crate) async fn password_hash(db: &Database, email: &str) -> Result<Option<String>> {
    let hash = sqlx::query_scalar("select password from users where email = $1").bind(email.to_owned());
    Ok(hash.fetch_optional(db.primary()).await?)
}

/// Gives the account another password.
pub(crate) async fn set_password(db: &Database, email: &str, hash: String) -> Result<()> {
    sqlx::query("update users set password = $2 where email = $1").bind(email.to_owned()).bind(hash).execute(db).await?;
    Ok(())
}

/// The account of that address.
pub(crate) async fn find(db: &Database, email: &str) -> Result<Option<Account>> {
    let name: Option<String> =
        sqlx::query_scalar("select name from users where email = $1").bind(email.to_owned()).fetch_optional(db).await?;
    Ok(name.map(|name| Account { email: email.to_owned(), name }))
}
