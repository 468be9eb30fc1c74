//! Accounts.

use anyhow::Result;
use scale_session::auth::Passwords;
use scale_session::auth::password::Verified;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use super::sql;
use crate::app::{App, Database};
use crate::jobs::ForgetAccount;

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
    /// Hash of the password.
    pub(crate) hash: String,
}

/// Creates an account. Returns `false` if the address has one.
pub(crate) async fn create(db: &Database, new: NewAccount<'_>) -> Result<bool> {
    let insert = "insert into users (email, name, role, password) values ($1, $2, $3, $4)";
    let created = sqlx::query(sql(db, insert))
        .bind(address(new.email))
        .bind(new.name.to_owned())
        .bind(new.role.name())
        .bind(new.hash)
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
    email: String,
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
/// wrong password. Reads from the primary: a password that was changed, or an account that was
/// closed, must not open anything on a replica that is behind.
pub(crate) async fn log_in(
    db: &Database,
    passwords: &Passwords,
    email: &str,
    password: &str,
) -> Result<Option<Account>> {
    let user: Option<User> =
        sqlx::query_as(sql(db, "select email, name, role, password from users where email = $1"))
            .bind(email.to_owned())
            .fetch_optional(db.primary())
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
    Ok(Some(account(user.email, user.name, &user.role)))
}

/// Owner of an account, as links in mails need it.
#[derive(FromRow)]
pub(crate) struct Owner {
    /// The stored address. Mails go there, and not to what somebody has typed.
    pub(crate) email: String,
    pub(crate) password: String,
}

/// Returns the owner of an account, read from the primary: links in mails are bound to the hash of
/// the password.
pub(crate) async fn owner(db: &Database, email: &str) -> Result<Option<Owner>> {
    let owner = sqlx::query_as(sql(db, "select email, password from users where email = $1"))
        .bind(email.to_owned());
    Ok(owner.fetch_optional(db.primary()).await?)
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
    let select = sql(db, "select email, name, role from users where email = $1");
    let found: Option<(String, String, String)> =
        sqlx::query_as(select).bind(email.to_owned()).fetch_optional(db).await?;
    Ok(found.map(|(email, name, role)| account(email, name, &role)))
}

/// Deletes an account with all that belongs to it, except its orders: a job takes the account out
/// of them, in parts. Returns `false` if there is no such account.
pub(crate) async fn delete(app: &App, email: &str) -> Result<bool> {
    let db = &app.db;
    let mut tx = db.begin().await?;
    let bound = |text| sqlx::query(sql(db, text)).bind(email.to_owned());
    let deleted = bound("delete from users where email = $1").execute(&mut *tx).await?;
    if deleted.rows_affected() == 0 {
        return Ok(false);
    }
    for text in [
        "delete from devices where account = $1",
        "delete from second_factors where account = $1",
        "delete from exports where account = $1",
    ] {
        bound(text).execute(&mut *tx).await?;
    }
    // Orders of a later account with that address are not meant.
    let last: Option<i64> = sqlx::query_scalar(sql(
        db,
        "select id from orders where account = $1 order by id desc limit 1",
    ))
    .bind(email.to_owned())
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(last) = last {
        let forget = ForgetAccount { email: email.to_owned(), last };
        app.queue.push_in(&mut *tx, forget).await?;
    }
    tx.commit().await?;
    Ok(true)
}

fn account(email: String, name: String, role: &str) -> Account {
    Account { email, name, is_staff: role == Role::Staff.name() }
}

/// Returns whether a text can be an address of an account.
pub(crate) fn is_address(email: &str) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c.is_control();
    let halves = email.rsplit_once('@');
    email.len() <= 254
        && !email.contains(is_odd)
        && halves.is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
}
