//! Bounds the size and the depth of one expression.
//!
//! The engine parses, compiles and drops an expression by recursion, and counts the depth only in
//! brackets and blocks: a chain of operators long enough overflows the stack, which ends the
//! process. So the depth of the tree is bounded from its tokens alone, without recursion, before
//! the engine sees the expression.

use super::TemplateError;

/// Most tokens of one expression.
pub(super) const TOKENS_MAX: usize = 1_000;
/// Most operators and brackets of one expression that can be inside one another, brackets that
/// follow one another (`a[0][0]`) included.
pub(super) const DEPTH_MAX: usize = 200;
/// Most open brackets. The engine's own bound is 75, and it needs the most stack for these.
pub(super) const BRACKETS_MAX: usize = 50;

/// Words that are operators.
const OPERATORS: [&[u8]; 7] = [b"if", b"else", b"or", b"and", b"not", b"in", b"is"];

/// What is between two commas, or a comma and a bracket. However its operators bind, the tree of
/// it is at most as deep as there are operators, above the deepest of the brackets in it.
#[derive(Debug, Clone, Copy, Default)]
struct Item {
    operators: usize,
    /// The deepest bracket in it.
    brackets: usize,
    /// The deepest of the items before it in the same bracket.
    before: usize,
}

impl Item {
    fn depth(self) -> usize {
        self.before.max(self.operators + self.brackets)
    }
}

/// The bounds of one expression, told token by token.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    tokens: usize,
    /// The item outside all brackets.
    outer: Item,
    /// One item for each open bracket.
    open: Vec<Item>,
}

impl Bounds {
    /// Counts a token; a name that is no operator may be given as nothing.
    pub(super) fn count(&mut self, token: &[u8]) -> Result<(), TemplateError> {
        self.tokens += 1;
        if self.tokens > TOKENS_MAX {
            return Err(TemplateError::new(format_args!(
                "an expression is longer than {TOKENS_MAX} names, values and operators"
            )));
        }
        match token {
            [b'(' | b'[' | b'{'] => {
                self.item().operators += 1;
                self.open.push(Item::default());
                if self.open.len() > BRACKETS_MAX {
                    return Err(TemplateError::new(format_args!(
                        "more than {BRACKETS_MAX} brackets are open at once"
                    )));
                }
            }
            [b')' | b']' | b'}'] => {
                // Whoever asks finds out for itself that a bracket is closed that is not open.
                let closed = self.open.pop().unwrap_or_default();
                let item = self.item();
                item.brackets = item.brackets.max(closed.depth());
            }
            [b','] => {
                let item = self.item();
                *item = Item { before: item.depth(), ..Item::default() };
            }
            [byte, ..] if is_value(*byte) && !OPERATORS.contains(&token) => {}
            [] => {}
            _ => self.item().operators += 1,
        }
        if self.item().depth() > DEPTH_MAX {
            return Err(TemplateError::new(format_args!(
                "more than {DEPTH_MAX} operators and brackets are inside one another"
            )));
        }
        Ok(())
    }

    fn item(&mut self) -> &mut Item {
        self.open.last_mut().unwrap_or(&mut self.outer)
    }
}

/// Whether a token that begins like this is a name or a value.
fn is_value(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'\'' | b'"')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an expression of these tokens is within the bounds.
    fn fits(tokens: &[&[u8]]) -> bool {
        let mut bounds = Bounds::default();
        tokens.iter().all(|token| bounds.count(token).is_ok())
    }

    fn repeated<'t>(tokens: &[&'t [u8]], times: usize) -> Vec<&'t [u8]> {
        tokens.repeat(times)
    }

    #[test]
    fn operators_and_brackets_make_an_expression_deep_and_values_do_not() {
        for operator in [&b"-"[..], b"**", b"not", b"and", b"if"] {
            assert!(fits(&repeated(&[operator], DEPTH_MAX)), "{operator:?}");
            assert!(!fits(&repeated(&[operator], DEPTH_MAX + 1)), "{operator:?}");
        }
        // A name, the same behind a dot, a number, and strings.
        for value in [&b"name"[..], b"", b"_x", b"1", b"'-'", b"\"-\""] {
            assert!(fits(&repeated(&[b"-", value], DEPTH_MAX)), "{value:?}");
            assert!(fits(&repeated(&[value], TOKENS_MAX)), "{value:?}");
        }
        assert!(!fits(&repeated(&[b"x"], TOKENS_MAX + 1)));
    }

    #[test]
    fn what_is_beside_one_another_is_not_inside_one_another() {
        let item = repeated(&[b"-"], DEPTH_MAX - 1);
        let listed = |items: &[&[&'static [u8]]]| {
            let mut tokens = vec![&b"["[..]];
            for item in items {
                tokens.extend(*item);
                tokens.push(b",");
            }
            tokens.push(b"]");
            tokens
        };
        assert!(fits(&listed(&[&item, &item, &[b"x"]])));
        // The deepest counts, wherever it is, with the bracket itself.
        let deep: Vec<&[u8]> = [listed(&[&item, &[b"x"]]), vec![&b"-"[..]]].concat();
        assert!(!fits(&deep));
        let deep: Vec<&[u8]> = [listed(&[&[b"x"], &item]), vec![&b"-"[..]]].concat();
        assert!(!fits(&deep));
        // A bracket behind another is one more each.
        assert!(fits(&repeated(&[b"[", b"0", b"]"], DEPTH_MAX)));
        assert!(!fits(&repeated(&[b"[", b"0", b"]"], DEPTH_MAX + 1)));
        for open in [&b"("[..], b"[", b"{"] {
            assert!(fits(&repeated(&[open], BRACKETS_MAX)));
            assert!(!fits(&repeated(&[open], BRACKETS_MAX + 1)));
        }
    }
}
