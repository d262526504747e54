//! The durable log: sled below the engine. Opening checks that everything is there; a commit is one sled batch, sled's
//! flush, and fdatasync (sled's own flush on Linux is `sync_file_range`, which survives no power loss).

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::engine::{Changes, Disk, Engine};
use super::record::{self, Placed, SCHEMA, SCHEMA_KEY, SUMMARY_KEY, Summary};
use super::state::{Limits, State};
use super::{Entry, Error, Storage};

/// sled's page cache. Entries are read once, at the start; only the tree's nodes matter.
const CACHE: u64 = 32 << 20;
/// Entries in one batch of an import.
const IMPORT: usize = 512;

/// Opens (or creates) the database in the directory `dir`.
///
/// # Errors
/// When another process has it open, when it is not a database of ours, and when anything in it is missing or damaged.
pub fn open_sled(dir: &Path, limits: Limits) -> Result<Arc<dyn Storage>, Error> {
    let explain = |error: String| Error::Backend(format!("the database in {}: {error}", dir.display()));
    let (disk, entries) = SledDisk::open(dir).map_err(explain)?;
    let state = State::new(entries, disk.summary.ceiling, limits);
    Ok(Arc::new(Engine::new(state, Some(Box::new(disk)))?))
}

/// Writes a new database with these entries, whose revisions stay. Returns how many it has then.
pub(super) fn import(dir: &Path, entries: Vec<Arc<Entry>>, revision: u64) -> Result<usize, Error> {
    let explain = |error: String| Error::Backend(format!("the database in {}: {error}", dir.display()));
    let (mut disk, present) = SledDisk::open(dir).map_err(explain)?;
    if !present.is_empty() || disk.summary.commit > 0 {
        return Err(explain("there is a database already".to_owned()));
    }
    for chunk in entries.chunks(IMPORT) {
        let changes = chunk.iter().map(|entry| (entry.key.clone(), Some(entry.clone()))).collect();
        disk.commit(&changes, revision).map_err(explain)?;
    }
    disk.commit(&Changes::new(), revision).map_err(explain)?;
    Ok(disk.known.len())
}

struct SledDisk {
    dir: PathBuf,
    /// `None` after a failure, until it is opened again.
    db: Option<Opened>,
    /// Lies in place what was durable at last: the number of the last batch (written without a sync of its own, so never
    /// ahead of the database).
    mark: File,
    summary: Summary,
    known: HashMap<Arc<str>, Placed>,
    /// Held as long as we live.
    _lock: Flock<File>,
}

struct Opened {
    db: sled::Db,
    /// Our own descriptor of sled's file.
    file: File,
}

type Entries = BTreeMap<Arc<str>, Arc<Entry>>;

impl SledDisk {
    fn open(dir: &Path) -> Result<(Self, Entries), String> {
        let broken = |error: std::io::Error| error.to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(broken)?;
        let lock = private().open(dir.join("lock")).map_err(broken)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => "another process is using it".to_owned(),
            errno => format!("it cannot be locked: {errno}"),
        })?;
        let mark = private().open(dir.join("mark")).map_err(broken)?;
        let committed = read_mark(&mark);
        check_files(dir, committed)?;
        let opened = Opened::open(dir)?;
        let mut disk = Self {
            dir: dir.to_owned(),
            db: None,
            mark,
            summary: Summary::default(),
            known: HashMap::new(),
            _lock: lock,
        };
        let entries = match guarded(|| opened.schema())? {
            None if committed == 0 => {
                disk.summary = guarded(|| opened.initialize(dir))?;
                Entries::new()
            }
            None => return Err(format!("it is empty, but {committed} batches were written to it: data is lost")),
            Some(schema) if schema == SCHEMA => disk.load(&opened)?,
            Some(schema) => return Err(format!("its format is {schema:?}, this version understands {SCHEMA:?}")),
        };
        if disk.summary.commit < committed {
            let Summary { commit, .. } = disk.summary;
            return Err(format!("{committed} batches were written to it, it contains {commit}: data is lost"));
        }
        disk.db = Some(opened);
        Ok((disk, entries))
    }

    /// Reads everything and compares it with the summary.
    fn load(&mut self, opened: &Opened) -> Result<Entries, String> {
        let (entries, known, summary) = guarded(|| opened.load())?;
        let found = Summary::of(&known);
        if (found.entries, found.digest) != (summary.entries, summary.digest) {
            return Err(format!(
                "it should have {} entries and has {}, or other ones: it is damaged",
                summary.entries, found.entries
            ));
        }
        (self.known, self.summary) = (known, summary);
        Ok(entries)
    }

    /// Opens sled again after a failure: it refuses everything once a write has failed.
    fn reopen(&mut self) -> Result<Opened, String> {
        let opened = Opened::open(&self.dir)?;
        let before = self.summary.commit;
        self.load(&opened)?;
        if self.summary.commit < before {
            return Err("acknowledged writes are missing".to_owned());
        }
        Ok(opened)
    }

    fn commit_on(&mut self, opened: &Opened, changes: &Changes, ceiling: u64) -> Result<(), String> {
        let mut summary = Summary { commit: self.summary.commit + 1, ceiling, ..self.summary };
        let mut batch = sled::Batch::default();
        let mut placed = Vec::with_capacity(changes.len());
        for (key, change) in changes {
            let old = self.known.get(key).copied();
            let new = change.as_ref().map(|entry| {
                let (new, values) = record::encode(entry);
                for (part, value) in (0..).zip(values) {
                    let at = if part == 0 { record::head_key(key) } else { record::part_key(key, part) };
                    batch.insert(at, value);
                }
                new
            });
            if new.is_none() && old.is_some() {
                batch.remove(record::head_key(key));
            }
            for part in new.map_or(0, |new| new.parts) + 1..=old.map_or(0, |old| old.parts) {
                batch.remove(record::part_key(key, part));
            }
            summary.replace(key, old, new);
            placed.push((key, new));
        }
        batch.insert(SUMMARY_KEY, summary.encode());
        guarded(|| opened.apply(batch))?;
        self.summary = summary;
        for (key, new) in placed {
            match new {
                Some(new) => self.known.insert(key.clone(), new),
                None => self.known.remove(key),
            };
        }
        if let Err(error) = write_mark(&self.mark, summary.commit) {
            tracing::warn!(%error, "the mark beside the database could not be written");
        }
        Ok(())
    }
}

impl Disk for SledDisk {
    fn commit(&mut self, changes: &Changes, ceiling: u64) -> Result<(), String> {
        if self.db.is_some() && changes.is_empty() && ceiling == self.summary.ceiling {
            return Ok(());
        }
        let opened = match self.db.take() {
            Some(opened) => opened,
            None => self.reopen()?,
        };
        // On failure it is dropped, and opened anew for the next batch.
        self.commit_on(&opened, changes, ceiling)?;
        self.db = Some(opened);
        Ok(())
    }
}

impl Opened {
    fn open(dir: &Path) -> Result<Self, String> {
        let config = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .use_compression(false);
        let mut attempts = 0;
        // After a failure sled's threads may need a moment to let go of the file.
        let db = loop {
            match guarded(|| config.open().map_err(|error| error.to_string())) {
                Err(error) if error.contains("could not acquire lock") && attempts < 20 => {
                    attempts += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => break result?,
            }
        };
        let file = OpenOptions::new().read(true).write(true).open(dir.join("db")).map_err(|error| error.to_string())?;
        Ok(Self { db, file })
    }

    /// The format of the database; `None` when it is empty.
    fn schema(&self) -> Result<Option<String>, String> {
        match self.db.get(SCHEMA_KEY).map_err(|error| error.to_string())? {
            Some(schema) => Ok(Some(String::from_utf8_lossy(&schema).into_owned())),
            None if self.db.is_empty() && self.db.tree_names().len() == 1 => Ok(None),
            None => Err("it was not written by mini".to_owned()),
        }
    }

    fn initialize(&self, dir: &Path) -> Result<Summary, String> {
        // etcd's first revision.
        let summary = Summary { commit: 0, ceiling: 1, ..Summary::default() };
        let mut batch = sled::Batch::default();
        batch.insert(SCHEMA_KEY, SCHEMA.as_bytes());
        batch.insert(SUMMARY_KEY, summary.encode());
        self.apply(batch)?;
        for dir in [Some(dir), dir.parent()].into_iter().flatten().filter(|dir| !dir.as_os_str().is_empty()) {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| error.to_string())?;
        }
        Ok(summary)
    }

    fn apply(&self, batch: sled::Batch) -> Result<(), String> {
        self.db.apply_batch(batch).map_err(|error| error.to_string())?;
        self.db.flush().map_err(|error| error.to_string())?;
        self.file.sync_data().map_err(|error| error.to_string())
    }

    fn load(&self) -> Result<(Entries, HashMap<Arc<str>, Placed>, Summary), String> {
        let text = |error: sled::Error| error.to_string();
        let summary = self.db.get(SUMMARY_KEY).map_err(text)?;
        let summary = summary.and_then(|bytes| Summary::decode(&bytes)).ok_or("its summary is missing")?;
        let (mut entries, mut known) = (Entries::new(), HashMap::new());
        for item in self.db.scan_prefix(b"o") {
            let (key, head) = item.map_err(text)?;
            let part =
                |key: &str, part| Ok(self.db.get(record::part_key(key, part)).map_err(text)?.map(|part| part.to_vec()));
            let (placed, entry) = record::decode(&key, &head, part)?;
            if entry.revision > summary.ceiling {
                return Err(format!("the entry {} is newer than the database", entry.key));
            }
            known.insert(entry.key.clone(), placed);
            entries.insert(entry.key.clone(), Arc::new(entry));
        }
        Ok((entries, known, summary))
    }
}

/// Refuses what sled would take for an empty database and overwrite.
fn check_files(dir: &Path, committed: u64) -> Result<(), String> {
    let size = |name: &str| std::fs::metadata(dir.join(name)).map(|data| data.len()).unwrap_or_default();
    match (size("db") > 0, size("conf") > 0) {
        (true, false) => Err("its file `conf` is missing: it was not written by mini, or it is damaged".to_owned()),
        (false, _) if committed > 0 => Err("its file `db` is missing or empty: data is lost".to_owned()),
        _ => Ok(()),
    }
}

/// Calls sled. Its recovery and its reads check damaged files with assertions.
fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("it is damaged: {}", text.unwrap_or("sled panicked")))
    })
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// The number of the last batch, twice (the second time inverted); 0 when there is none.
fn read_mark(file: &File) -> u64 {
    let mut bytes = [0; 16];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return 0;
    }
    let [number, check] =
        [&bytes[..8], &bytes[8..]].map(|half| u64::from_be_bytes(half.try_into().expect("eight bytes")));
    if check == !number { number } else { 0 }
}

fn write_mark(file: &File, number: u64) -> std::io::Result<()> {
    file.write_all_at(&[number.to_be_bytes(), (!number).to_be_bytes()].concat(), 0)
}

#[cfg(test)]
#[path = "sled_tests.rs"]
mod tests;
