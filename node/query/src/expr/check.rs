//! What an on-demand expression may hold: the inputs by name, and scalar functions that give one result for ever.

use crate::names::hint;
use cairn_proto::record::v1::Field;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident, Query, VisitMut, VisitorMut};
use std::ops::ControlFlow;

/// Deepest nesting of an expression; deeper ones could exhaust a thread's stack while they are planned.
const DEPTH_MAX: usize = 128;

/// Binds every column name in `expr` to an input, quoting it so that planning keeps its case.
///
/// # Errors
/// An unknown or ambiguous column, a subquery, or an expression too deep.
pub(super) fn names(expr: &mut SqlExpr, inputs: &[Field], others: &[&str]) -> Result<(), String> {
    let mut binder = Binder { inputs, others, depth: 0 };
    match expr.visit(&mut binder) {
        ControlFlow::Break(reason) => Err(reason),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Binder<'a> {
    inputs: &'a [Field],
    others: &'a [&'a str],
    depth: usize,
}

impl VisitorMut for Binder<'_> {
    type Break = String;

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<String> {
        ControlFlow::Break("subqueries are not offered; an expression may only use the view's inputs".to_owned())
    }

    fn pre_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return ControlFlow::Break(format!("the expression is nested deeper than {DEPTH_MAX}"));
        }
        let bound = match expr {
            SqlExpr::Identifier(ident) => self.bind(ident),
            SqlExpr::CompoundIdentifier(parts) => {
                let text: Vec<&str> = parts.iter().map(|part| part.value.as_str()).collect();
                let last = text.last().copied().unwrap_or_default();
                Err(format!("`{}` is not a column; write the input's own name, `{last}`", text.join(".")))
            }
            SqlExpr::Wildcard(_) | SqlExpr::QualifiedWildcard(..) => Err("`*` is not a scalar expression".to_owned()),
            _ => return ControlFlow::Continue(()),
        };
        match bound {
            Ok(ident) => {
                *expr = SqlExpr::Identifier(ident);
                ControlFlow::Continue(())
            }
            Err(reason) => ControlFlow::Break(reason),
        }
    }

    fn post_visit_expr(&mut self, _expr: &mut SqlExpr) -> ControlFlow<String> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

impl Binder<'_> {
    fn bind(&self, ident: &Ident) -> Result<Ident, String> {
        let exact = |name: &&str| *name == ident.value;
        let loose = |name: &&str| ident.quote_style.is_none() && name.eq_ignore_ascii_case(&ident.value);
        let names = || self.inputs.iter().map(|input| input.name.as_str());
        if let Some(name) = names().find(exact) {
            return Ok(Ident::with_quote('"', name));
        }
        let mut alike = names().filter(loose);
        match (alike.next(), alike.next()) {
            (Some(name), None) => Ok(Ident::with_quote('"', name)),
            (Some(one), Some(two)) => {
                Err(format!("column `{}` could be `{one}` or `{two}`; quote the one meant", ident.value))
            }
            (None, _) if self.others.contains(&ident.value.as_str()) => Err(format!(
                "column `{}` is a feature of this view; an expression may only use the view's inputs, \
                 repeat its SQL here",
                ident.value
            )),
            (None, _) => Err(format!("unknown column `{}`{}", ident.value, hint(&ident.value, names()))),
        }
    }
}

/// # Errors
/// The part of `expr` that is not a scalar function of one row's inputs.
pub(super) fn scalar(expr: &Expr) -> Result<(), String> {
    let mut refused = None;
    let walked = expr.apply(|part| {
        refused = refuse(part);
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match (walked, refused) {
        (_, Some(reason)) => Err(reason),
        (Err(error), None) => Err(super::brief(&error)),
        (Ok(_), None) => Ok(()),
    }
}

fn refuse(part: &Expr) -> Option<String> {
    match part {
        Expr::ScalarFunction(call) => match call.func.signature().volatility {
            Volatility::Immutable => None,
            Volatility::Stable | Volatility::Volatile => Some(format!(
                "function `{}` depends on the clock, on chance or on surroundings, so training and serving \
                 would differ; bring such a value as request data",
                call.name()
            )),
        },
        Expr::AggregateFunction(call) => Some(format!(
            "`{}` is an aggregate over rows; an on-demand feature is computed from one row",
            call.func.name()
        )),
        Expr::WindowFunction(call) => {
            Some(format!("`{}` is a window over rows; an on-demand feature is computed from one row", call.fun.name()))
        }
        Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_) => {
            Some("subqueries are not offered; an expression may only use the view's inputs".to_owned())
        }
        Expr::Placeholder(mark) => Some(format!("`{}` is a parameter; bring such a value as request data", mark.id)),
        Expr::ScalarVariable(_, names) => Some(format!("`{}` is a session variable; there are none", names.join("."))),
        Expr::Unnest(_) => {
            Some("`unnest` makes several rows of one; an on-demand feature has one value a row".to_owned())
        }
        Expr::GroupingSet(_)
        | Expr::OuterReferenceColumn(..)
        | Expr::HigherOrderFunction(_)
        | Expr::Lambda(_)
        | Expr::LambdaVariable(_) => Some(format!("`{part}` is not offered in on-demand features")),
        _ => None,
    }
}
