//! An API server over a store on disk, with 32 clients on connections of their own: killed again and again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mini::api::Gvr;
use mini::api::meta::{self, text};
use mini::apiserver::testing::{self, ADMIN_TOKEN};
use mini::client::https::{Access, HttpsApi};
use mini::client::{Api, DeleteOptions, ListOptions};
use mini::env::Env;
use mini::storage::{self, Limits};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::history::{Action, CLIENTS, Client, History, Note, Outcome, Store};
use crate::{Lines, as_child, child, kill, rounds, runtime, say};

fn config_maps() -> Gvr {
    Gvr { group: "".into(), version: "v1".into(), resource: "configmaps".into() }
}

fn version(object: &Value) -> u64 {
    meta::resource_version(object).parse().expect("a number")
}

fn tag(object: &Value) -> String {
    text(&object["data"]["tag"]).to_owned()
}

struct Remote(HttpsApi);

#[async_trait]
impl Store for Remote {
    async fn perform(&self, key: &str, action: &Action) -> Option<Outcome> {
        let (gvr, namespace) = (config_maps(), "default");
        let answer = match action {
            Action::Read => self.0.get(&gvr, namespace, key).await.map(|object| {
                let (revision, tag) = (version(&object), tag(&object));
                Outcome::Found { revision, tag }
            }),
            Action::Put { expect, tag } => {
                let mut object = json!({"metadata": {"name": key}, "data": {"tag": tag}});
                let written = if *expect == 0 {
                    self.0.create(&gvr, namespace, "", "", object).await
                } else {
                    object["metadata"]["resourceVersion"] = expect.to_string().into();
                    self.0.update(&gvr, namespace, key, "", object).await
                };
                written.map(|object| Outcome::Written { revision: version(&object) })
            }
            Action::Delete { expect } => {
                let options = DeleteOptions { resource_version: Some(expect.to_string()), ..DeleteOptions::default() };
                self.0.delete(&gvr, namespace, key, &options).await.map(|_| Outcome::Deleted { revision: None })
            }
        };
        match (answer, action) {
            (Ok(outcome), _) => Some(outcome),
            (Err(status), Action::Read) if status.is_not_found() => Some(Outcome::Absent),
            (Err(status), _) if status.is_conflict() || status.is_already_exists() || status.is_not_found() => {
                Some(Outcome::Refused)
            }
            // The server is dead.
            (Err(_), _) => None,
        }
    }
}

/// Serves for ever, and tells where.
async fn serve_for_ever(folder: &Path) {
    let storage = storage::open_sled(folder, Limits::default()).expect("it opens");
    let server = testing::start(storage, Env::real()).await;
    say(&json!({"server": format!("https://{}", server.address), "ca": server.ca_pem}).to_string());
    std::future::pending().await
}

/// A client with a connection of its own.
fn connect(server: &Value) -> HttpsApi {
    let access = Access {
        server: text(&server["server"]).to_owned(),
        ca_pem: text(&server["ca"]).as_bytes().to_vec(),
        cert_pem: Vec::new(),
        key_pem: Vec::new(),
        token: ADMIN_TOKEN.to_owned(),
    };
    HttpsApi::new(&access, "test", true).expect("a client")
}

/// What the history says, and when it is time to kill.
struct Judge {
    history: Mutex<History>,
    /// How many notes are still to come.
    left: Mutex<u64>,
    time: Notify,
}

impl Judge {
    fn note(&self, note: Note) {
        self.history.lock().expect("no panic under this lock").note(note).unwrap_or_else(|why| panic!("{why}"));
        let mut left = self.left.lock().expect("no panic under this lock");
        if *left == 1 {
            self.time.notify_one();
        }
        *left = left.saturating_sub(1);
    }
}

#[test]
fn what_the_server_acknowledged_survives_a_kill() {
    if let Some(folder) = as_child() {
        return runtime().block_on(serve_for_ever(&folder));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let env = Env::real();
    let judge = Arc::new(Judge { history: Mutex::default(), left: Mutex::new(0), time: Notify::new() });
    runtime().block_on(async {
        for round in 0..=rounds() {
            let test = "https::what_the_server_acknowledged_survives_a_kill";
            let mut child = child(test, dir.path()).spawn().expect("it starts");
            let ready = Lines::of(&mut child).next().expect("the server starts");
            let server: Value = serde_json::from_str(&ready).expect("it says where it is");
            let list =
                connect(&server).list(&config_maps(), "default", &ListOptions::default()).await.expect("it answers");
            let ours = list.items.iter().filter(|object| object["data"]["tag"].is_string());
            let found: BTreeMap<_, _> =
                ours.map(|object| (meta::name(object).to_owned(), (version(object), tag(object)))).collect();
            let revision = list.resource_version.parse().expect("a number");
            let restarted = judge.history.lock().expect("no panic under this lock").restarted(revision, &found);
            restarted.unwrap_or_else(|why| panic!("before round {round}: {why}"));
            *judge.left.lock().expect("no panic under this lock") = 1 + env.below(3000);
            let clients = (0..CLIENTS).map(|number| {
                let note = {
                    let judge = Arc::clone(&judge);
                    move |note| judge.note(note)
                };
                Client { store: Remote(connect(&server)), note, number }.work()
            });
            let mut clients = clients.collect::<tokio::task::JoinSet<()>>();
            tokio::select! {
                () = judge.time.notified() => {}
                ended = clients.join_next() => panic!("a client got no answer before the kill: {ended:?}"),
            }
            kill(&mut child);
            clients.join_all().await;
        }
    });
    let acknowledged = judge.history.lock().expect("no panic under this lock").acknowledged();
    println!("{} rounds, {acknowledged} acknowledged writes", rounds());
    assert!(acknowledged > 0, "the clients wrote");
}
