//! The Common Expression Language as Kubernetes uses it: rules of custom resources, policies and match conditions.
//!
//! Parsing, types, an estimate of the cost before anything runs and a budget while it does. Ours because no crate has the last
//! three: an expression of wrong type must be refused when its definition is written, and none may run without end.

pub mod admission;
pub mod ast;
mod checker;
pub mod cost;
mod declarations;
pub mod eval;
pub mod library;
mod parser;
#[cfg(test)]
mod tests;
pub mod type_checking;
pub mod types;
pub mod value;

pub use checker::Env;
pub use eval::{Error, Evaluated, Machine};
pub use types::Type;
pub use value::Value;

use ast::Expr;

/// What one expression may cost when it runs (`PerCallLimit`).
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What all expressions of one object may cost (`RuntimeCELCostBudget`).
pub const TOTAL_LIMIT: u64 = 10_000_000;

/// Something wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where, in characters from the start.
    pub at: usize,
    /// What.
    pub message: String,
}

/// An expression that has been checked.
#[derive(Clone, Debug)]
pub struct Program {
    /// The tree.
    pub expr: Expr,
    /// The type of its value.
    pub ty: Type,
}

/// Parses and checks an expression.
///
/// # Errors
/// All that is wrong with it, as cel-go prints it.
pub fn compile(env: &Env, source: &str) -> Result<Program, String> {
    let expr = parser::parse(source).map_err(|issues| print(source, &issues))?;
    let ty = checker::check(env, &expr).map_err(|issues| print(source, &issues))?;
    Ok(Program { expr, ty })
}

/// `ERROR: <input>:1:5: undefined field 'foo'` with the line and a mark below it, for each issue.
fn print(source: &str, issues: &[Issue]) -> String {
    let mut texts = Vec::new();
    for issue in issues {
        let (mut line, mut column) = (1, 0);
        for c in source.chars().take(issue.at) {
            if c == '\n' {
                line += 1;
                column = 0;
            } else {
                column += 1;
            }
        }
        let snippet = source.lines().nth(line - 1).unwrap_or_default();
        let message = &issue.message;
        let mark = ".".repeat(column);
        texts.push(format!("ERROR: <input>:{line}:{}: {message}\n | {snippet}\n | {mark}^", column + 1));
    }
    texts.join("\n")
}
