//! The dashboard's pages: what a kind's columns say, laid out in HTML.

use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::server::Server;
use crate::api::kinds::gvr;
use crate::api::{Gvr, Kind, StatusResult, meta};
use crate::client::ListOptions;

/// The style sheet.
pub const STYLE: &str = include_str!("style.css");
/// Fetches the page anew when something on it changed.
pub const SCRIPT: &str = include_str!("live.js");

/// A rendered page.
pub struct Page(Markup);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        Html(self.0.into_string()).into_response()
    }
}

/// The side bar: headings with the resources below them.
const MENU: &[(&str, &[&str])] = &[
    ("Workloads", &["deployments", "statefulsets", "daemonsets", "replicasets", "pods"]),
    ("Network", &["services", "endpointslices"]),
    ("Configuration", &["configmaps", "secrets"]),
    ("Storage", &["persistentvolumeclaims", "persistentvolumes", "storageclasses"]),
    (
        "Cluster",
        &[
            "nodes",
            "namespaces",
            "events",
            "serviceaccounts",
            "roles",
            "rolebindings",
            "clusterroles",
            "clusterrolebindings",
        ],
    ),
];

/// What the overview shows.
const OVERVIEW: &[&str] = &["deployments", "pods", "services"];

/// A page that says one sentence.
pub fn message(text: &str) -> Page {
    Page(
        html! { (DOCTYPE) html lang="en" { head { title { "mini" } link rel="stylesheet" href="/style.css"; } body { main { p.empty { (text) } } } } },
    )
}

/// The page for those without a session.
pub fn refused() -> Page {
    message("This link has been used or is not known. 'mini dashboard' prints a new one.")
}

/// The names of a pod's containers, init containers last.
pub fn containers(pod: &Value) -> impl Iterator<Item = &str> {
    ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .filter_map(|container| container["name"].as_str())
}

fn frame(
    server: &Server,
    title: &str,
    current: &str,
    namespace: &str,
    namespaces: &[String],
    stream: Option<String>,
    body: &Markup,
) -> Page {
    let query = if namespace.is_empty() { String::new() } else { format!("?namespace={namespace}") };
    Page(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · " (server.context.config.profile) }
                link rel="stylesheet" href="/style.css";
                script src="/live.js" defer {}
            }
            body {
                header {
                    a.brand href={ "/" (query) } { "mini" }
                    span.cluster { (server.context.config.profile) " · Kubernetes " (crate::config::KUBERNETES_VERSION) }
                    form method="get" {
                        label for="namespace" { "Namespace" }
                        select #namespace name="namespace" {
                            option value="" selected[namespace.is_empty()] { "All namespaces" }
                            @for name in namespaces { option value=(name) selected[name == namespace] { (name) } }
                        }
                        noscript { button { "Show" } }
                    }
                }
                div.columns {
                    nav {
                        a.current[current.is_empty()] href={ "/" (query) } { "Overview" }
                        @for (heading, resources) in MENU {
                            h2 { (heading) }
                            @for resource in *resources {
                                @if let Some(kind) = server.kinds.iter().find(|k| k.gvr.resource == *resource) {
                                    a.current[current == *resource] href={ "/" (resource) (query) } { (plural(kind)) }
                                }
                            }
                        }
                    }
                    main data-stream=[stream] { (body) }
                }
            }
        }
    })
}

/// `ReplicaSets` for the kind `ReplicaSet`.
fn plural(kind: &Kind) -> String {
    let name = kind.kind.as_ref();
    if let Some(stem) = name.strip_suffix('y').filter(|_| kind.gvr.resource.ends_with("ies")) {
        format!("{stem}ies")
    } else if ["sses", "uses", "xes"].iter().any(|ending| kind.gvr.resource.ends_with(ending)) {
        format!("{name}es")
    } else if name.ends_with('s') {
        name.to_owned()
    } else {
        format!("{name}s")
    }
}

async fn namespaces(server: &Server) -> StatusResult<Vec<String>> {
    let list = server.context.api.list(&gvr::NAMESPACES, "", &ListOptions::default()).await?;
    Ok(list.items.iter().map(|n| meta::name(n).to_owned()).collect())
}

async fn table(server: &Server, kind: &Kind, namespace: &str, options: &ListOptions) -> StatusResult<Markup> {
    let list = server.context.api.list(&kind.gvr, if kind.namespaced { namespace } else { "" }, options).await?;
    let columns = kind.strategy.columns();
    let now = server.context.env.now();
    let shown = |priority: u8| priority == 0;
    Ok(html! {
        @if list.items.is_empty() {
            p.empty { "No " (plural(kind)) " here." }
        } @else {
            div.scroll { table {
                thead { tr {
                    @if kind.namespaced { th { "Namespace" } }
                    @for column in columns.iter().filter(|c| shown(c.priority)) { th { (column.name) } }
                } }
                tbody { @for item in &list.items { tr {
                    @if kind.namespaced { td { (meta::namespace(item)) } }
                    @for (column, cell) in columns.iter().zip(kind.strategy.cells(item, now)).filter(|(c, _)| shown(c.priority)) {
                        td class=[state(&column.name, &cell)] {
                            @if column.name == "Name" { a href=(link(&kind.gvr, item)) { (text(&cell)) } } @else { (text(&cell)) }
                        }
                    }
                } } }
            } }
        }
    })
}

/// Colours the states that a person looks for.
fn state(column: &str, cell: &Value) -> Option<&'static str> {
    if column != "Status" && column != "Type" {
        return None;
    }
    match cell.as_str()? {
        "Running" | "Ready" | "Active" | "Bound" | "Available" | "Completed" | "Succeeded" => Some("good"),
        "Pending" | "ContainerCreating" | "Terminating" | "PodInitializing" => Some("waiting"),
        "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName" | "Normal" => None,
        _ => Some("bad"),
    }
}

fn link(gvr: &Gvr, item: &Value) -> String {
    let namespace = meta::namespace(item);
    format!("/{}/{}/{}", gvr.resource, if namespace.is_empty() { "-" } else { namespace }, meta::name(item))
}

fn text(cell: &Value) -> String {
    cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)
}

/// Deployments, pods and services at a glance.
///
/// # Errors
/// The API server's.
pub async fn overview(server: &Server, namespace: &str) -> StatusResult<Page> {
    let mut sections = Vec::new();
    for resource in OVERVIEW {
        if let Some(kind) = server.kinds.iter().find(|k| k.gvr.resource == *resource) {
            sections.push((plural(kind), table(server, kind, namespace, &ListOptions::default()).await?));
        }
    }
    let body = html! {
        h1 { "Overview" }
        @for (heading, table) in &sections { section { h2 { (heading) } (table) } }
    };
    let stream = format!("/stream/pods?namespace={namespace}");
    Ok(frame(server, "Overview", "", namespace, &namespaces(server).await?, Some(stream), &body))
}

/// All objects of a kind.
///
/// # Errors
/// The API server's.
pub async fn list(server: &Server, kind: &Kind, namespace: &str) -> StatusResult<Page> {
    let table = table(server, kind, namespace, &ListOptions::default()).await?;
    let body = html! { h1 { (plural(kind)) } (table) };
    let resource = &kind.gvr.resource;
    let stream = format!("/stream/{resource}?namespace={namespace}");
    Ok(frame(server, &plural(kind), resource, namespace, &namespaces(server).await?, Some(stream), &body))
}

/// One object: its facts, its events, and itself as YAML.
///
/// # Errors
/// The API server's.
pub async fn detail(server: &Server, kind: &Kind, namespace: &str, name: &str) -> StatusResult<Page> {
    let object = server.context.api.get(&kind.gvr, namespace, name).await?;
    let columns = kind.strategy.columns();
    let cells = kind.strategy.cells(&object, server.context.env.now());
    let selector = format!("involvedObject.uid={}", meta::uid(&object));
    let events = match server.kinds.iter().find(|k| k.gvr == gvr::EVENTS) {
        Some(events) => {
            let options = ListOptions { field_selector: selector, ..ListOptions::default() };
            table(server, events, namespace, &options).await?
        }
        None => html! {},
    };
    let body = html! {
        h1 { (kind.kind) " " (name) }
        section { dl {
            @if kind.namespaced { dt { "Namespace" } dd { (namespace) } }
            @for (column, cell) in columns.iter().zip(&cells).filter(|(c, _)| c.name != "Name") {
                dt { (column.name) } dd class=[state(&column.name, cell)] { (text(cell)) }
            }
            @if let Some(labels) = object["metadata"]["labels"].as_object() {
                dt { "Labels" }
                dd { @for (key, value) in labels { span.label { (key) "=" (text(value)) } " " } }
            }
        } }
        @if kind.gvr == gvr::PODS {
            section { h2 { "Logs" } p { @for container in containers(&object) {
                a.button href={ "/pods/" (namespace) "/" (name) "/log?container=" (container) } { (container) } " "
            } } }
        }
        section { h2 { "Events" } (events) }
        section { h2 { "YAML" } pre { (yaml(kind, &object)) } }
    };
    let stream = format!("/stream/{}?namespace={namespace}", kind.gvr.resource);
    Ok(frame(server, name, &kind.gvr.resource, namespace, &namespaces(server).await?, Some(stream), &body))
}

/// The object as YAML; the values of a Secret are not shown.
fn yaml(kind: &Kind, object: &Value) -> String {
    let mut object = object.clone();
    if kind.gvr == gvr::SECRETS
        && let Some(data) = object["data"].as_object_mut()
    {
        data.values_mut()
            .for_each(|value| *value = format!("({} bytes in base64)", value.as_str().map_or(0, str::len)).into());
    }
    meta::metadata_mut(&mut object).remove("managedFields");
    serde_saphyr::to_string(&object).unwrap_or_default()
}

/// The last lines of a container's log.
pub fn log(server: &Server, pod: &Value, container: &str, text: &str) -> Page {
    let (namespace, name) = (meta::namespace(pod), meta::name(pod));
    let body = html! {
        h1 { "Log of " a href=(link(&gvr::PODS, pod)) { (name) } " · " (container) }
        pre.log { (text) }
    };
    let namespaces = [namespace.to_owned()];
    frame(server, name, "pods", namespace, &namespaces, None, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_those_of_the_kinds() {
        let plurals: Vec<String> = crate::api::kinds::all().iter().map(|kind| plural(kind).to_lowercase()).collect();
        let resources: Vec<String> =
            crate::api::kinds::all().iter().map(|kind| kind.gvr.resource.to_string()).collect();
        assert_eq!(plurals, resources);
    }
}
