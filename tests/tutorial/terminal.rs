//! A real terminal with a program in it, and somebody who reads what it shows and types.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::world::World;

/// A program in a pseudo-terminal of `script`.
pub struct Terminal {
    process: Child,
    keyboard: ChildStdin,
    screen: ChildStdout,
    command: String,
}

impl Terminal {
    /// Starts a command. It ends after two minutes at the latest, and with it whoever waits for it.
    pub fn open(world: &World, command: &str) -> Self {
        println!("$ {command}");
        // A terminal without a size is asked for the cursor's position by programs, and `script` would never answer.
        let inside = format!("stty cols 80 rows 24; exec {command}");
        let mut process = world
            .command(&format!("exec timeout 120 script -qec {inside:?} /dev/null"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let keyboard = process.stdin.take().expect("it is piped");
        let screen = process.stdout.take().expect("it is piped");
        Self { process, keyboard, screen, command: command.to_owned() }
    }

    /// Reads the screen until it ends with `prompt`; returns all of it, without carriage returns.
    #[track_caller]
    pub fn shows(&mut self, prompt: &str) -> String {
        let mut shown = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&shown).replace('\r', "").replace("\u{1b}[6n", "");
            if text.ends_with(prompt) {
                println!("{text}");
                return text;
            }
            let length = self.screen.read(&mut buffer).expect("a pipe");
            assert_ne!(length, 0, "{} ended before it showed {prompt:?}:\n{text}", self.command);
            // Where is the cursor? A program that was faster than the terminal's size asks for it, and waits for the answer.
            let questions = buffer[..length].windows(4).filter(|part| *part == b"\x1b[6n").count();
            let answers = "\x1b[1;80R".repeat(questions);
            write!(self.keyboard, "{answers}").and_then(|()| self.keyboard.flush()).expect("the program reads");
            shown.extend(&buffer[..length]);
        }
    }

    /// Types a line.
    pub fn types(&mut self, line: &str) {
        write!(self.keyboard, "{line}\r").and_then(|()| self.keyboard.flush()).expect("the program reads");
    }

    /// Waits for the program's end; returns what it still showed.
    pub fn ends(mut self) -> String {
        let mut rest = String::new();
        self.screen.read_to_string(&mut rest).expect("a pipe");
        let status = self.process.wait().expect("it was started");
        assert!(status.success(), "{}: {status}\n{rest}", self.command);
        rest.replace('\r', "")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
