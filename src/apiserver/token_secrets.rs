//! Secrets of type `kubernetes.io/service-account-token`: filled with a token of the account that they name, and deleted
//! with it.
//!
//! This is the tokens controller of Kubernetes. It lives here because the key that signs tokens does not leave the API server.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::following::{Following, Told};
use super::registry::delete_options::DeleteOptions;
use super::registry::update::Part;
use super::registry::{Context, key, prefix, storage_failed};
use super::{ApiServer, User};
use crate::api::meta::{self, text};
use crate::api::{Status, StatusResult};
use crate::storage::{Entry, Event, News};

/// The type of these Secrets.
pub(crate) const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// Who fills them in.
const CONTROLLER: &str = "system:serviceaccount:kube-system:tokens-controller";

/// What becomes of a Secret.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// It is as it should be, or none of these.
    Keep,
    /// Its account is not there.
    Delete,
    /// It lacks a token, the authority, or the account's uid.
    Fill,
}

fn verdict(secret: &Value, account: Option<&Value>, authority: &str) -> Verdict {
    if text(&secret["type"]) != TYPE || meta::is_terminating(secret) {
        return Verdict::Keep;
    }
    let wanted = meta::annotation(secret, UID).filter(|uid| !uid.is_empty());
    let account = account.filter(|account| wanted.is_none_or(|uid| uid == meta::uid(account)));
    if account.is_none() {
        return Verdict::Delete;
    }
    let data = &secret["data"];
    let complete = wanted.is_some()
        && !text(&data["token"]).is_empty()
        && text(&data["ca.crt"]) == authority
        && text(&data["namespace"]) == STANDARD.encode(meta::namespace(secret));
    if complete { Verdict::Keep } else { Verdict::Fill }
}

/// Begins to follow Secrets and accounts.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let mut following = Following::new(server, "token Secrets");
    let there = following.add(Followed::Secrets, &prefix("", "secrets", "")).await?;
    following.add(Followed::Accounts, &prefix("", "serviceaccounts", "")).await?;
    sync_all(server, &there.entries).await;
    tokio::spawn(run(following));
    Ok(())
}

/// What a Secret depends on.
#[derive(Clone, Copy)]
enum Followed {
    Secrets,
    Accounts,
}

async fn run(mut following: Following<Followed>) {
    while let Some(Told { server, of, news }) = following.next().await {
        match news {
            News::Changes(events) => {
                for event in events {
                    match (of, event.deleted) {
                        (Followed::Accounts, true) => of_deleted_account(&server, &event).await,
                        (Followed::Secrets, false) => sync(&server, &event.entry.value()).await,
                        _ => {}
                    }
                }
            }
            // Accounts may have gone unseen: each Secret looks for its own.
            News::Everything(_) => match server.storage.list(&prefix("", "secrets", ""), None, 0, 0).await {
                Ok(listing) => sync_all(&server, &listing.entries).await,
                Err(error) => tracing::warn!(%error, "cannot keep token Secrets"),
            },
        }
    }
}

async fn sync_all(server: &ApiServer, secrets: &[Arc<Entry>]) {
    for entry in secrets {
        sync(server, &entry.value()).await;
    }
}

/// The Secrets of an account go with it.
async fn of_deleted_account(server: &ApiServer, event: &Event) {
    let account = event.entry.value();
    let prefix = prefix("", "secrets", meta::namespace(&account));
    let Ok(listing) = server.storage.list(&prefix, None, 0, 0).await else { return };
    for secret in listing.entries.iter().map(|entry| entry.value()) {
        if meta::annotation(&secret, NAME) == Some(meta::name(&account)) {
            sync(server, &secret).await;
        }
    }
}

async fn sync(server: &ApiServer, secret: &Value) {
    if text(&secret["type"]) != TYPE {
        return;
    }
    if let Err(status) = try_sync(server, secret).await
        && !status.is_not_found()
        && !status.is_conflict()
    {
        tracing::warn!(%status, secret = meta::name(secret), "cannot keep a token Secret");
    }
}

async fn try_sync(server: &ApiServer, secret: &Value) -> Result<(), Status> {
    let (namespace, name) = (meta::namespace(secret), meta::name(secret));
    let account_key = key("", "serviceaccounts", namespace, meta::annotation(secret, NAME).unwrap_or_default());
    let account = server.storage.get(&account_key).await.map_err(storage_failed)?.map(|entry| entry.value());
    let authority = STANDARD.encode(&server.options.client_ca_pem);
    let kind = server.known_kind("", "v1", "secrets")?;
    let user = User::master(CONTROLLER);
    let context = Context::new(&user);
    match verdict(secret, account.as_deref(), &authority) {
        Verdict::Keep => {}
        Verdict::Delete => {
            let options = DeleteOptions { uid: Some(meta::uid(secret).to_owned()), ..DeleteOptions::default() };
            server.delete(&context, &kind, namespace, name, &options).await?;
        }
        Verdict::Fill => {
            let account = account.expect("without an account the Secret is deleted");
            let token = server.tokens.issue_for_secret(namespace, name, meta::name(&account), meta::uid(&account));
            let token = token.map_err(Status::internal)?;
            let make = |current: &Value| Ok(filled(current, &account, &authority, &token));
            server.change(&context, &kind, namespace, name, Part::Main, make).await?;
        }
    }
    Ok(())
}

/// The Secret with what it lacked. A token that is there stays.
fn filled(secret: &Value, account: &Value, authority: &str, token: &str) -> Value {
    let mut secret = secret.clone();
    secret["metadata"]["annotations"][UID] = meta::uid(account).into();
    let namespace = STANDARD.encode(meta::namespace(&secret));
    let data = &mut secret["data"];
    if !data.is_object() {
        *data = json!({});
    }
    data["ca.crt"] = authority.into();
    data["namespace"] = namespace.into();
    if text(&data["token"]).is_empty() {
        data["token"] = STANDARD.encode(token).into();
    }
    secret
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt as _;

    use super::*;
    use crate::api::kinds::gvr;
    use crate::apiserver::local::{Delete, Event, Query};
    use crate::apiserver::testing;
    use crate::env::Env;
    use crate::storage::{Limits, memory};

    fn secret(account: &str) -> Value {
        json!({"metadata": {"name": "t", "namespace": "default", "annotations": {NAME: account}}, "type": TYPE})
    }

    #[test]
    fn secrets_follow_their_account() {
        let account = json!({"metadata": {"name": "a", "uid": "1"}});
        assert_eq!(verdict(&secret("a"), Some(&account), "ca"), Verdict::Fill);
        let full = filled(&secret("a"), &account, "ca", "token");
        assert_eq!(verdict(&full, Some(&account), "ca"), Verdict::Keep);
        assert_eq!(verdict(&full, Some(&account), "other"), Verdict::Fill);
        assert_eq!(verdict(&full, None, "ca"), Verdict::Delete);
        let again = json!({"metadata": {"name": "a", "uid": "2"}});
        assert_eq!(verdict(&full, Some(&again), "ca"), Verdict::Delete);
        assert_eq!(verdict(&json!({"type": "Opaque"}), None, "ca"), Verdict::Keep);
    }

    #[tokio::test]
    async fn the_token_is_good_until_its_secret_is_gone() {
        let test = testing::start(memory(Limits::default()), Env::real()).await;
        let (server, admin) = (&test.server, User::master("admin"));
        let account = json!({"metadata": {"name": "a"}});
        server.local_create(&admin, &gvr::SERVICE_ACCOUNTS, "default", "", "", account).await.expect("it is new");
        let mut asked = secret("a");
        asked["metadata"].as_object_mut().expect("an object").remove("namespace");
        server.local_create(&admin, &gvr::SECRETS, "default", "", "", asked).await.expect("it is valid");
        let query = Query { gvr: &gvr::SECRETS, namespace: "default", labels: "", fields: "metadata.name=t" };
        let mut events = server.local_watch(&admin, query, "", false).await.expect("a watch");
        let full = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let event = events.next().await.expect("the watch goes on").expect("no failure");
                if let Event::Added(secret) | Event::Modified(secret) = event
                    && secret["data"]["token"].is_string()
                {
                    return secret;
                }
            }
        });
        let full = full.await.expect("it is filled in");
        let token = STANDARD.decode(text(&full["data"]["token"])).expect("base64");
        let token = String::from_utf8(token).expect("a token is text");
        let review = server.tokens.review(server, &token, &[]).await.expect("it is good");
        assert_eq!(review.user.name, "system:serviceaccount:default:a");
        server.local_delete(&admin, &gvr::SECRETS, "default", "t", &Delete::default()).await.expect("it is there");
        assert!(server.tokens.review(server, &token, &[]).await.is_err());
    }
}
