//! Parses the addresses in forwarding headers, from right to left.

use std::net::IpAddr;

use http::HeaderValue;

use super::LONGEST_ELEMENT;

/// Returns the address of a header that contains one address; the last one if the header is
/// repeated.
pub(super) fn one(lines: &http::header::GetAll<'_, HeaderValue>, hops: usize) -> Option<IpAddr> {
    let last = lines.iter().next_back().filter(|line| hops > 0 && line.len() <= LONGEST_ELEMENT)?;
    address(last.as_bytes().trim_ascii())
}

/// Iterates over the elements of a list, the last first: text that a client has written before a
/// proxy's element cannot prevent that element from being read.
pub(super) struct FromTheRight<'l> {
    pub(super) rest: &'l [u8],
    /// `true` if commas inside of quotes do not separate elements.
    pub(super) quotes: bool,
}

impl<'l> Iterator for FromTheRight<'l> {
    type Item = &'l [u8];

    fn next(&mut self) -> Option<&'l [u8]> {
        let rest = self.rest;
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let start = rest.iter().enumerate().rev().find(|(n, byte)| {
            let is_escaped =
                || rest[..*n].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
            if self.quotes && **byte == b'"' && !is_escaped() {
                quoted = !quoted;
            }
            // A longer element is not an address, and is returned in one piece.
            (**byte == b',' && !quoted) || rest.len() - n > 16 * LONGEST_ELEMENT
        });
        let (before, element) =
            start.map_or((&[][..], rest), |(n, _)| (&rest[..n], &rest[n + 1..]));
        self.rest = before;
        Some(element.trim_ascii())
    }
}

/// Returns the address in the `for` parameter of one element of `Forwarded`; `None` if it is
/// missing or hidden.
pub(super) fn for_parameter(element: &[u8]) -> Option<IpAddr> {
    let element = std::str::from_utf8(element).ok()?;
    split_quoted(element, ';').into_iter().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').map_or(Some(value), |value| value.strip_suffix('"'));
        name.trim().eq_ignore_ascii_case("for").then(|| address(value?.as_bytes()))
    })?
}

/// Splits at a character outside of quotes.
fn split_quoted(text: &str, at: char) -> Vec<String> {
    let (mut parts, mut part, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        match c {
            '\\' if quoted && !escaped => escaped = true,
            '"' if !escaped => {
                quoted = !quoted;
                part.push(c);
            }
            c if c == at && !quoted => parts.push(std::mem::take(&mut part)),
            c => {
                part.push(c);
                escaped = false;
            }
        }
    }
    parts.push(part);
    parts
}

/// Parses `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`. The port
/// may be hidden (RFC 7239, 6): `:_x`.
pub(super) fn address(written: &[u8]) -> Option<IpAddr> {
    let written = std::str::from_utf8(written).ok()?;
    let bracketed = written.strip_prefix('[').and_then(|w| w.split_once(']'));
    let ip: IpAddr = match bracketed {
        Some((inside, rest)) if rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port) => {
            IpAddr::V6(inside.parse().ok()?)
        }
        Some(_) => return None,
        None => match written.split_once(':') {
            Some((v4, port)) if !port.contains(':') && is_port(port) => {
                IpAddr::V4(v4.parse().ok()?)
            }
            _ => written.parse().ok()?,
        },
    };
    Some(ip.to_canonical())
}

fn is_port(text: &str) -> bool {
    let is_hidden = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    text.strip_prefix('_').map_or_else(
        || text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok(),
        is_hidden,
    )
}
