//! Cookies of a request.

/// Returns the name and value of each cookie in the `Cookie` headers of a request, without the
/// spaces around them. Bytes of other cookies may be invalid: a cookie that is not UTF-8 is left
/// out, and all others are returned. A cookie without `=` has an empty value.
///
/// ```
/// use scale_common::cookies::cookies;
///
/// let lines: [&[u8]; 2] = [b"a=1; b=\xFF; c", b"a=2=3"];
/// assert_eq!(
///     cookies(lines).collect::<Vec<_>>(),
///     [("a", "1"), ("c", ""), ("a", "2=3")],
/// );
/// ```
pub fn cookies<'l>(
    lines: impl IntoIterator<Item = &'l [u8]>,
) -> impl Iterator<Item = (&'l str, &'l str)> {
    lines
        .into_iter()
        .flat_map(|line| line.split(|byte| *byte == b';'))
        .filter_map(|pair| std::str::from_utf8(pair).ok())
        .map(|pair| pair.trim().split_once('=').unwrap_or((pair.trim(), "")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::cookies;

    proptest! {
        #[test]
        fn a_cookie_is_found_beside_any_others(
            before in proptest::collection::vec(any::<u8>(), 0..40),
            after in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let line = [&before[..], b"; sid=abc ;", &after].concat();
            prop_assert!(cookies([&line[..]]).any(|pair| pair == ("sid", "abc")));
        }
    }
}
