//! A new account. Its owner proves the address first, by a link in a mail: until then nothing is
//! stored, and the page says the same whether or not the address has an account.

use axum::Form;
use axum::extract::{Query, State};
use axum::http::header::REFERRER_POLICY;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use scale_session::Session;
use scale_session::auth::AccountLinks;
use scale_session::auth::account_links::{Account, MailKind};
use scale_session::auth::password::Rules;
use serde::Deserialize;

use super::passwords::{links, not_here, worthless};
use super::{Failure, Page, layout, login, user};
use crate::app::App;
use crate::db::users::{self, NewAccount, Role};
use crate::jobs::SendSignUp;

/// Longest name of a person.
const LONGEST_NAME: usize = 80;

#[derive(Deserialize)]
pub(crate) struct Ask {
    email: String,
}

#[derive(Deserialize)]
pub(crate) struct Link {
    token: String,
}

#[derive(Deserialize)]
pub(crate) struct New {
    token: String,
    name: String,
    password: String,
}

pub(crate) async fn form(State(app): State<App>, session: Session) -> Page {
    if app.links.is_none() {
        return Ok(not_here());
    }
    if user(&session).await?.is_some() {
        return Ok(Redirect::to("/account").into_response());
    }
    Ok(page(&session, "", None).await?.into_response())
}

async fn page(session: &Session, email: &str, wrong: Option<&str>) -> Result<Markup, Failure> {
    let content = html! {
        section.narrow {
            h1 { "Open an account" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            form.stack method="post" action="/signup" {
                label {
                    "E-mail"
                    input type="email" name="email" value=(email) required autocomplete="username";
                }
                button { "Send me a link" }
            }
            p { "You have one? " a href="/login" { "Log in" } }
        }
    };
    layout(session, "Open an account", content).await
}

pub(crate) async fn ask(
    State(app): State<App>,
    session: Session,
    request: Parts,
    Form(Ask { email }): Form<Ask>,
) -> Page {
    if app.links.is_none() {
        return Ok(not_here());
    }
    let email = users::address(&email);
    if !users::is_address(&email) {
        let page = page(&session, &email, Some("This is not an e-mail address.")).await?;
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    // A refusal looks the same: strangers must not learn who was mailed.
    if app.sign_ups.allow(&email, &login::address(&app, &request)).await.is_ok() {
        app.queue.push(SendSignUp { email }).await?;
    }
    let content = html! {
        section.narrow {
            h1 { "Check your mail" }
            p { "A link is on its way. It opens your account, and is valid for a day." }
        }
    };
    Ok(layout(&session, "Open an account", content).await?.into_response())
}

/// Opening the link does not use it up, because mail scanners open it too: the form does.
pub(crate) async fn opened(State(app): State<App>, Query(Link { token }): Query<Link>) -> Page {
    let Some(email) = address(&app, &token).await? else { return Ok(worthless()) };
    if !links(&app)?.peek(MailKind::VerifyEmail, &token, nobody(&email)).await? {
        return Ok(worthless());
    }
    Ok(filled(&token, &email, "", None))
}

pub(crate) async fn create(
    State(app): State<App>,
    session: Session,
    request: Parts,
    Form(New { token, name, password }): Form<New>,
) -> Page {
    let links = links(&app)?;
    let Some(email) = address(&app, &token).await? else { return Ok(worthless()) };
    let name = name.trim().chars().filter(|c| !c.is_control()).take(LONGEST_NAME);
    let name: String = name.collect();
    // All of it is checked before the link is used up.
    let wrong = match Rules::default().check(&password, &[&email, &name]) {
        _ if name.is_empty() => Some("Please tell us your name.".to_owned()),
        Err(error) => Some(error.to_string()),
        Ok(()) => None,
    };
    if let Some(wrong) = wrong {
        let page = filled(&token, &email, &name, Some(&wrong));
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    let hash = app.passwords.hash(&password).await?;
    if !links.redeem_verification(&token, nobody(&email)).await? {
        return Ok(worthless());
    }
    let new = NewAccount { email: &email, name: &name, role: Role::Customer, hash };
    if !users::create(&app.db, new).await? {
        return Ok(worthless());
    }
    let account = users::Account { email, name, is_staff: false };
    login::sign_in(&session, &account, &request).await?;
    let mut response = Redirect::to("/account").into_response();
    login::remember(&app, &account.email, &mut response).await?;
    Ok(response)
}

/// Returns the address that a link claims to prove, if it has no account.
async fn address(app: &App, token: &str) -> Result<Option<String>, Failure> {
    let Some(email) = AccountLinks::account_id(token) else { return Ok(None) };
    let is_taken = users::owner(&app.db, &email).await?.is_some();
    Ok((!is_taken).then_some(email))
}

/// Returns what the link is bound to: an address without an account.
fn nobody(email: &str) -> Account<'_> {
    Account { id: email, email, password_hash: "" }
}

/// Sends `no-referrer`, because the address of this page is a secret.
fn filled(token: &str, email: &str, name: &str, wrong: Option<&str>) -> Response {
    let content = html! {
        section.narrow {
            h1 { "Welcome" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            form.stack method="post" action="/verify-email" {
                input type="hidden" name="token" value=(token);
                label {
                    "E-mail"
                    input type="email" value=(email) readonly autocomplete="username";
                }
                label {
                    "Name"
                    input name="name" value=(name) required maxlength=(LONGEST_NAME)
                        autocomplete="name";
                }
                label {
                    "Password"
                    input type="password" name="password" required minlength="8"
                        autocomplete="new-password";
                }
                button { "Open my account" }
            }
        }
    };
    let page = super::frame("Welcome", &html! {}, &content);
    ([(REFERRER_POLICY, HeaderValue::from_static("no-referrer"))], page).into_response()
}
