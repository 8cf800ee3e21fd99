//! Where the software on the other side lives, and how it is started.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The tree with QEMU, the daemons, the kernels and the guests' tools: a private Debian made by
/// `cargo xtask root`, or `/` on a machine that has it all.
#[derive(Clone, Debug)]
pub struct Root {
    place: PathBuf,
    cache: PathBuf,
}

/// Turns the tree `$1` into `/` for one program, with the folders in `$2` (one a line) in the same
/// place as outside so that sockets and files keep their names. `pivot_root` and not `chroot`: in a
/// chroot the kernel refuses user namespaces, which passt needs.
const ENTER: &str = r#"
    root=$1; folders=$2; shift 2
    mount --rbind "$root" "$root"
    for folder in /dev /proc /sys /tmp; do mount --rbind "$folder" "$root$folder"; done
    printf '%s\n' "$folders" | while read -r folder; do
        mkdir -p "$root$folder"
        mount --bind "$folder" "$root$folder"
    done
    cd "$root"
    pivot_root . .
    umount -l .
    cd /
    exec "$@"
"#;

impl Root {
    /// `$VIADUCT_ROOT`, else what `cargo xtask root` made last.
    pub fn find() -> Result<Root> {
        let cache = cache_folder()?;
        let place = set("VIADUCT_ROOT").unwrap_or_else(|| cache.join("root"));
        let place = place.canonicalize().with_context(|| {
            format!("no software for the tests at {}: run `cargo xtask root`", place.display())
        })?;
        Ok(Root { place, cache })
    }

    /// A folder for things that are made once, visible to the programs.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A file of the tree, by its path inside.
    pub fn file(&self, path: &str) -> PathBuf {
        self.place.join(path.trim_start_matches('/'))
    }

    /// The folder of a kernel: `vmlinuz`, `vmlinux` and `modules`. `name` is a version such as
    /// 6.12, or `newest`.
    pub fn kernel(&self, name: &str) -> Result<PathBuf> {
        let all = self.file("kernels");
        let mut found: Vec<PathBuf> = std::fs::read_dir(&all)
            .with_context(|| format!("no kernels in {}", all.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        found.sort_by_key(|path| version(path));
        let newest = found.pop().context("the folder of kernels is empty")?;
        match name {
            "newest" => Ok(newest),
            _ => std::iter::once(newest)
                .chain(found)
                .find(|path| path.ends_with(name))
                .with_context(|| format!("no kernel {name} in {}", all.display())),
        }
    }

    /// A program of the tree, ready to be given arguments. `folder` is the test's own.
    ///
    /// It is killed when the thread that starts it ends, so that nothing survives a test that was
    /// itself killed.
    pub fn program(&self, name: &str, folder: &Path) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).current_dir("/");
        if let Some(tool) = self.tool(name) {
            command.arg(tool);
            return Ok(command);
        }
        self.enter(&mut command, folder);
        let known = ["usr/local/bin", "usr/bin", "usr/sbin", "usr/libexec", "usr/lib/qemu"];
        let found = known.iter().map(|d| format!("/{d}/{name}")).find(|p| self.file(p).exists());
        match found {
            Some(path) => command.arg(path),
            None => bail!("{name} is not in {}", self.place.display()),
        };
        Ok(command)
    }

    /// A program of the machine's in the tree: it finds the tree's tools and libraries, as on a
    /// machine of that Debian. Its file is in `folder`.
    pub fn guest_program(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).current_dir("/");
        self.enter(&mut command, folder);
        command.arg(program);
        command
    }

    /// What follows in `command` is run in the tree.
    fn enter(&self, command: &mut Command, folder: &Path) {
        if self.place == Path::new("/") {
            return;
        }
        let folders = format!("{}\n{}", self.cache.display(), folder.display());
        command.args(["unshare", "--mount", "--propagation", "private", "sh", "-euc", ENTER]);
        command.arg("sh").arg(&self.place).arg(folders);
        command.env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }

    /// A program built from the Rust registry: it runs with the machine's own libraries.
    fn tool(&self, name: &str) -> Option<PathBuf> {
        let versions = std::fs::read_dir(self.cache.join("tools")).ok()?;
        let mut found: Vec<PathBuf> =
            versions.filter_map(|e| Some(e.ok()?.path().join("bin").join(name))).collect();
        found.retain(|path| path.is_file());
        found.sort();
        found.pop()
    }
}

/// `$VIADUCT_CACHE`, else `$XDG_CACHE_HOME/viaduct`, else `~/.cache/viaduct`; the rule of
/// `cargo xtask root`.
fn cache_folder() -> Result<PathBuf> {
    set("VIADUCT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("viaduct")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/viaduct")))
        .context("no cache folder: set VIADUCT_CACHE or HOME")
}

fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `.../6.12` → [6, 12]: 6.12 is newer than 6.2.
fn version(path: &Path) -> Vec<u32> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert!(version(Path::new("/k/6.12")) > version(Path::new("/k/6.2")));
        assert!(version(Path::new("/k/7.2")) > version(Path::new("/k/6.12")));
    }
}
