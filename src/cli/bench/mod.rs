//! `mini bench`: measures the promises of SPECIFICATION.md on this machine, one file per subject. What needs a cluster asks a
//! running one, over HTTPS as any client does; client and server share the machine, as they do on a laptop.

mod growth;
mod objects;
mod pods;
mod process;
mod samples;
mod scale;
mod scheduler;
mod session;
mod start;
mod storage;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use futures_util::future::BoxFuture;
use serde_json::json;

use super::{Global, table};
use session::Session;

/// Options of `bench`.
#[derive(Args)]
pub struct Bench {
    /// Which benchmarks (all when none is named)
    names: Vec<String>,
    /// List the benchmarks
    #[arg(long)]
    list: bool,
    /// Seconds over which the idle cluster is watched
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Pods of the benchmark `scale`
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// ConfigMaps of the benchmark `growth`, up to 200,000
    #[arg(long, default_value_t = 50_000)]
    objects: usize,
    /// `text` or `json`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// What benchmarks share.
struct Context {
    global: Global,
    seconds: u64,
    pods: usize,
    objects: usize,
}

impl Context {
    /// The same for another profile.
    fn in_profile(&self, name: &str) -> Self {
        let mut global = self.global.clone();
        global.profile = name.to_owned();
        Self { global, ..*self }
    }

    async fn session(&self) -> Result<Session> {
        Session::open(&self.global).await
    }
}

/// One measured number beside what is promised and what others do.
struct Row {
    what: String,
    measured: String,
    goal: &'static str,
    peer: &'static str,
}

impl Row {
    fn new(what: impl Into<String>, measured: impl Into<String>, goal: &'static str, peer: &'static str) -> Self {
        Self { what: what.into(), measured: measured.into(), goal, peer }
    }
}

struct Benchmark {
    name: &'static str,
    about: &'static str,
    run: fn(&Context) -> BoxFuture<'_, Result<Vec<Row>>>,
}

/// All benchmarks. Peers are the figures of DESIGN.md: measured on a 2-core machine, or documented.
const ALL: &[Benchmark] = &[
    Benchmark { name: "binary", about: "The size of the binary", run: |_| Box::pin(process::binary()) },
    Benchmark {
        name: "start",
        about: "Starting a new cluster and starting it again (in a profile of its own)",
        run: |context| Box::pin(start::run(context)),
    },
    Benchmark {
        name: "idle",
        about: "Memory, CPU time and disk writes of the cluster while nobody asks anything",
        run: |context| Box::pin(process::idle(context)),
    },
    Benchmark {
        name: "storage",
        about: "Durable writes into the storage alone, with 1, 8 and 64 writers",
        run: |context| Box::pin(storage::run(context)),
    },
    Benchmark {
        name: "objects",
        about: "Creating and reading ConfigMaps of 1 KiB over HTTP/1.1 and HTTP/2, lists of 5,000, a watch by 100 clients",
        run: |context| Box::pin(objects::run(context)),
    },
    Benchmark {
        name: "growth",
        about: "Memory, disk, lists and starts with 1,000 to 50,000 ConfigMaps (--objects; in a profile of its own)",
        run: |context| Box::pin(growth::run(context)),
    },
    Benchmark {
        name: "pods",
        about: "Pods from create to Running, 100 at once, their deletion, and the rolling update of a StatefulSet",
        run: |context| Box::pin(pods::run(context)),
    },
    Benchmark {
        name: "scheduler",
        about: "The scheduler's decisions alone: 10,000 pods on 100, 1,000 and 5,000 nodes",
        run: |_| Box::pin(scheduler::run()),
    },
    Benchmark {
        name: "scale",
        about: "Deployments with 10,000 pods (--pods) on nodes of the API only, a node drained, and as many pods scheduled at once (in a profile of its own)",
        run: |context| Box::pin(scale::run(context)),
    },
];

impl Bench {
    /// Runs it.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        if self.list {
            let rows: Vec<_> = ALL.iter().map(|b| vec![b.name.to_owned(), b.about.to_owned()]).collect();
            print!("{}", table::format(&["NAME", "WHAT"], &rows));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(unknown) = self.names.iter().find(|name| ALL.iter().all(|b| b.name != **name)) {
            bail!("there is no benchmark {unknown:?}; 'mini bench --list' shows those that are");
        }
        let context =
            Context { global: global.clone(), seconds: self.seconds, pods: self.pods.max(1), objects: self.objects };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut failed = false;
        let mut lines = Vec::new();
        for benchmark in ALL.iter().filter(|b| self.names.is_empty() || self.names.iter().any(|name| name == b.name)) {
            eprintln!("{}: {} …", benchmark.name, benchmark.about);
            match runtime.block_on((benchmark.run)(&context)) {
                Ok(rows) if self.output == "json" => {
                    for Row { what, measured, goal, peer } in rows {
                        let name = benchmark.name;
                        println!(
                            "{}",
                            json!({"name": name, "what": what, "measured": measured, "goal": goal, "peer": peer})
                        );
                    }
                }
                Ok(rows) => {
                    lines.extend(
                        rows.into_iter().map(|r| vec![r.what, r.measured, r.goal.to_owned(), r.peer.to_owned()]),
                    );
                }
                Err(error) => {
                    eprintln!("{}: {error:#}", benchmark.name);
                    failed = true;
                }
            }
        }
        if !lines.is_empty() {
            print!("{}", table::format(&["WHAT", "MEASURED", "GOAL", "OTHERS"], &lines));
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
