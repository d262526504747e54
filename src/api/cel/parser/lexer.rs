//! Characters to tokens: names, literals of every form, symbols.

use crate::api::cel::Issue;
use crate::api::cel::ast::Literal;

/// Words that are no identifiers.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A word of the language.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Ident(String),
    Literal(Literal),
    Symbol(&'static str),
    End,
}

const SYMBOLS: [&str; 27] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}", "=", "&", "|",
];

/// The tokens of an expression with the characters where they begin, and [`Token::End`].
pub(super) fn lex(source: &str) -> Result<Vec<(Token, usize)>, Issue> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c.is_whitespace() {
            at += 1;
            continue;
        }
        if c == '/' && chars.get(at + 1) == Some(&'/') {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
            continue;
        }
        let start = at;
        if let Some(token) = string(&chars, &mut at)? {
            tokens.push((token, start));
        } else if c.is_ascii_digit() || c == '.' && chars.get(at + 1).is_some_and(char::is_ascii_digit) {
            tokens.push((number(&chars, &mut at)?, start));
        } else if c.is_ascii_alphabetic() || c == '_' {
            while at < chars.len() && (chars[at].is_ascii_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            tokens.push((word(chars[start..at].iter().collect(), start)?, start));
        } else if c == '`' {
            let end = (at + 1..chars.len()).find(|end| chars[*end] == '`');
            let Some(end) = end.filter(|end| *end > at + 1) else {
                return Err(Issue { at, message: "Syntax error: token recognition error at: '`'".to_owned() });
            };
            tokens.push((Token::Ident(chars[at + 1..end].iter().collect()), start));
            at = end + 1;
        } else {
            let rest: String = chars[at..chars.len().min(at + 2)].iter().collect();
            let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) else {
                return Err(Issue { at, message: format!("Syntax error: token recognition error at: '{c}'") });
            };
            at += symbol.chars().count();
            tokens.push((Token::Symbol(symbol), start));
        }
    }
    tokens.push((Token::End, chars.len()));
    Ok(tokens)
}

fn word(word: String, at: usize) -> Result<Token, Issue> {
    Ok(match word.as_str() {
        "true" => Token::Literal(Literal::Bool(true)),
        "false" => Token::Literal(Literal::Bool(false)),
        "null" => Token::Literal(Literal::Null),
        "in" => Token::Symbol("in"),
        reserved if RESERVED.contains(&reserved) => {
            return Err(Issue { at, message: format!("reserved identifier: {reserved}") });
        }
        _ => Token::Ident(word),
    })
}

fn number(chars: &[char], at: &mut usize) -> Result<Token, Issue> {
    let start = *at;
    let digits = |at: &mut usize, is: fn(&char) -> bool| {
        while chars.get(*at).is_some_and(is) {
            *at += 1;
        }
    };
    if chars[*at] == '0' && matches!(chars.get(*at + 1), Some('x' | 'X')) {
        *at += 2;
        let from = *at;
        digits(at, char::is_ascii_hexdigit);
        let text: String = chars[from..*at].iter().collect();
        if matches!(chars.get(*at), Some('u' | 'U')) {
            *at += 1;
            let value = u64::from_str_radix(&text, 16);
            return value.map(|n| Token::Literal(Literal::Uint(n))).map_err(|_| bad_number("uint", start));
        }
        let value = i64::from_str_radix(&text, 16);
        return value.map(|n| Token::Literal(Literal::Int(n))).map_err(|_| bad_number("int", start));
    }
    digits(at, char::is_ascii_digit);
    let mut float = false;
    if chars.get(*at) == Some(&'.') && chars.get(*at + 1).is_some_and(char::is_ascii_digit) {
        float = true;
        *at += 1;
        digits(at, char::is_ascii_digit);
    }
    if matches!(chars.get(*at), Some('e' | 'E')) {
        let sign = usize::from(matches!(chars.get(*at + 1), Some('+' | '-')));
        if chars.get(*at + 1 + sign).is_some_and(char::is_ascii_digit) {
            float = true;
            *at += 1 + sign;
            digits(at, char::is_ascii_digit);
        }
    }
    let text: String = chars[start..*at].iter().collect();
    if float {
        return text.parse().map(|n| Token::Literal(Literal::Double(n))).map_err(|_| bad_number("double", start));
    }
    if matches!(chars.get(*at), Some('u' | 'U')) {
        *at += 1;
        return text.parse().map(|n| Token::Literal(Literal::Uint(n))).map_err(|_| bad_number("uint", start));
    }
    match text.parse::<i64>() {
        Ok(number) => Ok(Token::Literal(Literal::Int(number))),
        // The smallest number is written with a sign in front of what is too large without it.
        Err(_) if text == "9223372036854775808" => Ok(Token::Literal(Literal::Int(i64::MIN))),
        Err(_) => Err(bad_number("int", start)),
    }
}

pub(super) fn bad_number(kind: &str, at: usize) -> Issue {
    Issue { at, message: format!("invalid {kind} literal") }
}

/// A string or bytes literal, when one begins here.
fn string(chars: &[char], at: &mut usize) -> Result<Option<Token>, Issue> {
    let start = *at;
    let mut cursor = start;
    let (mut raw, mut bytes) = (false, false);
    while let Some(prefix) = chars.get(cursor) {
        match prefix {
            'r' | 'R' if !raw => raw = true,
            'b' | 'B' if !bytes => bytes = true,
            _ => break,
        }
        cursor += 1;
    }
    let Some(quote) = chars.get(cursor).copied().filter(|c| *c == '"' || *c == '\'') else { return Ok(None) };
    let triple = chars.get(cursor + 1) == Some(&quote) && chars.get(cursor + 2) == Some(&quote);
    cursor += if triple { 3 } else { 1 };
    let unterminated = || Issue { at: start, message: "Syntax error: unterminated string".to_owned() };
    let mut text: Vec<u8> = Vec::new();
    loop {
        let Some(c) = chars.get(cursor).copied() else { return Err(unterminated()) };
        if c == quote {
            if !triple {
                cursor += 1;
                break;
            }
            if chars.get(cursor + 1) == Some(&quote) && chars.get(cursor + 2) == Some(&quote) {
                cursor += 3;
                break;
            }
        }
        if !triple && (c == '\n' || c == '\r') {
            return Err(unterminated());
        }
        if c == '\\' && !raw {
            cursor += 1;
            escape(chars, &mut cursor, bytes, &mut text)
                .ok_or_else(|| Issue { at: start, message: "Syntax error: invalid escape sequence".to_owned() })?;
            continue;
        }
        text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        cursor += 1;
    }
    *at = cursor;
    if bytes {
        return Ok(Some(Token::Literal(Literal::Bytes(text.into()))));
    }
    Ok(Some(Token::Literal(Literal::String(String::from_utf8_lossy(&text).into()))))
}

/// What follows a backslash.
fn escape(chars: &[char], at: &mut usize, bytes: bool, out: &mut Vec<u8>) -> Option<()> {
    let c = *chars.get(*at)?;
    *at += 1;
    let mut code = |digits: usize, radix: u32| {
        let text: String = chars.get(*at..*at + digits)?.iter().collect();
        *at += digits;
        u32::from_str_radix(&text, radix).ok()
    };
    let value = match c {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'v' => 11,
        '\\' | '\'' | '"' | '`' | '?' => u32::from(c),
        'x' | 'X' => code(2, 16)?,
        'u' if !bytes => code(4, 16)?,
        'U' if !bytes => code(8, 16)?,
        '0'..='3' => {
            *at -= 1;
            let text: String = chars.get(*at..*at + 3)?.iter().collect();
            *at += 3;
            u32::from_str_radix(&text, 8).ok()?
        }
        _ => return None,
    };
    if bytes {
        out.push(u8::try_from(value).ok()?);
    } else {
        out.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Some(())
}
