//! Whether somebody may do something: the node authorizer, then RBAC, with `system:masters` above both.

pub mod bootstrap;
pub(crate) mod escalation;
pub(crate) mod node;
pub mod rbac;

use super::http::request::RequestInfo;
use super::{ApiServer, User};
use crate::api::{Gvr, Status, StatusResult};

/// What somebody wants to do (`authorizer.Attributes`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// `fieldSelector` of a list or watch.
    pub fields: &'a str,
    /// Empty for resources.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn of(info: &'a RequestInfo) -> Self {
        if info.is_resource {
            Self {
                verb: &info.verb,
                group: &info.group,
                resource: &info.resource,
                subresource: &info.subresource,
                namespace: &info.namespace,
                name: &info.name,
                fields: &info.field_selector,
                path: "",
            }
        } else {
            Self { verb: &info.verb, path: &info.path, ..Self::default() }
        }
    }
}

impl ApiServer {
    /// Whether `user` may do it.
    pub(crate) fn allowed(&self, user: &User, attributes: &Attributes<'_>) -> bool {
        self.check(user, attributes).is_ok()
    }

    /// 403 unless `user` may do it.
    pub(crate) async fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> StatusResult<()> {
        let decided = self.decide(user, attributes).await?;
        decided.map(drop).map_err(|why| forbidden(user, attributes, &why))
    }

    /// Why `user` may do it, or why not; empty: for no particular reason. The outer error: nobody knows.
    pub(crate) async fn decide(
        &self,
        user: &User,
        attributes: &Attributes<'_>,
    ) -> StatusResult<Result<String, String>> {
        let mut checked = self.check(user, attributes);
        if checked.is_err() && super::authn::node_name(user).is_some() {
            // It may have heard of its pod before the graph did.
            let now = self.storage.revision().await.map_err(super::registry::storage_failed)?;
            self.nodes.caught_up(now).await;
            checked = self.check(user, attributes);
        }
        Ok(checked)
    }

    /// As [`Self::authorize`], by what is known now: for expressions, which cannot wait.
    pub(crate) fn authorize_at_once(&self, user: &User, attributes: &Attributes<'_>) -> StatusResult<()> {
        self.check(user, attributes).map(drop).map_err(|why| forbidden(user, attributes, &why))
    }

    /// Why, or why not, when an authorizer says so.
    fn check(&self, user: &User, attributes: &Attributes<'_>) -> Result<String, String> {
        if user.is_master() {
            return Ok(String::new());
        }
        let why = match super::authn::node_name(user) {
            Some(node) => match self.nodes.check(node, attributes) {
                Ok(()) => return Ok(String::new()),
                Err(why) => why,
            },
            None => String::new(),
        };
        self.rbac.allows(user, attributes).ok_or(why)
    }
}

/// The refusal (`responsewriters.ForbiddenStatusError`).
pub(crate) fn forbidden(user: &User, attributes: &Attributes<'_>, reason: &str) -> Status {
    let Attributes { verb, group, resource, subresource, namespace, name, path, .. } = *attributes;
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let who = format!("User {:?} cannot {verb}", user.name);
    if !path.is_empty() {
        let mut status = Status::new(403, "Forbidden", format!("forbidden: {who} path {path:?}{reason}"));
        status.details = serde_json::json!({});
        return status;
    }
    let full = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let gvr = Gvr { group: group.to_owned().into(), version: "".into(), resource: resource.to_owned().into() };
    Status::forbidden(&gvr, name, &format!("{who} resource {full:?} in API group {group:?} {place}{reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_worded_as_in_kubernetes() {
        let user = User::new("jane", &[]);
        let attributes = Attributes { verb: "list", resource: "pods", namespace: "a", ..Attributes::default() };
        assert_eq!(
            forbidden(&user, &attributes, "").message,
            "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\""
        );
    }
}
