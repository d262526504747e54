//! `mini logs`: the cluster's own log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::Global;

/// Options of `logs`.
#[derive(Args)]
pub struct Logs {
    /// Goes on showing what is added
    #[arg(short, long)]
    follow: bool,
    /// How many lines from the end
    #[arg(short = 'n', long, default_value_t = 60)]
    length: usize,
    /// The node, such as m02 (the first, with the control plane, when absent)
    #[arg(long)]
    node: Option<String>,
}

impl Logs {
    /// Prints the end of the log, and what is added with `--follow`.
    pub fn run(self, global: &Global) -> Result<ExitCode> {
        let config = global.config()?;
        let path = match self.node.as_ref().filter(|name| **name != config.profile) {
            None => global.paths()?.daemon_log(),
            Some(name) => {
                let worker = config.worker(name).with_context(|| format!("there is no node {name:?}"))?;
                global.paths()?.worker(&worker.name).daemon_log()
            }
        };
        let mut file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
        // The watch is set before the first read, so that nothing is missed between them.
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(&path, changes)?;
        if let Some(directory) = path.parent() {
            inotify.add_watch(directory, AddWatchFlags::IN_CREATE)?;
        }
        let mut last = VecDeque::new();
        for line in BufReader::new(&mut file).split(b'\n') {
            last.push_back(line?);
            if last.len() > self.length {
                last.pop_front();
            }
        }
        let mut out = std::io::stdout().lock();
        for line in last {
            out.write_all(&line)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        // A full log is put aside, and the next one gets its name.
        let mut moved = false;
        while self.follow {
            let mut fds = [nix::poll::PollFd::new(inotify.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE)?;
            moved |= inotify.read_events()?.iter().any(|event| event.mask.contains(AddWatchFlags::IN_MOVE_SELF));
            let mut added = Vec::new();
            file.read_to_end(&mut added)?;
            if moved && let Ok(next) = File::open(&path) {
                inotify.add_watch(&path, changes)?;
                (file, moved) = (next, false);
                file.read_to_end(&mut added)?;
            }
            out.write_all(&added)?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
