//! Mails of a shop that sends none.

use anyhow::Result;

use super::sql;
use crate::app::Database;
use crate::mail::Mail;

/// Stores a mail instead of sending it.
pub(crate) async fn keep(db: &Database, mail: &Mail<'_>) -> Result<()> {
    let insert = "insert into mails (address, subject, body, sent_ms) values ($1, $2, $3, $4)";
    sqlx::query(sql(db, insert))
        .bind(mail.to.to_owned())
        .bind(mail.subject.to_owned())
        .bind(mail.text.to_owned())
        .bind(super::now_ms())
        .execute(db)
        .await?;
    Ok(())
}
