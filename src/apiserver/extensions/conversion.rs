//! Conversion webhooks: `ConversionReview` v1.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::api::meta::{items, text};
use crate::api::{Status, StatusResult, meta};
use crate::apiserver::{ApiServer, outbound};

/// How long a conversion may take (`defaultConversionWebhookTimeout`).
const TIMEOUT: Duration = Duration::from_secs(30);

impl ApiServer {
    /// Lets the webhook of a definition (`spec.conversion.webhook`) turn objects into another version.
    ///
    /// A boxed future: the way to a webhook's Service reads objects, which may have to be converted.
    pub(in crate::apiserver) fn convert_by_webhook<'a>(
        &'a self,
        webhook: &'a Value,
        objects: Vec<Value>,
        version: &'a str,
    ) -> BoxFuture<'a, StatusResult<Vec<Value>>> {
        Box::pin(self.ask_webhook(webhook, objects, version))
    }

    async fn ask_webhook(&self, webhook: &Value, objects: Vec<Value>, version: &str) -> StatusResult<Vec<Value>> {
        let first = objects.first().cloned().unwrap_or_default();
        let failed = |why: String| {
            let (from, kind) = (text(&first["apiVersion"]), text(&first["kind"]));
            Status::internal(format!("conversion webhook for {from}, Kind={kind} failed: {why}"))
        };
        // Versions are asked in the webhook's order; ours is v1.
        if !items(&webhook["conversionReviewVersions"]).iter().any(|known| known == "v1") {
            return Err(failed("the server speaks ConversionReview v1 only, which the webhook does not".to_owned()));
        }
        let uid = self.env.uid();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
            "request": {"uid": uid, "desiredAPIVersion": version, "objects": objects},
            "response": {"uid": "", "convertedObjects": null, "result": {"metadata": {}}},
        });
        let target = outbound::Target::of(&webhook["clientConfig"]).map_err(failed)?;
        let answer = outbound::post(self, &target, &review, TIMEOUT).await.map_err(failed)?;
        converted(&answer, &uid, objects, version).map_err(failed)
    }
}

/// The objects of an answer, checked against what was sent (`webhook_converter.go`).
fn converted(answer: &Value, uid: &str, sent: Vec<Value>, version: &str) -> Result<Vec<Value>, String> {
    if answer["kind"] != "ConversionReview" || answer["apiVersion"] != "apiextensions.k8s.io/v1" {
        let (version, kind) = (text(&answer["apiVersion"]), text(&answer["kind"]));
        let expected = "apiextensions.k8s.io/v1, Kind=ConversionReview";
        return Err(format!("expected webhook response of {expected}, got {version}, Kind={kind}"));
    }
    let response = &answer["response"];
    if response.is_null() {
        return Err("no response provided".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    if response["result"]["status"] != "Success" {
        let message = text(&response["result"]["message"]);
        return Err(if message.is_empty() {
            "response.result.status was not 'Success'".to_owned()
        } else {
            message.to_owned()
        });
    }
    let objects = items(&response["convertedObjects"]);
    if objects.len() != sent.len() {
        return Err(format!("webhook returned {} objects, expected {}", objects.len(), sent.len()));
    }
    let mut converted = Vec::with_capacity(objects.len());
    for (index, (object, sent)) in objects.iter().zip(sent).enumerate() {
        let at = format!("at index {index}");
        if object["apiVersion"] != version {
            let got = text(&object["apiVersion"]);
            return Err(format!(
                "webhook returned invalid converted object {at}: invalid groupVersion (expected {version}, received {got})"
            ));
        }
        if object["kind"] != sent["kind"] {
            let (expected, got) = (text(&sent["kind"]), text(&object["kind"]));
            return Err(format!(
                "webhook returned invalid converted object {at}: invalid kind (expected {expected}, received {got})"
            ));
        }
        for field in ["name", "namespace", "uid"] {
            if object["metadata"][field] != sent["metadata"][field] {
                return Err(format!(
                    "webhook returned invalid converted object {at}: metadata.{field} must not change"
                ));
            }
        }
        converted.push(with_metadata_of(object.clone(), &sent));
    }
    Ok(converted)
}

/// Webhooks may change labels and annotations; all other metadata stays (`restoreObjectMeta`).
fn with_metadata_of(mut object: Value, sent: &Value) -> Value {
    let mut metadata = sent["metadata"].clone();
    for field in ["labels", "annotations"] {
        let Some(map) = metadata.as_object_mut() else { break };
        match object["metadata"].get(field).filter(|value| value.is_object()) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    }
    *meta::metadata_mut(&mut object) = metadata.as_object().cloned().unwrap_or_default();
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(object: Value) -> Value {
        json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
            "response": {"uid": "u", "result": {"status": "Success"}, "convertedObjects": [object]}})
    }

    #[test]
    fn answers_are_checked() {
        let sent = json!({"apiVersion": "x/v1", "kind": "W", "metadata": {"name": "a", "uid": "1", "generation": 3, "labels": {"a": "b"}}});
        let of = |answer: &Value| converted(answer, "u", vec![sent.clone()], "x/v2");
        let good = json!({"apiVersion": "x/v2", "kind": "W", "spec": {"n": 1},
            "metadata": {"name": "a", "uid": "1", "generation": 9, "labels": {"c": "d"}}});
        let expected = json!({"apiVersion": "x/v2", "kind": "W", "spec": {"n": 1},
            "metadata": {"name": "a", "uid": "1", "generation": 3, "labels": {"c": "d"}}});
        assert_eq!(of(&answer(good.clone())), Ok(vec![expected]));
        let mut renamed = good.clone();
        renamed["metadata"]["name"] = "b".into();
        assert!(of(&answer(renamed)).is_err_and(|why| why.ends_with("metadata.name must not change")));
        let mut failed = answer(good);
        failed["response"]["result"] = json!({"status": "Failed", "message": "no"});
        assert_eq!(of(&failed), Err("no".to_owned()));
        assert_eq!(
            of(&json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1"})),
            Err("no response provided".to_owned())
        );
    }
}
