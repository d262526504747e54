//! Carries DNS queries between the engine and [`super::answer`], and those for other names to the host's resolvers.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::zone::Zone;
use super::{Answer, Transport, answer, failure, fit, forward};
use crate::net::engine::{Dns, EngineHandle};
use crate::net::service_table::ServiceTable;

/// Questions that wait for the host's resolvers at once; more are dropped, and clients ask again.
const WAITING: usize = 1000;
/// How long a TCP connection may be silent (RFC 7766 6.2.3).
const SILENCE: Duration = Duration::from_secs(10);

/// The resolver at the engine's side.
pub struct DnsServer {
    shared: Arc<Shared>,
    engine: EngineHandle,
    runtime: Handle,
}

struct Shared {
    zone: Zone,
    table: watch::Receiver<Arc<ServiceTable>>,
    waiting: Arc<Semaphore>,
}

impl DnsServer {
    /// A resolver that answers from `table` and runs its tasks on the current runtime.
    pub fn new(zone: Zone, table: watch::Receiver<Arc<ServiceTable>>, engine: EngineHandle) -> Self {
        let shared = Shared { zone, table, waiting: Arc::new(Semaphore::new(WAITING)) };
        Self { shared: Arc::new(shared), engine, runtime: Handle::current() }
    }
}

impl Dns for DnsServer {
    fn query(&self, query: &[u8], client: (Ipv4Addr, u16)) -> Option<Vec<u8>> {
        let decided = self.shared.decide(query, Transport::Udp);
        match decided {
            Answer::Now(bytes) => return Some(bytes),
            Answer::Silence => return None,
            Answer::Forward | Answer::Chase(_) => {}
        }
        let permit = self.shared.waiting.clone().try_acquire_owned().ok()?;
        let (engine, query, dns) = (self.engine.clone(), query.to_vec(), (self.shared.zone.dns_ip, 53));
        self.runtime.spawn(async move {
            if let Some(reply) = elsewhere(decided, query, Transport::Udp).await {
                engine.datagram(dns, client, reply);
            }
            drop(permit);
        });
        None
    }

    fn stream(&self, stream: StdUnixStream) {
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            let Ok(mut stream) = UnixStream::from_std(stream) else { return };
            // The client has gone, or was silent for too long: both simply end the connection.
            while let Ok(Ok(query)) = tokio::time::timeout(SILENCE, read(&mut stream)).await {
                let reply = match shared.decide(&query, Transport::Tcp) {
                    Answer::Now(bytes) => bytes,
                    Answer::Silence => return,
                    decided => match elsewhere(decided, query, Transport::Tcp).await {
                        Some(reply) => reply,
                        None => return,
                    },
                };
                let Ok(length) = u16::try_from(reply.len()) else { return };
                if stream.write_all(&[&length.to_be_bytes(), &reply[..]].concat()).await.is_err() {
                    return;
                }
            }
        });
    }
}

impl Shared {
    fn decide(&self, query: &[u8], transport: Transport) -> Answer {
        let table = self.table.borrow().clone();
        answer(query, transport, &self.zone, &table)
    }
}

async fn read(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut query = vec![0; usize::from(length)];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

/// Asks the host's resolvers; when none answers, the client learns that at once.
async fn elsewhere(decided: Answer, query: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
    let complete = match decided {
        Answer::Chase(chase) => {
            let reply = forward::ask(&chase.upstream()?, transport).await;
            chase.complete(reply.as_deref())
        }
        _ => match forward::ask(&query, transport).await {
            Some(reply) => Answer::Now(fit(&query, reply, transport)),
            None => failure(&query, transport),
        },
    };
    match complete {
        Answer::Now(bytes) => Some(bytes),
        _ => None,
    }
}
