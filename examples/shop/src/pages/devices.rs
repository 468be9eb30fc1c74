//! Page that lists the user's devices and logs them out.

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::USER_AGENT;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect};
use maud::html;
use serde::Deserialize;

use super::{Member, Page, layout, problem};
use crate::app::App;

/// Returns a readable name of a browser.
pub(crate) fn name(request: &Parts) -> String {
    let agent =
        request.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let known = |names: &[(&str, &'static str)]| {
        names.iter().find(|(word, _)| agent.contains(word)).map(|(_, name)| *name)
    };
    let browser = known(&[
        ("Firefox", "Firefox"),
        ("Edg", "Edge"),
        ("Chrom", "Chrome"),
        ("Safari", "Safari"),
        ("curl", "curl"),
    ]);
    let system = known(&[
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("Windows", "Windows"),
        ("Mac OS", "Mac"),
        ("Linux", "Linux"),
    ]);
    match (browser, system) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => "An unknown device".to_owned(),
    }
}

pub(crate) async fn list(State(app): State<App>, Member { session, .. }: Member) -> Page {
    let devices = session.devices().await?;
    let content = html! {
        section.narrow {
            h1 { "Your devices" }
            table {
                @for device in &devices {
                    tr {
                        td { (device.name) @if device.is_this { span.soft { " · this one" } } }
                        td.soft { "since " (date(device.since)) }
                        td.number {
                            form method="post" action="/devices" {
                                input type="hidden" name="end" value=(device.id);
                                button.plain { "Log out" }
                            }
                        }
                    }
                }
            }
            @if app.passkeys.is_some() { p { a href="/passkeys" { "Passkeys" } } }
            @if devices.len() > 1 {
                form method="post" action="/devices" {
                    input type="hidden" name="end" value="others";
                    button { "Log out everywhere else" }
                }
            }
        }
    };
    Ok(layout(&session, "Your devices", content).await?.into_response())
}

#[derive(Deserialize)]
pub(crate) struct End {
    /// Id of a device, or `others`.
    end: String,
}

pub(crate) async fn end(Member { session, .. }: Member, Form(End { end }): Form<End>) -> Page {
    if end == "others" {
        session.revoke_others().await?;
    } else if !session.revoke(&end).await? {
        return Ok(
            (StatusCode::NOT_FOUND, problem("That device is no longer logged in.")).into_response()
        );
    }
    Ok(Redirect::to("/devices").into_response())
}

/// Returns a date in ISO 8601 form.
pub(super) fn date(seconds: u64) -> String {
    let moment = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or_default())
        .unwrap_or_default();
    moment.strftime("%Y-%m-%d").to_string()
}
