//! Keeps flow control as the objects say, tells in their status whether their level exists, and puts back what must be there.

use std::sync::Arc;

use serde_json::{Value, json};

use super::classify::Compiled;
use crate::api::StatusResult;
use crate::api::meta::{self, items, text};
use crate::apiserver::following::{Following, Told};
use crate::apiserver::registry::update::Part;
use crate::apiserver::registry::{Context, prefix, storage_failed};
use crate::apiserver::{ApiServer, User, bootstrap};
use crate::env::rfc3339;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";

/// Begins to follow FlowSchemas and priority levels.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let mut following = Following::new(server, "flow control");
    following.add((), &format!("/{GROUP}/")).await?;
    load(server).await?;
    tokio::spawn(async move {
        while let Some(Told { server, .. }) = following.next().await {
            if let Err(status) = bootstrap::flow_control(&server).await.and(load(&server).await) {
                tracing::warn!(%status, "cannot follow the FlowSchemas");
            }
        }
    });
    Ok(())
}

async fn objects(server: &ApiServer, resource: &str) -> StatusResult<Vec<Arc<Value>>> {
    let listing = server.storage.list(&prefix(GROUP, resource, ""), None, 0, 0).await.map_err(storage_failed)?;
    Ok(listing.entries.iter().map(|entry| entry.value()).collect())
}

/// Reads all objects.
async fn load(server: &ApiServer) -> StatusResult<()> {
    let (schemas, levels) = (objects(server, SCHEMAS).await?, objects(server, LEVELS).await?);
    let before = Arc::clone(&server.flow_control.compiled.read().expect("no panic under this lock"));
    server.flow_control.replace(Compiled::new(&schemas, &levels, &before));
    let user = User::master("system:apiserver");
    let context = Context::new(&user);
    let kind = server.known_kind(GROUP, "v1", SCHEMAS)?;
    for schema in &schemas {
        let (level, name) = (text(&schema["spec"]["priorityLevelConfiguration"]["name"]), meta::name(schema));
        let exists = levels.iter().any(|known| meta::name(known) == level);
        let make = |old: &Value| Ok(with_condition(old, level, exists, &rfc3339(server.env.now())));
        match server.change(&context, &kind, "", name, Part::Status, make).await {
            Err(status) if !status.is_not_found() => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// The FlowSchema with its condition `Dangling`; unchanged when it has it already.
fn with_condition(schema: &Value, level: &str, exists: bool, now: &str) -> Value {
    let (status, reason, verdict) = match exists {
        true => ("False", "Found", "it exists"),
        false => ("True", "NotFound", "there is no such object"),
    };
    let joint = if exists { "and" } else { "but" };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {joint} {verdict}");
    let conditions = items(&schema["status"]["conditions"]);
    let old = conditions.iter().find(|condition| text(&condition["type"]) == "Dangling");
    if old.is_some_and(|old| text(&old["status"]) == status && text(&old["message"]) == message) {
        return schema.clone();
    }
    let changed = old.is_none_or(|old| text(&old["status"]) != status);
    let since = old.filter(|_| !changed).map_or(now, |old| text(&old["lastTransitionTime"]));
    let condition = json!({
        "type": "Dangling", "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
    });
    let others = conditions.iter().filter(|condition| text(&condition["type"]) != "Dangling").cloned();
    let mut schema = schema.clone();
    schema["status"]["conditions"] = others.chain([condition]).collect();
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_changes_only_with_its_status() {
        let schema = json!({"metadata": {"name": "s"}, "status": {}});
        let found = with_condition(&schema, "l", true, "t1");
        let condition = &found["status"]["conditions"][0];
        assert_eq!((text(&condition["status"]), text(&condition["reason"])), ("False", "Found"));
        assert_eq!(
            condition["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"l\" and it exists"
        );
        assert_eq!(with_condition(&found, "l", true, "t2"), found);
        assert_eq!(with_condition(&found, "l", false, "t2")["status"]["conditions"][0]["lastTransitionTime"], "t2");
    }
}
