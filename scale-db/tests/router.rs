//! A table of statements and the nodes that may run them.
#![allow(clippy::unwrap_used)]

use scale_db::router::{Dialect, Router, Verdict};

fn check(dialect: Dialect, verdict: Verdict, statements: &[&str]) {
    let router = Router::new(dialect, ["my_pure", "shop.price_of"]);
    for sql in statements {
        assert_eq!(router.verdict(sql), verdict, "{dialect:?}: {sql}");
    }
}

#[test]
fn every_dialect_reads_plain_queries() {
    for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
        check(
            dialect,
            Verdict::Read,
            &[
                "select 1",
                "SELECT * FROM users",
                "select id, name from users where id = 7 and name like 'a%' order by name limit 10",
                "select u.id, count(*) from users u join orders o on o.user_id = u.id \
                 group by u.id having count(*) > 3",
                "select * from (select id from users) as t",
                "with recent as (select * from orders) select count(*) from recent",
                "select id from a union all select id from b",
                "select coalesce(max(price), 0), upper(name) from products group by name",
                "select case when a > 1 then 'x' else 'y' end from t",
                "select exists (select 1 from t where t.id = 3)",
                "select 'insert into t values (1)'",
                "select 1 -- delete from t\n from t",
                "select /* update t set a = 1 */ a from t",
                "select sum(x) over (partition by y order by z) from t",
                "values (1), (2)",
            ],
        );
        check(
            dialect,
            Verdict::Write,
            &[
                "",
                ";",
                "-- only a comment",
                "this is no sql",
                "insert into t values (1)",
                "insert into t select * from u",
                "update t set a = 1",
                "delete from t",
                "create table t (a int)",
                "drop table t",
                "alter table t add column b int",
                "create index i on t (a)",
                "begin",
                "commit",
                "rollback",
                "savepoint s",
                "select 1; delete from t",
                "select * from (table orders_id_seq) t",
                "select s.nextval",
                "select 1; select some_user_function(1)",
                "select unknown_function(1)",
                "select a from t where unknown_function(a)",
                "select a from t order by unknown_function(a)",
                "select * from (select unknown_function(1) as x) as t",
                "with x as (select unknown_function(1) as y) select * from x",
                "select case when unknown_function(1) > 0 then 1 else 2 end",
            ],
        );
    }
}

#[test]
fn postgres() {
    check(
        Dialect::Postgres,
        Verdict::Read,
        &[
            "select * from users where id = $1",
            "select * from users where id = any($1)",
            "select now(), current_timestamp, date_trunc('day', created_at) from t",
            "select data->>'a', data #> '{b}' from t where data @> '{}'::jsonb",
            "select * from generate_series(1, 10) as n",
            "select * from unnest($1::int[]) as n",
            "select * from t, lateral (select * from u where u.id = t.id) x",
            "select distinct on (a) a, b from t",
            "select string_agg(name, ',' order by name) filter (where a > 1) from t",
            "select my_pure(1), MY_PURE(2), shop.price_of(3)",
            "select pg_catalog.lower(name) from t",
            "select to_tsvector('english', body) @@ plainto_tsquery($1) from docs",
            "explain select * from t",
            "explain analyze select * from t",
            "select \"lower\"(name) from t",
            "select array[1, 2], row(1, 2), interval '1 day', extract(year from d) from t",
        ],
    );
    check(
        Dialect::Postgres,
        Verdict::Write,
        &[
            "select * from t for update",
            "select * from t for no key update",
            "select * from t for share",
            "select * from t for key share skip locked",
            "select * from (select * from t for update) x",
            "with x as (select * from t for update) select * from x",
            "with d as (delete from t returning *) select * from d",
            "with i as (insert into t values (1) returning id) select * from i",
            "with u as (update t set a = 1 returning *) select * from u",
            "with a as (select 1), b as (with c as (delete from t returning 1) select * \
             from c) select * from a, b",
            "select * into new_table from t",
            "select nextval('s')",
            "select setval('s', 1)",
            "select currval('s')",
            "select lastval()",
            "select pg_advisory_lock(1)",
            "select pg_try_advisory_xact_lock(1)",
            "select pg_notify('c', 'x')",
            "select set_config('a', 'b', false)",
            "select pg_sleep(1)",
            "select pg_terminate_backend(1)",
            "select txid_current()",
            "select lo_import('/etc/passwd')",
            "select dblink_exec('x', 'delete from t')",
            "select query_to_xml('delete from t', true, false, '')",
            "select \"LOWER\"(name) from t",
            "select other.lower(name) from t",
            "select * from unknown_function(1) as x",
            "select * from t where a = (select nextval('s'))",
            "select * from pg_stat_activity",
            "select * from pg_catalog.pg_locks",
            "select * from information_schema.tables",
            "explain analyze insert into t values (1)",
            "explain analyze delete from t",
            "explain (analyze) update t set a = 1",
            "explain insert into t values (1)",
            "set search_path = x",
            "set local statement_timeout = 1",
            "reset all",
            "listen c",
            "notify c",
            "unlisten *",
            "copy t to stdout",
            "copy t from stdin",
            "copy (delete from t returning *) to stdout",
            "call p()",
            "do $$ begin perform 1; end $$",
            "lock table t",
            "truncate t",
            "vacuum",
            "analyze t",
            "refresh materialized view v",
            "declare c cursor for select 1",
            "fetch 1 from c",
            "prepare p as select 1",
            "execute p",
            "deallocate p",
            "discard all",
            "create temp table t as select 1",
            "merge into t using u on t.id = u.id when matched then delete",
            "grant select on t to u",
            "comment on table t is 'x'",
            "select a operator(myschema.+) b from t",
            "start transaction read only",
        ],
    );
}

#[test]
fn mysql() {
    check(
        Dialect::MySql,
        Verdict::Read,
        &[
            "select * from `users` where id = ?",
            "select date_format(created_at, '%Y') from t",
            "select json_extract(a, '$.b') from t",
            "select if(a > 1, 2, 3), ifnull(b, 4) from t",
            "select group_concat(name separator ', ') from t",
        ],
    );
    check(
        Dialect::MySql,
        Verdict::Write,
        &[
            "select * from t for update",
            "select * from t lock in share mode",
            "select get_lock('a', 1)",
            "select release_lock('a')",
            "select last_insert_id()",
            "select sleep(1)",
            "select @a := 1",
            "select @a",
            "select * from t into outfile '/tmp/x'",
            "select 1 /*! into @x */",
            "/*!50000 delete from t */",
            "replace into t values (1)",
            "load data infile 'x' into table t",
            "lock tables t write",
            "select * from mysql.user",
            "select * from performance_schema.threads",
            "call p()",
            "handler t open",
            "set @a = 1",
            "use other",
        ],
    );
}

#[test]
fn sqlite() {
    check(
        Dialect::Sqlite,
        Verdict::Read,
        &[
            "select * from users where id = ?1",
            "select * from users where id = $1",
            "select strftime('%Y', created_at), julianday('now') from t",
            "select json_extract(a, '$.b') from t",
            "select * from json_each('[1]')",
            "select printf('%d', a), typeof(b) from t",
        ],
    );
    check(
        Dialect::Sqlite,
        Verdict::Write,
        &[
            "pragma journal_mode = wal", "pragma user_version", "attach database 'x' as y",
            "vacuum", "replace into t values (1)", "insert into t values (1) returning id",
            "select load_extension('x')", "select last_insert_rowid()", "select changes()",
            "select * from sqlite_master", "reindex",
        ],
    );
}

proptest::proptest! {
    /// Any text is classified without a panic, and a text with a write keyword as a statement is a
    /// write.
    #[test]
    fn any_text_has_a_verdict(text in ".{0,200}") {
        for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
            Router::new(dialect, [""; 0]).verdict(&text);
        }
    }

    #[test]
    fn no_wrapping_hides_a_write(depth in 0_usize..6, which in 0_usize..4) {
        let mut sql = ["select nextval('s')", "select * from t for update", "with d as (delete \
            from t returning 1) select * from d",
            "select pg_advisory_lock(1)"][which].to_owned();
        for level in 0..depth {
            sql = match level % 3 {
                0 => format!("select * from ({sql}) as x{level}"),
                1 => format!("with y{level} as ({sql}) select * from y{level}"),
                _ => format!("select 1 where exists ({sql})"),
            };
        }
        assert_eq!(Router::new(Dialect::Postgres, [""; 0]).verdict(&sql), Verdict::Write, "{sql}");
    }
}

/// A syntax tree as deep as its text is long is dropped by recursive functions. The test uses a
/// thread of 2 MiB, like tokio's threads.
#[test]
fn deep_texts_are_survived() {
    let repeated = |begin: &str, part: &str, end: &str| {
        format!("select {begin}{}{end}", part.repeat((60_000 - end.len()) / part.len()))
    };
    let deep = [
        repeated("1", "+1", ""),
        repeated("true", " and true", ""),
        repeated("1", "||1", ""),
        repeated("", "-", "1"),
        repeated("", "not ", "true"),
        repeated("", "(", "1"),
        repeated("1", "::int", ""),
        repeated("a", "[1]", ""),
        repeated("", "case when 1=1 then ", "1"),
        repeated("1", " union select 1", ""),
        repeated("1 from t", " join t", ""),
        repeated("1", " is null", ""),
        repeated("", "abs(", "1"),
        repeated("a", " collate c", ""),
        repeated("a", ".b", ""),
        format!("select a from t{}{}", " join t".repeat(5_000), " on true".repeat(2_500)),
        format!("select * from {}t{}", "(".repeat(48), ")".repeat(48)),
        format!("select * from {}t{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("select * from {}t{}", "(t join ".repeat(45), " on true)".repeat(45)),
        format!("select * from {}t{}", "(t join ".repeat(3_000), " on true)".repeat(3_000)),
        format!("select a from t{}{}", " join t".repeat(59), " on true".repeat(59)),
        format!("select {}1{}", "(".repeat(30_000), ")".repeat(30_000)),
        format!("select {}1{}", "(select ".repeat(7_000), ")".repeat(3_000)),
        format!("with {} select 1", "a as (select 1), ".repeat(3_000)),
        format!("explain {} select 1", "explain ".repeat(7_000)),
    ];
    let judge = move || {
        for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
            for sql in &deep {
                let router = Router::new(dialect, [""; 0]);
                let _ = router.verdict(sql);
                let _ = scale_db::observe::fingerprint(dialect, sql);
            }
            // A long list is not deep.
            let list = format!("select * from t where id in ({}1)", "1, ".repeat(15_000));
            assert_eq!(Router::new(dialect, [""; 0]).verdict(&list), Verdict::Read);
        }
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(judge).unwrap().join().unwrap();
}

#[test]
fn a_function_in_the_dress_of_a_field_is_one() {
    let router = Router::new(Dialect::Postgres, [""; 0]);
    for write in [
        "select (42::bigint).pg_advisory_lock", "select (0.1::float8).pg_sleep",
        "select ((select 1)).nextval",
    ] {
        assert_eq!(router.verdict(write), Verdict::Write, "{write}");
    }
    let sqlite = Router::new(Dialect::Sqlite, [""; 0]);
    assert_eq!(sqlite.verdict("select * from pragma_query_only"), Verdict::Write);
    // Consecutive joins are not nested.
    let joins: Vec<_> = (0..200).map(|n| format!(" join t t{n} on t{n}.id = t.id")).collect();
    let joins = joins.concat();
    assert_eq!(router.verdict(&format!("select 1 from t{joins}")), Verdict::Read);
}
