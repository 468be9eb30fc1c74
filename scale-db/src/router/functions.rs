//! Built-in functions that neither write, lock, wait nor answer differently on a replica.

use crate::dialect::Dialect;

/// SQL's common ground.
const COMMON: &[&str] = &[
    "abs", "avg", "ceil", "ceiling", "char_length", "character_length", "coalesce", "concat", "concat_ws", "count", "cume_dist",
    "date", "dense_rank", "exp", "first_value", "floor", "greatest", "group_concat", "ifnull", "iif", "instr", "lag",
    "last_value", "lead", "least", "left", "length", "ln", "log", "log10", "log2", "lower", "lpad", "ltrim", "max", "min", "mod",
    "nth_value", "ntile", "nullif", "octet_length", "percent_rank", "pi", "position", "pow", "power", "rank", "repeat",
    "replace", "reverse", "right", "round", "row_number", "rpad", "rtrim", "sign", "sin", "cos", "tan", "asin", "acos", "atan",
    "atan2", "sqrt", "substr", "substring", "sum", "total", "trim", "upper", "current_date", "current_time", "current_timestamp",
    "cast", "exists", "any", "all", "some", "array", "row",
];

const POSTGRES: &[&str] = &[
    "age", "array_agg", "array_append", "array_cat", "array_length", "array_lower", "array_position", "array_prepend",
    "array_remove", "array_replace", "array_to_json", "array_to_string", "array_upper", "ascii", "bit_and", "bit_length",
    "bit_or", "bool_and", "bool_or", "btrim", "cardinality", "cbrt", "chr", "clock_timestamp", "corr", "date_bin", "date_part",
    "date_trunc", "decode", "degrees", "div", "encode", "every", "extract", "format", "gcd", "generate_series",
    "generate_subscripts", "initcap", "int4range", "int8range", "isfinite", "isempty", "json_agg", "json_array_elements",
    "json_array_length", "json_build_array", "json_build_object", "json_each", "json_extract_path", "json_extract_path_text",
    "json_object_agg", "json_object_keys", "json_strip_nulls", "json_typeof", "jsonb_agg", "jsonb_array_elements",
    "jsonb_array_elements_text", "jsonb_array_length", "jsonb_build_array", "jsonb_build_object", "jsonb_each",
    "jsonb_each_text", "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_object_agg", "jsonb_object_keys",
    "jsonb_path_exists", "jsonb_path_query", "jsonb_set", "jsonb_strip_nulls", "jsonb_typeof", "lcm", "localtimestamp",
    "lower_inc", "make_date", "make_interval", "make_timestamp", "make_timestamptz", "md5", "mode", "now", "num_nonnulls",
    "num_nulls", "numrange", "overlay", "percentile_cont", "percentile_disc", "phraseto_tsquery", "plainto_tsquery",
    "quote_ident", "quote_literal", "quote_nullable", "radians", "random", "range_merge", "regexp_count", "regexp_like",
    "regexp_match", "regexp_matches", "regexp_replace", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr",
    "row_to_json", "setweight", "sha224", "sha256", "sha384", "sha512", "split_part", "starts_with", "stddev", "stddev_pop",
    "stddev_samp", "string_agg", "string_to_array", "string_to_table", "strpos", "to_ascii", "to_char", "to_date", "to_hex",
    "to_json", "to_jsonb", "to_number", "to_timestamp", "to_tsquery", "to_tsvector", "translate", "trunc", "ts_headline",
    "ts_rank", "ts_rank_cd", "tstzrange", "tsrange", "daterange", "unnest", "upper_inc", "var_pop", "var_samp", "variance",
    "version", "websearch_to_tsquery", "width_bucket", "similarity", "word_similarity", "gen_random_uuid", "statement_timestamp",
    "transaction_timestamp", "timeofday", "current_schema", "pg_typeof", "pg_is_in_recovery",
];

const MYSQL: &[&str] = &[
    "adddate", "addtime", "ascii", "bin", "bit_and", "bit_count", "bit_length", "bit_or", "char", "crc32", "curdate",
    "current_date", "current_time", "current_timestamp", "curtime", "date_add", "date_format", "date_sub", "datediff", "day",
    "dayname", "dayofmonth", "dayofweek", "dayofyear", "elt", "export_set", "extract", "field", "find_in_set", "format",
    "from_base64", "from_days", "from_unixtime", "hex", "hour", "if", "inet6_aton", "inet6_ntoa", "inet_aton", "inet_ntoa",
    "insert", "interval", "isnull", "json_array", "json_arrayagg", "json_contains", "json_contains_path", "json_extract",
    "json_keys", "json_length", "json_object", "json_objectagg", "json_quote", "json_search", "json_type", "json_unquote",
    "json_valid", "json_value", "last_day", "lcase", "locate", "makedate", "maketime", "md5", "mid", "minute", "month",
    "monthname", "now", "oct", "ord", "quarter", "quote", "rand", "regexp_instr", "regexp_like", "regexp_replace",
    "regexp_substr", "sec_to_time", "second", "sha1", "sha2", "soundex", "space", "std", "stddev", "stddev_pop", "stddev_samp",
    "str_to_date", "strcmp", "subdate", "substring_index", "subtime", "sysdate", "time", "time_format", "time_to_sec",
    "timediff", "timestamp", "timestampadd", "timestampdiff", "to_base64", "to_days", "truncate", "ucase", "unhex",
    "unix_timestamp", "utc_date", "utc_time", "utc_timestamp", "var_pop", "var_samp", "variance", "version", "week", "weekday",
    "weekofyear", "year", "yearweek",
];

const SQLITE: &[&str] = &[
    "bm25", "char", "datetime", "format", "glob", "hex", "highlight", "json", "json_array", "json_array_length", "json_each",
    "json_extract", "json_group_array", "json_group_object", "json_object", "json_patch", "json_quote", "json_remove",
    "json_set", "json_tree", "json_type", "json_valid", "julianday", "like", "likelihood", "likely", "printf", "quote", "random",
    "randomblob", "snippet", "soundex", "sqlite_version", "strftime", "string_agg", "time", "timediff", "typeof", "unhex",
    "unicode", "unixepoch", "unlikely", "zeroblob", "generate_series",
];

/// Whether a built-in of that (lower-case) name is harmless on a replica.
pub(super) fn is_safe(dialect: Dialect, name: &str) -> bool {
    let own = match dialect {
        Dialect::Postgres => POSTGRES,
        Dialect::MySql => MYSQL,
        Dialect::Sqlite => SQLITE,
    };
    COMMON.contains(&name) || own.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_locks_or_waits_is_on_no_list() {
        let harmful = [
            "nextval", "setval", "currval", "lastval", "pg_advisory_lock", "pg_advisory_xact_lock", "pg_try_advisory_lock",
            "pg_notify", "pg_sleep", "set_config", "lo_import", "lo_create", "lo_unlink", "dblink", "dblink_exec",
            "pg_terminate_backend", "pg_cancel_backend", "pg_reload_conf", "pg_switch_wal", "txid_current", "pg_current_xact_id",
            "query_to_xml", "get_lock", "release_lock", "sleep", "last_insert_id", "load_extension", "last_insert_rowid",
            "changes", "fts3_tokenizer", "benchmark", "load_file", "is_free_lock", "row_count", "found_rows", "uuid_short",
            "writefile",
        ];
        for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
            for name in harmful {
                assert!(!is_safe(dialect, name), "{name}");
            }
        }
    }
}
