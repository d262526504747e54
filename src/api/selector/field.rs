//! Field selectors: `a=b,c!=d`.

use std::fmt;

/// A field selector: equalities and inequalities, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field, whether it must be equal (or else different), value.
    pub terms: Vec<FieldTerm>,
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// The field's path, such as `spec.nodeName`.
    pub field: String,
    /// `true`: the value must be equal; `false`: different.
    pub equal: bool,
    /// The value.
    pub value: String,
}

impl FieldSelector {
    /// The string form that requests carry (`fields.ParseSelector`); `\` escapes `\`, `,` and `=` in values.
    ///
    /// # Errors
    /// Kubernetes' message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let (field, equal, value) =
                split_term(part).ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            terms.push(FieldTerm { field: field.to_owned(), equal, value: unescape(value)? });
        }
        Ok(Self { terms })
    }
    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }
    /// Whether the values that `value` gives for each field satisfy every term (an absent field is the empty value).
    pub fn matches(&self, value: impl Fn(&str) -> Option<String>) -> bool {
        self.terms.iter().all(|t| (value(&t.field).unwrap_or_default() == t.value) == t.equal)
    }
    /// The value that a field must have, when there is such a term (to look an object up by name).
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{}{value}", term.field, if term.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The first of `!=`, `==`, `=` decides.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at =
        term.char_indices().map(|(index, _)| index).find(|i| ["!=", "="].iter().any(|o| term[*i..].starts_with(o)))?;
    let (field, rest) = term.split_at(at);
    let operator = ["!=", "==", "="].into_iter().find(|o| rest.starts_with(o))?;
    Some((field, operator != "!=", &rest[operator.len()..]))
}

fn unescape(value: &str) -> Result<String, String> {
    let (mut text, mut letters) = (String::new(), value.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => text.push(escaped),
                Some(other) => return Err(format!("invalid field selector: invalid escape sequence: \\{other}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {letter}")),
            _ => text.push(letter),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b\=c,status.phase!=Running,x==").expect("valid");
        assert_eq!(selector.required("metadata.name"), Some("a,b=c"));
        assert_eq!(selector.to_string(), r"metadata.name=a\,b\=c,status.phase!=Running,x=");
        assert!(selector.matches(|field| (field == "metadata.name").then(|| "a,b=c".to_owned())));
        assert!(!selector.matches(|field| (field == "status.phase").then(|| "Running".to_owned())));
        assert_eq!(
            FieldSelector::parse("nonsense").expect_err("bad"),
            "invalid selector: 'nonsense'; can't understand 'nonsense'"
        );
        assert!(FieldSelector::parse("a=b=c").is_err());
        assert!(FieldSelector::parse("").expect("valid").is_empty());
    }
}
