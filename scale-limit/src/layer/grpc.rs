//! Refusals of gRPC requests: the status in a header of a response without a body
//! (`Trailers-Only`), with details.
//!
//! The details are a `google.rpc.Status` with a `RetryInfo` and a `QuotaFailure`, which client
//! libraries understand. Its few fields are encoded by hand here: a protobuf library would be the
//! largest part of the crate's dependencies.

use bytes::Bytes;
use data_encoding::BASE64_NOPAD;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};

use super::refusal::Refusal;

/// Status codes of gRPC.
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;

/// Returns the refusal, if the request is gRPC or gRPC-Web; `wait` is in seconds.
pub(super) fn refusal(
    refusal: &Refusal<'_>,
    headers: &HeaderMap,
    wait: Option<u64>,
) -> Option<Response<Bytes>> {
    let (code, message, violated) = match refusal {
        Refusal::TooMany(decision) => {
            let denied = decision.outcomes().iter().filter(|outcome| !outcome.admitted());
            (
                RESOURCE_EXHAUSTED,
                "too many requests",
                denied.map(|outcome| outcome.policy().to_owned()).collect(),
            )
        }
        Refusal::Denied | Refusal::Banned(_) => (PERMISSION_DENIED, "forbidden", Vec::new()),
        Refusal::UnknownClient => (INTERNAL, "internal server error", Vec::new()),
    };
    spoken(headers).map(|kind| answer(kind, code, message, wait, &violated))
}

/// Returns the refusal of an overloaded service in the given content type; `wait` is in seconds.
pub(crate) fn too_busy(kind: &HeaderValue, wait: u64) -> Response<Bytes> {
    answer(kind, UNAVAILABLE, "too busy", Some(wait), &[])
}

/// Returns the content type for the response, if the request is gRPC.
pub(crate) fn spoken(headers: &HeaderMap) -> Option<&HeaderValue> {
    let kind = headers.get(CONTENT_TYPE)?;
    let rest = kind.as_bytes().strip_prefix(b"application/grpc")?;
    matches!(rest.first(), None | Some(b'+' | b';' | b'-')).then_some(kind)
}

fn answer(
    kind: &HeaderValue,
    code: u8,
    message: &'static str,
    wait: Option<u64>,
    violated: &[String],
) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind.clone());
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    headers.insert("grpc-message", HeaderValue::from_static(message));
    let details = BASE64_NOPAD.encode(&status(code, message, wait, violated));
    if let Ok(details) = HeaderValue::try_from(details) {
        headers.insert("grpc-status-details-bin", details);
    }
    response
}

/// Encodes a `google.rpc.Status`: code, message, details.
fn status(code: u8, message: &str, wait: Option<u64>, violated: &[String]) -> Vec<u8> {
    let mut status = vec![0x08, code];
    field(&mut status, 2, message.as_bytes());
    if let Some(seconds) = wait {
        // RetryInfo: retry_delay (Duration: seconds).
        let mut delay = vec![0x08];
        varint(&mut delay, seconds);
        let mut info = Vec::new();
        field(&mut info, 1, &delay);
        detail(&mut status, "google.rpc.RetryInfo", &info);
    }
    if !violated.is_empty() {
        // QuotaFailure: violations (subject).
        let mut failure = Vec::new();
        for policy in violated {
            let mut violation = Vec::new();
            field(&mut violation, 1, policy.as_bytes());
            field(&mut failure, 1, &violation);
        }
        detail(&mut status, "google.rpc.QuotaFailure", &failure);
    }
    status
}

/// Encodes a `google.protobuf.Any`: the name of the type, and the message.
fn detail(status: &mut Vec<u8>, name: &str, message: &[u8]) {
    let mut any = Vec::new();
    field(&mut any, 1, format!("type.googleapis.com/{name}").as_bytes());
    field(&mut any, 2, message);
    field(status, 3, &any);
}

/// Encodes a length-delimited field.
fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}
