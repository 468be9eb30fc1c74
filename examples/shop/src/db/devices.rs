//! Browsers that have logged in before: they are counted separately when strangers guess passwords.

use anyhow::Result;
use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

use super::{now_ms, sql};
use crate::app::Database;

/// Returns the stored form of a token: a dump of the table cannot be used as a known device.
fn hashed(token: &str) -> String {
    BASE64URL_NOPAD.encode(&Sha256::digest(token.as_bytes()))
}

/// Returns whether the browser with this token has logged in to the account.
pub(crate) async fn is_known(
    db: &Database,
    token: &str,
    account: &str,
) -> Result<bool, sqlx::Error> {
    let found: Option<i64> = sqlx::query_scalar(sql(
        db,
        "select since_ms from devices where token = $1 and account = $2",
    ))
    .bind(hashed(token))
    .bind(account.to_owned())
    .fetch_optional(db)
    .await?;
    Ok(found.is_some())
}

/// Registers a browser as known; returns its token.
pub(crate) async fn remember(db: &Database, account: &str) -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("creating a token failed: {e}"))?;
    let token = BASE64URL_NOPAD.encode(&bytes);
    sqlx::query(sql(db, "insert into devices (token, account, since_ms) values ($1, $2, $3)"))
        .bind(hashed(&token))
        .bind(account.to_owned())
        .bind(now_ms())
        .execute(db)
        .await?;
    Ok(token)
}
