//! Mails that a real shop would send.

use anyhow::Result;
use scale_session::auth::account_links::Mail;

use super::sql;
use crate::app::Database;

/// Stores a mail instead of sending it.
pub(crate) async fn send(db: &Database, mail: &Mail) -> Result<()> {
    sqlx::query(sql(
        db,
        "insert into mails (address, subject, body, sent_ms) values ($1, $2, $3, $4)",
    ))
    .bind(mail.to.clone())
    .bind(mail.subject.clone())
    .bind(mail.text.clone())
    .bind(super::now_ms())
    .execute(db)
    .await?;
    Ok(())
}
