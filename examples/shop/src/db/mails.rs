//! Mails that would have gone out.

use anyhow::Result;
use scale_session::auth::account_links::Mail;

use crate::app::Database;

/// "Sends" a mail.
pub(crate) async fn send(db: &Database, mail: &Mail) -> Result<()> {
    sqlx::query("insert into mails (address, subject, body, sent_ms) values ($1, $2, $3, $4)")
        .bind(mail.to.clone())
        .bind(mail.subject.clone())
        .bind(mail.text.clone())
        .bind(super::now_ms())
        .execute(db)
        .await?;
    Ok(())
}
