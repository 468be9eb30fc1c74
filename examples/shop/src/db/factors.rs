//! Second factors of accounts.

use anyhow::Result;
use scale_db::Dialect;

use super::sql;
use crate::app::Database;

/// A second factor, as it is stored.
pub(crate) struct Factor {
    /// Secret of the authenticator app, encrypted.
    pub(crate) secret: String,
    /// Hashes of the recovery codes that are left.
    pub(crate) recovery: Vec<String>,
}

/// Returns an account's second factor, read from the primary: one that was just set must not be
/// overlooked.
pub(crate) async fn of(db: &Database, account: &str) -> Result<Option<Factor>> {
    let select = sql(db, "select secret, recovery from second_factors where account = $1");
    let row: Option<(String, String)> =
        sqlx::query_as(select).bind(account.to_owned()).fetch_optional(db.primary()).await?;
    let codes = |text: String| text.split_whitespace().map(str::to_owned).collect();
    Ok(row.map(|(secret, recovery)| Factor { secret, recovery: codes(recovery) }))
}

/// Sets an account's second factor, in place of an earlier one.
pub(crate) async fn set(db: &Database, account: &str, factor: Factor) -> Result<()> {
    let set = match db.dialect() {
        Dialect::MySql => {
            "insert into second_factors (account, secret, recovery) values ($1, $2, $3) \
             on duplicate key update secret = values(secret), recovery = values(recovery)"
        }
        _ => {
            "insert into second_factors (account, secret, recovery) values ($1, $2, $3) \
             on conflict (account) do update set secret = excluded.secret, \
             recovery = excluded.recovery"
        }
    };
    sqlx::query(sql(db, set))
        .bind(account.to_owned())
        .bind(factor.secret)
        .bind(factor.recovery.join(" "))
        .execute(db)
        .await?;
    Ok(())
}

/// Removes a recovery code that was used, whatever happens to the others meanwhile.
pub(crate) async fn remove_code(db: &Database, account: &str, hash: &str) -> Result<()> {
    let update = sql(
        db,
        "update second_factors set recovery = replace(recovery, $1, '') where account = $2",
    );
    sqlx::query(update).bind(hash.to_owned()).bind(account.to_owned()).execute(db).await?;
    Ok(())
}

/// Removes an account's second factor.
pub(crate) async fn remove(db: &Database, account: &str) -> Result<()> {
    let delete = sql(db, "delete from second_factors where account = $1");
    sqlx::query(delete).bind(account.to_owned()).execute(db).await?;
    Ok(())
}
