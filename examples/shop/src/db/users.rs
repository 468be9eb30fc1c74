//! Accounts.

use anyhow::Result;
use scale_session::auth::Passwords;
use scale_session::auth::password::Verified;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use super::sql;
use crate::app::Database;

/// A logged-in user, as stored in the session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) email: String,
    pub(crate) name: String,
    /// Shows links for staff. The right itself is asked for at each request: see [`has_role`].
    #[serde(default)]
    pub(crate) is_staff: bool,
}

/// Rights of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Customer,
    /// Sees the queues, and changes their jobs.
    Staff,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Staff => "staff",
        }
    }
}

/// An account to be created.
pub(crate) struct NewAccount<'a> {
    pub(crate) email: &'a str,
    pub(crate) name: &'a str,
    pub(crate) role: Role,
    pub(crate) password: &'a str,
}

/// Creates an account. Returns `false` if the address has one.
pub(crate) async fn create(
    db: &Database,
    passwords: &Passwords,
    new: NewAccount<'_>,
) -> Result<bool> {
    let hash = passwords.hash(new.password).await?;
    let insert = "insert into users (email, name, role, password) values ($1, $2, $3, $4)";
    let created = sqlx::query(sql(db, insert))
        .bind(address(new.email))
        .bind(new.name.to_owned())
        .bind(new.role.name())
        .bind(hash)
        .execute(db)
        .await;
    match created {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether the account has that role now: asked from the primary, because a right that was
/// taken away must not come back from a replica.
pub(crate) async fn has_role(db: &Database, email: &str, role: Role) -> Result<bool> {
    let known: Option<String> =
        sqlx::query_scalar(sql(db, "select role from users where email = $1"))
            .bind(email.to_owned())
            .fetch_optional(db.primary())
            .await?;
    Ok(known.as_deref() == Some(role.name()))
}

#[derive(FromRow)]
struct User {
    name: String,
    role: String,
    password: String,
}

/// Returns an address as accounts have it: in lower case, without control characters and spaces
/// around it.
pub(crate) fn address(email: &str) -> String {
    email.trim().chars().filter(|c| !c.is_control()).collect::<String>().to_lowercase()
}

/// Returns the account, if e-mail and password are right. An unknown address takes as long as a
/// wrong password.
pub(crate) async fn log_in(
    db: &Database,
    passwords: &Passwords,
    email: &str,
    password: &str,
) -> Result<Option<Account>> {
    let user: Option<User> =
        sqlx::query_as(sql(db, "select name, role, password from users where email = $1"))
            .bind(email.to_owned())
            .fetch_optional(db)
            .await?;
    let verified =
        passwords.verify(password, user.as_ref().map(|user| user.password.as_str())).await?;
    let (Some(user), Verified::Yes { rehashed }) = (user, verified) else { return Ok(None) };
    if let Some(hash) = rehashed {
        sqlx::query(sql(db, "update users set password = $1 where email = $2"))
            .bind(hash)
            .bind(email.to_owned())
            .execute(db)
            .await?;
    }
    Ok(Some(account(email, user.name, &user.role)))
}

/// Returns the hash of the account's password, read from the primary: links in mails are bound to
/// it.
pub(crate) async fn password_hash(db: &Database, email: &str) -> Result<Option<String>> {
    let hash = sqlx::query_scalar(sql(db, "select password from users where email = $1"))
        .bind(email.to_owned());
    Ok(hash.fetch_optional(db.primary()).await?)
}

/// Sets the password hash of an account.
pub(crate) async fn set_password(db: &Database, email: &str, hash: String) -> Result<()> {
    sqlx::query(sql(db, "update users set password = $1 where email = $2"))
        .bind(hash)
        .bind(email.to_owned())
        .execute(db)
        .await?;
    Ok(())
}

/// Returns the account with that address.
pub(crate) async fn find(db: &Database, email: &str) -> Result<Option<Account>> {
    let select = sql(db, "select name, role from users where email = $1");
    let found: Option<(String, String)> =
        sqlx::query_as(select).bind(email.to_owned()).fetch_optional(db).await?;
    Ok(found.map(|(name, role)| account(email, name, &role)))
}

fn account(email: &str, name: String, role: &str) -> Account {
    Account { email: email.to_owned(), name, is_staff: role == Role::Staff.name() }
}
