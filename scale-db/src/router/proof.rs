//! The proof itself: a statement is read-only when every part of its syntax tree is known to be.
//!
//! The lists are of what is allowed; all else, and all that cannot be parsed, is a write.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, Expr, Function, Ident, ObjectName, Query, Select, SetExpr, Statement, TableFactor, Visit, Visitor,
};
use sqlparser::parser::Parser;

use super::Verdict;
use super::functions::is_safe;
use crate::dialect::Dialect;

pub(super) fn verdict(dialect: Dialect, safe: &[String], sql: &str) -> Verdict {
    let Ok(statements) = Parser::parse_sql(dialect.parser(), sql) else { return Verdict::Write };
    let mut judge = Judge { dialect, safe };
    let unreadable = statements.is_empty() || (dialect == Dialect::MySql && has_executable_comment(sql));
    let proven = !unreadable && statements.iter().all(|s| is_reading(s) && s.visit(&mut judge).is_continue());
    if proven { Verdict::Read } else { Verdict::Write }
}

/// MySQL runs what stands in `/*! … */`; the parser may see a comment.
fn has_executable_comment(sql: &str) -> bool {
    sql.contains("/*!") || sql.contains("/*M!")
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
            ["pg_", "sqlite_"].iter().any(|p| name.starts_with(p))
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
            // A sequence, read as a table: a replica is ahead of it by up to 32 numbers.
            Expr::Identifier(ident) if is_of_sequence(ident) => GUILTY,
            Expr::CompoundIdentifier(parts) if parts.last().is_some_and(is_of_sequence) => GUILTY,
            // Session variables live on one connection.
            Expr::Identifier(ident) if ident.value.starts_with('@') => GUILTY,
            _ => INNOCENT,
        }
    }
}
