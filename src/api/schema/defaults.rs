//! The defaults that markers of the types express (`+default`).

use serde_json::{Map, Value};

use super::table::{Field, Kind, Shape, TypeId};

/// Writes the table's defaults where fields are absent. Defaults of `SetDefaults_*` functions are the kinds' own.
pub fn apply_defaults(ty: TypeId, object: &mut Value) {
    let Value::Object(map) = object else { return };
    structure(ty, map);
}

fn structure(ty: TypeId, map: &mut Map<String, Value>) {
    for field in &ty.get().fields {
        if let Some(value) = map.get_mut(field.name).filter(|v| !v.is_null()) {
            let Kind::Type(inner) = field.kind else { continue };
            match (field.shape, value) {
                (Shape::One, Value::Object(map)) => structure(inner, map),
                (Shape::List, Value::Array(items)) => {
                    items.iter_mut().filter_map(Value::as_object_mut).for_each(|map| structure(inner, map));
                }
                (Shape::Map, Value::Object(entries)) => {
                    entries.values_mut().filter_map(Value::as_object_mut).for_each(|map| structure(inner, map));
                }
                _ => {}
            }
        } else if !field.markers().default.is_empty() && !is_left_out(field) {
            let default = serde_json::from_str(field.markers().default).expect("the generator checked it");
            map.insert(field.name.to_owned(), default);
        }
    }
}

/// Whether the default is a zero value that Go does not write.
fn is_left_out(field: &Field) -> bool {
    field.value && field.omit_empty && ["0", "false", "\"\""].contains(&field.markers().default)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn protocol_of_ports() {
        let pod = TypeId::of_definition("api.core.v1.Pod").expect("a built-in kind");
        let mut object = json!({"spec": {"containers": [{"ports": [{"containerPort": 1}, {"protocol": "UDP"}]}]}});
        apply_defaults(pod, &mut object);
        assert_eq!(
            object["spec"]["containers"][0]["ports"],
            json!([{"containerPort": 1, "protocol": "TCP"}, {"protocol": "UDP"}])
        );
    }

    #[test]
    fn zeros_that_go_leaves_out_are_left_out() {
        let ty = TypeId::of_definition("api.core.v1.ReplicationController").expect("a built-in kind");
        let mut object = json!({"spec": {}});
        apply_defaults(ty, &mut object);
        assert_eq!(object["spec"], json!({"replicas": 1}));
    }
}
