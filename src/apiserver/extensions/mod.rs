//! CustomResourceDefinitions at work (what kube-apiserver's apiextensions-apiserver does): their names are accepted or not, their
//! kinds are served and change at once, and their objects go before they do.

mod cleanup;
mod conversion;
mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::following::{Following, Seen, Told};
use super::registry::update::Part;
use super::registry::{Context, kind_prefix};
use super::{ApiServer, User};
use crate::api::kinds::custom_resource;
use crate::api::{Kind, StatusResult, meta};
use crate::storage::{Entry, Listing, News};

/// The user as whom the server acts on definitions and their objects.
const USER: &str = "system:apiserver";
/// The field manager of what the server writes into definitions.
const MANAGER: &str = "kube-apiserver";

/// A definition and what is made of it.
struct Definition {
    object: Arc<Value>,
    /// Its kinds, when it is established.
    kinds: Vec<Arc<Kind>>,
}

/// What is known of the definitions.
#[derive(Default)]
pub(crate) struct Extensions {
    definitions: Mutex<BTreeMap<String, Definition>>,
    pub seen: Seen,
}

impl Extensions {
    /// Takes a definition's state. `revision`: objects up to it may have been stored under another schema.
    fn apply(&self, entry: &Entry, deleted: bool, revision: u64) {
        let object = entry.value();
        let name = meta::name(&object).to_owned();
        let mut definitions = self.definitions.lock().expect("no panic under this lock");
        if deleted {
            definitions.remove(&name);
            return;
        }
        let kinds = match definitions.get(&name) {
            Some(known) if served_alike(&known.object, &object) => known.kinds.clone(),
            _ if status::is_established(&object) => {
                custom_resource::kinds(&object, revision).into_iter().map(Arc::new).collect()
            }
            _ => Vec::new(),
        };
        definitions.insert(name, Definition { object, kinds });
    }

    /// Takes all definitions, and forgets those that are not among them.
    fn replace(&self, listing: &Listing, revision: impl Fn(&Entry) -> u64) {
        let names: Vec<String> = listing.entries.iter().map(|entry| meta::name(&entry.value()).to_owned()).collect();
        self.definitions.lock().expect("no panic under this lock").retain(|name, _| names.contains(name));
        listing.entries.iter().for_each(|entry| self.apply(entry, false, revision(entry)));
    }

    fn kinds(&self) -> Vec<Arc<Kind>> {
        let definitions = self.definitions.lock().expect("no panic under this lock");
        definitions.values().flat_map(|definition| definition.kinds.iter().map(Arc::clone)).collect()
    }

    /// Definitions whose status is not what it should be, with the status that it should be.
    fn due(&self, now: jiff::Timestamp) -> Vec<(String, Value)> {
        let definitions = self.definitions.lock().expect("no panic under this lock");
        let all: Vec<&Value> = definitions.values().map(|definition| &*definition.object).collect();
        let due = all.iter().filter_map(|object| {
            let wanted = status::of(object, &all, now);
            (wanted != object["status"]).then(|| (meta::name(object).to_owned(), wanted))
        });
        due.collect()
    }

    /// Definitions that wait for the end of their objects.
    fn terminating(&self) -> Vec<Arc<Value>> {
        let definitions = self.definitions.lock().expect("no panic under this lock");
        let objects = definitions.values().map(|definition| &definition.object);
        objects.filter(|object| status::waits_for_objects(object)).map(Arc::clone).collect()
    }
}

/// Whether two states of a definition make the same kinds.
fn served_alike(a: &Value, b: &Value) -> bool {
    a["spec"] == b["spec"]
        && a["status"]["acceptedNames"] == b["status"]["acceptedNames"]
        && meta::uid(a) == meta::uid(b)
        && meta::is_terminating(a) == meta::is_terminating(b)
        && status::is_established(a) == status::is_established(b)
}

/// Reads the definitions and begins to follow them.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let kind = server.known_kind("apiextensions.k8s.io", "v1", "customresourcedefinitions")?;
    let prefix = kind_prefix(&kind, "");
    let mut following = Following::new(server, "CustomResourceDefinitions");
    let listing = following.add((), &prefix).await?;
    // The last write of a definition: what was stored later was stored under its schema.
    server.extensions.replace(&listing, |entry| entry.revision);
    server.kinds.set_custom(server.extensions.kinds().into_iter());
    server.extensions.seen.reach(listing.revision);
    let keeper = Keeper { kind, cleaning: Arc::default() };
    keeper.act(server);
    tokio::spawn(keeper.run(following));
    Ok(())
}

/// Keeps the served kinds and the definitions' status right.
struct Keeper {
    kind: Arc<Kind>,
    /// The uids of definitions whose objects are being deleted.
    cleaning: Arc<Mutex<Vec<String>>>,
}

impl Keeper {
    async fn run(self, mut following: Following) {
        while let Some(Told { server, news, .. }) = following.next().await {
            let revision = server.storage.revision().await.unwrap_or(u64::MAX);
            match &news {
                News::Changes(events) => {
                    for event in events {
                        server.extensions.apply(&event.entry, event.deleted, revision);
                    }
                }
                News::Everything(listing) => server.extensions.replace(listing, |_| revision),
            }
            server.kinds.set_custom(server.extensions.kinds().into_iter());
            server.extensions.seen.reach(news.revision());
            self.act(&server);
        }
        if let Some(server) = following.server() {
            server.extensions.seen.end();
        }
    }

    /// Starts what the definitions need. Writes wait for this follower, so they have tasks of their own.
    fn act(&self, server: &Arc<ApiServer>) {
        for (name, wanted) in server.extensions.due(server.env.now()) {
            let (server, kind) = (Arc::clone(server), Arc::clone(&self.kind));
            tokio::spawn(async move { write_status(&server, &kind, &name, &wanted).await });
        }
        for definition in server.extensions.terminating() {
            let uid = meta::uid(&definition).to_owned();
            let mut cleaning = self.cleaning.lock().expect("no panic under this lock");
            if cleaning.contains(&uid) {
                continue;
            }
            cleaning.push(uid.clone());
            let (server, kind, cleaning) = (Arc::clone(server), Arc::clone(&self.kind), Arc::clone(&self.cleaning));
            tokio::spawn(async move {
                cleanup::run(&server, &kind, &definition).await;
                cleaning.lock().expect("no panic under this lock").retain(|known| *known != uid);
            });
        }
    }
}

/// Writes the status that was decided on, unless the definition has changed since: then another decision follows.
async fn write_status(server: &ApiServer, kind: &Arc<Kind>, name: &str, wanted: &Value) {
    let user = User::master(USER);
    let mut context = Context::new(&user);
    context.manager = MANAGER.to_owned();
    let seen = {
        let definitions = server.extensions.definitions.lock().expect("no panic under this lock");
        definitions.get(name).map(|definition| meta::resource_version(&definition.object).to_owned())
    };
    let Some(seen) = seen else { return };
    let make = |current: &Value| {
        let mut object = current.clone();
        object["status"] = wanted.clone();
        object["metadata"]["resourceVersion"] = seen.as_str().into();
        Ok(object)
    };
    if let Err(error) = server.change(&context, kind, "", name, Part::Status, make).await
        && !error.is_conflict()
        && !error.is_not_found()
    {
        tracing::warn!(%error, name, "cannot write the status of a CustomResourceDefinition");
    }
}
