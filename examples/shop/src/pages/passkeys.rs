//! Passkeys: their list, and the two steps of registering one and of logging in with one. The
//! script that uses the device is `assets/passkeys.js`.

use axum::Form;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use scale_session::auth::{Error, Passkeys};
use scale_session::{Session, SignedIn};
use serde::Deserialize;

use super::{Failure, Member, Page, assets, devices, layout, login, problem};
use crate::app::App;
use crate::db::users;

/// Returns a button for the log-in page, if passkeys are configured.
pub(super) fn button(app: &App, next: &str) -> Markup {
    html! {
        @if app.passkeys.is_some() {
            p {
                button.plain type="button" id="passkey-login" data-next=(next) {
                    "Log in with a passkey"
                }
             }
            p.note id="passkey-failed" hidden { "That did not work. Please try again, or log in \
                with your password." }
            script src=(assets::PASSKEYS.path()) defer {}
        }
    }
}

fn passkeys(app: &App) -> Result<&Passkeys, Failure> {
    app.passkeys
        .as_ref()
        .ok_or_else(|| anyhow::anyhow!("passkeys need an `origin` in the configuration").into())
}

fn json(text: String) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// Separates a refused answer of a device, which is not an error of the shop.
fn refused<T>(answer: Result<T, Error>) -> Result<Result<T, Response>, Failure> {
    match answer {
        Ok(good) => Ok(Ok(good)),
        Err(error @ Error::Denied(_)) => {
            tracing::info!("passkey refused: {error}");
            Ok(Err((StatusCode::FORBIDDEN, problem("That passkey is not valid.")).into_response()))
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn list(State(app): State<App>, Member { account, session }: Member) -> Page {
    let passkeys = passkeys(&app)?.list(&account.email).await?;
    let content = html! {
        section.narrow {
            h1 { "Your passkeys" }
            table {
                @for passkey in &passkeys {
                    tr {
                        td { (passkey.name) }
                        td.soft { "since " (devices::date(passkey.created)) }
                        td.number {
                            form method="post" action="/passkeys/remove" {
                                input type="hidden" name="id" value=(passkey.id);
                                button.plain { "Remove" }
                            }
                        }
                    }
                }
            }
            p { button type="button" id="passkey-add" data-next="/passkeys" { "Add a passkey" } }
            p.note id="passkey-failed" hidden { "That did not work. Please try again." }
            script src=(assets::PASSKEYS.path()) defer {}
        }
    };
    Ok(layout(&session, "Your passkeys", content).await?.into_response())
}

pub(crate) async fn begin_registration(
    State(app): State<App>,
    SignedIn { user, session, .. }: SignedIn,
) -> Page {
    Ok(json(passkeys(&app)?.begin_registration(&session, &user, &user).await?))
}

#[derive(Deserialize)]
pub(crate) struct Answer {
    answer: String,
}

pub(crate) async fn finish_registration(
    State(app): State<App>,
    SignedIn { user, session, .. }: SignedIn,
    request: Parts,
    Form(Answer { answer }): Form<Answer>,
) -> Page {
    let made = passkeys(&app)?
        .finish_registration(&session, &user, &devices::name(&request), &answer)
        .await;
    Ok(match refused(made)? {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(response) => response,
    })
}

#[derive(Deserialize)]
pub(crate) struct Remove {
    id: String,
}

pub(crate) async fn remove(
    State(app): State<App>,
    Member { account, .. }: Member,
    Form(Remove { id }): Form<Remove>,
) -> Page {
    passkeys(&app)?.remove(&account.email, &id).await?;
    Ok(Redirect::to("/passkeys").into_response())
}

pub(crate) async fn begin_log_in(State(app): State<App>, session: Session) -> Page {
    Ok(json(passkeys(&app)?.begin_sign_in(&session, None).await?))
}

pub(crate) async fn finish_log_in(
    State(app): State<App>,
    session: Session,
    request: Parts,
    Form(Answer { answer }): Form<Answer>,
) -> Page {
    let who = match refused(passkeys(&app)?.finish_sign_in(&session, &answer).await)? {
        Ok(who) => who,
        Err(response) => return Ok(response),
    };
    let account = match who {
        Some(email) => users::find(&app.db, &email).await?,
        None => None,
    };
    let Some(account) = account else {
        return Ok((StatusCode::FORBIDDEN, problem("No account has that passkey.")).into_response());
    };
    login::sign_in(&session, &account, &request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
