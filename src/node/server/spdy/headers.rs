//! Header blocks of SPDY/3.1: name/value pairs in one zlib stream per direction, primed with the protocol's dictionary.

use std::io;
use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Name and value, names in lower case.
pub type Headers = Vec<(String, String)>;

/// A block larger than this when unpacked is refused.
const MOST: usize = 64 << 10;

/// The words of the dictionary (SPDY/3 specification, section 2.6.10.1), each with its length before it.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges \
    age allow authorization cache-control connection content-base content-encoding content-language content-length \
    content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The rest of the dictionary.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        let word = word.replace('_', " ");
        bytes.extend(length(word.len()));
        bytes.extend(word.as_bytes());
    }
    bytes.extend(TEXT.as_bytes());
    bytes
});

fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY headers: {why}"))
}

/// Packs blocks of one direction.
pub struct Packer(Compress);

impl Packer {
    /// A fresh stream.
    ///
    /// # Errors
    /// When zlib refuses the dictionary.
    pub fn new() -> io::Result<Self> {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&DICTIONARY).map_err(io::Error::other)?;
        Ok(Self(zlib))
    }

    /// The bytes of a block.
    ///
    /// # Errors
    /// When zlib fails.
    pub fn pack(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        plain.extend(length(headers.len()));
        for (name, value) in headers {
            plain.extend(length(name.len()));
            plain.extend(name.to_lowercase().as_bytes());
            plain.extend(length(value.len()));
            plain.extend(value.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 256);
        let mut done = 0;
        loop {
            out.reserve(256);
            let before = self.0.total_in();
            self.0.compress_vec(&plain[done..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
            done += usize::try_from(self.0.total_in() - before).unwrap_or(0);
            // zlib is done with a flush when it leaves room in the output.
            if done == plain.len() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

/// Unpacks blocks of one direction.
pub struct Unpacker(Decompress);

impl Unpacker {
    /// A fresh stream.
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of a block.
    ///
    /// # Errors
    /// Bytes that are no header block, or too many.
    pub fn unpack(&mut self, block: &[u8]) -> io::Result<Headers> {
        let mut plain = Vec::new();
        let mut done = 0;
        while done < block.len() {
            plain.reserve(1024);
            let (before_in, before_out) = (self.0.total_in(), plain.len());
            let result = self.0.decompress_vec(&block[done..], &mut plain, FlushDecompress::Sync);
            done += usize::try_from(self.0.total_in() - before_in).unwrap_or(0);
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| invalid("another dictionary"))?;
                }
                Err(_) => return Err(invalid("broken zlib data")),
                Ok(Status::StreamEnd) => return Err(invalid("the zlib stream ended")),
                Ok(_) if self.0.total_in() == before_in && plain.len() == before_out => {
                    return Err(invalid("no progress"));
                }
                Ok(_) => {}
            }
            if plain.len() > MOST {
                return Err(invalid("too large"));
            }
        }
        // What did not fit the output buffer in the last round.
        loop {
            plain.reserve(1024);
            let before = plain.len();
            match self.0.decompress_vec(&[], &mut plain, FlushDecompress::Sync) {
                Ok(_) if plain.len() > before && plain.len() <= MOST => {}
                _ => break,
            }
        }
        if plain.len() > MOST {
            return Err(invalid("too large"));
        }
        parse(&plain)
    }
}

fn parse(mut bytes: &[u8]) -> io::Result<Headers> {
    let number = |bytes: &mut &[u8]| -> io::Result<usize> {
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| invalid("cut short"))?;
        *bytes = rest;
        usize::try_from(u32::from_be_bytes(*head)).map_err(|_| invalid("too large"))
    };
    let text = |bytes: &mut &[u8]| -> io::Result<String> {
        let n = number(bytes)?;
        let (head, rest) = bytes.split_at_checked(n).ok_or_else(|| invalid("cut short"))?;
        *bytes = rest;
        Ok(String::from_utf8_lossy(head).into_owned())
    };
    let count = {
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| invalid("cut short"))?;
        bytes = rest;
        u32::from_be_bytes(*head)
    };
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut bytes)?;
        let value = text(&mut bytes)?;
        headers.push((name.to_lowercase(), value));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        // The DICTID that every SPDY/3 implementation writes.
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_survive_and_share_one_stream() {
        let (mut packer, mut unpacker) = (Packer::new().expect("zlib"), Unpacker::new());
        for n in 0..50 {
            let headers: Headers =
                vec![("streamtype".into(), "error".into()), ("x".repeat(n * 40 + 1), "value ".repeat(n * 20))];
            let block = packer.pack(&headers).expect("packed");
            assert_eq!(unpacker.unpack(&block).expect("unpacked"), headers);
        }
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b"\x00"[..], b"hello", &[0xff; 100]] {
            assert!(Unpacker::new().unpack(bytes).is_err() || bytes.len() < 2);
        }
        let mut bomb = Packer::new().expect("zlib");
        let block = bomb.pack(&vec![("a".into(), "b".repeat(1 << 20))]).expect("packed");
        assert!(Unpacker::new().unpack(&block).is_err());
        for plain in [&[0, 0, 0, 9][..], &[0, 0, 0, 1, 255, 255, 255, 255], &[]] {
            assert!(parse(plain).is_err());
        }
    }
}
