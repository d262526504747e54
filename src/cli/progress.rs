//! Shows the steps of a start as they happen: a spinner on a terminal, plain lines otherwise, JSON lines when asked.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

/// How steps are shown.
pub enum Progress {
    /// A spinner with the current step; finished steps stay above it.
    Terminal(ProgressBar),
    /// A line per step.
    Plain,
    /// A JSON object per step.
    Json,
}

impl Progress {
    /// JSON when asked, else by whether standard output is a terminal.
    pub fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stdout().is_terminal() {
            return Self::Plain;
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(80));
        Self::Terminal(bar)
    }

    /// A step is done, `millis` after the start began.
    pub fn step(&self, message: &str, millis: u64) {
        let line = format!("{:>7.3}s  {message}", Duration::from_millis(millis).as_secs_f64());
        match self {
            Self::Terminal(bar) => bar.println(line),
            Self::Plain => println!("{line}"),
            Self::Json => println!("{}", json!({"type": "step", "message": message, "milliseconds": millis})),
        }
    }

    /// Something that the user should know.
    pub fn warn(&self, message: &str) {
        match self {
            Self::Terminal(bar) => bar.println(format!("! {message}")),
            Self::Plain => println!("! {message}"),
            Self::Json => println!("{}", json!({"type": "warning", "message": message})),
        }
    }

    /// Takes the spinner away.
    pub fn clear(&self) {
        if let Self::Terminal(bar) = self {
            bar.finish_and_clear();
        }
    }

    /// The last words, with facts for the JSON form.
    pub fn last(as_json: bool, message: &str, facts: Value) {
        if !as_json {
            println!("{message}");
            return;
        }
        let mut object = json!({"type": "done", "message": message});
        if let (Some(object), Value::Object(facts)) = (object.as_object_mut(), facts) {
            object.extend(facts);
        }
        println!("{object}");
    }
}
