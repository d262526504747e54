//! Priority and fairness: how many requests are answered at a time, and whose turn it is (KEP-1040).
//!
//! `classify` says which FlowSchema, priority level and flow a request belongs to; `levels` lets requests of a level start,
//! queues them by flow, and takes turns between the flows; `follow` keeps both up to date with the objects.
//!
//! Simpler than kube-apiserver's: every request takes one seat, flows have queues of their own instead of a shuffled hand of
//! shared ones, and what a level lends is decided at every request instead of every ten seconds.

mod classify;
pub(crate) mod follow;
mod levels;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::User;
use super::http::request::RequestInfo;
use classify::{Compiled, Schema};
pub(crate) use levels::Seat;
use levels::{Levels, Rejected};

/// How many requests are answered at a time altogether (`--max-requests-inflight` and `--max-mutating-requests-inflight`).
pub(crate) const SERVER_SEATS: u32 = 400 + 200;
/// How long a request waits for its turn (a quarter of `--request-timeout`).
const PATIENCE: Duration = Duration::from_secs(15);

/// The state of flow control.
pub(crate) struct FlowControl {
    compiled: RwLock<Arc<Compiled>>,
    levels: Arc<Levels>,
}

/// A request that may be answered. It keeps its seat until this is dropped.
pub(crate) struct Admitted {
    schema: Option<Arc<Schema>>,
    _seat: Option<Seat>,
}

impl Default for FlowControl {
    fn default() -> Self {
        Self { compiled: RwLock::default(), levels: Arc::new(Levels::new(SERVER_SEATS)) }
    }
}

impl FlowControl {
    /// Waits for the turn of a request.
    ///
    /// # Errors
    /// The request is refused: too many wait already, or it waited for too long.
    pub async fn admit(&self, user: &User, info: &RequestInfo) -> Result<Admitted, ()> {
        let compiled = Arc::clone(&self.compiled.read().expect("no panic under this lock"));
        // Until the objects have been read nothing is limited.
        let Some((schema, flow)) = compiled.classify(user, info) else {
            return Ok(Admitted { schema: None, _seat: None });
        };
        schema.counts.executing.add(&schema.counts.dispatched);
        let seat = match schema.exempt {
            true => Ok(None),
            false => Levels::take(&self.levels, schema, flow, PATIENCE).await.map(Some),
        };
        match seat {
            Ok(seat) => Ok(Admitted { schema: Some(Arc::clone(schema)), _seat: seat }),
            Err(why) => {
                schema.counts.executing.undo(&schema.counts.dispatched);
                schema.counts.rejected(why);
                Err(())
            }
        }
    }

    /// Uses other FlowSchemas and priority levels from now on.
    fn replace(&self, compiled: Compiled) {
        self.levels.configure(&compiled.levels);
        *self.compiled.write().expect("no panic under this lock") = Arc::new(compiled);
    }

    /// What `/metrics` tells of it.
    pub fn render(&self, out: &mut String) {
        let compiled = Arc::clone(&self.compiled.read().expect("no panic under this lock"));
        metrics(out, &compiled, &self.levels);
    }
}

impl Admitted {
    /// Tells the client how its request was classified.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Some(schema) = &self.schema else { return };
        for (name, uid) in
            [("x-kubernetes-pf-flowschema-uid", &schema.uid), ("x-kubernetes-pf-prioritylevel-uid", &schema.level_uid)]
        {
            if let Ok(value) = HeaderValue::from_str(uid) {
                headers.insert(name, value);
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(schema) = &self.schema {
            schema.counts.executing.subtract();
        }
    }
}

/// What happened to the requests of a FlowSchema. Kept when the schema changes.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    executing: Gauge,
    waiting: Gauge,
    dispatched: AtomicU64,
    rejected: [AtomicU64; Rejected::ALL.len()],
}

impl Counts {
    fn rejected(&self, why: Rejected) {
        self.rejected[why as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
struct Gauge(AtomicU64);

impl Gauge {
    fn add(&self, total: &AtomicU64) {
        self.0.fetch_add(1, Ordering::Relaxed);
        total.fetch_add(1, Ordering::Relaxed);
    }
    fn undo(&self, total: &AtomicU64) {
        self.subtract();
        total.fetch_sub(1, Ordering::Relaxed);
    }
    fn subtract(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn metrics(out: &mut String, compiled: &Compiled, levels: &Levels) {
    use std::fmt::Write as _;
    let mut family = |name: &str, kind: &str, help: &str, of: &dyn Fn(&Schema) -> u64| {
        let _ = write!(out, "# HELP apiserver_flowcontrol_{name} {help}\n# TYPE apiserver_flowcontrol_{name} {kind}\n");
        for schema in &compiled.schemas {
            let (flow, level) = (&schema.name, &schema.level);
            let value = of(schema);
            let _ =
                writeln!(out, "apiserver_flowcontrol_{name}{{flow_schema={flow:?},priority_level={level:?}}} {value}");
        }
    };
    family(
        "dispatched_requests_total",
        "counter",
        "Number of requests executed by API Priority and Fairness subsystem",
        &|schema| schema.counts.dispatched.load(Ordering::Relaxed),
    );
    family(
        "current_inqueue_requests",
        "gauge",
        "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
        &|schema| schema.counts.waiting.get(),
    );
    family(
        "current_executing_requests",
        "gauge",
        "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
        &|schema| schema.counts.executing.get() - schema.counts.waiting.get().min(schema.counts.executing.get()),
    );
    let name = "apiserver_flowcontrol_rejected_requests_total";
    let help = "Number of requests rejected by API Priority and Fairness subsystem";
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for schema in &compiled.schemas {
        for (why, count) in Rejected::ALL.iter().zip(&schema.counts.rejected) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let (flow, level, reason) = (&schema.name, &schema.level, why.reason());
                let labels = format!("flow_schema={flow:?},priority_level={level:?},reason={reason:?}");
                let _ = writeln!(out, "{name}{{{labels}}} {count}");
            }
        }
    }
    let name = "apiserver_flowcontrol_nominal_limit_seats";
    let help = "Nominal number of execution seats configured for each priority level";
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    for (level, seats) in levels.nominal() {
        let _ = writeln!(out, "{name}{{priority_level={level:?}}} {seats}");
    }
}
