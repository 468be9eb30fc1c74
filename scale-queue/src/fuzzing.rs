//! Targets of `fuzz/`, which the tests below run on mutated inputs.

use crate::format::{Envelope, count_failure, group_of, pushed_ms, tag_of, without_failures};

/// Reads any bytes as a job: a job that is read keeps its content when it is written, and its head
/// is read alike without the rest.
pub fn job_format(data: &[u8]) {
    let mut counted = data.to_vec();
    count_failure(&mut counted);
    let (tag, group, pushed) = (tag_of(data), group_of(data), pushed_ms(data));
    let Ok(job) = Envelope::decode(data) else { return };
    assert_eq!(tag, job.id.bytes());
    assert_eq!(group, job.group.as_deref());
    assert_eq!(pushed, Some(job.pushed_ms));
    assert_eq!(Envelope::decode(&job.encode()).as_ref(), Ok(&job));
    assert_eq!(Envelope::decode(&without_failures(data)).map(|job| job.failed), Ok(0));
    let failed = Envelope::decode(&counted).map(|job| job.failed);
    assert!(failed.is_ok_and(|failed| failed == job.failed || failed == job.failed + 1));
}

#[cfg(test)]
mod tests {
    use crate::format::{Body, Envelope, Extra, Link, StoredOptions};
    use crate::job::{JobId, Priority};

    #[test]
    fn any_bytes_are_a_job_or_an_error() {
        let job = |group: Option<&str>, then: Vec<Link>| Envelope {
            id: JobId::from_bytes([7; 16]),
            failed: 3,
            suspect: false,
            pushed_ms: 1_790_000_000_123,
            priority: if then.is_empty() { Priority::Normal } else { Priority::High },
            group: group.map(str::to_owned),
            body: Body {
                name: "send-receipt".into(),
                payload: b"{\"order\":7}".to_vec(),
                unique: Some("order:7".into()),
                last_error: Some("no route".into()),
                then,
                extra: Extra { attempts: Some(3), ..Extra::default() },
                options: StoredOptions {
                    expires_ms: group.map(|_| 1_790_000_000_999),
                    ..StoredOptions::default()
                }
                .into(),
            },
        };
        let link = Link {
            queue: "low".into(),
            name: "next".into(),
            payload: vec![0, 255],
            delay_ms: 7,
            group: None,
            more: Some(Box::default()),
        };
        let (plain, chained) = (job(None, Vec::new()), job(Some("account:7"), vec![link]));
        testkit::mutated(&[&plain.encode(), &chained.encode()], 20_000, super::job_format);
    }
}
