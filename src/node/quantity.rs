//! Quantities of typed objects (`k8s-openapi` keeps their text) as numbers.

use crate::api::quantity::Quantity;

/// The value in thousandths; `None` when it is no quantity.
pub fn parse(text: &str) -> Option<i128> {
    let quantity: Quantity = text.parse().ok()?;
    let nanos = quantity.nanos();
    Some(nanos.div_euclid(1_000_000) + i128::from(nanos.rem_euclid(1_000_000) != 0))
}

/// The value in whole units, rounded up (`Quantity.Value()`).
pub fn value(text: &str) -> Option<i64> {
    text.parse::<Quantity>().ok().map(|q| q.value())
}
