//! Guards for what could make much out of little: see the list in [`super`].
//!
//! The engine has operators whose result it does not bound. This walks over the tokens of an
//! expression, as the engine's own lexer finds them, refuses some and wraps others in a filter
//! that checks the operand before the operator runs. It is also where the size and the depth of an
//! expression are bounded, before anything that recurses sees it: see [`super::bounds`].

use super::bounds::Bounds;
use super::{TemplateError, quoted};

/// Most `+` and `:` in the expressions of one string.
const COPIES_MAX: usize = 32;

/// The filter put around the operands of `*`: numbers only.
const NUMBER_GUARD: &str = "|__number";
/// The filter put before `in`: plain values only.
const PLAIN_GUARD: &str = "|__plain";

/// What a token is to the guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// `.` or `|`: the name after it belongs to the operand before it.
    Link,
    /// `not`, which may be the first half of `not in`.
    Not,
    Name,
    Other,
}

/// A text with guards in it, and the expressions in it as they were written.
pub(super) struct Guarded<'t> {
    pub(super) text: String,
    pub(super) codes: Vec<&'t str>,
}

/// Guards every expression in a text that has text around its expressions. It finds them the way
/// the engine's lexer does; statements have been refused before.
pub(super) fn guard_text(text: &str) -> Result<Guarded<'_>, TemplateError> {
    let (mut out, mut rest, mut copies) = (String::with_capacity(text.len()), text, 0);
    let mut codes = Vec::new();
    loop {
        // One look for both: to look for what is not there takes the whole rest each time.
        let mut braces = rest.match_indices('{').map(|(at, _)| at);
        let begins = |at: &usize| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'#'));
        let Some(start) = braces.find(begins) else {
            out.push_str(rest);
            return Ok(Guarded { text: out, codes });
        };
        let mark = if rest[start + 2..].starts_with(['-', '+']) { 3 } else { 2 };
        let (before, inside) = rest.split_at(start + mark);
        out.push_str(before);
        let taken = if before[start..].starts_with("{#") {
            let end = inside.find("#}").map_or(inside.len(), |end| end + 2);
            out.push_str(&inside[..end]);
            end
        } else {
            let taken = guard_code(inside, &mut out, &mut copies, true)?;
            let code = inside[..taken].strip_suffix("}}");
            let code = code.ok_or_else(|| {
                TemplateError::new(format_args!("{{{{ is not closed with }}}} in {}", quoted(text)))
            })?;
            codes.push(code.strip_suffix(['-', '+']).unwrap_or(code));
            taken
        };
        rest = &inside[taken..];
    }
}

/// Copies one expression to `out`, with a guard around what could make much out of little, and
/// gives its length in bytes. With `in_braces` it ends after the `}}` that closes it.
///
/// A guard is a filter put behind an operand, where it binds to the last primary expression. For
/// `*` this is enough: whatever else its left side may be made of (`/`, `//`, `%`, `**`, another
/// `*`) gives numbers only, and so does a right side of several parts (`**`). For `in`, a left
/// side of several parts with a plain last one is never a list. Anything this does not understand
/// stays as it is or becomes a syntax error; no operator passes without its guard.
pub(super) fn guard_code(
    code: &str,
    out: &mut String,
    copies: &mut usize,
    in_braces: bool,
) -> Result<usize, TemplateError> {
    let bytes = code.as_bytes();
    let (mut at, mut copied) = (0, 0);
    // The open brackets, each with the `:` seen in it.
    let mut open: Vec<(u8, usize)> = Vec::new();
    // The right sides of `*` that are still open: at which depth, and whether begun.
    let mut factors: Vec<(usize, bool)> = Vec::new();
    let mut previous = Token::Other;
    let mut not_at = None;
    let mut bounds = Bounds::default();
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let rest = &bytes[at..];
        let signed = matches!(byte, b'-' | b'+') && rest[1..].starts_with(b"}}");
        let ends = in_braces && open.is_empty() && (signed || rest.starts_with(b"}}"));
        let start = at;
        at += match byte {
            _ if ends => 2 + usize::from(signed),
            b'\'' | b'"' => string_bytes(rest),
            b'0'..=b'9' => number_bytes(rest),
            b'/' | b'*' if rest.get(1) == Some(&byte) => 2,
            byte if is_name(byte) && !byte.is_ascii_digit() => {
                rest.iter().take_while(|&&byte| is_name(byte)).count()
            }
            _ => 1,
        };
        let word = &bytes[start..at];
        let linked = previous == Token::Link;
        let is_word = is_name(byte) && !byte.is_ascii_digit();
        if !ends {
            bounds.count(if is_word && linked { b"" } else { word })?;
        }
        // The right side of a `*` ends before this token when it cannot belong to it.
        if let Some(&mut (depth, ref mut begun)) = factors.last_mut()
            && depth == open.len()
        {
            let over = match byte {
                _ if ends => true,
                b'-' => *begun,
                b'.' | b'|' | b'(' | b'[' | b'{' | b'\'' | b'"' | b'0'..=b'9' => false,
                _ if is_word => *begun && !linked,
                _ => true,
            };
            *begun |= byte != b'-';
            if over {
                if word == b"is" {
                    return Err(TemplateError::new("a test beside * needs parentheses"));
                }
                factors.pop();
                insert(code, out, &mut copied, start, NUMBER_GUARD);
            }
        }
        let mut token = if is_word { Token::Name } else { Token::Other };
        match byte {
            _ if ends => {
                out.push_str(&code[copied..at]);
                return Ok(at);
            }
            b'*' if word == b"*" => {
                insert(code, out, &mut copied, start, NUMBER_GUARD);
                factors.push((open.len(), false));
            }
            b'~' => {
                return Err(TemplateError::new(
                    "~ is not allowed: write {{ a }}{{ b }} or [a, b] | join",
                ));
            }
            b'+' | b':' => {
                *copies += 1;
                if *copies > COPIES_MAX {
                    return Err(TemplateError::new(format_args!(
                        "more than {COPIES_MAX} + and : in one string"
                    )));
                }
                if let (b':', Some((b'[', colons))) = (byte, open.last_mut()) {
                    *colons += 1;
                    if *colons > 1 {
                        return Err(TemplateError::new("a slice with a step is not allowed"));
                    }
                }
            }
            b'(' | b'[' | b'{' => open.push((byte, 0)),
            b')' | b']' | b'}' => {
                open.pop().ok_or_else(|| {
                    TemplateError::new(format_args!(
                        "a closed bracket is not open in {}",
                        quoted(code)
                    ))
                })?;
            }
            b'.' | b'|' => token = Token::Link,
            _ if word == b"not" && !linked => {
                not_at = Some(start);
                token = Token::Not;
            }
            _ if word == b"in" && !linked => {
                let before = not_at.filter(|_| previous == Token::Not).unwrap_or(start);
                insert(code, out, &mut copied, before, PLAIN_GUARD);
            }
            _ => {}
        }
        previous = token;
    }
    if factors.last().is_some_and(|&(depth, _)| depth == open.len()) {
        insert(code, out, &mut copied, at, NUMBER_GUARD);
    }
    out.push_str(&code[copied..]);
    Ok(code.len())
}

/// Copies what is before `at` and puts the guard there.
fn insert(code: &str, out: &mut String, copied: &mut usize, at: usize, guard: &str) {
    // Only in what is a syntax error anyway (`2 * not in`) has more been copied already.
    if at >= *copied {
        out.push_str(&code[*copied..at]);
        *copied = at;
    }
    out.push_str(guard);
    out.push(' ');
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Length of the digits at the beginning, with their exponent; a fraction is a token of its own.
fn number_bytes(rest: &[u8]) -> usize {
    let digits = |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let end = digits(0);
    let sign = match rest[end..] {
        [b'e' | b'E', b'+' | b'-', ..] => 1,
        [b'e' | b'E', ..] => 0,
        _ => return end,
    };
    match digits(end + 1 + sign) {
        0 => end,
        exponent => end + 1 + sign + exponent,
    }
}

/// Length of the string literal at the beginning, quotes included.
fn string_bytes(rest: &[u8]) -> usize {
    let mut escaped = false;
    for (at, &byte) in rest.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == rest[0] => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_token_with_its_exponent() {
        for (text, bytes) in [
            ("0", 1),
            ("12 + 3", 2),
            ("1.5", 1),
            ("1e5", 3),
            ("1e10+2", 4),
            ("12E+05}", 6),
            ("1e-7x", 4),
            ("1e", 1),
            ("12e+", 2),
            ("1ex", 1),
        ] {
            assert_eq!(number_bytes(text.as_bytes()), bytes, "{text}");
        }
    }

    #[test]
    fn a_string_ends_at_its_own_quote() {
        for (text, bytes) in [
            (r#""a" + "b""#, 3),
            (r"'a' + 'b'", 3),
            (r#""it's" x"#, 6),
            (r#""a\"b" x"#, 6),
            (r#""a\\" x"#, 5),
            (r#""open"#, 5),
            (r#""open\""#, 7),
        ] {
            assert_eq!(string_bytes(text.as_bytes()), bytes, "{text}");
        }
    }
}
