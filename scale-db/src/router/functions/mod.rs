//! Built-in functions that do not write, lock or wait, and that have the same results on a replica.
//!
//! | dialect | source of the list |
//! | --- | --- |
//! | Postgres | the catalogue of a server: `postgres.sql` generates `postgres.txt` (Postgres 15); later versions: their manuals |
//! | MySQL, MariaDB | their manuals |
//! | SQLite | `pragma function_list` and its manual |
//!
//! A name that is a built-in of only one dialect is an application's function on the others.

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::dialect::Dialect;

/// Names that look like functions and belong to the grammar.
const GRAMMAR: &[&str] = &[
    "all", "any", "array", "cast", "coalesce", "current_date", "current_time", "current_timestamp",
    "exists", "nullif", "row", "some", "trim",
];

/// Names from the catalogue of Postgres 15.
const POSTGRES: &str = include_str!("postgres.txt");

/// Functions that are volatile in the catalogue, but only in their results; grammar; and those of
/// `pg_trgm`.
const POSTGRES_MORE: &[&str] = &[
    "clock_timestamp", "gen_random_uuid", "greatest", "grouping", "least", "localtime",
    "localtimestamp", "normalize", "pg_client_encoding", "pg_column_size", "pg_size_bytes",
    "pg_size_pretty", "pg_typeof", "random", "similarity", "strict_word_similarity", "timeofday",
    "word_similarity", "xmlconcat", "xmlelement", "xmlforest", "xmlparse", "xmlpi", "xmlroot",
    "xmlserialize",
];

/// Names of Postgres 16 to 18, from their manuals.
const POSTGRES_LATER: &[&str] = &[
    "any_value", "array_reverse", "array_sample", "array_shuffle", "array_sort", "casefold",
    "crc32", "crc32c", "date_add", "date_subtract", "erf", "erfc", "gamma", "json", "json_array",
    "json_arrayagg", "json_exists", "json_objectagg", "json_query", "json_scalar",
    "json_serialize", "json_value", "lgamma", "random_normal", "to_bin", "to_oct",
    "uuid_extract_timestamp", "uuid_extract_version", "uuidv4", "uuidv7",
];

/// Names of MySQL 8 and MariaDB 10.6 to 11.
const MYSQL: &[&str] = &[
    "abs", "acos", "add_months", "adddate", "addtime", "aes_decrypt", "aes_encrypt", "any_value",
    "ascii", "asin", "atan", "atan2", "avg", "bin", "bin_to_uuid", "bit_and", "bit_count",
    "bit_length", "bit_or", "bit_xor", "ceil", "ceiling", "char", "char_length",
    "character_length", "charset", "chr", "coercibility", "collation", "compress", "concat",
    "concat_ws", "convert", "cos", "cot", "count", "crc32", "cume_dist", "curdate", "current_user",
    "curtime", "database", "date", "date_add", "date_format", "date_sub", "datediff", "day",
    "dayname", "dayofmonth", "dayofweek", "dayofyear", "degrees", "dense_rank", "elt", "exp",
    "export_set", "extract", "field", "find_in_set", "first_value", "floor", "format",
    "from_base64", "from_days", "from_unixtime", "greatest", "group_concat", "grouping", "hex",
    "hour", "if", "ifnull", "inet6_aton", "inet6_ntoa", "inet_aton", "inet_ntoa", "insert",
    "instr", "interval", "is_uuid", "isnull", "json_array", "json_array_append",
    "json_array_insert", "json_array_intersect", "json_arrayagg", "json_compact", "json_contains",
    "json_contains_path", "json_depth", "json_detailed", "json_equals", "json_exists",
    "json_extract", "json_insert", "json_keys", "json_length", "json_loose", "json_merge_patch",
    "json_merge_preserve", "json_normalize", "json_object", "json_objectagg", "json_overlaps",
    "json_pretty", "json_query", "json_quote", "json_remove", "json_replace", "json_search",
    "json_set", "json_storage_size", "json_table", "json_type", "json_unquote", "json_valid",
    "json_value", "lag", "last_day", "last_value", "lcase", "lead", "least", "left", "length",
    "lengthb", "ln", "locate", "log", "log10", "log2", "lower", "lpad", "ltrim", "makedate",
    "maketime", "max", "md5", "median", "mid", "min", "minute", "mod", "month", "monthname",
    "months_between", "natural_sort_key", "now", "nth_value", "ntile", "nvl", "nvl2", "oct",
    "octet_length", "ord", "percent_rank", "percentile_cont", "percentile_disc", "period_add",
    "period_diff", "pi", "position", "pow", "power", "quarter", "quote", "radians", "rand", "rank",
    "regexp_instr", "regexp_like", "regexp_replace", "regexp_substr", "repeat", "replace",
    "reverse", "right", "round", "row_number", "rpad", "rtrim", "schema", "sec_to_time", "second",
    "session_user", "sformat", "sha1", "sha2", "sign", "sin", "soundex", "space", "sqrt", "std",
    "stddev", "stddev_pop", "stddev_samp", "str_to_date", "strcmp", "subdate", "substr",
    "substring", "substring_index", "subtime", "sum", "sysdate", "system_user", "tan", "time",
    "time_format", "time_to_sec", "timediff", "timestamp", "timestampadd", "timestampdiff",
    "to_base64", "to_char", "to_days", "to_seconds", "trunc", "truncate", "ucase", "uncompress",
    "uncompressed_length", "unhex", "unix_timestamp", "upper", "user", "utc_date", "utc_time",
    "utc_timestamp", "uuid", "uuid_to_bin", "var_pop", "var_samp", "variance", "version", "week",
    "weekday", "weekofyear", "weight_string", "year", "yearweek",
];

/// Names of SQLite 3.50 and its full-text search.
const SQLITE: &[&str] = &[
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "avg", "bm25", "ceil",
    "ceiling", "char", "concat", "concat_ws", "cos", "cosh", "count", "cume_dist", "date",
    "datetime", "degrees", "dense_rank", "exp", "first_value", "floor", "format",
    "generate_series", "glob", "group_concat", "hex", "highlight", "if", "ifnull", "iif", "instr",
    "json", "json_array", "json_array_length", "json_each", "json_error_position", "json_extract",
    "json_group_array", "json_group_object", "json_insert", "json_object", "json_patch",
    "json_pretty", "json_quote", "json_remove", "json_replace", "json_set", "json_tree",
    "json_type", "json_valid", "jsonb", "jsonb_array", "jsonb_each", "jsonb_extract",
    "jsonb_group_array", "jsonb_group_object", "jsonb_insert", "jsonb_object", "jsonb_patch",
    "jsonb_remove", "jsonb_replace", "jsonb_set", "jsonb_tree", "julianday", "lag", "last_value",
    "lead", "length", "like", "likelihood", "likely", "ln", "log", "log10", "log2", "lower",
    "ltrim", "match", "matchinfo", "max", "median", "min", "mod", "nth_value", "ntile",
    "octet_length", "offsets", "percent_rank", "percentile", "percentile_cont", "percentile_disc",
    "pi", "pow", "power", "printf", "quote", "radians", "random", "randomblob", "rank", "replace",
    "round", "row_number", "rtrim", "sign", "sin", "sinh", "snippet", "soundex", "sqlite_version",
    "sqrt", "strftime", "string_agg", "substr", "substring", "subtype", "sum", "tan", "tanh",
    "time", "timediff", "total", "trunc", "typeof", "unhex", "unicode", "unistr", "unistr_quote",
    "unixepoch", "unlikely", "upper", "zeroblob",
];

/// Returns whether a built-in with this (lower-case) name is harmless on a replica.
pub(super) fn is_safe(dialect: Dialect, name: &str) -> bool {
    static OF_POSTGRES: LazyLock<HashSet<&str>> = LazyLock::new(|| {
        POSTGRES
            .lines()
            .chain(POSTGRES_MORE.iter().copied())
            .chain(POSTGRES_LATER.iter().copied())
            .collect()
    });
    let own = match dialect {
        Dialect::Postgres => OF_POSTGRES.contains(name),
        Dialect::MySql => MYSQL.contains(&name),
        Dialect::Sqlite => SQLITE.contains(&name),
    };
    own || GRAMMAR.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_locks_or_waits_is_on_no_list() {
        let harmful = [
            "nextval", "setval", "currval", "lastval", "pg_advisory_lock", "pg_advisory_xact_lock",
            "pg_try_advisory_lock", "pg_notify", "pg_sleep", "set_config", "lo_import",
            "lo_create", "lo_unlink", "dblink", "dblink_exec", "pg_terminate_backend",
            "pg_cancel_backend", "pg_reload_conf", "pg_switch_wal", "txid_current",
            "pg_current_xact_id", "query_to_xml", "get_lock", "release_lock", "sleep",
            "last_insert_id", "load_extension", "last_insert_rowid", "changes", "fts3_tokenizer",
            "benchmark", "load_file", "is_free_lock", "row_count", "found_rows", "uuid_short",
            "writefile", "pg_is_in_recovery", "inet_server_addr", "txid_current_snapshot",
            "table_to_xml", "query_to_xml", "setseed", "current_setting", "lo_get",
            "sqlite_compileoption_get", "total_changes", "connection_id", "master_gtid_wait",
        ];
        for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
            for name in harmful {
                assert!(!is_safe(dialect, name), "{name}");
            }
        }
    }

    #[test]
    fn a_built_in_of_one_dialect_is_nobody_s_on_another() {
        for (name, of) in [
            ("total", Dialect::Sqlite),
            ("instr", Dialect::MySql),
            ("instr", Dialect::Sqlite),
            ("ifnull", Dialect::MySql),
            ("jsonb_insert", Dialect::Postgres),
            ("array_positions", Dialect::Postgres),
            ("int4multirange", Dialect::Postgres),
            ("find_in_set", Dialect::MySql),
        ] {
            assert!(is_safe(of, name), "{name}");
        }
        for (name, other) in [
            ("total", Dialect::Postgres),
            ("instr", Dialect::Postgres),
            ("ifnull", Dialect::Postgres),
            ("total", Dialect::MySql),
        ] {
            assert!(!is_safe(other, name), "{name}");
        }
    }
}
