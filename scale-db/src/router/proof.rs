//! The proof itself: a statement is read-only when every part of its syntax tree is known to be.
//!
//! The lists are of what is allowed; all else, and all that cannot be parsed, is a write.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, BinaryOperator, Expr, Function, Ident, ObjectName, Query, Select, SetExpr, Statement, TableFactor, Visit, Visitor,
};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Word};

use super::functions::is_safe;
use super::{MAX_PARSED, Verdict};
use crate::dialect::Dialect;

pub(super) fn verdict(dialect: Dialect, safe: &[String], sql: &str) -> Verdict {
    on_a_large_stack(|| judge(dialect, safe, sql))
}

fn judge(dialect: Dialect, safe: &[String], sql: &str) -> Verdict {
    let Some(statements) = parse(dialect, sql) else { return Verdict::Write };
    let mut judge = Judge { dialect, safe };
    let unreadable =
        statements.is_empty() || (dialect == Dialect::MySql && (has_executable_comment(sql) || counts_found_rows(sql)));
    let proven = !unreadable && statements.iter().all(|s| is_reading(s) && s.visit(&mut judge).is_continue());
    if proven { Verdict::Read } else { Verdict::Write }
}

/// Returns the tables and views that a statement reads, as they are written; `None` if it cannot be read.
pub(crate) fn relations(dialect: Dialect, sql: &str) -> Option<Vec<String>> {
    #[derive(Default)]
    struct Names {
        found: Vec<String>,
        with: Vec<String>,
    }
    impl Visitor for Names {
        type Break = ();

        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
            let names = query.with.iter().flat_map(|with| &with.cte_tables).map(|table| table.alias.name.to_string());
            self.with.extend(names);
            ControlFlow::Continue(())
        }

        fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
            let name = relation.to_string();
            if !self.found.contains(&name) {
                self.found.push(name);
            }
            ControlFlow::Continue(())
        }
    }
    let names = on_a_large_stack(|| {
        let mut names = Names::default();
        let _ = parse(dialect, sql)?.visit(&mut names);
        Some(names)
    });
    let mut names = names?;
    // A name that is both a subquery's and a table's is taken for the former; it hides the latter where it is known.
    names.found.retain(|name| !names.with.contains(name));
    Some(names.found)
}

/// Joins that wait for their `on` at most.
const OPEN_JOINS: usize = 60;

/// Bytes of stack for the parser: fifty levels of tables within parentheses and joins, in a build without optimisation, need more than a
/// thread of tokio's has.
const STACK: usize = 16 << 20;

/// Runs what may go as deep as a statement does.
fn on_a_large_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(STACK / 4, STACK, work)
}

/// Operators that lie within each other at most: a longer chain is not parsed.
const DEEPEST: usize = 1_000;

/// Returns the statements of a text; `None` if it cannot be read, is longer than [`MAX_PARSED`], or makes a tree so deep that taking it apart could exhaust the stack of
/// a thread.
fn parse(dialect: Dialect, sql: &str) -> Option<Vec<Statement>> {
    if sql.len() > MAX_PARSED {
        return None;
    }
    let tokens = Tokenizer::new(dialect.parser(), sql).tokenize_with_location().ok()?;
    if depth(&tokens) > DEEPEST || open_joins(&tokens) > OPEN_JOINS {
        return None;
    }
    Parser::new(dialect.parser()).with_tokens_with_locations(tokens).parse_statements().ok()
}

/// Returns how many joins wait for their `on` at most: each lies within the one before.
fn open_joins(tokens: &[TokenWithSpan]) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for token in tokens {
        let Token::Word(Word { keyword, .. }) = &token.token else { continue };
        match keyword {
            Keyword::JOIN => {
                open += 1;
                most = most.max(open);
            }
            // The last two have no `on`.
            Keyword::ON | Keyword::USING | Keyword::CROSS | Keyword::NATURAL => open = open.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Returns an upper bound of how deep the tree of a text is: within parentheses, operators between two commas.
fn depth(tokens: &[TokenWithSpan]) -> usize {
    // Of each open parenthesis.
    let mut levels = vec![0];
    let (mut now, mut deepest) = (0_usize, 0);
    for token in tokens {
        let level = levels.len() - 1;
        match &token.token {
            Token::LParen => levels.push(0),
            Token::RParen if level > 0 => now -= levels.pop().unwrap_or_default(),
            Token::Comma => now -= std::mem::take(&mut levels[level]),
            Token::Word(Word { keyword, quote_style: None, .. }) if !makes_deeper(*keyword) => {}
            Token::Word(Word { quote_style: Some(_), .. })
            | Token::Number(..)
            | Token::Whitespace(_)
            | Token::Placeholder(_)
            | Token::SingleQuotedString(_)
            | Token::RParen
            | Token::SemiColon
            | Token::EOF => {}
            _ => {
                levels[level] += 1;
                now += 1;
                deepest = deepest.max(now);
            }
        }
    }
    deepest
}

/// Returns whether a keyword makes a new node of what stands before it.
fn makes_deeper(keyword: Keyword) -> bool {
    use Keyword as K;
    matches!(
        keyword,
        K::AND
            | K::OR
            | K::XOR
            | K::NOT
            | K::IS
            | K::IN
            | K::LIKE
            | K::ILIKE
            | K::RLIKE
            | K::REGEXP
            | K::SIMILAR
            | K::BETWEEN
            | K::JOIN
            | K::COLLATE
            | K::UNION
            | K::EXCEPT
            | K::INTERSECT
            | K::MINUS
            | K::DIV
            | K::AT
            | K::OVERLAPS
            | K::OPERATOR
            | K::MATCH
            | K::MEMBER
            | K::NOTNULL
            | K::EXPLAIN
            | K::GLOB
    )
}

/// Reads a text and looks at its statements.
pub(crate) fn with_statements<T>(dialect: Dialect, sql: &str, look: impl FnOnce(&[Statement]) -> T) -> Option<T> {
    on_a_large_stack(|| parse(dialect, sql).map(|statements| look(&statements)))
}

/// MySQL runs what stands in `/*! … */`; the parser may see a comment.
fn has_executable_comment(sql: &str) -> bool {
    sql.contains("/*!") || sql.contains("/*M!")
}

/// `select sql_calc_found_rows` leaves a number on its connection, for the next statement.
fn counts_found_rows(sql: &str) -> bool {
    sql.as_bytes().windows("sql_calc_found_rows".len()).any(|part| part.eq_ignore_ascii_case(b"sql_calc_found_rows"))
}

/// The kinds of statement that can be proven at all.
fn is_reading(statement: &Statement) -> bool {
    match statement {
        Statement::Query(_) => true,
        // `EXPLAIN ANALYZE` runs the statement; so it must be a reading one itself. Options may switch ANALYZE on.
        Statement::Explain { statement, options: None, .. } => is_reading(statement),
        _ => false,
    }
}

struct Judge<'a> {
    dialect: Dialect,
    safe: &'a [String],
}

const GUILTY: ControlFlow<()> = ControlFlow::Break(());
const INNOCENT: ControlFlow<()> = ControlFlow::Continue(());

fn when(harmless: bool) -> ControlFlow<()> {
    if harmless { INNOCENT } else { GUILTY }
}

/// Returns whether a name is that of a column that sequences have.
fn is_of_sequence(ident: &Ident) -> bool {
    ["last_value", "log_cnt", "is_called"].iter().any(|name| ident.value.eq_ignore_ascii_case(name))
}

impl Judge<'_> {
    fn function(&self, name: &ObjectName) -> ControlFlow<()> {
        let written = name.to_string();
        if self.safe.iter().any(|s| s.eq_ignore_ascii_case(&written)) {
            return INNOCENT;
        }
        let parts: Option<Vec<_>> = name.0.iter().map(|part| part.as_ident()).collect();
        let builtin = match parts.as_deref() {
            // A quoted name is the built-in only when it is written in the built-in's own case.
            Some([one]) => Some(one),
            Some([schema, one]) if schema.value.eq_ignore_ascii_case("pg_catalog") => Some(one),
            _ => None,
        };
        when(builtin.is_some_and(|ident| {
            let folded = ident.value.to_ascii_lowercase();
            (ident.quote_style.is_none() || folded == ident.value) && is_safe(self.dialect, &folded)
        }))
    }
}

impl Visitor for Judge<'_> {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        when(is_reading(statement))
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let plain =
            query.locks.is_empty() && query.for_clause.is_none() && query.settings.is_none() && query.pipe_operators.is_empty();
        let body = matches!(
            *query.body,
            SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::SetOperation { .. } | SetExpr::Values(_) | SetExpr::Table(_)
        );
        when(plain && body)
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        when(select.into.is_none())
    }

    /// System views show the node itself: what the primary says is what was meant.
    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let system = relation.0.iter().filter_map(|p| p.as_ident()).any(|ident| {
            let name = ident.value.to_ascii_lowercase();
            ["pg_", "sqlite_", "pragma_"].iter().any(|p| name.starts_with(p))
                // As Postgres names the sequence of a serial column.
                || (self.dialect == Dialect::Postgres && name.ends_with("_seq"))
                || ["information_schema", "performance_schema", "mysql", "sys"].contains(&name.as_str())
        });
        when(!system)
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { args: Some(_), name, .. } | TableFactor::Function { name, .. } => self.function(name),
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::NestedJoin { .. } => INNOCENT,
            _ => GUILTY,
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(Function { name, .. }) => self.function(name),
            // `@x := 1` writes a variable of the session; an operator of one's own runs a function of one's own.
            Expr::BinaryOp {
                op: BinaryOperator::Assignment | BinaryOperator::PGCustomBinaryOperator(_) | BinaryOperator::Custom(_),
                ..
            } => GUILTY,
            // `(42).pg_advisory_lock` calls a function.
            Expr::CompoundFieldAccess { access_chain, .. } => {
                when(!access_chain.iter().any(|access| matches!(access, AccessExpr::Dot(_))))
            }
            // A sequence, read as a table: a replica is ahead of it by up to 32 numbers.
            Expr::Identifier(ident) if is_of_sequence(ident) => GUILTY,
            Expr::CompoundIdentifier(parts) if parts.last().is_some_and(is_of_sequence) => GUILTY,
            // Variables of the session live on one connection, those of the server tell of it.
            Expr::Identifier(ident) if ident.value.starts_with('@') => GUILTY,
            Expr::CompoundIdentifier(parts) if parts.first().is_some_and(|part| part.value.starts_with('@')) => GUILTY,
            _ => INNOCENT,
        }
    }
}
