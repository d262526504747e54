//! APIServices at work (what kube-aggregator does): group versions that a Service serves are passed on to it, those that this
//! server serves itself are registered, and every APIService says whether it is available. Checks follow changes of what they
//! depend on; only a backend that fails its check is asked again, less and less often.

mod availability;
mod backend;
pub(crate) mod openapi;
mod registration;

pub(crate) use backend::{Backend, pass_on};
pub(crate) use registration::priority;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::watch;

use super::following::{Following, Seen, Told};
use super::registry::update::Part;
use super::registry::{Context, kind_prefix};
use super::{ApiServer, Served, User};
use crate::api::kinds::api_service;
use crate::api::meta::{self, number, text};
use crate::api::{Kind, StatusResult};
use crate::storage::{Entry, Event, Listing, News};

/// The user as whom the server keeps APIServices.
const USER: &str = "system:apiserver";
/// The first pause before a failed backend is checked again, and the longest (those of kube-aggregator's work queue).
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(30));
/// How old what a backend said of itself may be when somebody asks for discovery; then it is asked anew, for the next who asks.
const FRESH: SignedDuration = SignedDuration::from_secs(30);

const UNPOISONED: &str = "no panic under this lock";

/// What a backend said of itself when it was checked.
#[derive(Clone)]
pub(crate) struct Said {
    /// The `resources` of its `APIResourceList`.
    resources: Vec<Value>,
    /// Where its OpenAPI v3 document is, with the document's hash, if it has one.
    document: Option<String>,
    at: Timestamp,
}

struct Known {
    object: Arc<Value>,
    /// Tells the task that checks the backend to do so now; a local one has none.
    wake: Option<watch::Sender<()>>,
    said: Option<Said>,
}

/// All APIServices.
#[derive(Default)]
pub(crate) struct ApiServices {
    known: RwLock<BTreeMap<String, Known>>,
    pub seen: Seen,
}

/// A group version in discovery.
pub(crate) struct Registered {
    pub group: String,
    pub version: String,
    /// `groupPriorityMinimum` and `versionPriority`.
    pub priority: (i64, i64),
    /// What its backend serves, or served when it last answered.
    pub resources: Vec<Value>,
    /// Whether the backend does not answer.
    pub stale: bool,
}

/// Whether an APIService names a backend.
fn has_service(object: &Value) -> bool {
    object["spec"]["service"].is_object()
}

impl ApiServices {
    /// Who serves a group version, when an APIService names a Service for it.
    pub fn backend(&self, server: &ApiServer, group: &str, version: &str) -> Option<Backend> {
        let known = self.known.read().expect(UNPOISONED);
        let object = &known.get(&format!("{version}.{group}"))?.object;
        has_service(object).then(|| Backend::of(server, object))
    }

    /// The group versions of all backends. Whoever has not said anything for a while is asked to do so again.
    pub fn registered(&self, now: Timestamp) -> Vec<Registered> {
        let known = self.known.read().expect(UNPOISONED);
        let backends = known.values().filter(|known| has_service(&known.object));
        let registered = backends.map(|known| {
            if let (Some(wake), Some(said)) = (&known.wake, &known.said)
                && now.duration_since(said.at) > FRESH
            {
                wake.send_replace(());
            }
            let spec = &known.object["spec"];
            Registered {
                group: text(&spec["group"]).to_owned(),
                version: text(&spec["version"]).to_owned(),
                priority: (number(&spec["groupPriorityMinimum"]), number(&spec["versionPriority"])),
                resources: known.said.as_ref().map(|said| said.resources.clone()).unwrap_or_default(),
                stale: !api_service::is_available(&known.object),
            }
        });
        registered.collect()
    }

    /// The backends that are available, with what they said of their OpenAPI v3 document.
    fn available(&self, server: &ApiServer) -> Vec<(Backend, Option<String>)> {
        let known = self.known.read().expect(UNPOISONED);
        let backends = known.values().filter(|k| has_service(&k.object) && api_service::is_available(&k.object));
        let document = |known: &Known| known.said.as_ref().and_then(|said| said.document.clone());
        backends.map(|known| (Backend::of(server, &known.object), document(known))).collect()
    }

    /// Has backends checked: those of a Service, or one by its APIService's name.
    fn wake(&self, concerned: impl Fn(&str, &Value) -> bool) {
        for (name, known) in self.known.read().expect(UNPOISONED).iter() {
            if let Some(wake) = known.wake.as_ref().filter(|_| concerned(name, &known.object)) {
                wake.send_replace(());
            }
        }
    }

    fn get(&self, name: &str) -> Option<Arc<Value>> {
        self.known.read().expect(UNPOISONED).get(name).map(|known| Arc::clone(&known.object))
    }

    fn all(&self) -> BTreeMap<String, Arc<Value>> {
        let known = self.known.read().expect(UNPOISONED);
        known.iter().map(|(name, known)| (name.clone(), Arc::clone(&known.object))).collect()
    }

    fn heard(&self, name: &str, said: Said) {
        if let Some(known) = self.known.write().expect(UNPOISONED).get_mut(name) {
            known.said = Some(said);
        }
    }

    /// Takes an object. Returns what wakes the task that checks its backend, if it needs a new one.
    fn apply(&self, entry: &Entry, deleted: bool) -> Option<(String, watch::Receiver<()>)> {
        let object = entry.value();
        let name = meta::name(&object).to_owned();
        let mut all = self.known.write().expect(UNPOISONED);
        if deleted {
            all.remove(&name);
            return None;
        }
        let old = all.remove(&name).filter(|old| meta::uid(&old.object) == meta::uid(&object));
        let (mut wake, mut said) = (None, None);
        if let Some(old) = old {
            if old.object["spec"] == object["spec"] {
                (wake, said) = (old.wake, old.said);
            } else if let Some(task) = old.wake.filter(|_| has_service(&object)) {
                // What another backend said is not true any more.
                task.send_replace(());
                wake = Some(task);
            }
        }
        let mut task = None;
        if wake.is_none() && has_service(&object) {
            let (sender, receiver) = watch::channel(());
            wake = Some(sender);
            task = Some((name.clone(), receiver));
        }
        all.insert(name, Known { object, wake, said });
        task
    }

    fn forget_others(&self, listing: &Listing) {
        let names: Vec<String> = listing.entries.iter().map(|entry| meta::name(&entry.value()).to_owned()).collect();
        self.known.write().expect(UNPOISONED).retain(|name, _| names.contains(name));
    }
}

/// Reads the APIServices, registers what this server serves, and begins to keep all of them.
pub(crate) async fn start(server: &Arc<ApiServer>) -> StatusResult<()> {
    let kind = server.known_kind("apiregistration.k8s.io", "v1", "apiservices")?;
    let mut following = Following::new(server, "APIServices");
    let listing = following.add(Followed::ApiServices, &kind_prefix(&kind, "")).await?;
    let keeper = Keeper { server: Arc::downgrade(server), kind };
    let mut tasks = Vec::new();
    for entry in &listing.entries {
        tasks.extend(server.aggregation.apply(entry, false));
    }
    registration::at_start(server, &keeper.kind).await?;
    server.aggregation.seen.reach(listing.revision);
    tasks.into_iter().for_each(|(name, wake)| keeper.check(name, wake));
    let (services, slices) =
        (server.known_kind("", "v1", "services")?, server.known_kind("discovery.k8s.io", "v1", "endpointslices")?);
    following.add(Followed::Services, &kind_prefix(&services, "")).await?;
    following.add(Followed::Slices, &kind_prefix(&slices, "")).await?;
    let (mut kinds, in_process) = (server.kinds.subscribe(), server.options.aggregated.subscribe());
    // What came between the registration above and now.
    kinds.mark_changed();
    tokio::spawn(keeper.run(following, kinds, in_process));
    Ok(())
}

/// What APIServices and their backends' availability depend on.
#[derive(Clone, Copy)]
enum Followed {
    ApiServices,
    Services,
    Slices,
}

#[derive(Clone)]
struct Keeper {
    server: Weak<ApiServer>,
    kind: Arc<Kind>,
}

impl Keeper {
    async fn run(
        self,
        mut following: Following<Followed>,
        mut kinds: watch::Receiver<Served>,
        mut in_process: watch::Receiver<()>,
    ) {
        loop {
            tokio::select! {
                told = following.next() => match told {
                    Some(Told { server, of: Followed::ApiServices, news }) => self.changed(&server, &news),
                    Some(Told { server, of: Followed::Services, news }) => service_changed(&server, &news, meta::name),
                    Some(Told { server, of: Followed::Slices, news }) => service_changed(&server, &news, service_of_slice),
                    None => break,
                },
                _ = kinds.changed() => {
                    kinds.mark_unchanged();
                    self.register();
                }
                Ok(()) = in_process.changed() => {
                    if let Some(server) = following.server() {
                        server.aggregation.wake(|_, _| true);
                    }
                }
            }
        }
        if let Some(server) = following.server() {
            server.aggregation.seen.end();
        }
    }

    fn changed(&self, server: &Arc<ApiServer>, news: &News) {
        let entries: Vec<(&Entry, bool)> = match news {
            News::Changes(events) => events.iter().map(|event| (&*event.entry, event.deleted)).collect(),
            News::Everything(listing) => {
                server.aggregation.forget_others(listing);
                listing.entries.iter().map(|entry| (&**entry, false)).collect()
            }
        };
        for (entry, deleted) in &entries {
            if let Some((name, wake)) = server.aggregation.apply(entry, *deleted) {
                self.check(name, wake);
            }
        }
        server.aggregation.seen.reach(news.revision());
        for (entry, _) in entries.iter().filter(|(_, deleted)| !deleted) {
            let object = entry.value();
            if !has_service(&object) && !availability::is_local(&object) {
                let (keeper, server, name) = (self.clone(), Arc::clone(server), meta::name(&object).to_owned());
                tokio::spawn(async move { write(&server, &keeper.kind, &name, &availability::local()).await });
            }
        }
        // Somebody may have removed what has to be there.
        if entries.iter().any(|(_, deleted)| *deleted) {
            self.register();
        }
    }

    /// Registers the group versions of custom resources. Writes wait for this follower, so it is a task of its own.
    fn register(&self) {
        let Some(server) = self.server.upgrade() else { return };
        let kind = Arc::clone(&self.kind);
        tokio::spawn(async move { registration::keep(&server, &kind).await });
    }

    /// Starts the task that checks a backend now and whenever it is woken, until its APIService goes.
    fn check(&self, name: String, mut wake: watch::Receiver<()>) {
        let keeper = self.clone();
        tokio::spawn(async move {
            let Some(mut closing) = keeper.server.upgrade().map(|server| server.closing.subscribe()) else { return };
            let mut pause = None;
            loop {
                wake.mark_unchanged();
                let Some(server) = keeper.server.upgrade() else { return };
                let Some(object) = server.aggregation.get(&name) else { return };
                let found = availability::check(&server, &object).await;
                let failed = matches!(&found, Err(unavailable) if unavailable.may_recover);
                pause = failed.then(|| pause.map_or(PAUSES.0, |pause: Duration| (pause * 2).min(PAUSES.1)));
                let condition = match found {
                    Ok(said) => {
                        server.aggregation.heard(&name, said);
                        availability::passed()
                    }
                    Err(unavailable) => unavailable.condition(),
                };
                write(&server, &keeper.kind, &name, &condition).await;
                drop(server);
                tokio::select! {
                    woken = wake.changed() => if woken.is_err() { return },
                    () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                    () = super::closed(&mut closing) => return,
                }
            }
        });
    }
}

/// News of Services, or of their EndpointSlices: `name` finds the Service's name.
fn service_changed(server: &ApiServer, news: &News, name: impl Fn(&Value) -> &str) {
    let is_of = |object: &Value, changed: &Value| {
        let service = &object["spec"]["service"];
        service["name"] == name(changed) && service["namespace"] == meta::namespace(changed)
    };
    match news {
        News::Changes(events) => {
            for Event { entry, .. } in events {
                let changed = entry.value();
                server.aggregation.wake(|_, object| is_of(object, &changed));
            }
        }
        News::Everything(_) => server.aggregation.wake(|_, _| true),
    }
}

fn service_of_slice(slice: &Value) -> &str {
    text(&slice["metadata"]["labels"]["kubernetes.io/service-name"])
}

/// Writes the condition `Available` if it is another.
async fn write(server: &ApiServer, kind: &Arc<Kind>, name: &str, condition: &Value) {
    let Some(object) = server.aggregation.get(name) else { return };
    if availability::says(&object, condition) {
        return;
    }
    let user = User::master(USER);
    let now = server.env.now();
    let uid = meta::uid(&object).to_owned();
    let make = |current: &Value| {
        let mut changed = current.clone();
        if meta::uid(current) == uid {
            availability::set(&mut changed, condition, now);
        }
        Ok(changed)
    };
    if let Err(status) = server.change(&Context::new(&user), kind, "", name, Part::Status, make).await
        && !status.is_not_found()
    {
        tracing::warn!(%status, name, "cannot write the status of an APIService");
    }
}
