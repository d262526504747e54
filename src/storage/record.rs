//! How entries lie in the database: an entry is a head and, when it is large, parts, so that no tree node of sled grows
//! beyond a log segment (it would become a "blob" file, which sled does not sync). A summary covers them all.

use std::collections::HashMap;
use std::sync::Arc;

use serde::de::IgnoredAny;

use super::Entry;

/// The format that is written and understood.
pub(super) const SCHEMA: &str = "mini storage 1";
/// Key of [`SCHEMA`].
pub(super) const SCHEMA_KEY: &[u8] = b"m/schema";
/// Key of the [`Summary`].
pub(super) const SUMMARY_KEY: &[u8] = b"m/summary";
/// A leaf of sled has at most 20 values; they stay below a quarter of a segment (128 KiB).
const PART: usize = 5 * 1024;
/// Revision and number of parts before the JSON of a head.
const HEAD: usize = 12;

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub revision: u64,
    pub parts: u32,
}

/// The key of an entry's head.
pub(super) fn head_key(key: &str) -> Vec<u8> {
    [b"o", key.as_bytes()].concat()
}

/// The key of an entry's part (from 1). The length keeps keys apart that begin alike.
pub(super) fn part_key(key: &str, part: u32) -> Vec<u8> {
    let length = u32::try_from(key.len()).expect("keys are shorter than 4 GiB").to_be_bytes();
    [b"p", &length[..], key.as_bytes(), &part.to_be_bytes()].concat()
}

/// The values of an entry, the head first.
pub(super) fn encode(entry: &Entry) -> (Placed, Vec<Vec<u8>>) {
    let mut chunks = entry.json.chunks(PART);
    let first = chunks.next().unwrap_or_default();
    let parts = u32::try_from(chunks.len()).expect("objects are smaller than terabytes");
    let head = [&entry.revision.to_be_bytes()[..], &parts.to_be_bytes(), first].concat();
    let values = std::iter::once(head).chain(chunks.map(<[u8]>::to_vec)).collect();
    (Placed { revision: entry.revision, parts }, values)
}

/// The entry of a head, with `part` to fetch what is missing. Errors say what is wrong with it.
pub(super) fn decode(
    key: &[u8],
    head: &[u8],
    mut part: impl FnMut(&str, u32) -> Result<Option<Vec<u8>>, String>,
) -> Result<(Placed, Entry), String> {
    let key: Arc<str> = std::str::from_utf8(&key[1..]).map_err(|_| "a key is not UTF-8")?.into();
    if head.len() < HEAD {
        return Err(format!("the entry {key} is cut off"));
    }
    let (numbers, first) = head.split_at(HEAD);
    let revision = u64::from_be_bytes(numbers[..8].try_into().expect("eight bytes"));
    let parts = u32::from_be_bytes(numbers[8..].try_into().expect("four bytes"));
    let mut json = first.to_vec();
    for number in 1..=parts {
        json.extend(part(&key, number)?.ok_or_else(|| format!("a part of the entry {key} is missing"))?);
    }
    serde_json::from_slice::<IgnoredAny>(&json).map_err(|error| format!("the entry {key} is not JSON: {error}"))?;
    Ok((Placed { revision, parts }, Entry::new(key, revision, json.into())))
}

/// What the database must contain, written with every batch: whatever is lost, the summary no longer fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Counts the batches.
    pub commit: u64,
    /// No greater revision was ever in use.
    pub ceiling: u64,
    pub entries: u64,
    /// The sum of the [`fingerprint`]s of all entries.
    pub digest: u64,
}

impl Summary {
    pub fn encode(&self) -> Vec<u8> {
        [self.commit, self.ceiling, self.entries, self.digest].map(u64::to_be_bytes).concat()
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.chunks_exact(8).map(|chunk| u64::from_be_bytes(chunk.try_into().expect("eight bytes")));
        let summary = Self {
            commit: numbers.next()?,
            ceiling: numbers.next()?,
            entries: numbers.next()?,
            digest: numbers.next()?,
        };
        (bytes.len() == 32).then_some(summary)
    }

    /// Takes a key's change into account.
    pub fn replace(&mut self, key: &str, old: Option<Placed>, new: Option<Placed>) {
        if let Some(placed) = old {
            self.entries = self.entries.wrapping_sub(1);
            self.digest = self.digest.wrapping_sub(fingerprint(key, placed.revision));
        }
        if let Some(placed) = new {
            self.entries = self.entries.wrapping_add(1);
            self.digest = self.digest.wrapping_add(fingerprint(key, placed.revision));
        }
    }

    /// Entries and digest of what is really there.
    pub fn of(known: &HashMap<Arc<str>, Placed>) -> Self {
        let mut summary = Self::default();
        for (key, placed) in known {
            summary.replace(key, None, Some(*placed));
        }
        summary
    }
}

/// FNV-1a over the key and the revision, mixed (as MurmurHash3 ends) so that sums do not cancel out.
fn fingerprint(key: &str, revision: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key.bytes().chain(revision.to_be_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_every_size_survive() {
        for size in [0, 1, PART - 2, PART - 1, PART, 3 * PART + 7] {
            let json = format!("\"{}\"", "x".repeat(size));
            let entry = Entry::new("/a/b".into(), 7, json.into_bytes().into());
            let (placed, values) = encode(&entry);
            assert_eq!(placed.parts as usize + 1, values.len());
            let (again, decoded) =
                decode(b"o/a/b", &values[0], |_, part| Ok(Some(values[part as usize].clone()))).expect("it decodes");
            assert_eq!((again, decoded.json, &*decoded.key), (placed, entry.json, "/a/b"));
        }
        assert!(decode(b"o/a", b"short", |_, _| Ok(None)).is_err());
        assert!(decode(b"o/a", &[0; HEAD], |_, _| Ok(None)).is_err(), "an empty value is not JSON");
    }
}
