//! `intstr.IntOrString`: a number, or a percentage of a total.

use serde_json::Value;

/// `25%` as 25. The messages are those of `intstr`.
///
/// # Errors
/// A text for people when the string is no percentage.
pub fn percent(text: &str) -> Result<i64, String> {
    let digits = text.strip_suffix('%').ok_or("invalid type: string is not a percentage")?;
    digits.parse::<i32>().map(i64::from).map_err(|_| format!("invalid value {text:?}: invalid syntax"))
}

/// The number itself, or the percentage of `total` rounded up or down (`GetScaledValueFromIntOrPercent`).
///
/// # Errors
/// A text for people when it is neither.
pub fn scaled(value: &Value, total: i64, round_up: bool) -> Result<i64, String> {
    match value {
        Value::Number(number) => number.as_i64().ok_or_else(|| "invalid type: neither int nor percentage".to_owned()),
        Value::String(text) => {
            let percent = percent(text).map_err(|e| format!("invalid value for IntOrString: {e}"))?;
            let hundredths = i128::from(percent) * i128::from(total);
            let scaled = if round_up { -(-hundredths).div_euclid(100) } else { hundredths.div_euclid(100) };
            Ok(scaled.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
        }
        _ => Err("invalid type: neither int nor percentage".to_owned()),
    }
}

/// How it is printed: the number or the string.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.as_i64().unwrap_or_default().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentages_round_as_asked() {
        assert_eq!(scaled(&json!("25%"), 10, true), Ok(3));
        assert_eq!(scaled(&json!("25%"), 10, false), Ok(2));
        assert_eq!(scaled(&json!(5), 10, true), Ok(5));
        assert_eq!(scaled(&json!("100%"), 4, false), Ok(4));
        assert!(scaled(&json!("5"), 10, true).is_err());
        assert!(scaled(&json!("x%"), 10, true).is_err());
        assert!(scaled(&json!(null), 10, true).is_err());
    }
}
