//! The dashboard's page as one document, so that it works at any mount point, with or without a
//! trailing slash; and a content security policy under which no other script or style runs in it.

use std::sync::LazyLock;

use bytes::Bytes;
use data_encoding::BASE64;
use http::HeaderValue;
use sha2::{Digest, Sha256};

pub(super) struct Page {
    pub(super) html: Bytes,
    pub(super) policy: HeaderValue,
}

const STYLES: [&str; 2] =
    [include_str!("vendor/uplot/uPlot.min.css"), include_str!("page/style.css")];

/// Scripts of the page; the first one enables strict mode for all of them.
const SCRIPTS: [&str; 7] = [
    include_str!("page/basics.js"),
    include_str!("vendor/uplot/uPlot.iife.min.js"),
    include_str!("page/charts.js"),
    include_str!("page/jobs.js"),
    include_str!("page/lists.js"),
    include_str!("page/workflow.js"),
    include_str!("page/live.js"),
];

pub(super) static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let (style, script) = (STYLES.join("\n"), SCRIPTS.join("\n"));
    let html =
        include_str!("page/index.html").replace("{style}", &style).replace("{script}", &script);
    let hash = |text: &str| BASE64.encode(&Sha256::digest(text.as_bytes()));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        hash(&script),
        hash(&style)
    );
    // Base64 and constants are always a valid header value.
    let policy =
        HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    Page { html: html.into(), policy }
});
