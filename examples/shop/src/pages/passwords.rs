//! A new password, by a link in a mail. Opening the link does not use it up, because mail scanners
//! open it too: the form's `POST` does.

use axum::Form;
use axum::extract::{Query, State};
use axum::http::header::REFERRER_POLICY;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use scale_session::Session;
use scale_session::auth::AccountLinks;
use scale_session::auth::account_links::{Account, MailKind};
use scale_session::auth::password::Rules;
use serde::Deserialize;

use super::{Failure, Page, layout, login, problem};
use crate::app::App;
use crate::db::users::{self, Owner};
use crate::jobs::{SendNotice, SendPasswordReset};

#[derive(Deserialize)]
pub(crate) struct Forgot {
    email: String,
}

#[derive(Deserialize)]
pub(crate) struct Link {
    token: String,
}

#[derive(Deserialize)]
pub(crate) struct New {
    token: String,
    password: String,
}

pub(crate) async fn forgot(State(app): State<App>, session: Session) -> Page {
    if app.links.is_none() {
        return Ok(not_here());
    }
    Ok(ask_for(&session, None).await?.into_response())
}

async fn ask_for(session: &Session, wrong: Option<&str>) -> Result<Markup, Failure> {
    let content = html! {
        section.narrow {
            h1 { "A new password" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            form.stack method="post" action="/forgot" {
                label { "E-mail" input type="email" name="email" required autocomplete="username"; }
                button { "Send me a link" }
            }
        }
    };
    layout(session, "A new password", content).await
}

/// Does the same work and gives the same answer whether or not the account exists.
pub(crate) async fn ask(
    State(app): State<App>,
    session: Session,
    Form(Forgot { email }): Form<Forgot>,
) -> Page {
    if app.links.is_none() {
        return Ok(not_here());
    }
    let email = users::address(&email);
    if !users::is_address(&email) {
        let page = ask_for(&session, Some("This is not an e-mail address.")).await?;
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    app.queue.push(SendPasswordReset { email }).await?;
    let content = html! {
        section.narrow { h1 { "Check your mail" } p { "If you have an account, a link is \
            on its way. It is valid for an hour." } }
    };
    Ok(layout(&session, "A new password", content).await?.into_response())
}

pub(crate) async fn form(State(app): State<App>, Query(Link { token }): Query<Link>) -> Page {
    let Some(account) = owner(&app, &token).await? else { return Ok(worthless()) };
    if !links(&app)?.peek(MailKind::ResetPassword, &token, account_of(&account)).await? {
        return Ok(worthless());
    }
    Ok(page(&token, None))
}

pub(crate) async fn set(State(app): State<App>, Form(New { token, password }): Form<New>) -> Page {
    let links = links(&app)?;
    let Some(owner) = owner(&app, &token).await? else { return Ok(worthless()) };
    // Checked before the link is used up.
    if let Err(error) = Rules::default().check(&password, &[&owner.email]) {
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page(&token, Some(&error.to_string())))
            .into_response());
    }
    let hash = app.passwords.hash(&password).await?;
    if !links.redeem_password_reset(&token, account_of(&owner)).await? {
        return Ok(worthless());
    }
    users::set_password(&app.db, &owner.email, hash).await?;
    // Ends all sessions, including those of anybody who knew the old password.
    app.sessions.revoke_all_of(&owner.email).await?;
    app.queue.push(SendNotice::of(&links.password_changed(account_of(&owner)))).await?;
    let mut response = Redirect::to("/login").into_response();
    // The user who opened the link is the owner: a botnet's guesses must not lock out this browser.
    login::remember(&app, &owner.email, &mut response).await?;
    Ok(response)
}

/// Returns the owner of the account that a link names.
async fn owner(app: &App, token: &str) -> Result<Option<Owner>, Failure> {
    let Some(email) = AccountLinks::account_id(token) else { return Ok(None) };
    Ok(users::owner(&app.db, &email).await?)
}

fn account_of(owner: &Owner) -> Account<'_> {
    Account { id: &owner.email, email: &owner.email, password_hash: &owner.password }
}

pub(super) fn links(app: &App) -> Result<&AccountLinks, Failure> {
    app.links
        .as_ref()
        .ok_or_else(|| anyhow::anyhow!("`origin` and `secret` are not configured").into())
}

/// Sends `no-referrer`, because the address of this page is a secret.
fn page(token: &str, wrong: Option<&str>) -> Response {
    let content: Markup = html! {
        section.narrow {
            h1 { "A new password" }
            @if let Some(wrong) = wrong { p.note { (wrong) } }
            form.stack method="post" action="/reset-password" {
                input type="hidden" name="token" value=(token);
                label {
                    "Password"
                    input type="password" name="password" required minlength="8"
                        autocomplete="new-password";
                }
                button { "Set password" }
            }
        }
    };
    let page = super::frame("A new password", &html! {}, &content);
    ([(REFERRER_POLICY, HeaderValue::from_static("no-referrer"))], page).into_response()
}

pub(super) fn worthless() -> Response {
    (
        StatusCode::GONE,
        problem("This link was used before, or has expired. Please ask for another one."),
    )
        .into_response()
}

/// Answers in a shop whose configuration has no `origin` or `secret`.
pub(super) fn not_here() -> Response {
    (StatusCode::NOT_FOUND, problem("This shop sends no links.")).into_response()
}
