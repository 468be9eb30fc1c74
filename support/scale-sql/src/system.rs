//! Database systems, and their syntax for the same operations.

use std::fmt;

/// A database system supported by the stores of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum System {
    /// PostgreSQL 13 or later.
    Postgres,
    /// MySQL 8.0 or later, MariaDB 10.6 or later.
    MySql,
    /// SQLite.
    Sqlite,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::MySql => "MySQL",
            Self::Sqlite => "SQLite",
        })
    }
}

/// A placeholder, and its expansion for PostgreSQL, MySQL and SQLite.
type Word = (&'static str, [&'static str; 3]);

/// Times are read once per statement: a time that may change with each row would be a filter, for
/// which no index helps.
const WORDS: &[Word] = &[
    (
        "{now}",
        [
            "(extract(epoch from statement_timestamp()) * 1000)::bigint",
            "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) div 1000)",
            "cast(unixepoch('subsec') * 1000 as integer)",
        ],
    ),
    (
        "{now_us}",
        [
            "(extract(epoch from statement_timestamp()) * 1000000)::bigint",
            "timestampdiff(microsecond, '1970-01-01', utc_timestamp(6))",
            "cast(unixepoch('subsec') * 1000000 as integer)",
        ],
    ),
    // This clock advances while the statement waits for locks.
    (
        "{clock}",
        [
            "(extract(epoch from clock_timestamp()) * 1000)::bigint",
            "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) div 1000)",
            "cast(unixepoch('subsec') * 1000 as integer)",
        ],
    ),
    ("{lock}", ["for update", "for update", ""]),
    ("{claim}", ["for update skip locked", "for update skip locked", ""]),
    ("{least}", ["least", "least", "min"]),
    ("{greatest}", ["greatest", "greatest", "max"]),
    ("{int}", ["bigint", "signed", "integer"]),
    ("{key}", ["key", "`key`", "key"]),
    ("{insert}", ["insert into", "insert ignore into", "insert into"]),
    ("{or_nothing}", ["on conflict do nothing", "", "on conflict do nothing"]),
];

impl System {
    /// Returns the system of an address, by its scheme: `postgres`, `postgresql`, `mysql`,
    /// `mariadb`, `sqlite`. Returns `None` for other schemes, and for systems whose feature is
    /// disabled.
    pub fn of(url: &str) -> Option<Self> {
        let system = match url.split(':').next()? {
            "postgres" | "postgresql" => Self::Postgres,
            "mysql" | "mariadb" => Self::MySql,
            "sqlite" => Self::Sqlite,
            _ => return None,
        };
        system.is_compiled().then_some(system)
    }

    const fn is_compiled(self) -> bool {
        match self {
            Self::Postgres => cfg!(feature = "postgres"),
            Self::MySql => cfg!(feature = "mysql"),
            Self::Sqlite => cfg!(feature = "sqlite"),
        }
    }

    /// Expands the placeholders of a statement for this system.
    ///
    /// | placeholder | stands for |
    /// | --- | --- |
    /// | `$1` | a parameter, which may occur several times |
    /// | `{list:3}` | `= any($3)` or its equivalent: membership in a list parameter, after a column's name |
    /// | `{now}`, `{now_us}` | the server's clock at the start of the statement, ms or µs since 1970 |
    /// | `{clock}` | the server's clock after a wait for locks, where the system has one |
    /// | `{lock}` | `for update`, where rows can be locked |
    /// | `{claim}` | the same, skipping rows that others have locked |
    /// | `{insert} … {or_nothing}` | an `insert into` that ignores rows that already exist |
    /// | `{conflict:a, b}` | `on conflict (a, b) do update set` |
    /// | `{new:a}` | within `{conflict:…}`: the new value of `a` |
    /// | `{least}`, `{greatest}` | the functions of two arguments |
    /// | `{int}` | the type of a cast to a 64-bit number |
    /// | `{key}` | a column named `key` |
    pub fn expand(self, text: &str) -> String {
        let place = self as usize;
        let text =
            WORDS.iter().fold(text.to_owned(), |text, (word, own)| text.replace(word, own[place]));
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let Some((word, after)) = after.split_once('}') else { break };
            expanded.push_str(before);
            expanded.push_str(&self.expand_with_argument(word));
            rest = after;
        }
        expanded.push_str(rest);
        expanded
    }

    fn expand_with_argument(self, word: &str) -> String {
        match (word.split_once(':'), self) {
            (Some(("list", n)), Self::Postgres) => format!("= any(${n})"),
            // The statement expands the placeholder to one per element.
            (Some(("list", n)), Self::MySql) => format!("in (${n})"),
            (Some(("list", n)), Self::Sqlite) => format!("in (select value from json_each(${n}))"),
            (Some(("conflict", _)), Self::MySql) => "on duplicate key update".to_owned(),
            (Some(("conflict", columns)), _) => format!("on conflict ({columns}) do update set"),
            (Some(("new", column)), Self::MySql) => format!("values({column})"),
            (Some(("new", column)), _) => format!("excluded.{column}"),
            _ => format!("{{{word}}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_said_in_three_ways() {
        let text = "{insert} t (a) values ($1) {conflict:a, b} c = {new:c} where a {list:2}";
        assert_eq!(
            System::Postgres.expand(text),
            "insert into t (a) values ($1) on conflict (a, b) do update set c = excluded.c \
             where a = any($2)"
        );
        assert_eq!(
            System::MySql.expand(text),
            "insert ignore into t (a) values ($1) on duplicate key update c = values(c) \
             where a in ($2)"
        );
        assert!(
            System::Sqlite.expand(text).ends_with("where a in (select value from json_each($2))")
        );
        for system in [System::Postgres, System::MySql, System::Sqlite] {
            let words: String = WORDS.iter().map(|(word, _)| *word).collect();
            assert!(!system.expand(&words).contains('{'), "{system}");
        }
    }

    #[test]
    fn a_scheme_says_which_system() {
        assert_eq!(System::of("redis://x"), None);
        assert_eq!(System::of(""), None);
        assert_eq!(System::of("postgresql://x").is_some(), cfg!(feature = "postgres"));
        assert_eq!(System::of("mariadb://x").is_some(), cfg!(feature = "mysql"));
    }
}
