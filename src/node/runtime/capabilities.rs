//! Linux capabilities: names, containerd's default set, and applying a set.

use std::io;

use serde::{Deserialize, Serialize};

/// Names without `CAP_`, in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containerd gives to a container that asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// Every capability.
    pub fn all() -> Self {
        Self((1 << NAMES.len()) - 1)
    }

    /// Containerd's default set changed as `securityContext.capabilities` says.
    ///
    /// # Errors
    /// When a name is unknown, in the words of containerd.
    pub fn merged(privileged: bool, add: &[String], drop: &[String]) -> Result<Self, String> {
        if privileged {
            return Ok(Self::all());
        }
        let mut set = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit);
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        // As containerd: ALL first, then single names, so that `drop: [ALL], add: [X]` leaves X.
        if add.iter().any(is_all) {
            set = Self::all().0;
        }
        if drop.iter().any(is_all) {
            set = 0;
        }
        for name in add.iter().filter(|n| !is_all(n)) {
            set |= bit(name).ok_or_else(|| format!("unknown capability {:?} to add", with_prefix(name)))?;
        }
        for name in drop.iter().filter(|n| !is_all(n)) {
            set &= !bit(name).ok_or_else(|| format!("unknown capability {:?} to drop", with_prefix(name)))?;
        }
        Ok(Self(set))
    }

    /// Whether it holds that capability (name without `CAP_`).
    pub fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }

    /// All names with `CAP_`.
    pub fn names(self) -> Vec<String> {
        NAMES.iter().filter(|name| self.has(name)).map(|name| format!("CAP_{name}")).collect()
    }

    /// Takes everything else out of the bounding set of this process.
    ///
    /// # Errors
    /// When the process has no CAP_SETPCAP.
    pub fn bound(self) -> io::Result<()> {
        for number in 0..64u64 {
            // SAFETY: plain prctl with integers.
            let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
            if known < 0 {
                break; // one past the last capability of this kernel
            }
            if known == 1 && self.0 & (1 << number) == 0 {
                // SAFETY: as above.
                if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    }

    /// Makes this the permitted and effective set of this process; nothing is inheritable or ambient.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep(self) -> io::Result<()> {
        #[repr(C)]
        struct Header {
            version: u32,
            pid: i32,
        }
        let header = Header { version: 0x2008_0522, pid: 0 };
        let (mut held, low, high) = ([0u32; 6], self.0 as u32, (self.0 >> 32) as u32);
        // SAFETY: version 3 reads into two triples of 32-bit words.
        if unsafe { libc::syscall(libc::SYS_capget, &header, held.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let (low, high) = (low & held[1], high & held[4]); // only what is permitted can be kept
        let data = [low, low, 0, high, high, 0];
        // SAFETY: as above, and only reads.
        if unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|n| *n == name).map(|number| 1 << number)
}

fn with_prefix(name: &str) -> String {
    format!("CAP_{}", name.to_ascii_uppercase().trim_start_matches("CAP_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(add: &[&str], drop: &[&str]) -> Result<CapabilitySet, String> {
        let owned = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        CapabilitySet::merged(false, &owned(add), &owned(drop))
    }

    #[test]
    fn sets_are_merged_as_containerd_does() {
        assert_eq!(merged(&[], &[]).map(|s| s.names().len()), Ok(14));
        assert_eq!(
            merged(&["NET_BIND_SERVICE"], &["ALL"]).map(CapabilitySet::names),
            Ok(vec!["CAP_NET_BIND_SERVICE".to_owned()])
        );
        assert_eq!(merged(&["ALL"], &["NET_RAW"]).map(|s| s.names().len()), Ok(40));
        assert!(merged(&["NONSENSE"], &[]).is_err());
        assert!(merged(&[], &["cap_kill"]).is_ok_and(|s| !s.has("KILL")));
    }
}
