//! What this process may do beyond its user's rights (capabilities(7)). They belong to threads: a
//! thread starts with those of the one that makes it, so they are given up before there are others.

use std::io;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// A right that is asked about or kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// CAP_NET_ADMIN: the vDPA bus, network devices.
    NetAdmin,
    /// CAP_DAC_OVERRIDE: files of other users.
    DacOverride,
}

impl Capability {
    fn bit(self) -> CapabilitySet {
        match self {
            Self::NetAdmin => CapabilitySet::NET_ADMIN,
            Self::DacOverride => CapabilitySet::DAC_OVERRIDE,
        }
    }
}

/// Whether this thread has `capability`.
#[must_use]
pub fn has_capability(capability: Capability) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability.bit()))
}

/// Gives up for good, in this thread and those it makes from now on, every capability but `keep`,
/// as far as they are there, and the way to get others by starting a program.
///
/// # Errors
/// The kernel refuses, which it has no reason to.
pub fn keep_capabilities(keep: &[Capability]) -> io::Result<()> {
    let kept = keep.iter().fold(CapabilitySet::empty(), |all, one| all | one.bit());
    let has = capabilities(None)?.permitted;
    for capability in CapabilitySet::all() - kept {
        // One that this kernel does not know, or without CAP_SETPCAP: then no_new_privs does it.
        let _ = remove_capability_from_bounding_set(capability);
    }
    set_no_new_privs(true)?;
    let kept = has & kept;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Whether `path` may be written, or connected to, without the right to other users' files.
///
/// # Errors
/// The kernel refuses to lower and raise this thread's rights.
pub fn is_writable_without_override(path: &Path) -> io::Result<bool> {
    let before = capabilities(None)?;
    let others = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, CapabilitySets { effective: before.effective - others, ..before })?;
    let answer = accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS);
    set_capabilities(None, before)?;
    Ok(answer.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own, whose rights nobody misses.
    fn aside(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn what_is_given_up_stays_so() {
        aside(|| {
            let before = has_capability(Capability::NetAdmin);
            keep_capabilities(&[Capability::NetAdmin]).unwrap();
            assert_eq!(has_capability(Capability::NetAdmin), before);
            assert!(!has_capability(Capability::DacOverride));
            let all = CapabilitySets {
                effective: CapabilitySet::DAC_OVERRIDE,
                permitted: CapabilitySet::DAC_OVERRIDE,
                inheritable: CapabilitySet::empty(),
            };
            assert!(set_capabilities(None, all).is_err());
            std::thread::spawn(|| assert!(!has_capability(Capability::DacOverride)))
                .join()
                .unwrap();
        });
    }

    #[test]
    fn looking_without_a_right_does_not_lose_it() {
        aside(|| {
            let before = capabilities(None).unwrap();
            let folder = tempfile::tempdir().unwrap();
            assert!(is_writable_without_override(folder.path()).unwrap());
            assert!(!is_writable_without_override(&folder.path().join("nothing")).unwrap());
            assert_eq!(capabilities(None).unwrap(), before);
        });
    }
}
