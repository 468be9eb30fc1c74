//! Pages, one file each; this file has the parts they share.

pub(crate) mod account;
pub(crate) mod admin;
pub(crate) mod assets;
pub(crate) mod cart;
pub(crate) mod catalogue;
pub(crate) mod checkout;
pub(crate) mod devices;
mod drawing;
pub(crate) mod login;
pub(crate) mod orders;
pub(crate) mod passkeys;
pub(crate) mod passwords;
pub(crate) mod refusals;
pub(crate) mod second_factor;
pub(crate) mod signup;

use axum::extract::FromRequestParts;
use axum::http::header::RETRY_AFTER;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{DOCTYPE, Markup, html};
use scale_session::Session;

use crate::app::App;
use crate::db::users::Account;

/// Names of session fields.
pub(crate) const CART: &str = "cart";
pub(crate) const ORDERS: &str = "orders";
pub(crate) const USER: &str = "user";
/// E-mail address that the visitor has given at the last checkout.
pub(crate) const EMAIL: &str = "email";

/// Error of a page: logged in full, shown as one sentence.
pub(crate) struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if let Some(scale_session::auth::Error::Busy { retry_after }) = self.0.downcast_ref() {
            let wait = [(RETRY_AFTER, retry_after.as_secs().max(1).to_string())];
            return (
                StatusCode::SERVICE_UNAVAILABLE,
                wait,
                problem("Too many users are logging in. Please try again in a moment."),
            )
                .into_response();
        }
        tracing::error!("answering 503, a page failed: {}", crate::told(&self.0));
        (
            StatusCode::SERVICE_UNAVAILABLE,
            problem("An error occurred on our side. Please try again in a moment."),
        )
            .into_response()
    }
}

pub(crate) type Page = Result<Response, Failure>;

/// Returns the frame of a page. Reads the session, which is loaded once per request; if its store
/// does not answer, the page looks as it does for a new visitor.
pub(crate) async fn layout(
    session: &Session,
    title: &str,
    content: Markup,
) -> Result<Markup, Failure> {
    let known = async { Ok::<_, Failure>((user(session).await?, cart::count(session).await?)) };
    let (user, things) = known.await.unwrap_or_else(|Failure(error)| {
        tracing::warn!("showing a page without its session: {}", crate::told(&error));
        (None, 0)
    });
    Ok(frame(
        title,
        &html! {
            nav {
                a href="/orders" { "Orders" }
                @if let Some(user) = &user {
                    a href="/account" { "Account" }
                    @if user.is_staff { a href="/admin" { "Behind the counter" } }
                }
                a href="/cart" { "Cart" @if things > 0 { span.count { (things) } } }
                @match user {
                    Some(user) => form method="post" action="/logout" {
                        button.plain { (user.name) " · log out" }
                    },
                    None => a href="/login" { "Log in" },
                }
            }
        },
        &content,
    ))
}

/// Returns the logged-in account.
pub(crate) async fn user(session: &Session) -> Result<Option<Account>, Failure> {
    Ok(session.get(USER).await?)
}

/// A visitor who has logged in. Others are sent to the log-in page, and from there to the page
/// that they asked for.
pub(crate) struct Member {
    pub(crate) account: Account,
    pub(crate) session: Session,
}

impl FromRequestParts<App> for Member {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let session =
            Session::from_request_parts(parts, app).await.map_err(IntoResponse::into_response)?;
        if let Some(account) = user(&session).await.map_err(IntoResponse::into_response)? {
            return Ok(Self { account, session });
        }
        // A form is not sent again after the log-in.
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let next = if [Method::GET, Method::HEAD].contains(&parts.method) { path } else { "/" };
        Err(Redirect::to(&format!("/login?next={}", percent(next))).into_response())
    }
}

/// Returns whether an address is a path of this shop: to browsers, two slashes begin the address of
/// another site.
fn is_within_the_shop(address: &str) -> bool {
    let is_odd = |c: char| c.is_control() || c == '\\';
    address.starts_with('/') && !address.starts_with("//") && !address.contains(is_odd)
}

/// Encodes text for a query string.
pub(crate) fn percent(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                out.push(char::from(byte));
            }
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

/// Returns a page that needs no session.
pub(crate) fn problem(text: &str) -> Markup {
    frame(
        "Sorry",
        &html! {},
        &html! {
            section.narrow { h1 { "Sorry" } p { (text) } p { a href="/" { "To the shop" } } }
        },
    )
}

fn frame(title: &str, navigation: &Markup, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · Fathom & Field" }
                link rel="stylesheet" href=(assets::STYLE.path());
            }
            body {
                header { a.brand href="/" { "Fathom & Field" } (navigation) }
                main { (content) }
                footer { "An example of the scale family. Nothing here is for sale." }
            }
        }
    }
}

/// Formats an amount of cents.
pub(crate) fn money(cents: i64) -> String {
    format!("€ {}.{:02}", cents / 100, cents % 100)
}
