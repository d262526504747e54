//! SPDY/3.1 as Kubernetes' older clients speak it for exec, attach and port-forward: the server side of a connection.
//!
//! Like moby/spdystream on the other end it has no flow control: TCP's does, per connection.

pub mod frame;
pub mod headers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::{Mutex, mpsc};

use frame::Frame;
use headers::{Headers, Packer, Unpacker};

/// Frames of one stream that wait for their reader; then the connection waits.
const WAITING_FRAMES: usize = 256;
/// More streams at once are refused.
const MOST_STREAMS: usize = 2000;
/// Data is sent in frames of at most this size.
const CHUNK: usize = 32 << 10;

/// The bytes below: a TCP connection, or a WebSocket that tunnels.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

struct Out {
    half: WriteHalf<Box<dyn Transport>>,
    packer: Packer,
}

/// The sending side of a connection; cloning shares it.
#[derive(Clone)]
pub struct Writer {
    out: Arc<Mutex<Out>>,
    closed: Arc<AtomicBool>,
}

impl Writer {
    async fn write(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut out = self.out.lock().await;
        for part in parts {
            out.half.write_all(part).await?;
        }
        out.half.flush().await
    }

    async fn reply(&self, id: u32) -> io::Result<()> {
        let mut out = self.out.lock().await;
        let block = out.packer.pack(&Headers::new())?;
        out.half.write_all(&frame::syn_reply(id, &block)).await?;
        out.half.flush().await
    }

    /// Says that no more comes and closes the connection.
    pub async fn close(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        // The other end may be gone already.
        let _ = self.write(&[&frame::go_away(0)]).await;
        let _ = self.out.lock().await.half.shutdown().await;
    }
}

/// The sending side of a stream.
#[derive(Clone)]
pub struct Sender {
    id: u32,
    writer: Writer,
}

impl Sender {
    /// Sends bytes.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn send(&self, data: &[u8]) -> io::Result<()> {
        for chunk in data.chunks(CHUNK) {
            self.writer.write(&[&frame::data_head(self.id, false, chunk.len()), chunk]).await?;
        }
        Ok(())
    }

    /// Sends the end of this direction.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn finish(&self) -> io::Result<()> {
        self.writer.write(&[&frame::data_head(self.id, true, 0)]).await
    }

    /// Ends the stream at once.
    pub async fn reset(&self) {
        // The other end may be gone already.
        let _ = self.writer.write(&[&frame::rst(self.id, 5)]).await;
    }
}

/// A stream that the client opened.
pub struct Stream {
    /// Its headers.
    pub headers: Headers,
    /// The sending side.
    pub sender: Sender,
    /// What comes; the end is the end of the channel.
    pub data: mpsc::Receiver<Bytes>,
}

impl Stream {
    /// The value of a header; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

/// A connection: its new streams come out of the channel, which ends with it.
pub fn serve(transport: Box<dyn Transport>) -> io::Result<(Writer, mpsc::Receiver<Stream>)> {
    let (reader, half) = tokio::io::split(transport);
    let out = Arc::new(Mutex::new(Out { half, packer: Packer::new()? }));
    let writer = Writer { out, closed: Arc::default() };
    let (streams, receiver) = mpsc::channel(WAITING_FRAMES);
    let connection = writer.clone();
    tokio::spawn(async move {
        if let Err(error) = read(reader, &connection, streams).await {
            tracing::debug!(%error, "a SPDY connection ended");
        }
    });
    Ok((writer, receiver))
}

async fn read(mut reader: impl AsyncRead + Unpin, writer: &Writer, streams: mpsc::Sender<Stream>) -> io::Result<()> {
    let mut unpacker = Unpacker::new();
    let mut open: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let mut last = 0;
    while let Some(frame) = frame::read(&mut reader).await? {
        match frame {
            Frame::SynStream { id, fin, block } => {
                let headers = unpacker.unpack(&block)?;
                if id <= last || id % 2 == 0 || open.len() >= MOST_STREAMS {
                    writer.write(&[&frame::rst(id, 1)]).await?;
                    continue;
                }
                last = id;
                let (data, receiver) = mpsc::channel(WAITING_FRAMES);
                if !fin {
                    open.insert(id, data);
                }
                writer.reply(id).await?;
                let sender = Sender { id, writer: writer.clone() };
                if streams.send(Stream { headers, sender, data: receiver }).await.is_err() {
                    // Nobody takes streams any more, but those that are open go on.
                    writer.write(&[&frame::rst(id, 3)]).await?;
                    open.remove(&id);
                }
            }
            Frame::SynReply { block, .. } | Frame::Headers { block, .. } => drop(unpacker.unpack(&block)?),
            Frame::Data { id, fin, data } => {
                if let Some(stream) = open.get(&id)
                    && !data.is_empty()
                {
                    // A stream whose reader went away takes no more; that is no error of the connection.
                    let _ = stream.send(data).await;
                }
                if fin {
                    open.remove(&id);
                }
            }
            Frame::Rst { id } => drop(open.remove(&id)),
            Frame::Ping(id) => writer.write(&[&frame::ping(id)]).await?,
            Frame::GoAway | Frame::Other => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_client_opens_a_stream_and_talks() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (writer, mut streams) = serve(Box::new(server)).expect("served");
        let mut packer = Packer::new().expect("zlib");
        let block = packer.pack(&vec![("StreamType".into(), "data".into())]).expect("packed");
        client.write_all(&frame::syn_stream(1, &block)).await.expect("written");
        client.write_all(&frame::data_head(1, true, 2)).await.expect("written");
        client.write_all(b"hi").await.expect("written");
        client.write_all(&frame::ping(1)).await.expect("written");
        let mut stream = streams.recv().await.expect("a stream");
        assert_eq!(stream.header("streamtype"), "data");
        assert_eq!(stream.data.recv().await.as_deref(), Some(&b"hi"[..]));
        assert_eq!(stream.data.recv().await, None);
        stream.sender.send(b"yo").await.expect("sent");
        stream.sender.finish().await.expect("sent");
        writer.close().await;
        let mut seen = Vec::new();
        while let Some(frame) = frame::read(&mut client).await.expect("a frame") {
            seen.push(frame);
        }
        assert!(matches!(&seen[0], Frame::SynReply { id: 1, .. }));
        assert!(seen.contains(&Frame::Data { id: 1, fin: false, data: Bytes::from_static(b"yo") }));
        assert!(seen.contains(&Frame::Data { id: 1, fin: true, data: Bytes::new() }));
        assert!(seen.contains(&Frame::GoAway));
        assert_eq!(client.read(&mut [0; 1]).await.expect("the end"), 0);
    }
}
