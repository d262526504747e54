//! Kubernetes quantities (`100m`, `1.5Gi`, `1e3`): exact parsing, arithmetic and the canonical form.
//!
//! Follows `k8s.io/apimachinery/pkg/api/resource`: the grammar, rounding up below a billionth, and which of the three
//! formats the canonical form has.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use serde_json::Value;

/// One unit in the internal scale of billionths.
const UNIT: i128 = 1_000_000_000;
/// Where values saturate, far beyond anything that can be added up (the factor leaves room for sums).
const MAX: i128 = i128::MAX / 1024;

/// How a quantity is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `1k`, `1M`; the default.
    #[default]
    DecimalSi,
    /// `1Ki`, `1Mi`.
    BinarySi,
    /// `1e3`.
    DecimalExponent,
}

/// An exact amount with the format it was written in. Comparison ignores the format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The shape is wrong.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is not one of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// The number cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// Whole units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * UNIT, format }
    }
    /// Thousandths, decimal.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (UNIT / 1000), format: Format::DecimalSi }
    }
    /// Billionths, decimal.
    pub fn from_nanos(nanos: i128) -> Self {
        Self { nanos: nanos.clamp(-MAX, MAX), format: Format::DecimalSi }
    }
    /// Reads a quantity of an object: a string, or a JSON number as Kubernetes accepts it.
    ///
    /// # Errors
    /// [`ParseError`] for anything else.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(ParseError::Format),
        }
    }
    /// Like [`Quantity::from_value`], with zero for what is absent or wrong (stored objects are valid).
    pub fn of(value: &Value) -> Self {
        Self::from_value(value).unwrap_or(Self::ZERO)
    }
    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }
    /// Whole units, rounded away from zero (`Quantity.Value`).
    pub fn value(&self) -> i64 {
        saturate(div_away(self.nanos, UNIT))
    }
    /// Thousandths, rounded away from zero (`Quantity.MilliValue`).
    pub fn milli_value(&self) -> i64 {
        saturate(div_away(self.nanos, UNIT / 1000))
    }
    /// Billionths.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }
    /// Whether it is 0.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
    /// Whether it is below 0.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }
    /// Whether it counts whole units.
    pub fn is_integer(&self) -> bool {
        self.nanos % UNIT == 0
    }
    /// Rounded up to thousandths, as resource lists are when they are defaulted.
    pub fn rounded_to_milli(self) -> Self {
        let step = UNIT / 1000;
        Self { nanos: div_away(self.nanos, step) * step, ..self }
    }
    /// As a floating-point number.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / UNIT as f64
    }

    fn canonical_decimal(&self, exponent_form: bool) -> String {
        let (mut mantissa, mut exponent) = (self.nanos, -9i32);
        while mantissa % 10 == 0 {
            mantissa /= 10;
            exponent += 1;
        }
        while exponent % 3 != 0 || (!exponent_form && exponent > 18) {
            mantissa *= 10;
            exponent -= 1;
        }
        let suffix = match exponent {
            0 => String::new(),
            _ if exponent_form => format!("e{exponent}"),
            -9 => "n".into(),
            -6 => "u".into(),
            -3 => "m".into(),
            3 => "k".into(),
            6 => "M".into(),
            9 => "G".into(),
            12 => "T".into(),
            15 => "P".into(),
            _ => "E".into(),
        };
        format!("{mantissa}{suffix}")
    }
}

fn div_away(value: i128, by: i128) -> i128 {
    value / by + (value % by).signum()
}

fn saturate(value: i128) -> i64 {
    value.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos > -1024 * UNIT && self.nanos < 1024 * UNIT;
        if self.format != Format::BinarySi || small || !self.is_integer() {
            return f.write_str(&self.canonical_decimal(self.format == Format::DecimalExponent));
        }
        let (mut mantissa, mut power) = (self.nanos / UNIT, 0);
        while mantissa % 1024 == 0 && power < 6 {
            mantissa /= 1024;
            power += 1;
        }
        write!(f, "{mantissa}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power])
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Format);
        }
        let (negative, unsigned) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (whole, rest) = split_digits(unsigned);
        let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), split_digits);
        check_suffix_shape(suffix)?;
        let (base, exponent, format) = parse_suffix(suffix)?;
        let nanos = scale(whole, fraction, base, exponent);
        // Only what the fast path of Kubernetes cannot hold is capped; nothing real comes near.
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len()))
}

fn check_suffix_shape(suffix: &str) -> Result<(), ParseError> {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let digits = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    if digits.bytes().all(|b| b.is_ascii_digit()) { Ok(()) } else { Err(ParseError::Format) }
}

fn parse_suffix(suffix: &str) -> Result<(u32, i32, Format), ParseError> {
    let decimal = |exponent| Ok((10, exponent, Format::DecimalSi));
    let binary = |exponent| Ok((2, exponent, Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
            let exponent = digits.parse().map_err(|_| ParseError::Suffix)?;
            Ok((10, exponent, Format::DecimalExponent))
        }
    }
}

/// `whole.fraction * base^exponent` in billionths, rounded up, saturating at [`MAX`].
fn scale(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() && fraction.is_empty() {
        return 0;
    }
    // The decimal point moves by `shift` digits; binary suffixes multiply afterwards.
    let shift = if base == 10 { exponent.clamp(-2000, 2000) } else { 0 } + 9;
    if base == 10 {
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
        let point = whole.len() as i64 + i64::from(shift);
        let (mut value, mut inexact) = (0i128, false);
        for (index, digit) in digits.iter().enumerate() {
            if (index as i64) < point {
                value = value.saturating_mul(10).saturating_add(i128::from(*digit));
            } else {
                inexact |= *digit != 0;
            }
        }
        let zeros = (point - digits.len() as i64).max(0);
        for _ in 0..zeros.min(60) {
            value = value.saturating_mul(10);
        }
        return value.saturating_add(inexact.into()).min(MAX);
    }
    let multiplier = 1i128 << exponent;
    let mut value = 0i128;
    for digit in whole.bytes() {
        value = value.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    value = value.saturating_mul(multiplier).saturating_mul(UNIT);
    // 18 digits times 2^60 fit; what follows them only decides that the result is rounded up.
    let (kept, dropped) = fraction.split_at(fraction.len().min(18));
    let denominator = 10i128.pow(kept.len() as u32);
    let numerator = kept.bytes().fold(0i128, |sum, b| sum * 10 + i128::from(b - b'0')) * multiplier;
    let rest = numerator % denominator * UNIT;
    let inexact = rest % denominator != 0 || !dropped.is_empty();
    let nanos = numerator / denominator * UNIT + rest / denominator + i128::from(inexact);
    value.saturating_add(nanos).min(MAX)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;
    /// The format of a zero yields to the other's, as in Kubernetes.
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }
}
impl Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self { nanos: -self.nanos, ..self }
    }
}
impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}
impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

/// Rounds every quantity of a `ResourceList` to thousandths and writes its canonical form (`SetDefaults_ResourceList`).
pub fn canonicalize_resource_list(list: &mut Value) {
    for value in list.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        if let Ok(quantity) = Quantity::from_value(value) {
            *value = quantity.rounded_to_milli().to_string().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_forms_are_those_of_kubernetes() {
        // From quantity_test.go and the documentation of resource.Quantity.
        for (text, canonical) in [
            ("0", "0"),
            ("0n", "0"),
            ("1500m", "1500m"),
            ("0.1", "100m"),
            ("1024Mi", "1Gi"),
            ("1e6", "1e6"),
            ("1000m", "1"),
            ("1000k", "1M"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("1023Ki", "1023Ki"),
            ("1000Ki", "1000Ki"),
            ("512", "512"),
            ("0.0005Ki", "512m"),
            ("-1.01Ki", "-1034240m"),
            ("100E", "100E"),
            ("12e-3", "12e-3"),
            ("0.3e6", "300e3"),
            ("1e3", "1e3"),
            ("01", "1"),
            ("+5M", "5M"),
            ("0.0000000001", "1n"),
            ("1.G", "1G"),
            (".5", "500m"),
            ("123456789", "123456789"),
            ("4e9", "4e9"),
            ("1048576", "1048576"),
            ("8Ei", "8Ei"),
            ("1E", "1E"),
            ("1E3", "1e3"),
        ] {
            assert_eq!(q(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        assert_eq!((q("1500m").value(), q("-1500m").value(), q("0.1").milli_value()), (2, -2, 100));
        assert_eq!((q("1n").milli_value(), q("1Gi").value(), q("1.5Ki").value()), (1, 1 << 30, 1536));
        assert_eq!(q("0.0001").rounded_to_milli().to_string(), "1m");
    }

    #[test]
    fn arithmetic_and_order_ignore_the_format() {
        assert_eq!(q("1Ki"), q("1024"));
        assert!(q("1M") < q("1Mi"));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("250m")).to_string(), "750m");
        assert_eq!(["100m", "200m"].map(q).into_iter().sum::<Quantity>().to_string(), "300m");
    }

    #[test]
    fn what_is_no_quantity_is_refused_and_huge_ones_saturate() {
        let parse = |text: &str| text.parse::<Quantity>().err();
        for text in ["", "abc", "1.1.M", "1 ", "1Mib", "1+1.0", "0.1mi."] {
            assert_eq!(parse(text), Some(ParseError::Format), "{text:?}");
        }
        for text in ["1mi", "1MM", "1e3k", "1i", "1e", "1eE"] {
            assert!(matches!(parse(text), Some(ParseError::Suffix | ParseError::Format)), "{text:?}");
        }
        for text in ["1e999999999", "99999999999999999999999999999999999999999999Ei", "1e-2147483648"] {
            let quantity = q(text);
            let _ = (quantity + quantity).to_string();
        }
    }

    #[test]
    fn resource_lists_become_canonical() {
        let mut list = serde_json::json!({"cpu": "0.1", "memory": "1024Mi", "pods": 3});
        canonicalize_resource_list(&mut list);
        assert_eq!(list, serde_json::json!({"cpu": "100m", "memory": "1Gi", "pods": "3"}));
    }
}
