//! What the SQL of a source may be: one SELECT that reads one table and gives the same whenever it runs.

use super::TABLE;
use crate::sql::{SQL_BYTES_MAX, check_bounds, told};
use crate::{Error, Result};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::prelude::SQLOptions;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

/// Functions that give something else at another time.
const CLOCKS: [&str; 5] = ["now", "current_date", "current_time", "current_timestamp", "today"];

/// The tables that a source's SQL names; only [`TABLE`] is there.
///
/// # Errors
/// `InvalidArgument` for what is not one SELECT; `TooLarge`.
pub fn check_sql(sql: &str) -> Result<Vec<String>> {
    let statement = statement(sql)?;
    let tables = state().resolve_table_references(&statement).map_err(|error| told(&error))?;
    // DataFusion adds the tables of its information schema for statements that show them.
    Ok(tables.into_iter().map(|table| table.to_string()).collect())
}

fn state() -> SessionState {
    SessionStateBuilder::new().build()
}

pub(super) fn statement(sql: &str) -> Result<Statement> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(Error::TooLarge(format!("the sql is over the limit of {SQL_BYTES_MAX} bytes")));
    }
    let state = state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect).map_err(|error| told(&error))?;
    check_bounds(&statement)?;
    match &statement {
        Statement::Statement(inner) if matches!(**inner, ast::Statement::Query(_)) => Ok(statement),
        _ => Err(Error::InvalidArgument(format!(
            "the sql is no SELECT; write for instance `select id as driver_id, at as event_timestamp, rating from {TABLE}`"
        ))),
    }
}

/// Refuses what writes, and what would give other rows the next time.
pub(super) fn check_plan(plan: &LogicalPlan) -> Result<()> {
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(plan).map_err(|error| told(&error))?;
    let mut moving = None;
    let looked = plan.apply_with_subqueries(|plan| {
        plan.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && (call.func.signature().volatility == Volatility::Volatile || CLOCKS.contains(&call.func.name()))
                {
                    moving = Some(call.func.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    looked.map_err(|error| told(&error))?;
    match moving {
        Some(name) => Err(Error::InvalidArgument(format!(
            "the sql calls {name}(), which gives something else each time; a chunk that runs again must give the same rows"
        ))),
        None => Ok(()),
    }
}
