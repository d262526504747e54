//! Random objects of a type, for property tests.

use serde_json::{Map, Value, json};

use super::{Field, Kind, Shape, TypeId};

/// A little generator: the same seed gives the same object.
pub(crate) struct Arbitrary(pub(crate) u64);

impl Arbitrary {
    fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn text(&mut self) -> String {
        ["", "a", "b-c", "x/y", "é\"\\", "true"][usize::try_from(self.below(6)).expect("small")].to_owned()
    }

    /// An object of a kind, or a part of one.
    pub(crate) fn object(&mut self, ty: TypeId, depth: usize) -> Value {
        let mut map = Map::new();
        for field in &ty.get().fields {
            // Inside of another object protobuf has no TypeMeta.
            if depth > 0 && ty.get().is_kind() && ["apiVersion", "kind"].contains(&field.name) {
                continue;
            }
            let wanted = if depth > 5 { 0 } else { 60 / (depth as u64 + 1) };
            if self.below(100) < wanted {
                let value = self.field(field, depth + 1);
                map.insert(field.name.to_owned(), value);
            }
        }
        Value::Object(map)
    }

    fn field(&mut self, field: &Field, depth: usize) -> Value {
        match field.shape {
            Shape::One => self.one(field, depth),
            // Never empty: protobuf cannot tell an empty list or map from none.
            Shape::List => (0..=self.below(2)).map(|_| self.one(field, depth)).collect(),
            Shape::Map => {
                let count = 1 + self.below(2);
                Value::Object((0..count).map(|i| (format!("k{i}"), self.one(field, depth))).collect())
            }
        }
    }

    fn one(&mut self, field: &Field, depth: usize) -> Value {
        match field.kind {
            Kind::String => self.text().into(),
            Kind::Bool => (self.below(2) == 0).into(),
            Kind::Int32 => [0, 1, -1, i32::MAX, i32::MIN][usize::try_from(self.below(5)).expect("small")].into(),
            Kind::Int64 => [0, 1, -1, i64::MAX, i64::MIN][usize::try_from(self.below(5)).expect("small")].into(),
            Kind::Double => [0.5, -2.25][usize::try_from(self.below(2)).expect("small")].into(),
            Kind::Bytes => ["", "AAEC", "//8="][usize::try_from(self.below(3)).expect("small")].into(),
            Kind::Quantity => ["0", "100m", "1Gi", "2"][usize::try_from(self.below(4)).expect("small")].into(),
            Kind::IntOrString => {
                [json!(0), json!(80), json!("25%")][usize::try_from(self.below(3)).expect("small")].clone()
            }
            Kind::Time => "2020-01-02T03:04:05Z".into(),
            Kind::MicroTime => "2020-01-02T03:04:05.000678Z".into(),
            Kind::RawExtension | Kind::FieldsV1 => json!({"f:a": {"b": [1, null, "c"]}}),
            Kind::Json => json!([1, {"a": "b"}]),
            Kind::SchemaOrBool => (self.below(2) == 0).into(),
            Kind::SchemaOrStrings => json!(["a"]),
            Kind::SchemaOrArray => json!([{"type": "string"}, {}]),
            Kind::Strings => json!(["a", ""]),
            Kind::Type(ty) => self.object(ty, depth),
        }
    }
}
