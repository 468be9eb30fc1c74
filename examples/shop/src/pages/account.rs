//! Page of a visitor's own account: what it has, what the shop knows about it, and its end.

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect};
use maud::{Markup, html};
use scale_db::sticky;
use scale_queue::JobId;
use scale_session::auth::audit::Event;
use serde::Deserialize;

use super::orders::{LOOKS, Look, ago};
use super::{Failure, Member, Page, layout, login, problem};
use crate::app::App;
use crate::db::{exports, users};
use crate::jobs::ExportAccount;

/// Session field with the job that makes an export.
const EXPORT: &str = "export";

pub(crate) async fn show(State(app): State<App>, member: Member) -> Page {
    Ok(page(&app, &member, None).await?.into_response())
}

async fn page(
    app: &App,
    Member { account, session }: &Member,
    wrong: Option<&str>,
) -> Result<Markup, Failure> {
    let content = html! {
        section.narrow {
            h1 { (account.name) }
            p.soft { (account.email) }
            ul.links {
                li { a href="/orders" { "Orders" } }
                li { a href="/devices" { "Devices that are logged in" } }
                @if app.passkeys.is_some() { li { a href="/passkeys" { "Passkeys" } } }
                @if app.second_factors.is_some() {
                    li { a href="/account/second-factor" { "Second factor" } }
                }
                @if app.links.is_some() { li { a href="/forgot" { "A new password" } } }
                li { a href="/account/export" { "What we know about you" } }
            }
            h2 { "Close the account" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            p { "Your name, your address and your devices are deleted at once. Your orders stay in \
                our books, without you." }
            form.stack method="post" action="/account/delete" {
                label {
                    "Your password"
                    input type="password" name="password" required autocomplete="current-password";
                }
                button { "Close my account" }
            }
        }
    };
    layout(session, "Your account", content).await
}

#[derive(Deserialize)]
pub(crate) struct Delete {
    password: String,
}

pub(crate) async fn delete(
    State(app): State<App>,
    member: Member,
    request: Parts,
    Form(Delete { password }): Form<Delete>,
) -> Page {
    if let Err(wrong) = login::confirm(&app, &member, &request, &password).await? {
        let page = page(&app, &member, Some(wrong)).await?;
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    let Member { account, session } = &member;
    app.record(Event::new(&account.email, "account.delete").to(&*account.email)).await?;
    // A later account with that address must not have them.
    if let Some(passkeys) = &app.passkeys {
        for passkey in passkeys.list(&account.email).await? {
            passkeys.remove(&account.email, &passkey.id).await?;
        }
    }
    users::delete(&app, &account.email).await?;
    app.sessions.revoke_all_of(&account.email).await?;
    session.destroy().await?;
    Ok(good_bye("Your account is closed. Thank you for having been here.").into_response())
}

fn good_bye(text: &str) -> Markup {
    super::frame(
        "Good-bye",
        &html! {},
        &html! {
            section.narrow { h1 { "Good-bye" } p { (text) } p { a href="/" { "To the shop" } } }
        },
    )
}

/// Begins an export; it is made by a job.
pub(crate) async fn export(State(app): State<App>, member: Member) -> Page {
    let Member { account, session } = &member;
    let position = sticky::mark(&app.db).await.map(|mark| mark.to_bytes().to_vec());
    let job = ExportAccount { email: account.email.clone(), position };
    // The id of the job that is there already, if it was asked for twice.
    let pushed = app.queue.push(job).await?;
    session.insert(EXPORT, &pushed.id).await?;
    Ok(Redirect::to("/account/export").into_response())
}

pub(crate) async fn exported(
    State(app): State<App>,
    Member { account, session }: Member,
    Query(look): Query<Look>,
) -> Page {
    let made = exports::made(&app.db, &account.email).await?;
    let asked: Option<JobId> = session.get(EXPORT).await?;
    let is_of = |id: &JobId| made.as_ref().is_some_and(|(job, _)| *job == id.to_string());
    let running = asked.filter(|id| !is_of(id));
    let progress = match running {
        Some(id) => app.queue.progress(id).await?,
        None => None,
    };
    let again = LOOKS.get(look.look as usize).filter(|_| running.is_some());
    let content = html! {
        @if let Some(seconds) = again {
            meta http-equiv="refresh" content={
                (seconds) ";url=/account/export?look=" (look.look + 1)
            };
        }
        section.narrow {
            h1 { "What we know about you" }
            @if running.is_some() {
                p.note role="status" {
                    "We are gathering it"
                    @match &progress {
                        Some(progress) => {
                            ": " (progress.done) " of " (progress.total) " orders."
                        }
                        None => "…",
                    }
                    @if again.is_none() { " " a href="/account/export" { "Look again" } }
                }
            } @else if let Some((_, made_ms)) = &made {
                p {
                    a href="/account/export.json" { "Your data" }
                    ", gathered " (ago(*made_ms)) ". It is kept for a day."
                }
            }
            @if again.is_none() {
                form method="post" action="/account/export" {
                    button { "Gather it" @if made.is_some() { " again" } }
                }
            }
        }
    };
    Ok(layout(&session, "Your data", content).await?.into_response())
}

pub(crate) async fn download(State(app): State<App>, Member { account, .. }: Member) -> Page {
    let Some(body) = exports::body(&app.db, &account.email).await? else {
        return Ok((StatusCode::NOT_FOUND, problem("There is no export.")).into_response());
    };
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CONTENT_DISPOSITION, "attachment; filename=\"fathom-and-field.json\""),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}
