//! What a query may ask for at most, seen before it is planned: nothing can stop planning on its way.

use crate::{Error, Result};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Visit, Visitor};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Deepest expression of a query: planning takes the square of it.
const DEPTH_MAX: usize = 500;
/// Most uses of tables in a query, each of which holds a thread a partition while it is read.
pub const TABLES_MAX: usize = 32;

/// # Errors
/// `TooLarge`.
pub(crate) fn check(mut statement: &Statement) -> Result<()> {
    while let Statement::Explain(explain) = statement {
        statement = &explain.statement;
    }
    let Statement::Statement(statement) = statement else { return Ok(()) };
    if statement.visit(&mut Depth(0)).is_break() {
        return Err(Error::TooLarge(format!(
            "an expression of the query is nested, or chained, more than {DEPTH_MAX} deep; write long chains of `or` as `in`"
        )));
    }
    let mut tables = Tables::default();
    if statement.visit(&mut tables).is_break() || tables.uses > TABLES_MAX {
        return Err(Error::TooLarge(format!(
            "the query reads tables more than {TABLES_MAX} times, what it names twice counted twice"
        )));
    }
    Ok(())
}

/// Expressions around the one that is visited.
struct Depth(usize);

impl Visitor for Depth {
    type Break = ();

    fn pre_visit_expr(&mut self, _: &ast::Expr) -> ControlFlow<()> {
        self.0 += 1;
        if self.0 > DEPTH_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn post_visit_expr(&mut self, _: &ast::Expr) -> ControlFlow<()> {
        self.0 -= 1;
        ControlFlow::Continue(())
    }
}

/// Uses of tables once everything that `with` names is put in its place, as planning does: a name used twice that uses
/// another twice, and so on, is soon all memory.
#[derive(Default)]
struct Tables {
    uses: usize,
    /// The queries around what is visited.
    queries: Vec<Names>,
}

/// What the `with` of a query names.
#[derive(Default)]
struct Names {
    /// The body that a name stands for, by where it is.
    bodies: BTreeMap<usize, String>,
    /// Uses of tables in each.
    uses: BTreeMap<String, usize>,
    /// Uses in the query around, so far.
    around: usize,
}

fn place(query: &ast::Query) -> usize {
    std::ptr::from_ref(query).addr()
}

impl Visitor for Tables {
    type Break = ();

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        let named = query.with.iter().flat_map(|with| &with.cte_tables);
        let bodies = named.map(|it| (place(&it.query), it.alias.name.value.to_lowercase())).collect();
        self.queries.push(Names { bodies, uses: BTreeMap::new(), around: std::mem::take(&mut self.uses) });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        if self.uses > TABLES_MAX {
            return ControlFlow::Break(());
        }
        let inside = self.uses;
        self.uses = self.queries.pop().map_or(0, |it| it.around);
        let name = self.queries.last().and_then(|it| it.bodies.get(&place(query)).cloned());
        match (name, self.queries.last_mut()) {
            // Even without a table it takes its place in the plan.
            (Some(name), Some(around)) => drop(around.uses.insert(name, inside.max(1))),
            _ => self.uses += inside,
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ast::ObjectName) -> ControlFlow<()> {
        let name = relation.to_string().replace('"', "").to_lowercase();
        let named = self.queries.iter().rev().find_map(|it| it.uses.get(&name));
        self.uses += named.copied().unwrap_or(1);
        ControlFlow::Continue(())
    }
}
