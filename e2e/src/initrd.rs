//! A guest's first and only file system: busybox, the modules and the programs it was asked for,
//! and nothing else. Not compressed: an emulated processor unpacks slower than memory is filled.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::architecture::Architecture;
use crate::cpio::Archive;
use crate::lab::Lab;

const INIT: &str = include_str!("../../guest/init");

/// What to put in.
#[derive(Default, Hash)]
pub struct Initrd {
    architecture: Architecture,
    modules: Vec<String>,
    programs: Vec<String>,
    /// Programs of ours, not of the root.
    own: Vec<PathBuf>,
}

impl Initrd {
    /// An empty one for this processor; the default is one for PCs.
    pub fn of(architecture: Architecture) -> Initrd {
        Initrd { architecture, ..Initrd::default() }
    }

    /// Adds a kernel module and what it depends on; built-in ones are fine.
    pub fn module(mut self, name: &str) -> Initrd {
        self.modules.push(name.to_owned());
        self
    }

    /// Adds a program of the root with its libraries.
    pub fn program(mut self, name: &str) -> Initrd {
        self.programs.push(name.to_owned());
        self
    }

    /// Adds a program of ours; the libraries it needs are those of the root.
    pub fn own_program(mut self, path: &Path) -> Result<Initrd> {
        ensure!(path.file_name().is_some(), "{} is no program", path.display());
        self.own.push(path.to_owned());
        Ok(self)
    }

    /// The archive for a kernel whose modules are in `modules`, made unless it is in the cache.
    pub fn make(&self, lab: &Lab, modules: &Path) -> Result<PathBuf> {
        let mut hash = DefaultHasher::new();
        (self, INIT, modules, lab.root().file("/")).hash(&mut hash);
        let name = format!("initrd-{:016x}.cpio", hash.finish());
        if !self.own.is_empty() {
            // Our programs change with every build: not for the cache.
            let mut archive = Archive::default();
            self.fill(&mut archive, lab, modules).context("make the guest's file system")?;
            return lab.write(&name, &archive.bytes());
        }
        let place = lab.root().cache().join(name);
        if !place.exists() {
            let mut archive = Archive::default();
            self.fill(&mut archive, lab, modules).context("make the guest's file system")?;
            // Complete under another name first: another test may be making the same one.
            let temporary = tempfile::NamedTempFile::new_in(lab.root().cache())?;
            fs::write(temporary.path(), archive.bytes())?;
            temporary.persist(&place).with_context(|| format!("keep {}", place.display()))?;
        }
        Ok(place)
    }

    fn fill(&self, archive: &mut Archive, lab: &Lab, modules: &Path) -> Result<()> {
        for folder in ["dev", "mnt", "proc", "sys", "tmp", "etc", "modules"] {
            archive.folder(folder);
        }
        archive.console("dev/console");
        archive.program("init", INIT.into());
        let busybox = self.architecture.file(lab.root(), "/usr/bin/busybox");
        archive.program("bin/busybox", fs::read(&busybox).context("read busybox")?);
        // Another processor's can't be asked; they are built with the same applets.
        let applets = Command::new(lab.root().file("/usr/bin/busybox")).arg("--list").output()?;
        for applet in
            String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox")
        {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        self.add_modules(archive, modules)
            .with_context(|| format!("take modules from {}", modules.display()))?;
        let mut libraries: BTreeSet<String> = match self.architecture {
            // Loaded by name when a thread is cancelled; `ldd` does not know.
            Architecture::X86 => ["/lib/x86_64-linux-gnu/libgcc_s.so.1".to_owned()].into(),
            Architecture::Arm => BTreeSet::new(),
        };
        for name in &self.programs {
            let path = self.add_program(archive, lab, name)?;
            libraries.extend(match self.architecture {
                Architecture::X86 => {
                    let printed = lab.program("ldd")?.arg(&path).output()?.stdout;
                    paths_in(&String::from_utf8_lossy(&printed))
                }
                Architecture::Arm => self.foreign_libraries(lab, &path)?,
            });
        }
        for path in &self.own {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            archive.program(&format!("bin/{name}"), content);
            // Prints nothing of use, and fails, for a program that is linked statically.
            let printed = Command::new("ldd").arg(path).output()?.stdout;
            libraries.extend(paths_in(&String::from_utf8_lossy(&printed)));
        }
        for library in libraries {
            let content = fs::read(self.architecture.file(lab.root(), &library));
            archive.program(&library, content.with_context(|| format!("read {library}"))?);
        }
        Ok(())
    }

    /// Puts the program in `/bin`; where it is in the root.
    fn add_program(&self, archive: &mut Archive, lab: &Lab, name: &str) -> Result<String> {
        let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/libexec"];
        let file = |path: &str| self.architecture.file(lab.root(), path);
        let mut paths = folders.iter().map(|folder| format!("{folder}/{name}"));
        let path = paths.find(|path| file(path).exists());
        let path = path.with_context(|| format!("no program {name}"))?;
        archive.program(&format!("bin/{name}"), fs::read(file(&path))?);
        Ok(path)
    }

    /// The libraries that a program for another processor needs, which `ldd` can't start: those it
    /// names, those that these name, and so on. The loader is one of them.
    fn foreign_libraries(&self, lab: &Lab, program: &str) -> Result<Vec<String>> {
        let mut found: Vec<String> = Vec::new();
        let mut next = Some(program.to_owned());
        let mut read = 0;
        // Bounded: every library is read once.
        while let Some(path) = next {
            let mut list = lab.program("readelf")?;
            list.arg("-d").arg(self.architecture.place(&path));
            for name in needed_by(&String::from_utf8_lossy(&list.output()?.stdout)) {
                let path = format!("/lib/{name}");
                if !found.contains(&path) {
                    found.push(path);
                }
            }
            next = found.get(read).cloned();
            read += 1;
        }
        Ok(found)
    }

    /// Puts the modules in `/modules`, named in the order in which they can be loaded.
    fn add_modules(&self, archive: &mut Archive, folder: &Path) -> Result<()> {
        let dependencies = fs::read_to_string(folder.join("modules.dep"))?;
        let dependencies: BTreeMap<&str, Vec<&str>> = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| (path, needs.split_whitespace().collect()))
            .collect();
        let built_in = fs::read_to_string(folder.join("modules.builtin"))?;
        let mut order: Vec<&str> = Vec::new();
        for name in &self.modules {
            let Some((path, needs)) = dependencies.iter().find(|(path, _)| is_module(path, name))
            else {
                ensure!(built_in.lines().any(|path| is_module(path, name)), "no module {name}");
                continue;
            };
            // The first one named depends on all later ones.
            for path in needs.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path);
                }
            }
        }
        for (number, path) in order.iter().enumerate() {
            let name = path.rsplit('/').next().unwrap_or(path);
            archive.file(&format!("modules/{number:02}-{name}"), fs::read(folder.join(path))?);
        }
        Ok(())
    }
}

/// Whether `path` is that of the module; `-` and `_` are the same in names of modules.
fn is_module(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".ko").is_some_and(|own| own.replace('-', "_") == name.replace('-', "_"))
}

/// The libraries in what `ldd` prints: `name => /path (0x...)` or `/path (0x...)`; where it
/// complains about one, the path is of who wants it.
fn paths_in(printed: &str) -> Vec<String> {
    printed
        .lines()
        .filter(|line| !line.contains("not found"))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

/// The libraries in what `readelf -d` prints: `(NEEDED) Shared library: [name]`.
fn needed_by(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter(|line| line.contains("(NEEDED)"));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_modules_and_libraries() {
        assert!(is_module("kernel/drivers/char/hw_random/virtio-rng.ko", "virtio_rng"));
        assert!(!is_module("kernel/drivers/block/virtio_blk.ko", "blk"));
        let printed =
            "\tlinux-vdso.so.1 (0x1)\n\tliba.so => /lib/liba.so (0x2)\n\t/lib64/ld.so (0x3)";
        assert_eq!(paths_in(printed), ["/lib/liba.so", "/lib64/ld.so"]);
        let printed = "/bin/a: /lib/libc.so: version `9' not found (required by /bin/a)";
        assert!(paths_in(printed).is_empty());
        let printed = " 0x1 (NEEDED)  Shared library: [libpci.so.3]\n 0xe (SONAME) name: [a.so]";
        assert_eq!(needed_by(printed), ["libpci.so.3"]);
    }
}
