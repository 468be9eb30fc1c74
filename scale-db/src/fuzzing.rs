//! Targets of `fuzz/`, which the tests below run on mutated inputs.

use crate::Dialect;
use crate::observe::fingerprint;
use crate::router::{Router, Verdict};

const DIALECTS: [Dialect; 3] = [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite];

/// Routes any text: a text with a write in it is never proven to be a read, and a fingerprint never
/// contains a literal.
pub fn sql_router(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for dialect in DIALECTS {
        let router = Router::new(dialect, [""; 0]);
        let verdict = router.verdict(&text);
        assert_eq!(router.verdict(&text), verdict, "a verdict is remembered");
        let with_write = format!("delete from orders; {text}");
        assert_eq!(router.verdict(&with_write), Verdict::Write, "{dialect:?}: {with_write}");
        let with_secret = format!("select 'secret' where a = 'secret' {text}");
        let shown = fingerprint(dialect, &with_secret);
        let is_shown = shown.contains("'secret'") || shown.starts_with("select secret");
        assert!(!is_shown, "{dialect:?}: {shown}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_text_is_routed() {
        let seeds: [&[u8]; 8] = [
            b"select * from users where id = $1",
            b"with a as (delete from t returning id) select * from a",
            b"select nextval('seq'); -- comment",
            b"/*!50000 delete */ select 1 /* open",
            b"select $$a$$, E'\\'', x'00', U&\"a\" from t for update",
            b"insert into t values (1) on conflict do nothing",
            b"explain analyze update t set a = 1",
            b"show tables; begin; set @a := 1; call p()",
        ];
        testkit::mutated(&seeds, 2_000, super::sql_router);
    }
}
