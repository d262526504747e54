//! JSON as Go's decoder reads it: its error texts, and duplicate fields told with their path.

use serde_json::{Map, Number, Value};

use super::super::Status;

/// How deep arrays and objects may nest (Go: 10,000; a JSON value of ours is dropped recursively).
const MAX_DEPTH: usize = 1000;
/// `sigs.k8s.io/json` stops collecting strict errors here.
const MAX_DUPLICATES: usize = 100;

/// A parsed request body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// The value; of duplicate fields the last one.
    pub value: Value,
    /// `duplicate field "spec.replicas"`.
    pub duplicates: Vec<String>,
}

/// Parses a JSON body.
///
/// # Errors
/// 400 as kube-apiserver words it; `kind` is the kind that the request should carry.
pub fn parse_json(bytes: &[u8], kind: &str) -> Result<Parsed, Status> {
    parse(bytes)
        .map_err(|why| unrecognized(kind, &format!("couldn't get version/kind; json parse error: {why}"), bytes))
}

/// 400: `the object provided is unrecognized (must be of type <kind>): <why> (<body>)`.
pub fn unrecognized(kind: &str, why: &str, body: &[u8]) -> Status {
    let text = format!("the object provided is unrecognized (must be of type {kind}): {why} ({})", summarize(body));
    Status::bad_request(text)
}

/// The first 30 bytes: as text when they begin an object, else in hexadecimal (`summarizeData` of apiserver).
pub fn summarize(body: &[u8]) -> String {
    const MAX: usize = 30;
    let head = &body[..body.len().min(MAX)];
    let more = if body.len() > MAX { " ..." } else { "" };
    match head.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => format!("{}{more}", head.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

/// Parses JSON; the error is the text of Go's `encoding/json`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let mut parser = Parser { bytes, at: 0, path: String::new(), duplicates: Vec::new() };
    parser.space();
    let value = parser.value(0)?;
    parser.space();
    if parser.at < bytes.len() {
        return Err(parser.unexpected("after top-level value"));
    }
    Ok(Parsed { value, duplicates: parser.duplicates })
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    path: String,
    duplicates: Vec<String>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Go's words for the byte here.
    fn unexpected(&self, context: &str) -> String {
        match self.peek() {
            None => "unexpected end of JSON input".to_owned(),
            Some(b'\'') => format!("invalid character '\\'' {context}"),
            Some(b'"') => format!("invalid character '\"' {context}"),
            Some(byte) => {
                let shown: String = match byte {
                    b'\n' => "\\n".into(),
                    b'\r' => "\\r".into(),
                    b'\t' => "\\t".into(),
                    0..0x20 | 0x7f => format!("\\x{byte:02x}"),
                    // Go quotes the byte as a Latin-1 code point.
                    _ => char::from(byte).into(),
                };
                format!("invalid character '{shown}' {context}")
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err("exceeded max depth".to_owned());
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, String> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return Err(self.unexpected(&format!("in literal {word} (expecting '{}')", char::from(expected))));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut map = Map::new();
        let outer = self.path.len();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("looking for beginning of object key string"));
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.unexpected("after object key"));
            }
            self.at += 1;
            self.space();
            if outer > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            let value = self.value(depth + 1)?;
            if map.insert(key, value).is_some() && self.duplicates.len() < MAX_DUPLICATES {
                let message = format!("duplicate field {:?}", self.path);
                if !self.duplicates.contains(&message) {
                    self.duplicates.push(message);
                }
            }
            self.path.truncate(outer);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.unexpected("after object key:value pair")),
            }
        }
        self.at += 1;
        Ok(Value::Object(map))
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut items = Vec::new();
        let outer = self.path.len();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            self.space();
            self.path.push_str(&format!("[{}]", items.len()));
            items.push(self.value(depth + 1)?);
            self.path.truncate(outer);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.unexpected("after array element")),
            }
        }
        self.at += 1;
        Ok(Value::Array(items))
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        let digits = |parser: &mut Self| {
            let from = parser.at;
            while matches!(parser.peek(), Some(b'0'..=b'9')) {
                parser.at += 1;
            }
            parser.at > from
        };
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else if !digits(self) {
            return Err(self.unexpected("in numeric literal"));
        }
        let mut float = false;
        if self.peek() == Some(b'.') {
            float = true;
            self.at += 1;
            if !digits(self) {
                return Err(self.unexpected("after decimal point in numeric literal"));
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            float = true;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if !digits(self) {
                return Err(self.unexpected("in exponent of numeric literal"));
            }
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).expect("only ASCII was accepted");
        if !float {
            if let Ok(number) = text.parse::<i64>() {
                return Ok(number.into());
            }
            if let Ok(number) = text.parse::<u64>() {
                return Ok(number.into());
            }
        }
        let number = text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number);
        number.ok_or_else(|| format!("json: cannot unmarshal number {text} into Go value of type float64"))
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let start = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => break,
                0..0x20 => return Err(self.unexpected("in string literal")),
                _ => self.at += 1,
            }
        }
        let mut text = self.bytes[start..self.at].to_vec();
        loop {
            match self.peek() {
                None => return Err(self.unexpected("")),
                Some(b'"') => break,
                Some(b'\\') => self.escape(&mut text)?,
                Some(0..0x20) => return Err(self.unexpected("in string literal")),
                Some(byte) => {
                    text.push(byte);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        // Go replaces invalid UTF-8 too.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Result<(), String> {
        self.at += 1;
        let plain = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                self.at += 1;
                let mut code = u32::from(self.hex4()?);
                if (0xd800..0xdc00).contains(&code) && self.bytes[self.at..].starts_with(b"\\u") {
                    let back = self.at;
                    self.at += 2;
                    let low = u32::from(self.hex4()?);
                    if (0xdc00..0xe000).contains(&low) {
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    } else {
                        self.at = back;
                    }
                }
                let letter = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                text.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.unexpected("in string escape code")),
        };
        text.push(plain);
        self.at += 1;
        Ok(())
    }

    fn hex4(&mut self) -> Result<u16, String> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|b| char::from(b).to_digit(16));
            let Some(digit) = digit else { return Err(self.unexpected("in \\u hexadecimal character escape")) };
            code = code << 4 | u16::try_from(digit).expect("a hexadecimal digit is small");
            self.at += 1;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn words_of_go() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(error("{\"kind\": \"Pod\", "), "unexpected end of JSON input");
        assert_eq!(error("{a"), "invalid character 'a' looking for beginning of object key string");
        assert_eq!(error("[1 2]"), "invalid character '2' after array element");
        assert_eq!(error("{}x"), "invalid character 'x' after top-level value");
        assert_eq!(error("nul"), "unexpected end of JSON input");
        assert_eq!(error(&"[".repeat(100_000)), "exceeded max depth");
    }

    #[test]
    fn bad_body() {
        let status = parse_json(b"{\"kind\": \"Pod\", ", "Pod").unwrap_err();
        assert_eq!(
            status.message,
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: \
             unexpected end of JSON input ({\"kind\": \"Pod\", )"
        );
        assert_eq!(summarize(b"a: b: c"), "613a20623a2063");
    }

    #[test]
    fn duplicates_are_told() {
        let parsed = parse(br#"{"spec":{"a":1,"l":[{"x":1,"x":2}],"a":2}}"#).unwrap();
        assert_eq!(parsed.duplicates, [r#"duplicate field "spec.l[0].x""#, r#"duplicate field "spec.a""#]);
        assert_eq!(parsed.value, json!({"spec": {"a": 2, "l": [{"x": 2}]}}));
    }

    proptest! {
        #[test]
        fn agrees_with_serde(text in r#"[\[\]{}:,"a0-9.eE+\- \\untrf\n]{0,24}"#) {
            let theirs = serde_json::from_str::<Value>(&text).ok();
            // Go reads `-0` as the integer 0 (`strconv.ParseInt`), serde as a float.
            prop_assume!(!theirs.as_ref().is_some_and(|value| value.to_string().contains("-0.0")));
            if let Some(theirs) = theirs {
                prop_assert_eq!(parse(text.as_bytes()).unwrap().value, theirs);
            } else if let Ok(ours) = parse(text.as_bytes()) {
                // Lone surrogates: Go takes them.
                prop_assert!(text.contains("\\u"), "{:?}", ours);
            }
        }
    }
}
