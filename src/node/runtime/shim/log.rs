//! Container logs in the CRI format: `2026-01-02T03:04:05.000000000Z stdout F line`.

use jiff::Timestamp;

/// Longer lines are split and tagged `P` (containerd's `max_container_log_line_size`).
pub const MAX_LINE: usize = 16 << 10;

/// One output stream's unfinished line.
#[derive(Default)]
pub struct Line {
    pending: Vec<u8>,
}

impl Line {
    /// Formats what was read into log entries, keeping an unfinished line for later.
    pub fn push(&mut self, stream: &str, now: Timestamp, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let newline = bytes.iter().take(MAX_LINE - self.pending.len() + 1).position(|&b| b == b'\n');
            match newline {
                Some(at) => {
                    entry(out, now, stream, 'F', &[&self.pending, &bytes[..at]]);
                    self.pending.clear();
                    bytes = &bytes[at + 1..];
                }
                None if self.pending.len() + bytes.len() >= MAX_LINE => {
                    let (head, rest) = bytes.split_at(MAX_LINE - self.pending.len());
                    entry(out, now, stream, 'P', &[&self.pending, head]);
                    self.pending.clear();
                    bytes = rest;
                }
                None => {
                    self.pending.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
    }

    /// Writes an unfinished line at the end of the stream.
    pub fn finish(&mut self, stream: &str, now: Timestamp, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            entry(out, now, stream, 'P', &[&self.pending]);
            self.pending.clear();
        }
    }
}

fn entry(out: &mut Vec<u8>, now: Timestamp, stream: &str, tag: char, parts: &[&[u8]]) {
    out.extend_from_slice(now.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string().as_bytes());
    out.extend_from_slice(format!(" {stream} {tag} ").as_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a valid time")
    }

    fn format(chunks: &[&[u8]]) -> String {
        let (mut line, mut out) = (Line::default(), Vec::new());
        chunks.iter().for_each(|chunk| line.push("stdout", at(), chunk, &mut out));
        line.finish("stdout", at(), &mut out);
        String::from_utf8(out).expect("text in, text out")
    }

    #[test]
    fn lines_are_whole_whatever_the_chunks() {
        let expected = "2026-01-02T03:04:05.000000000Z stdout F hello\n2026-01-02T03:04:05.000000000Z stdout F \n";
        assert_eq!(format(&[b"hello\n\n"]), expected);
        assert_eq!(format(&[b"he", b"llo", b"\n", b"\n"]), expected);
        assert_eq!(format(&[b"no newline"]), "2026-01-02T03:04:05.000000000Z stdout P no newline\n");
    }

    #[test]
    fn long_lines_are_split_and_tagged() {
        let long = vec![b'x'; MAX_LINE + 10];
        let text = format(&[&long, b"\n"]);
        let tags: Vec<(&str, usize)> = text.lines().map(|l| (&l[38..39], l.len() - 40)).collect();
        assert_eq!(tags, [("P", MAX_LINE), ("F", 10)]);
        let exact = vec![b'x'; MAX_LINE];
        assert_eq!(format(&[&exact, b"\n"]).lines().count(), 2);
    }
}
