//! A second terminal with `kubectl get -w`: what it showed, in its order.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::world::World;

/// A watch that runs beside the test.
pub struct Watch<'a> {
    world: &'a World,
    command: String,
    process: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    from: usize,
}

impl<'a> Watch<'a> {
    /// Starts a command.
    pub fn start(world: &'a World, command: &str) -> Self {
        println!("$ {command} &");
        let mut process = world
            .command(&format!("exec {command}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let (sender, lines) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(process.stdout.take().expect("it is piped")),
            Box::new(process.stderr.take().expect("it is piped")),
        ];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self { world, command: command.to_owned(), process, lines, seen: Vec::new(), from: 0 }
    }

    /// Starts `kubectl get … -w`, and waits until the server has begun to answer: what happens from now on will be shown.
    pub fn get(world: &'a World, command: &str) -> Self {
        let mut watch = Self::start(world, &format!("{command} -v=6"));
        watch.contains("watch=true");
        watch.seen.retain(|line| !line.contains("round_trippers.go"));
        watch.from = 0;
        watch
    }

    /// Waits until the command has printed a line with `text`.
    #[track_caller]
    pub fn contains(&mut self, text: &str) {
        self.look_for(text, |line| line.contains(text));
    }

    /// Waits until the watch has shown rows that begin with the cells of `rows`, in this order, after what an earlier call
    /// waited for; others may come between.
    #[track_caller]
    pub fn shows(&mut self, rows: &[&str]) {
        for row in rows {
            self.look_for(row, |line| begins(line, row));
        }
    }

    /// What is waited for next may have been shown already.
    pub fn rewind(&mut self) {
        self.from = 0;
    }

    #[track_caller]
    fn look_for(&mut self, wanted: &str, is_it: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            if let Some(position) = self.seen[self.from..].iter().position(|line| is_it(line)) {
                self.from += position + 1;
                return;
            }
            self.from = self.seen.len();
            if let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                if !line.contains("] ") {
                    println!("  | {line}");
                }
                self.seen.push(line);
            } else {
                self.world.explain();
                panic!("{} never showed {wanted:?} after:\n{}", self.command, self.seen.join("\n"));
            }
        }
    }
}

/// Whether the cells of `row` are the first ones of a line; `*` stands for any cell.
fn begins(line: &str, row: &str) -> bool {
    let mut cells = line.split_whitespace();
    row.split_whitespace().all(|wanted| cells.next().is_some_and(|cell| wanted == "*" || cell == wanted))
}

impl Drop for Watch<'_> {
    /// CTRL-C.
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
