//! In and out.

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use maud::{Markup, html};
use scale_session::Session;
use serde::Deserialize;

use super::{Failure, Page, USER, layout};
use crate::app::App;
use crate::db::{seed, users};

#[derive(Deserialize)]
pub(crate) struct Login {
    email: String,
    password: String,
}

/// Longer ones are nobody's.
const LONGEST_PASSWORD: usize = 1_024;

pub(crate) async fn form(session: Session) -> Page {
    Ok(page(&session, None).await?.into_response())
}

async fn page(session: &Session, wrong: Option<&str>) -> Result<Markup, Failure> {
    let content = html! {
        section.narrow {
            h1 { "Log in" }
            @if let Some(wrong) = wrong { p.note { (wrong) } }
            form.stack method="post" action="/login" {
                label { "E-mail" input type="email" name="email" required autocomplete="username"; }
                label { "Password" input type="password" name="password" required autocomplete="current-password"; }
                button { "Log in" }
            }
            p.soft { "To try it: " code { (seed::EMAIL) } ", “" code { (seed::PASSWORD) } "”" }
        }
    };
    layout(session, "Log in", content).await
}

pub(crate) async fn log_in(State(app): State<App>, session: Session, Form(login): Form<Login>) -> Page {
    let account =
        if login.password.len() > LONGEST_PASSWORD { None } else { users::log_in(&app.db, &login.email, login.password).await? };
    let Some(account) = account else {
        return Ok((StatusCode::UNAUTHORIZED, page(&session, Some("E-mail and password do not fit.")).await?).into_response());
    };
    session.insert(USER, &account).await?;
    // An id somebody planted or saw before is worth nothing from here on.
    session.rotate().await?;
    Ok(Redirect::to("/").into_response())
}

pub(crate) async fn log_out(session: Session) -> Page {
    session.destroy().await?;
    Ok(Redirect::to("/").into_response())
}
