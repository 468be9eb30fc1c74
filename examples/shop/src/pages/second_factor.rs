//! The second factor: its page in the account, and the step of a log-in that asks for it.

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect};
use maud::{Markup, PreEscaped, html};
use scale_limit::guard::login::{Attempt, TooMany};
use scale_session::Session;
use serde::Deserialize;

use super::login::{self, Next};
use super::{Failure, Member, Page, layout, passwords, percent};
use crate::app::App;
use crate::db::{factors, users};
use crate::second_factors::{Draft, SecondFactors};

#[derive(Deserialize)]
pub(crate) struct Confirm {
    /// The new secret, encrypted.
    sealed: String,
    code: String,
    password: String,
}

#[derive(Deserialize)]
pub(crate) struct Remove {
    password: String,
}

#[derive(Deserialize)]
pub(crate) struct Answer {
    code: String,
    #[serde(default)]
    next: String,
}

fn second_factors(app: &App) -> Result<&SecondFactors, Failure> {
    let configured = app.second_factors.as_ref();
    configured.ok_or_else(|| anyhow::anyhow!("second factors need a `secret`").into())
}

pub(crate) async fn show(State(app): State<App>, member: Member) -> Page {
    let Some(known) = &app.second_factors else { return Ok(passwords::not_here()) };
    let Member { account, session } = &member;
    let content = match factors::of(&app.db, &account.email).await? {
        Some(factor) => is_on(factor.recovery.len(), None),
        None => is_off(&known.draft(&account.email)?, None),
    };
    Ok(layout(session, "Second factor", content).await?.into_response())
}

fn is_on(codes: usize, wrong: Option<&str>) -> Markup {
    html! {
        section.narrow {
            h1 { "Second factor" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            p { "Logging in takes a code of your authenticator app. " (codes) " recovery codes are \
                left." }
            form.stack method="post" action="/account/second-factor/remove" {
                (password())
                button { "Turn it off" }
            }
        }
    }
}

fn is_off(draft: &Draft, wrong: Option<&str>) -> Markup {
    html! {
        section.narrow {
            h1 { "Second factor" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            p { "Scan this with an authenticator app, and type the code that it shows." }
            figure.code role="img" aria-label="QR code for an authenticator app" {
                (PreEscaped(&draft.qr))
            }
            p { "Or type this secret into the app: " code { (draft.secret) } }
            form.stack method="post" action="/account/second-factor" {
                input type="hidden" name="sealed" value=(draft.sealed);
                label {
                    "Code"
                    input name="code" required inputmode="numeric" autocomplete="one-time-code";
                }
                (password())
                button { "Turn it on" }
            }
        }
    }
}

fn password() -> Markup {
    html! {
        label {
            "Your password"
            input type="password" name="password" required autocomplete="current-password";
        }
    }
}

pub(crate) async fn confirm(
    State(app): State<App>,
    member: Member,
    request: Parts,
    Form(Confirm { sealed, code, password }): Form<Confirm>,
) -> Page {
    let (known, Member { account, session }) = (second_factors(&app)?, &member);
    if factors::of(&app.db, &account.email).await?.is_some() {
        return Ok(Redirect::to("/account/second-factor").into_response());
    }
    let wrong = match login::confirm(&app, &member, &request, &password).await? {
        Ok(()) => match known.confirm(&app.db, &account.email, &sealed, &code).await? {
            Some(codes) => return are_shown_once(session, &codes).await,
            None => "This code is wrong, or was used. Please try the next one.",
        },
        Err(wrong) => wrong,
    };
    let draft = match known.again(&account.email, &sealed)? {
        Some(draft) => draft,
        None => known.draft(&account.email)?,
    };
    let page = layout(session, "Second factor", is_off(&draft, Some(wrong))).await?;
    Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
}

async fn are_shown_once(session: &Session, codes: &[String]) -> Page {
    let content = html! {
        section.narrow {
            h1 { "Your recovery codes" }
            p { "Each of them works once, instead of a code of the app. Keep them where you will \
                find them without your phone: they are not shown again." }
            ul.codes { @for code in codes { li { code { (code) } } } }
            p { a href="/account" { "I have kept them" } }
        }
    };
    Ok(layout(session, "Recovery codes", content).await?.into_response())
}

pub(crate) async fn remove(
    State(app): State<App>,
    member: Member,
    request: Parts,
    Form(Remove { password }): Form<Remove>,
) -> Page {
    let Member { account, session } = &member;
    let Some(factor) = factors::of(&app.db, &account.email).await? else {
        return Ok(Redirect::to("/account/second-factor").into_response());
    };
    if let Err(wrong) = login::confirm(&app, &member, &request, &password).await? {
        let content = is_on(factor.recovery.len(), Some(wrong));
        let page = layout(session, "Second factor", content).await?;
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    factors::remove(&app.db, &account.email).await?;
    Ok(Redirect::to("/account").into_response())
}

pub(crate) async fn ask(session: Session, Query(Next { next }): Query<Next>) -> Page {
    let next = login::within_the_shop(&next);
    if session.pending_user().await?.is_none() {
        return Ok(Redirect::to(&format!("/login?next={}", percent(next))).into_response());
    }
    Ok(page(&session, next, None).await?.into_response())
}

async fn page(session: &Session, next: &str, wrong: Option<&str>) -> Result<Markup, Failure> {
    let content = html! {
        section.narrow {
            h1 { "One more step" }
            @if let Some(wrong) = wrong { p.note role="alert" { (wrong) } }
            form.stack method="post" action="/login/code" {
                input type="hidden" name="next" value=(next);
                label {
                    "Code of your authenticator app, or a recovery code"
                    input name="code" required autofocus autocomplete="one-time-code";
                }
                button { "Log in" }
            }
        }
    };
    layout(session, "Log in", content).await
}

pub(crate) async fn answer(
    State(app): State<App>,
    session: Session,
    request: Parts,
    Form(Answer { code, next }): Form<Answer>,
) -> Page {
    let next = login::within_the_shop(&next);
    // The password was right up to ten minutes ago.
    let Some(email) = session.pending_user().await? else {
        return Ok(Redirect::to(&format!("/login?next={}", percent(next))).into_response());
    };
    let address = login::address(&app, &request);
    let attempt = Attempt { account: &email, address: &address, known_device: None };
    let pending = match app.codes.begin(attempt).await {
        Ok(pending) => pending,
        Err(TooMany { retry_after, .. }) => {
            let wait = [(RETRY_AFTER, (retry_after.as_secs() + 1).to_string())];
            let wrong = "Too many codes were wrong. Please wait a while.";
            let page = page(&session, next, Some(wrong)).await?;
            return Ok((StatusCode::TOO_MANY_REQUESTS, wait, page).into_response());
        }
    };
    let is_right = match factors::of(&app.db, &email).await? {
        Some(factor) => second_factors(&app)?.verify(&app.db, &email, &factor, &code).await?,
        // Removed by this user, in another browser, meanwhile.
        None => true,
    };
    let account = if is_right { users::find(&app.db, &email).await? } else { None };
    let Some(account) = account else {
        let page = page(&session, next, Some("This code is wrong, or was used before.")).await?;
        return Ok((StatusCode::UNAUTHORIZED, page).into_response());
    };
    pending.succeeded().await;
    login::sign_in(&session, &account, &request).await?;
    let mut response = Redirect::to(next).into_response();
    login::remember(&app, &account.email, &mut response).await?;
    Ok(response)
}
