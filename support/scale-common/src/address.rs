//! Addresses in error messages. An address may hold a password, so only its scheme is shown.

/// Most characters of a scheme in a message.
const LONGEST_SCHEME: usize = 20;

/// Returns the scheme of an address in backticks, or "an address without a scheme".
///
/// ```
/// use scale_common::address::shown_scheme;
///
/// assert_eq!(shown_scheme("ftp://user:secret@example.com"), "`ftp`");
/// assert_eq!(shown_scheme("/var/lib/jobs"), "an address without a scheme");
/// ```
pub fn shown_scheme(address: &str) -> String {
    let scheme = address.split_once(':').map(|(scheme, _)| scheme).filter(|s| !s.is_empty());
    let quoted =
        |scheme: &str| format!("`{}`", scheme.chars().take(LONGEST_SCHEME).collect::<String>());
    scheme.map_or_else(|| "an address without a scheme".into(), quoted)
}
