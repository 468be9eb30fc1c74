//! Targets of `fuzz/`, which the tests below run on mutated inputs.

use crate::format::{Head, decoded, fresh_until, unpacked};

/// Reads any bytes as an entry: what is read is written back as it was.
pub fn cache_format(data: &[u8]) {
    let Some((head, value)) = Head::read(data) else { return };
    assert_eq!(fresh_until(data), Some(head.fresh_until_us));
    if head.tags.len() <= crate::format::MAX_TAGS {
        assert_eq!(head.write(value), data);
    }
    if let Some(value) = unpacked(head.compressed, value) {
        let _ = decoded::<Vec<(String, Option<i64>)>>(&value);
    }
}

/// Reads any bytes as `Cache-Control`, and judges a response by it.
#[cfg(feature = "http")]
pub fn cache_control(data: &[u8]) {
    crate::http::judge_any(data);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::format::Head;

    #[test]
    fn any_bytes_are_an_entry_or_a_miss() {
        let head = |compressed, tags| Head {
            compressed,
            fingerprint: 7,
            fresh_until_us: 1,
            kept_until_us: 2,
            made_us: 3,
            cost: Duration::from_micros(4),
            tags,
        };
        let plain = head(false, vec![("product:7", 9)]).write(&[0x91, 0x92, 0xA1, b'a', 0xC0]);
        let packed = head(true, Vec::new()).write(&[5, 0, 0, 0, 0x50, 1, 2, 3, 4, 5]);
        testkit::mutated(&[&plain, &packed], 20_000, super::cache_format);
    }

    #[cfg(feature = "http")]
    #[test]
    fn any_cache_control_is_judged() {
        let seeds: [&[u8]; 5] = [
            b"max-age=60, s-maxage=\"30\", must-revalidate",
            b"private=\"set-cookie, x-a\", no-cache=\"a\"",
            b"stale-while-revalidate=10, stale-if-error=99999999999999999999",
            b"public, immutable; q=1, \"quoted \\\" comma ,\"",
            b"no-store",
        ];
        testkit::mutated(&seeds, 20_000, super::cache_control);
    }
}
