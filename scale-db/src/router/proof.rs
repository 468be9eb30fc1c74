//! Proof that a statement is read-only: every part of its syntax tree is known to be.
//!
//! The lists contain what is allowed; everything else, and every text that cannot be parsed, is a
//! write.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, BinaryOperator, Expr, Function, Ident, ObjectName, Query, Select, SetExpr,
    Statement, TableFactor, Visit, Visitor,
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
    let mut judge = ReadOnlyVisitor { dialect, safe };
    let unreadable = statements.is_empty()
        || (dialect == Dialect::MySql && (has_executable_comment(sql) || counts_found_rows(sql)));
    let proven = !unreadable
        && statements.iter().all(|s| is_reading(s) && s.visit(&mut judge).is_continue());
    if proven { Verdict::Read } else { Verdict::Write }
}

/// Returns the names of the tables and views that a statement reads, as written; `None` if it
/// cannot be parsed.
pub(crate) fn relations(dialect: Dialect, sql: &str) -> Option<Vec<String>> {
    #[derive(Default)]
    struct Names {
        found: Vec<String>,
        with: Vec<String>,
    }
    impl Visitor for Names {
        type Break = ();

        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
            let names = query
                .with
                .iter()
                .flat_map(|with| &with.cte_tables)
                .map(|table| table.alias.name.to_string());
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
    // A name of both a subquery (CTE) and a table counts as the subquery, which hides the table in
    // its scope.
    names.found.retain(|name| !names.with.contains(name));
    Some(names.found)
}

/// Maximum number of nested joins without their `on`.
const OPEN_JOINS: usize = 60;

/// Stack size for the parser: fifty levels of tables within parentheses and joins need more than
/// the stack of a tokio thread, in a build without optimization.
const STACK: usize = 16 << 20;

/// Runs a function that recurses as deep as a statement is nested.
fn on_a_large_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(STACK / 4, STACK, work)
}

/// Maximum depth of nested operators: a deeper text is not parsed.
const DEEPEST: usize = 1_000;

/// Parses the statements of a text. Returns `None` if it cannot be parsed, is longer than
/// [`MAX_PARSED`], or has a tree so deep that visiting it could exhaust the stack of a thread.
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

/// Returns the maximum number of joins before their `on`: each one is nested within the previous.
fn open_joins(tokens: &[TokenWithSpan]) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for token in tokens {
        let Token::Word(Word { keyword, .. }) = &token.token else { continue };
        match keyword {
            Keyword::JOIN => {
                open += 1;
                most = most.max(open);
            }
            // `CROSS` and `NATURAL` joins have no `on`.
            Keyword::ON | Keyword::USING | Keyword::CROSS | Keyword::NATURAL => {
                open = open.saturating_sub(1);
            }
            _ => {}
        }
    }
    most
}

/// Returns an upper bound of the depth of a text's tree: parentheses, and operators between two
/// commas.
fn depth(tokens: &[TokenWithSpan]) -> usize {
    // Number of operators in each open parenthesis.
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

/// Returns whether a keyword nests what stands before it in a new node.
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

/// Parses a text, and passes its statements to a function.
pub(crate) fn with_statements<T>(
    dialect: Dialect,
    sql: &str,
    look: impl FnOnce(&[Statement]) -> T,
) -> Option<T> {
    on_a_large_stack(|| parse(dialect, sql).map(|statements| look(&statements)))
}

/// Returns whether a text contains `/*! … */`, which MySQL executes and the parser may take for a
/// comment.
fn has_executable_comment(sql: &str) -> bool {
    sql.contains("/*!") || sql.contains("/*M!")
}

/// Returns whether a text contains `sql_calc_found_rows`, which leaves a number on its connection
/// for the next statement.
fn counts_found_rows(sql: &str) -> bool {
    sql.as_bytes()
        .windows("sql_calc_found_rows".len())
        .any(|part| part.eq_ignore_ascii_case(b"sql_calc_found_rows"))
}

/// Returns whether statements of this kind can be proven read-only at all.
fn is_reading(statement: &Statement) -> bool {
    match statement {
        Statement::Query(_) => true,
        // `EXPLAIN ANALYZE` runs the statement, so that must be read-only itself. Options may
        // enable `ANALYZE`.
        Statement::Explain { statement, options: None, .. } => is_reading(statement),
        _ => false,
    }
}

struct ReadOnlyVisitor<'a> {
    dialect: Dialect,
    safe: &'a [String],
}

const NOT_READ_ONLY: ControlFlow<()> = ControlFlow::Break(());
const READ_ONLY: ControlFlow<()> = ControlFlow::Continue(());

fn when(harmless: bool) -> ControlFlow<()> {
    if harmless { READ_ONLY } else { NOT_READ_ONLY }
}

/// Returns whether an identifier is the name of a column of sequences.
fn is_of_sequence(ident: &Ident) -> bool {
    ["last_value", "log_cnt", "is_called", "nextval", "currval"]
        .iter()
        .any(|name| ident.value.eq_ignore_ascii_case(name))
}

impl ReadOnlyVisitor<'_> {
    fn function(&self, name: &ObjectName) -> ControlFlow<()> {
        let written = name.to_string();
        if self.safe.iter().any(|s| s.eq_ignore_ascii_case(&written)) {
            return READ_ONLY;
        }
        let parts: Option<Vec<_>> = name.0.iter().map(|part| part.as_ident()).collect();
        let builtin = match parts.as_deref() {
            // A quoted name is the built-in only if it is written in the case of the built-in.
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

impl Visitor for ReadOnlyVisitor<'_> {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        when(is_reading(statement))
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let plain = query.locks.is_empty()
            && query.for_clause.is_none()
            && query.settings.is_none()
            && query.pipe_operators.is_empty();
        // The table of `table t` is not visited, and may be a sequence.
        let body = matches!(
            *query.body,
            SetExpr::Select(_)
                | SetExpr::Query(_)
                | SetExpr::SetOperation { .. }
                | SetExpr::Values(_)
        );
        when(plain && body)
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        when(select.into.is_none())
    }

    /// Rejects system views, which describe the node itself: the primary's content is wanted.
    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let system = relation.0.iter().filter_map(|p| p.as_ident()).any(|ident| {
            let name = ident.value.to_ascii_lowercase();
            ["pg_", "sqlite_", "pragma_"].iter().any(|p| name.starts_with(p))
                // Default name of the sequence of a serial column in Postgres.
                || (self.dialect == Dialect::Postgres && name.ends_with("_seq"))
                || ["information_schema", "performance_schema", "mysql", "sys"]
                    .contains(&name.as_str())
        });
        when(!system)
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { args: Some(_), name, .. } | TableFactor::Function { name, .. } => {
                self.function(name)
            }
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::NestedJoin { .. } => READ_ONLY,
            _ => NOT_READ_ONLY,
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(Function { name, .. }) => self.function(name),
            // `@x := 1` writes a session variable; a custom operator calls a custom function.
            Expr::BinaryOp {
                op:
                    BinaryOperator::Assignment
                    | BinaryOperator::PGCustomBinaryOperator(_)
                    | BinaryOperator::Custom(_),
                ..
            } => NOT_READ_ONLY,
            // `(42).pg_advisory_lock` calls a function.
            Expr::CompoundFieldAccess { access_chain, .. } => {
                when(!access_chain.iter().any(|access| matches!(access, AccessExpr::Dot(_))))
            }
            // A sequence read as a table: on a replica it is up to 32 numbers ahead.
            Expr::Identifier(ident) if is_of_sequence(ident) => NOT_READ_ONLY,
            Expr::CompoundIdentifier(parts) if parts.last().is_some_and(is_of_sequence) => {
                NOT_READ_ONLY
            }
            // Session variables belong to one connection; server variables describe the node.
            Expr::Identifier(ident) if ident.value.starts_with('@') => NOT_READ_ONLY,
            Expr::CompoundIdentifier(parts)
                if parts.first().is_some_and(|part| part.value.starts_with('@')) =>
            {
                NOT_READ_ONLY
            }
            _ => READ_ONLY,
        }
    }
}
