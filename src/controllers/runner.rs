//! All the I/O of controllers: takes keys from the queue, lets the controller decide, carries the plan out, and
//! holds the key until the caches show what was written.

use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::caches::Caches;
use super::plan::{Action, Plan, Step, Told, Words, Write, Written};
use super::{Controller, Enqueue};
use crate::api::kinds::gvr::SUBJECT_ACCESS_REVIEWS;
use crate::api::{Status, StatusResult, meta};
use crate::client::cache::Key;
use crate::client::{Api, DeleteOptions, ListOptions, Recorder, WorkQueue};
use crate::env::Env;

/// Keys of one controller that are in work at the same time.
const WORKERS: usize = 16;

/// What a runner needs beside its controller.
#[derive(Clone)]
pub struct Context {
    /// What the controllers read.
    pub caches: Caches,
    /// Time.
    pub env: Env,
    /// Ends the runner.
    pub stop: CancellationToken,
    /// Who waits for the runner's tasks.
    pub tasks: TaskTracker,
}

/// Runs a controller until `context.stop`.
pub fn spawn(controller: Arc<dyn Controller>, api: Arc<dyn Api>, context: Context) {
    let recorder = Recorder::new(api.clone(), context.env.clone(), controller.component(), "");
    let queue = WorkQueue::default();
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = context.caches.synced() => {}
            () = context.stop.cancelled() => return,
        }
        let adder = queue.clone();
        let delayer = queue.clone();
        let enqueue = Enqueue::new(move |key| adder.add(key), move |key, delay| delayer.add_after(key, delay));
        controller.watch(&context.caches, &enqueue);
        let room = Arc::new(Semaphore::new(WORKERS));
        loop {
            let key = tokio::select! {
                key = queue.next() => match key { Some(key) => key, None => return },
                () = context.stop.cancelled() => return,
            };
            let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (controller, api, recorder) = (controller.clone(), api.clone(), recorder.clone());
            let (queue, run) = (queue.clone(), context.clone());
            context.tasks.spawn(async move {
                process(&*controller, &*api, &recorder, &queue, &run, key, permit).await;
            });
        }
    });
}

async fn process(
    controller: &dyn Controller,
    api: &dyn Api,
    recorder: &Recorder,
    queue: &WorkQueue<Key>,
    context: &Context,
    key: Key,
    permit: tokio::sync::OwnedSemaphorePermit,
) {
    controller.ask(api, &context.caches, &key).await;
    let plan = controller.reconcile(&context.caches, &key, context.env.now());
    let requeue_after = plan.requeue_after;
    let (written, failure) = execute(api, plan, &|told, answer| tell(recorder, told, answer)).await;
    drop(permit);
    tokio::select! {
        () = hold(&context.caches, &written) => {}
        () = context.stop.cancelled() => {}
    }
    let is_undone =
        |write: &Written| context.caches.showing(&write.gvr).iter().any(|cache| write.is_undone_in(&**cache));
    if written.iter().any(is_undone) {
        queue.add(key.clone());
    }
    match failure {
        None => queue.forget(&key),
        Some(status) => {
            let delay = queue.add_failed(key.clone());
            // A lost race is everyday life; its retry sees the newer state.
            if status.is_conflict() {
                tracing::debug!(controller = controller.name(), %key, error = %status, "trying again in {delay:?}");
            } else {
                tracing::info!(controller = controller.name(), %key, error = %status, "trying again in {delay:?}");
            }
        }
    }
    if let Some(delay) = requeue_after {
        queue.add_after(key.clone(), delay);
    }
    queue.done(&key);
}

/// Waits until every cache that shows a written resource has seen the write (the hold rule).
async fn hold(caches: &Caches, written: &[Written]) {
    for write in written {
        for cache in caches.showing(&write.gvr) {
            let mut progress = cache.progress();
            while !write.is_seen_by(&*cache) && progress.changed().await.is_ok() {}
        }
    }
}

/// Carries a plan out. `tell` hears of every write that has something to tell.
pub async fn execute(
    api: &dyn Api,
    plan: Plan,
    tell: &(dyn Fn(&Told, Result<&str, &Status>) + Sync),
) -> (Vec<Written>, Option<Status>) {
    let mut written = Vec::new();
    let mut failure = None;
    for step in plan.steps {
        let batches = match step {
            Step::One(action) => vec![vec![action]],
            Step::All(actions) => vec![actions],
            Step::SlowStart(actions) => slow_start(actions),
        };
        for batch in batches {
            let answers = join_all(batch.iter().map(|action| perform(api, action, tell))).await;
            for answer in answers {
                match answer {
                    Ok(writes) => written.extend(writes),
                    Err(status) => failure = failure.or(Some(status)),
                }
            }
            if failure.is_some() {
                break;
            }
        }
        if failure.is_some() {
            break;
        }
    }
    if let (Some(status), Some(then)) = (&failure, plan.on_failure) {
        for action in then(status) {
            if let Ok(writes) = perform(api, &action, tell).await {
                written.extend(writes);
            }
        }
    }
    (written, failure)
}

/// Batches of 1, 2, 4, ….
fn slow_start(mut actions: Vec<Action>) -> Vec<Vec<Action>> {
    let mut batches = Vec::new();
    let mut size = 1;
    while !actions.is_empty() {
        let rest = actions.split_off(size.min(actions.len()));
        batches.push(std::mem::replace(&mut actions, rest));
        size *= 2;
    }
    batches
}

fn perform<'a>(
    api: &'a dyn Api,
    action: &'a Action,
    tell: &'a (dyn Fn(&Told, Result<&str, &Status>) + Sync),
) -> BoxFuture<'a, StatusResult<Vec<Written>>> {
    Box::pin(async move {
        let answer = write(api, &action.write).await;
        // Somebody else has done it: no failure, and not our news.
        if answer.as_ref().is_err_and(|status| action.tolerate.contains(&status.reason.as_str())) {
            return Ok(Vec::new());
        }
        if let Some(told) = &action.told {
            match &answer {
                Ok(written) => tell(told, Ok(written.last().map_or("", |write| &write.key.name))),
                Err(status) => tell(told, Err(status)),
            }
        }
        answer
    })
}

async fn write(api: &dyn Api, write: &Write) -> StatusResult<Vec<Written>> {
    let (gvr, answer) = match write {
        Write::Nothing => return Ok(Vec::new()),
        Write::Create { gvr, namespace, object } => (gvr, api.create(gvr, namespace, "", "", object.clone()).await?),
        Write::Update { gvr, key, subresource, object } => {
            (gvr, api.update(gvr, &key.namespace, &key.name, subresource, object.clone()).await?)
        }
        Write::Patch { gvr, key, subresource, patch } => {
            (gvr, api.patch(gvr, &key.namespace, &key.name, subresource, patch.clone()).await?)
        }
        Write::Delete { gvr, key, options } => {
            let answer = api.delete(gvr, &key.namespace, &key.name, options).await?;
            // A server may answer with a Status instead of the object.
            let mut written = Written::of(gvr, &answer, true);
            written.key = key.clone();
            written.uid = options.uid.clone().unwrap_or(written.uid);
            return Ok(vec![written]);
        }
        Write::DeleteAll { gvr, namespace } => {
            for item in api.list(gvr, namespace, &ListOptions::default()).await?.items {
                match api.delete(gvr, namespace, meta::name(&item), &DeleteOptions::default()).await {
                    Err(status) if !status.is_not_found() => return Err(status),
                    _ => {}
                }
            }
            return Ok(Vec::new());
        }
        Write::ExpectNone { gvr, namespace } => {
            let left = api.list(gvr, namespace, &ListOptions::default()).await?.items.len();
            let message = format!("unexpected items still remain in namespace: {namespace} for gvr: {gvr:?}");
            return if left == 0 { Ok(Vec::new()) } else { Err(Status::new(409, "Conflict", message)) };
        }
        Write::ExpectAllowed { review } => {
            let answer = api.create(&SUBJECT_ACCESS_REVIEWS, "", "", "", review.clone()).await?;
            let message = "subject access review was not approved";
            return match answer["status"]["allowed"] == true {
                true => Ok(Vec::new()),
                false => Err(Status::new(403, "Forbidden", message)),
            };
        }
        Write::ExpectUnused { gvr, namespace, name, uses } => {
            let all = api.list(gvr, namespace, &ListOptions::default()).await?.items;
            let message = |user: &str| format!("{} {user} uses {name} after all", gvr.qualified());
            return match all.iter().find(|object| uses(object, name)) {
                Some(user) => Err(Status::new(409, "Conflict", message(meta::name(user)))),
                None => Ok(Vec::new()),
            };
        }
        Write::ExpectAbsent { gvr, key, uid } => {
            return match api.get(gvr, &key.namespace, &key.name).await {
                Ok(object) if uid.is_empty() || meta::uid(&object) == uid => {
                    Err(Status::new(409, "Conflict", format!("{} {key} is there after all", gvr.qualified())))
                }
                Err(status) if !status.is_not_found() => Err(status),
                _ => Ok(Vec::new()),
            };
        }
    };
    Ok(vec![Written::of(gvr, &answer, false)])
}

fn tell(recorder: &Recorder, told: &Told, answer: Result<&str, &Status>) {
    let say = |words: &Option<Words>, mark: &str, with: &str| {
        if let Some((type_, reason, message)) = words {
            recorder.about(told.regarding.clone(), *type_, reason, message.replace(mark, with));
        }
    };
    match answer {
        Ok(name) => say(&told.success, "{name}", name),
        // What is gone because its namespace goes is nobody's news.
        Err(status) if status.details["causes"][0]["reason"] == "NamespaceTerminating" => {}
        Err(status) => say(&told.failure, "{error}", &status.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_double() {
        let actions = vec![Action::write(Write::Nothing); 11];
        let sizes: Vec<usize> = slow_start(actions).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 2, 4, 4]);
    }
}
