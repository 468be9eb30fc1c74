//! Files of the pages. Their addresses contain a hash of their contents: browsers and CDNs keep
//! them for a year, and a new version has a new address.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::app::App;

pub(crate) static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("style.css", "text/css; charset=utf-8", include_str!("style.css")));
pub(crate) static PASSKEYS: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("passkeys.js", "text/javascript; charset=utf-8", include_str!("passkeys.js"))
});

pub(crate) struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    hash: String,
}

impl Asset {
    fn new(name: &'static str, kind: &'static str, text: &'static str) -> Self {
        Self { name, kind, text, hash: HEXLOWER.encode(&Sha256::digest(text)[..8]) }
    }

    /// Returns the address for pages.
    pub(crate) fn path(&self) -> String {
        format!("/assets/{}/{}", self.hash, self.name)
    }
}

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/assets/{hash}/{name}", get(show))
}

/// Serves an asset under any hash: during a deployment, a page of the other version may ask this
/// process. Only the right address may be kept.
async fn show(Path((hash, name)): Path<(String, String)>) -> Response {
    let Some(asset) = [&STYLE, &PASSKEYS].into_iter().find(|asset| asset.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kept = if hash == asset.hash { "public, max-age=31536000, immutable" } else { "no-cache" };
    ([(CONTENT_TYPE, asset.kind), (CACHE_CONTROL, kept)], asset.text).into_response()
}
