//! Finds what a template names, in the tree that the engine's own parser makes of it.

use std::collections::BTreeSet;

use minijinja::machinery::ast::{CallArg, Expr};
use minijinja::machinery::parse_expr;

use super::{TemplateError, quoted};

/// What templates name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Whether the run's input is named.
    pub input: bool,
    /// Whether `steps` is named without a step's id that is known beforehand: any may be meant.
    pub any_step: bool,
    /// Ids of the steps that are named.
    pub steps: BTreeSet<String>,
}

/// One place where a step is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference<'t> {
    /// The id.
    pub(super) step: String,
    /// The code from the id on, where it is written `steps.id`.
    pub(super) dotted: Option<&'t str>,
}

/// Adds what an expression names to `names`, and gives each place where it names a step. Its size
/// and depth have been bounded.
pub(super) fn find<'t>(
    code: &'t str,
    names: &mut Names,
) -> Result<Vec<Reference<'t>>, TemplateError> {
    let expression = parse_expr(code)
        .map_err(|error| TemplateError::new(format_args!("{error} in {}", quoted(code))))?;
    let mut walk = Walk { code, names, references: Vec::new() };
    walk.expression(&expression);
    Ok(walk.references)
}

struct Walk<'t, 'n> {
    code: &'t str,
    names: &'n mut Names,
    references: Vec<Reference<'t>>,
}

impl<'t> Walk<'t, '_> {
    fn expression(&mut self, expression: &Expr<'t>) {
        match expression {
            Expr::Const(_) => {}
            Expr::Var(var) => match var.id {
                "input" => self.names.input = true,
                // Not followed by an id: those cases end below and do not get here.
                "steps" => self.names.any_step = true,
                _ => {}
            },
            Expr::GetAttr(get) if is_steps(&get.expr) => {
                let end = usize::try_from(get.span().end_offset).unwrap_or(usize::MAX);
                let start = end.checked_sub(get.name.len());
                let dotted = start.and_then(|start| self.code.get(start..));
                self.step(get.name, dotted.filter(|code| code.starts_with(get.name)));
            }
            Expr::GetAttr(get) => self.expression(&get.expr),
            Expr::GetItem(get) => {
                let constant = match &get.subscript_expr {
                    Expr::Const(constant) => constant.value.as_str(),
                    _ => None,
                };
                match constant {
                    Some(id) if is_steps(&get.expr) => self.step(id, None),
                    _ => {
                        self.expression(&get.expr);
                        self.expression(&get.subscript_expr);
                    }
                }
            }
            Expr::Slice(slice) => {
                self.expression(&slice.expr);
                for part in [&slice.start, &slice.stop, &slice.step].into_iter().flatten() {
                    self.expression(part);
                }
            }
            Expr::UnaryOp(unary) => self.expression(&unary.expr),
            Expr::BinOp(binary) => {
                self.expression(&binary.left);
                self.expression(&binary.right);
            }
            Expr::Compare(compare) => {
                self.expression(&compare.expr);
                compare.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr);
                self.expression(&choice.true_expr);
                choice.false_expr.iter().for_each(|other| self.expression(other));
            }
            Expr::Filter(filter) => {
                filter.expr.iter().for_each(|operand| self.expression(operand));
                self.arguments(&filter.args);
            }
            Expr::Test(test) => {
                self.expression(&test.expr);
                self.arguments(&test.args);
            }
            Expr::Call(call) => {
                self.expression(&call.expr);
                self.arguments(&call.args);
            }
            Expr::List(list) => list.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(map) => {
                map.keys.iter().chain(&map.values).for_each(|part| self.expression(part));
            }
        }
    }

    fn arguments(&mut self, arguments: &[CallArg<'t>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            }
        }
    }

    fn step(&mut self, id: &str, dotted: Option<&'t str>) {
        self.names.steps.insert(id.to_owned());
        self.references.push(Reference { step: id.to_owned(), dotted });
    }
}

fn is_steps(expression: &Expr<'_>) -> bool {
    matches!(expression, Expr::Var(var) if var.id == "steps")
}
