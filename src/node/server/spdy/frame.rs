//! Frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00 with the 3.1 changes): reading and writing.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The last frame of its direction.
pub const FIN: u8 = 1;
/// A frame larger than this is refused.
const MOST: usize = 16 << 20;

/// A frame as it comes; header blocks are still packed.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new stream.
    SynStream {
        /// Odd when the client opened it.
        id: u32,
        /// Whether the opener sends nothing more.
        fin: bool,
        /// Packed headers.
        block: Vec<u8>,
    },
    /// The answer to it.
    SynReply {
        /// The stream.
        id: u32,
        /// Whether the answerer sends nothing more.
        fin: bool,
        /// Packed headers.
        block: Vec<u8>,
    },
    /// The stream ends at once.
    Rst {
        /// The stream.
        id: u32,
    },
    /// To be sent back.
    Ping(u32),
    /// No new streams.
    GoAway,
    /// More headers; they belong to the packed stream of headers, so they have to be unpacked.
    Headers {
        /// Whether nothing more is sent.
        fin: bool,
        /// The stream.
        id: u32,
        /// Packed headers.
        block: Vec<u8>,
    },
    /// SETTINGS, WINDOW_UPDATE and unknown frames: Kubernetes' clients neither obey nor need flow control.
    Other,
    /// Bytes.
    Data {
        /// The stream.
        id: u32,
        /// Whether nothing more is sent.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {why}"))
}

/// Reads one frame; `None` at the end.
///
/// # Errors
/// A frame that is not SPDY/3, or a broken connection.
pub async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 8];
    match reader.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => drop(other?),
    }
    let flags = head[4];
    let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
    if length > MOST {
        return Err(invalid("frame too large"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    let fin = flags & FIN != 0;
    if head[0] & 0x80 == 0 {
        let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        return Ok(Some(Frame::Data { id, fin, data: body.into() }));
    }
    if (head[0] & 0x7f, head[1]) != (0, 3) {
        return Err(invalid("another version of the protocol"));
    }
    let number = |at: usize| -> io::Result<u32> {
        let bytes = body.get(at..at + 4).ok_or_else(|| invalid("frame cut short"))?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let id = |at: usize| number(at).map(|n| n & 0x7fff_ffff);
    let rest = |at: usize| body.get(at..).map(<[u8]>::to_vec).ok_or_else(|| invalid("frame cut short"));
    Ok(Some(match u16::from_be_bytes([head[2], head[3]]) {
        1 => Frame::SynStream { id: id(0)?, fin, block: rest(10)? },
        2 => Frame::SynReply { id: id(0)?, fin, block: rest(4)? },
        3 => Frame::Rst { id: id(0)? },
        6 => Frame::Ping(number(0)?),
        7 => Frame::GoAway,
        8 => Frame::Headers { id: id(0)?, fin, block: rest(4)? },
        _ => Frame::Other,
    }))
}

fn control(kind: u8, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![0x80, 3, 0, kind, flags, a, b, c];
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// SYN_STREAM: a client's, for tests.
#[cfg(test)]
pub fn syn_stream(id: u32, block: &[u8]) -> Vec<u8> {
    control(1, 0, &[&id.to_be_bytes(), &[0; 6], block])
}
/// SYN_REPLY.
pub fn syn_reply(id: u32, block: &[u8]) -> Vec<u8> {
    control(2, 0, &[&id.to_be_bytes(), block])
}
/// RST_STREAM; 5 is CANCEL, 1 PROTOCOL_ERROR.
pub fn rst(id: u32, status: u32) -> Vec<u8> {
    control(3, 0, &[&id.to_be_bytes(), &status.to_be_bytes()])
}
/// PING.
pub fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[&id.to_be_bytes()])
}
/// GOAWAY with status OK.
pub fn go_away(last: u32) -> Vec<u8> {
    control(7, 0, &[&last.to_be_bytes(), &[0; 4]])
}
/// The head of a data frame.
pub fn data_head(id: u32, fin: bool, length: usize) -> [u8; 8] {
    let [i0, i1, i2, i3] = id.to_be_bytes();
    let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    [i0 & 0x7f, i1, i2, i3, u8::from(fin), a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive() {
        let mut bytes = syn_stream(1, b"block");
        bytes.extend(syn_reply(1, b"b"));
        bytes.extend(data_head(1, true, 2));
        bytes.extend(b"hi");
        bytes.extend(ping(7));
        bytes.extend(rst(1, 5));
        bytes.extend(go_away(1));
        let mut reader = &bytes[..];
        let mut next = async || read(&mut reader).await.expect("a frame");
        assert_eq!(next().await, Some(Frame::SynStream { id: 1, fin: false, block: b"block".to_vec() }));
        assert_eq!(next().await, Some(Frame::SynReply { id: 1, fin: false, block: b"b".to_vec() }));
        assert_eq!(next().await, Some(Frame::Data { id: 1, fin: true, data: Bytes::from_static(b"hi") }));
        assert_eq!(next().await, Some(Frame::Ping(7)));
        assert_eq!(next().await, Some(Frame::Rst { id: 1 }));
        assert_eq!(next().await, Some(Frame::GoAway));
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn bad_frames_are_errors() {
        for bytes in
            [&b"\x80\x02\x00\x01\x00\x00\x00\x00"[..], b"\x80\x03\x00\x01\x00\x00\x00\x02ab", b"GET / HTTP/1.1\r\n"]
        {
            assert!(read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
    }
}
