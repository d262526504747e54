//! The default seccomp filter, and the one that pretends identities where one uid only is mapped; as classic BPF.

use std::io;

use crate::node::runtime::capabilities::CapabilitySet;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const PRETEND: u32 = libc::SECCOMP_RET_ERRNO;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// The flags of clone and unshare that make namespaces.
const NAMESPACES: u32 = 0x7E02_0000;

/// A program for the kernel.
pub type Program = Vec<libc::sock_filter>;

fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// `if number == call { return answer }`
fn answer(program: &mut Program, call: libc::c_long, with: u32) {
    program.push(jump(JUMP_EQUAL, call as u32, 0, 1));
    program.push(statement(RETURN, with));
}

fn begin(foreign: u32) -> Program {
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        jump(JUMP_EQUAL, ARCH, 1, 0),
        statement(RETURN, foreign),
        statement(LOAD, NUMBER),
    ];
    if cfg!(target_arch = "x86_64") {
        // the x32 numbers
        program.push(jump(JUMP_GREATER, 0x4000_0000, 0, 1));
        program.push(statement(RETURN, foreign));
    }
    program
}

/// What containerd's default profile refuses, for a container with these capabilities (which unlock calls there too).
pub fn default_filter(capabilities: CapabilitySet) -> Program {
    let mut program = begin(DENY);
    let admin = capabilities.has("SYS_ADMIN");
    let mut deny = |calls: &[libc::c_long], unless: bool| {
        if !unless {
            calls.iter().for_each(|call| answer(&mut program, *call, DENY));
        }
    };
    deny(
        &[
            libc::SYS_add_key,
            libc::SYS_keyctl,
            libc::SYS_request_key,
            libc::SYS_userfaultfd,
            libc::SYS_nfsservctl,
            libc::SYS_move_pages,
            libc::SYS_migrate_pages,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_swapon,
            libc::SYS_swapoff,
        ],
        false,
    );
    #[cfg(target_arch = "x86_64")]
    deny(&[libc::SYS_uselib, libc::SYS_ustat, libc::SYS_sysfs, libc::SYS__sysctl], false);
    deny(
        &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_mount_setattr,
            libc::SYS_lookup_dcookie,
            libc::SYS_quotactl,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            libc::SYS_fanotify_init,
        ],
        admin,
    );
    deny(&[libc::SYS_bpf], admin || capabilities.has("BPF"));
    deny(&[libc::SYS_perf_event_open], admin || capabilities.has("PERFMON"));
    deny(&[libc::SYS_syslog], admin || capabilities.has("SYSLOG"));
    deny(&[libc::SYS_reboot], capabilities.has("SYS_BOOT"));
    deny(&[libc::SYS_acct], capabilities.has("SYS_PACCT"));
    deny(&[libc::SYS_open_by_handle_at], capabilities.has("DAC_READ_SEARCH"));
    deny(&[libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_clock_adjtime], capabilities.has("SYS_TIME"));
    deny(&[libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module], capabilities.has("SYS_MODULE"));
    deny(&[libc::SYS_kcmp, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev], capabilities.has("SYS_PTRACE"));
    deny(&[libc::SYS_mbind, libc::SYS_get_mempolicy, libc::SYS_set_mempolicy], capabilities.has("SYS_NICE"));
    #[cfg(target_arch = "x86_64")]
    deny(&[libc::SYS_iopl, libc::SYS_ioperm], capabilities.has("SYS_RAWIO"));
    if !admin {
        // clone3 hides its flags behind a pointer: pretend that it does not exist, so that libc falls back to clone.
        answer(&mut program, libc::SYS_clone3, MISSING);
        program.extend([
            jump(JUMP_EQUAL, libc::SYS_clone as u32, 0, 4),
            statement(LOAD, FIRST_ARGUMENT),
            jump(JUMP_SET, NAMESPACES, 0, 1),
            statement(RETURN, DENY),
            statement(RETURN, ALLOW),
        ]);
    }
    // AF_ALG (38) and AF_VSOCK (40)
    program.extend([
        jump(JUMP_EQUAL, libc::SYS_socket as u32, 0, 5),
        statement(LOAD, FIRST_ARGUMENT),
        jump(JUMP_EQUAL, libc::AF_ALG as u32, 1, 0),
        jump(JUMP_EQUAL, libc::AF_VSOCK as u32, 0, 1),
        statement(RETURN, DENY),
        statement(RETURN, ALLOW),
    ]);
    program.push(statement(RETURN, ALLOW));
    program
}

/// Answers 0 to calls that change owners and identities, doing nothing: for images that run as root and
/// `chown` or drop privileges where one uid only exists.
pub fn pretending_filter() -> Program {
    let mut program = begin(ALLOW);
    for call in [
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
    ] {
        answer(&mut program, call, PRETEND);
    }
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_chown, libc::SYS_lchown] {
        answer(&mut program, call, PRETEND);
    }
    program.push(statement(RETURN, ALLOW));
    program
}

/// Applies a program to this process and its children.
///
/// # Errors
/// When the kernel has no seccomp, or the process neither `no_new_privs` nor CAP_SYS_ADMIN.
pub fn load(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads the program and copies it.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would on a call with that first argument.
    fn verdict(program: &[libc::sock_filter], arch: u32, call: libc::c_long, argument: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let mut jump = |taken| at += usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                LOAD => value = [call as u32, arch, 0, 0, argument][step.k as usize / 4],
                JUMP_EQUAL => jump(value == step.k),
                JUMP_GREATER => jump(value >= step.k),
                JUMP_SET => jump(value & step.k != 0),
                RETURN => return step.k,
                code => panic!("no such instruction: {code}"),
            }
        }
    }

    #[test]
    fn the_default_filter_refuses_what_containerd_refuses() {
        let filter = default_filter(CapabilitySet::default());
        for (call, argument, expected) in [
            (libc::SYS_read, 0, ALLOW),
            (libc::SYS_mount, 0, DENY),
            (libc::SYS_unshare, 0, DENY),
            (libc::SYS_clone, libc::SIGCHLD as u32, ALLOW),
            (libc::SYS_clone, libc::CLONE_NEWUSER as u32, DENY),
            (libc::SYS_clone3, 0, MISSING),
            (libc::SYS_socket, libc::AF_INET as u32, ALLOW),
            (libc::SYS_socket, libc::AF_ALG as u32, DENY),
            (libc::SYS_socket, libc::AF_VSOCK as u32, DENY),
            (libc::SYS_keyctl, 0, DENY),
            (libc::SYS_execve, 0, ALLOW),
        ] {
            assert_eq!(verdict(&filter, ARCH, call, argument), expected, "call {call}");
        }
        assert_eq!(verdict(&filter, 0x4000_0003, 1, 0), DENY);
        let admin = default_filter(CapabilitySet::all());
        assert_eq!(verdict(&admin, ARCH, libc::SYS_mount, 0), ALLOW);
        assert_eq!(verdict(&admin, ARCH, libc::SYS_clone, libc::CLONE_NEWNS as u32), ALLOW);
    }

    #[test]
    fn pretending_answers_zero() {
        let filter = pretending_filter();
        assert_eq!(verdict(&filter, ARCH, libc::SYS_fchownat, 0), PRETEND);
        assert_eq!(verdict(&filter, ARCH, libc::SYS_openat, 0), ALLOW);
    }
}
