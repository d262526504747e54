//! What is learnt about a request while it is answered, for the `annotations` of its audit event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const DECISION: &str = "authorization.k8s.io/decision";
const REASON: &str = "authorization.k8s.io/reason";

/// The annotations of one request. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Annotations(Arc<Mutex<BTreeMap<String, String>>>);

impl Annotations {
    /// Notes something. What is there already stays (`AddAuditAnnotation`).
    pub fn add(&self, key: &str, value: &str) {
        let mut all = self.0.lock().expect("no panic under this lock");
        if let Some(there) = all.get(key).filter(|there| *there != value) {
            tracing::warn!(key, there, value, "an audit annotation is not overwritten");
            return;
        }
        all.insert(key.to_owned(), value.to_owned());
    }

    /// Notes what authorization said, and why.
    pub fn authorized(&self, decision: &Result<String, String>) {
        let (said, why) = match decision {
            Ok(why) => ("allow", why),
            Err(why) => ("forbid", why),
        };
        self.add(DECISION, said);
        self.add(REASON, why);
    }

    /// All so far.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().expect("no panic under this lock").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_counts() {
        let notes = Annotations::default();
        notes.clone().authorized(&Ok("RBAC: allowed".to_owned()));
        notes.add("a/b", "1");
        notes.add("a/b", "2");
        let expected = [(DECISION, "allow"), (REASON, "RBAC: allowed"), ("a/b", "1")];
        assert_eq!(notes.all(), expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
}
