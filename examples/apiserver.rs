//! Serves the API over memory storage on a free port of 127.0.0.1 and writes a kubeconfig to the path given.

use mini::apiserver::testing;
use mini::env::Env;
use mini::storage::{Limits, memory};

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let path = std::env::args().nth(1).expect("the path of the kubeconfig to write");
    let started = std::time::Instant::now();
    let server = testing::start(memory(Limits::default()), Env::real()).await;
    eprintln!("serving on {} after {:?}", server.address, started.elapsed());
    std::fs::write(path, server.kubeconfig()).expect("the kubeconfig can be written");
    std::future::pending::<()>().await;
}
