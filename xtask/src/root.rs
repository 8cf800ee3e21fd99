//! The private root: a Debian 13 tree with the software on the other side of the end-to-end
//! tests, so that a machine needs nothing but Rust, git and gcc to run them.
//!
//! It is built beside its final place and renamed when complete, so that a root that exists is a
//! whole one. Its name carries a hash of the recipe, so that a changed recipe makes a new one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cache;
use crate::process::{on_path, output, quietly, step};

const RECIPE: &str = include_str!("../recipe/debian.sh");
const SUITE: &str = "trixie";

/// Daemons that no distribution packages; built from the Rust registry: name and version.
const TOOLS: &[(&str, &str)] = &[("vhost-device-rng", "0.1.0")];

/// Runs the recipe inside the root `$1`, with the kernel's file systems and the network's names.
const ENTER: &str = r#"
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mount --rbind /sys "$1/sys"
    mount -t tmpfs tmp "$1/tmp"
    cp /etc/resolv.conf /etc/hosts "$1/etc/"
    PATH=/usr/sbin:/usr/bin:/sbin:/bin exec chroot "$1" sh /recipe.sh
"#;

/// Options of `cargo xtask root`.
#[derive(Args)]
pub struct Options {
    /// Build it again even if it is there.
    #[arg(long)]
    again: bool,
    /// Only print where it is (or would be).
    #[arg(long)]
    path: bool,
}

/// `cargo xtask root`.
pub fn run(options: &Options) -> Result<()> {
    let place = place()?;
    if options.path {
        println!("{}", place.display());
        return Ok(());
    }
    if options.again && place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    }
    println!("the private root is {}", ensure()?.display());
    Ok(())
}

/// Makes the root unless it is there; where it is.
///
/// A machine (a container, say) on which the recipe has been run is its own root: `/`.
pub fn ensure() -> Result<PathBuf> {
    let folder = cache::folder()?;
    if machine_has_it_all() {
        println!("== this machine has the software of the tests");
        install_tools(&folder)?;
        return Ok(PathBuf::from("/"));
    }
    // Two tasks at once (two work trees, say) build it once; the lock goes with the process.
    let lock = File::create(folder.join("root.lock")).context("create the lock of the root")?;
    lock.lock().context("wait for the lock of the root")?;
    let place = place()?;
    if !place.exists() {
        cache::tidy(&folder)?;
        build(&folder, &place)?;
    }
    cache::used(&place)?;
    install_tools(&folder)?;
    publish(&folder, &place)?;
    Ok(place)
}

/// Whether PATH leads to the software and the guests' kernels are in their place.
fn machine_has_it_all() -> bool {
    let programs = ["qemu-storage-daemon", "passt", "dpdk-testpmd", "blkio-bench", "linux.uml"];
    let version = output(Command::new("qemu-system-x86_64").arg("--version")).unwrap_or_default();
    qemu_version(&version) >= OLDEST_QEMU
        && programs.iter().all(|name| on_path(name))
        && Path::new("/kernels").is_dir()
}

/// The first QEMU with a `vfio-user-pci` device.
const OLDEST_QEMU: (u32, u32) = (10, 1);

/// `QEMU emulator version 11.1.3 (Debian ...)` → (11, 1).
fn qemu_version(text: &str) -> (u32, u32) {
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_numeric()));
    let mut parts = number.unwrap_or_default().split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn place() -> Result<PathBuf> {
    Ok(cache::folder()?.join(format!("root-{}", cache::fingerprint(&[SUITE, RECIPE]))))
}

/// Points `CACHE/root` at the root, which is where the tests look.
fn publish(folder: &Path, place: &Path) -> Result<()> {
    let fresh = folder.join("root.new");
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(place, &fresh).context("make the link to the root")?;
    fs::rename(&fresh, folder.join("root")).context("publish the link to the root")
}

fn build(folder: &Path, place: &Path) -> Result<()> {
    let building = folder.join("root.building");
    if building.exists() {
        fs::remove_dir_all(&building).with_context(|| {
            format!("remove {}, left by a run that was cut", building.display())
        })?;
    }
    install_debootstrap()?;
    let log = folder.join("root.log");
    let _ = fs::remove_file(&log);
    let outcome = fill(&building, &log);
    if outcome.is_err() {
        let _ = fs::remove_dir_all(&building);
    }
    outcome?;
    fs::rename(&building, place).with_context(|| format!("move the root to {}", place.display()))
}

fn fill(building: &Path, log: &Path) -> Result<()> {
    // In a mount namespace of its own: whatever debootstrap and the recipe mount goes with it.
    let mut bootstrap = in_namespace("exec debootstrap \"$@\"");
    bootstrap.arg("--variant=minbase").arg("--include=ca-certificates").arg(SUITE).arg(building);
    bootstrap.args(mirror());
    quietly("a minimal Debian 13", &mut bootstrap, log)?;
    fs::write(building.join("recipe.sh"), RECIPE)?;
    let mut recipe = in_namespace(ENTER);
    recipe.arg(building);
    quietly("the software of the tests", &mut recipe, log)?;
    fs::remove_file(building.join("recipe.sh"))?;
    Ok(())
}

/// A shell script in a mount namespace of its own; arguments that are added become `$@`.
fn in_namespace(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]);
    command
}

fn install_debootstrap() -> Result<()> {
    if on_path("debootstrap") || Path::new("/usr/sbin/debootstrap").exists() {
        return Ok(());
    }
    if !on_path("apt-get") {
        bail!("debootstrap is missing: install it, it makes the private root of the tests");
    }
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("debootstrap is missing: install it, or run this as root");
    }
    println!("debootstrap is missing: installing it with apt-get");
    let quiet = ["-qq", "-o", "Dpkg::Use-Pty=0"];
    step("package lists", Command::new("apt-get").args(quiet).arg("update"))?;
    let install =
        ["install", "-y", "--no-install-recommends", "debootstrap", "debian-archive-keyring"];
    step("debootstrap", Command::new("apt-get").args(quiet).args(install))
}

/// The mirror that this machine's own apt uses; none = debootstrap's default.
fn mirror() -> Option<String> {
    let format = ["indextargets", "--format", "$(SITE)"];
    let sites = output(Command::new("apt-get").args(format)).ok()?;
    sites
        .lines()
        .map(|s| s.trim_end_matches('/'))
        .find(|s| s.ends_with("/debian"))
        .map(str::to_owned)
}

/// Installs what comes from the Rust registry into `CACHE/tools`, once per version.
fn install_tools(folder: &Path) -> Result<()> {
    for (name, version) in TOOLS {
        let place = folder.join(format!("tools/{name}-{version}"));
        if place.join("bin").join(name).exists() {
            continue;
        }
        let building = folder.join("tools.building");
        let mut install = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        install.args(["install", "--quiet", "--locked", "--version", version, name, "--root"]);
        install.arg(&building).arg("--target-dir").arg(building.join("target"));
        // The workspace's own settings are not for foreign code.
        install.current_dir(folder).env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
        quietly(
            &format!("{name} {version} from the Rust registry"),
            &mut install,
            &folder.join("tools.log"),
        )?;
        fs::remove_dir_all(building.join("target"))?;
        fs::create_dir_all(folder.join("tools"))?;
        fs::rename(&building, &place).with_context(|| format!("move {name} to its place"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{OLDEST_QEMU, qemu_version};

    #[test]
    fn versions_of_qemu() {
        assert_eq!(qemu_version("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"), (11, 1));
        assert!(qemu_version("QEMU emulator version 7.2.17") < OLDEST_QEMU);
        assert!(qemu_version("") < OLDEST_QEMU);
    }
}
