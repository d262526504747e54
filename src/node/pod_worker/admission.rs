//! Whether the pod may run here.

use super::{Msg, Worker};
use crate::client::recorder::EventType::Warning;
use crate::node::pod_state::Run;

impl Worker {
    /// Refuses a pod that the node cannot run, and keeps one from running while the node cannot give it what it asks for
    /// (the kubelet's admission handlers; `appArmorAdmitHandler`).
    pub(super) fn admit(&mut self) {
        let fresh = self.state.containers.values().all(|c| c.run == Run::Absent && c.replaced.is_none());
        if let Err(refusal) = self.context.admit(&self.state.pod, fresh) {
            self.context.recorder.event(&self.state.pod, Warning, &refusal.reason, refusal.message.clone());
            self.state.failed = Some((refusal.reason, format!("Pod was rejected: {}", refusal.message)));
            return;
        }
        if !fresh || self.state.termination().is_some() {
            return;
        }
        let armor = &self.context.options.app_armor;
        let why = armor.validate(&self.state.pod).err().map(|why| format!("Cannot enforce AppArmor: {why}"));
        if let Some(message) = &why {
            if self.state.blocked.as_ref().is_none_or(|(_, before)| before != message) {
                self.context.recorder.event(&self.state.pod, Warning, "AppArmor", message.clone());
            }
            let armor = armor.clone();
            let waiting = self.spawn(async move { armor.changed().await }, |()| Msg::Profiles);
            if let Some(old) = self.unblock.replace(waiting) {
                old.abort();
            }
        }
        self.state.blocked = why.map(|message| ("AppArmor".to_owned(), message));
    }
}
