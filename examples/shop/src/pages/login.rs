//! Pages to log in and out.

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::{COOKIE, RETRY_AFTER, SET_COOKIE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use scale_limit::client::Key;
use scale_limit::guard::login::{Attempt, Counted};
use scale_session::Session;
use serde::Deserialize;

use super::{Failure, Member, Page, USER, devices as devices_page, layout, passkeys, percent};
use crate::app::App;
use crate::db::users::Account;
use crate::db::{devices, factors, seed, users};

#[derive(Deserialize)]
pub(crate) struct Login {
    email: String,
    password: String,
    /// Page to show after the log-in.
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(crate) struct Next {
    #[serde(default)]
    pub(super) next: String,
}

/// Log-in page as it was filled in, without the password.
struct Filled<'a> {
    email: &'a str,
    next: &'a str,
}

/// Cookie of a browser that has logged in before.
const DEVICE: &str = "device";

pub(crate) async fn form(
    State(app): State<App>,
    session: Session,
    Query(Next { next }): Query<Next>,
) -> Page {
    let filled = Filled { email: "", next: within_the_shop(&next) };
    Ok(page(&app, &session, &filled, None).await?.into_response())
}

/// Returns the path if it is one of this shop, else the first page: a link to the log-in must not
/// lead to another site.
pub(super) fn within_the_shop(next: &str) -> &str {
    if super::is_within_the_shop(next) { next } else { "/" }
}

async fn page(
    app: &App,
    session: &Session,
    filled: &Filled<'_>,
    wrong: Option<&str>,
) -> Result<Markup, Failure> {
    let content = html! {
        section.narrow {
            h1 { "Log in" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            form.stack method="post" action="/login" {
                input type="hidden" name="next" value=(filled.next);
                label {
                    "E-mail"
                    input type="email" name="email" value=(filled.email) required
                        autocomplete="username";
                }
                label {
                    "Password"
                    input type="password" name="password" required autocomplete="current-password";
                }
                button { "Log in" }
            }
            (passkeys::button(app, filled.next))
            @if app.links.is_some() {
                p {
                    a href="/signup" { "Open an account" } " · "
                    a href="/forgot" { "Forgot your password?" }
                }
            }
            @if app.is_demonstration {
                p.soft { "To try it: " code { (seed::EMAIL) } ", “" code { (seed::PASSWORD) } "”" }
            }
        }
    };
    layout(session, "Log in", content).await
}

pub(crate) async fn log_in(
    State(app): State<App>,
    session: Session,
    request: Parts,
    Form(login): Form<Login>,
) -> Page {
    let email = users::address(&login.email);
    let filled = Filled { email: &email, next: within_the_shop(&login.next) };
    let device = cookie(&request, DEVICE);
    let known = match &device {
        Some(token) => devices::is_known(&app.db, token, &email).await?,
        None => false,
    };
    let address = address(&app, &request);
    let attempt = Attempt {
        account: &email,
        address: &address,
        known_device: device.as_deref().filter(|_| known),
    };
    let pending = match app.logins.begin(attempt).await {
        Ok(pending) => pending,
        Err(too_many) => {
            let seconds = too_many.retry_after.as_secs() + 1;
            // The owner at a new browser, during an attack by a botnet: a link by e-mail makes the
            // browser known.
            let wrong = if too_many.because == Counted::Account && app.links.is_some() {
                "Too many passwords were tried for this account. If it is yours, let us \
                 send you a link."
            } else {
                "Too many attempts have failed. Please wait a while."
            };
            let page = page(&app, &session, &filled, Some(wrong)).await?;
            return Ok((StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, seconds.to_string())], page)
                .into_response());
        }
    };
    let account = users::log_in(&app.db, &app.passwords, &email, &login.password).await?;
    let Some(account) = account else {
        return Ok((
            StatusCode::UNAUTHORIZED,
            page(&app, &session, &filled, Some("E-mail or password is wrong.")).await?,
        )
            .into_response());
    };
    pending.succeeded().await;
    if factors::of(&app.db, &account.email).await?.is_some() {
        session.await_second_factor(&account.email).await?;
        let code = format!("/login/code?next={}", percent(filled.next));
        return Ok(Redirect::to(&code).into_response());
    }
    sign_in(&session, &account, &request).await?;
    let mut response = Redirect::to(filled.next).into_response();
    if !known {
        remember(&app, &account.email, &mut response).await?;
    }
    Ok(response)
}

/// Returns the address by which attempts of a client are counted.
pub(super) fn address(app: &App, request: &Parts) -> Key {
    app.clients.key(request).unwrap_or_else(|| "unknown".into())
}

/// Makes the session that of an account, all of whose factors were right. It gets a new id: an id
/// that was planted or seen before is useless from here on.
pub(super) async fn sign_in(
    session: &Session,
    account: &Account,
    request: &Parts,
) -> Result<(), Failure> {
    session.sign_in(&account.email, &devices_page::name(request)).await?;
    Ok(session.insert(USER, account).await?)
}

/// Registers a browser as known: its guesses are counted separately.
pub(super) async fn remember(
    app: &App,
    email: &str,
    response: &mut Response,
) -> Result<(), Failure> {
    let token = devices::remember(&app.db, email).await?;
    let secure = if app.plain_http { "" } else { "; Secure" };
    let cookie =
        format!("{DEVICE}={token}; Path=/login; HttpOnly; SameSite=Lax; Max-Age=31536000{secure}");
    response.headers_mut().append(SET_COOKIE, cookie.parse()?);
    Ok(())
}

/// Asks for the password again, before a change that the thief of a session must not make. Returns
/// why it is refused.
pub(super) async fn confirm(
    app: &App,
    Member { account, session }: &Member,
    request: &Parts,
    password: &str,
) -> Result<Result<(), &'static str>, Failure> {
    let address = address(app, request);
    let attempt = Attempt { account: &account.email, address: &address, known_device: None };
    let Ok(pending) = app.logins.begin(attempt).await else {
        return Ok(Err("Too many attempts have failed. Please wait a while."));
    };
    if users::log_in(&app.db, &app.passwords, &account.email, password).await?.is_none() {
        return Ok(Err("The password is wrong."));
    }
    pending.succeeded().await;
    session.confirm().await?;
    Ok(Ok(()))
}

fn cookie(request: &Parts, name: &str) -> Option<String> {
    let lines = request.headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs =
        lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
}

pub(crate) async fn log_out(session: Session) -> Page {
    session.destroy().await?;
    Ok(Redirect::to("/").into_response())
}
