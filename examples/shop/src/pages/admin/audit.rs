//! The audit log: who has changed what. `shop audit` checks that nobody has changed the log.

use axum::extract::State;
use axum::response::IntoResponse;
use maud::html;
use scale_session::Session;

use super::trail;
use crate::app::App;
use crate::pages::{Page, layout};

/// Records of the page: the newest ones.
const NEWEST: usize = 100;

pub(super) async fn list(State(app): State<App>, session: Session) -> Page {
    let records = match &app.audit {
        Some(audit) => audit.newest(NEWEST).await?,
        None => Vec::new(),
    };
    let content = html! {
        section.narrow {
            (trail())
            h1 { "Audit log" }
            @if app.audit.is_none() {
                p.note { "No log is kept, because the configuration has no `secret`." }
            } @else if records.is_empty() { p.soft { "Nothing has been changed yet." } }
            table {
                @for record in &records {
                    tr {
                        td.soft { (moment(record.at_ms)) }
                        td { (record.event.actor) }
                        td {
                            (record.event.action) " " (record.event.object)
                            div.soft { (record.event.details) }
                        }
                    }
                }
            }
        }
    };
    Ok(layout(&session, "Audit log", content).await?.into_response())
}

/// Returns a time in ISO 8601 form, to the minute.
fn moment(at_ms: u64) -> String {
    let moment =
        i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.unwrap_or_default().strftime("%Y-%m-%d %H:%M").to_string()
}
