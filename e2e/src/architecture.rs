//! The processor of a guest, and what follows from it.

use std::path::{Path, PathBuf};

use crate::root::Root;

/// What a guest's kernel and programs are compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Hash)]
pub enum Architecture {
    /// PCs.
    #[default]
    X86,
    /// 64-bit ARM.
    Arm,
}

/// The name of a folder in `/kernels`, and that of programs.
const ARM: &str = "arm64";

impl Architecture {
    /// That of a kernel, by the name of its folder.
    pub fn of(kernel: &str) -> Architecture {
        if kernel == ARM { Architecture::Arm } else { Architecture::X86 }
    }

    /// QEMU's program.
    pub fn emulator(self) -> &'static str {
        match self {
            Architecture::X86 => "qemu-system-x86_64",
            Architecture::Arm => "qemu-system-aarch64",
        }
    }

    /// The machine that has PCI Express.
    pub fn machine(self) -> &'static str {
        match self {
            Architecture::X86 => "q35",
            Architecture::Arm => "virt,gic-version=3",
        }
    }

    /// The processor that is emulated fastest.
    pub fn processor(self) -> &'static str {
        match self {
            // Five-level page tables make every walk of the emulated MMU longer and are of no use
            // here.
            Architecture::X86 => "max,la57=off",
            // Newer ones authenticate pointers, which costs much to emulate.
            Architecture::Arm => "cortex-a72",
        }
    }

    /// The form of a kernel that QEMU starts soonest, beside its `vmlinuz`.
    pub fn kernel(self, vmlinuz: &Path) -> PathBuf {
        match self {
            Architecture::X86 => vmlinuz.with_file_name("vmlinux"),
            Architecture::Arm => vmlinuz.to_owned(),
        }
    }

    /// The serial lines for the kernel's log and, to be read by `guest/init`, for commands.
    pub fn lines(self) -> &'static str {
        match self {
            Architecture::X86 => "console=ttyS0 shell_port=/dev/ttyS1",
            Architecture::Arm => "console=ttyAMA0 shell_port=/dev/ttyAMA1",
        }
    }

    /// Where the root has a program or library of a guest, by its path in the guest.
    pub fn place(self, path: &str) -> String {
        match (self, path.strip_prefix("/lib/")) {
            (Architecture::X86, _) => path.to_owned(),
            // A loader looks in `/lib` last, so that is where all of them may be.
            (Architecture::Arm, Some(name)) => format!("/{ARM}/usr/lib/aarch64-linux-gnu/{name}"),
            (Architecture::Arm, None) => format!("/{ARM}{path}"),
        }
    }

    /// The same, for programs outside the root.
    pub fn file(self, root: &Root, path: &str) -> PathBuf {
        root.file(&self.place(path))
    }

    /// Whether the root has programs other than busybox and lspci for it.
    pub fn has_programs(self) -> bool {
        self == Architecture::X86
    }
}

#[cfg(test)]
mod tests {
    use super::Architecture;

    #[test]
    fn kernels_of_versions_are_for_pcs() {
        assert_eq!(Architecture::of("6.12"), Architecture::X86);
        assert_eq!(Architecture::of("newest"), Architecture::X86);
        let arm = Architecture::of("arm64");
        assert_eq!(arm.place("/usr/bin/lspci"), "/arm64/usr/bin/lspci");
        assert_eq!(arm.place("/lib/libc.so.6"), "/arm64/usr/lib/aarch64-linux-gnu/libc.so.6");
    }
}
