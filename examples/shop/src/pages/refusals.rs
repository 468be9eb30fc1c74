//! Refusals as pages: what a layer or an extractor answers in bare text, a browser gets as a page
//! with a way back.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, REFERER, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

/// Replaces the text of an error by a page, if the client wants pages and the error is none.
pub(crate) async fn as_pages(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let wants_pages = headers
        .get(ACCEPT)
        .is_some_and(|types| types.to_str().is_ok_and(|types| types.contains("text/html")));
    let back = wants_pages.then(|| back(headers)).flatten();
    let mut response = next.run(request).await;
    let (status, headers) = (response.status(), response.headers_mut());
    // The second one is the limiter's.
    let bare = ["text/plain", "application/problem+json"];
    let is_bare = |kind: &str| bare.iter().any(|bare| kind.starts_with(bare));
    let is_bare = headers.get(CONTENT_TYPE).is_none_or(|kind| kind.to_str().is_ok_and(is_bare));
    if !wants_pages || !is_bare || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let page = page(status, headers, back.as_deref()).into_response();
    headers.remove(CONTENT_LENGTH);
    if let Some(kind) = page.headers().get(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, kind.clone());
    }
    response.map(|_| Body::new(page.into_body()))
}

/// Returns the address, within the shop, of the page that the visitor comes from.
fn back(headers: &HeaderMap) -> Option<String> {
    let from: Uri = headers.get(REFERER)?.to_str().ok()?.parse().ok()?;
    let is_ours = from.authority()?.as_str() == headers.get(HOST)?.to_str().ok()?;
    let path = from.path_and_query()?.to_string();
    (is_ours && super::is_within_the_shop(&path)).then_some(path)
}

fn page(status: StatusCode, headers: &HeaderMap, back: Option<&str>) -> Markup {
    let wait = headers.get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok());
    let content = html! {
        section.narrow {
            h1 { "Sorry" }
            p {
                (sentence(status))
                @if let Some(wait) = wait { " Please try again in " (wait) " seconds." }
            }
            p {
                @if let Some(back) = back { a href=(back) { "Back" } " · " }
                a href="/" { "To the shop" }
            }
        }
    };
    super::frame("Sorry", &html! {}, &content)
}

fn sentence(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "This address, or a value in it, is not valid.",
        StatusCode::UNAUTHORIZED => "This page is for visitors who have logged in.",
        StatusCode::FORBIDDEN => "This request did not come from a page of the shop.",
        StatusCode::NOT_FOUND => "There is no such page.",
        StatusCode::METHOD_NOT_ALLOWED => "This address cannot be used in this way.",
        StatusCode::REQUEST_TIMEOUT => "Your request did not arrive in time.",
        StatusCode::PAYLOAD_TOO_LARGE => "That is more than the shop accepts.",
        StatusCode::UNSUPPORTED_MEDIA_TYPE | StatusCode::UNPROCESSABLE_ENTITY => {
            "Something in the form is missing, or is not valid."
        }
        StatusCode::TOO_MANY_REQUESTS => "You have sent very many requests.",
        _ if status.is_server_error() => "The shop is very busy.",
        _ => "The shop could not do that.",
    }
}
