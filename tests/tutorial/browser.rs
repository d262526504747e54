//! A real headless Chromium, driven by its DevTools protocol over a pair of pipes.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::{Value, json};

use crate::world::World;

/// Flags that keep Chromium from looking for its maker's servers, and from asking for what a test machine lacks.
pub const FLAGS: &str = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,900";

/// A browser with one page.
pub struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    next: u64,
    session: Option<String>,
    events: VecDeque<Value>,
}

impl Browser {
    /// Starts it; the page is empty.
    pub fn open(world: &World) -> Self {
        // Descriptors 3 and 4 are the protocol's; a browser that hangs ends, and the test with it.
        let command = format!(
            "exec timeout 300 chromium {FLAGS} --user-data-dir=$PWD/browser --remote-debugging-pipe \
             3<&0 4>&1 </dev/null >chromium.log 2>&1"
        );
        let mut process =
            world.command(&command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash runs");
        let to = process.stdin.take().expect("it is piped");
        let from = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut browser = Self { process, to, from, next: 0, session: None, events: VecDeque::new() };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        browser.call("Page.enable", &json!({}));
        browser
    }

    /// Loads an address.
    #[track_caller]
    pub fn go(&mut self, url: &str) {
        self.events.clear();
        let answer = self.call("Page.navigate", &json!({"url": url}));
        assert!(answer["errorText"].is_null(), "{url}: {}", answer["errorText"]);
        self.loaded();
    }

    /// The text that the page shows.
    #[track_caller]
    pub fn text(&mut self) -> String {
        self.value("document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// The value of an expression in the page; a promise is waited for.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Waits until a condition holds in the page: it is looked at whenever the document changes.
    #[track_caller]
    pub fn until(&mut self, condition: &str) {
        let promise = format!(
            "new Promise((ok, no) => {{
                const holds = () => {{ try {{ return !!({condition}) }} catch {{ return false }} }};
                if (holds()) return ok();
                const observer = new MutationObserver(() => {{ if (holds()) {{ observer.disconnect(); ok() }} }});
                observer.observe(document, {{subtree: true, childList: true, attributes: true, characterData: true}});
                setTimeout(() => no('never: ' + document.body.innerText), 30000);
            }})"
        );
        self.value(&promise);
    }

    /// Types into the element that a selector names, in place of what it has.
    #[track_caller]
    pub fn enter(&mut self, selector: &str, text: &str) {
        self.until(&format!("document.querySelector({selector:?})"));
        self.value(&format!("(e => {{ e.focus(); e.select() }})(document.querySelector({selector:?}))"));
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Clicks on what a selector names, as soon as it may be clicked.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        self.until(&format!("!document.querySelector({selector:?}).disabled"));
        self.value(&format!("document.querySelector({selector:?}).click()"));
    }

    /// Clicks on what leads to another page, and waits for it.
    #[track_caller]
    pub fn follow(&mut self, selector: &str) {
        self.events.clear();
        self.click(selector);
        self.loaded();
    }

    fn loaded(&mut self) {
        loop {
            let event = self.events.pop_front().unwrap_or_else(|| self.message());
            if event["method"] == "Page.loadEventFired" {
                return;
            }
        }
    }

    #[track_caller]
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.next += 1;
        let mut request = json!({"id": self.next, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        write!(self.to, "{request}\0").and_then(|()| self.to.flush()).expect("the browser runs");
        loop {
            let message = self.message();
            if message["id"] == self.next {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push_back(message);
        }
    }

    fn message(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).expect("the browser runs");
        assert_eq!(bytes.pop(), Some(0), "the browser ended");
        serde_json::from_slice(&bytes).expect("messages are JSON")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
