//! `dashboard`: server-rendered pages over the API, for this machine only, behind a link that works once.

mod pages;
mod server;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Addon, Context, Running};

/// The entry of the list.
pub const ADDON: Addon = Addon {
    name: "dashboard",
    about: "pages that show the cluster in a browser",
    default: false,
    start: |context| Box::pin(async move { Ok(Box::new(start(context).await?) as Box<dyn Running>) }),
};

struct Dashboard {
    server: Arc<server::Server>,
    stop: watch::Sender<bool>,
}

async fn start(context: Arc<Context>) -> anyhow::Result<Dashboard> {
    let listener = TcpListener::bind((context.host, 0)).await?;
    let (stop, stopped) = watch::channel(false);
    let server = Arc::new(server::Server::new(context, listener.local_addr()?));
    tokio::spawn(server.clone().serve(listener, stopped));
    Ok(Dashboard { server, stop })
}

#[async_trait]
impl Running for Dashboard {
    async fn stop(&self, _forever: bool) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        Ok(())
    }

    async fn link(&self) -> Option<String> {
        Some(self.server.link())
    }
}
