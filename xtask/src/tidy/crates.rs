//! The rules between crates: who may depend on whom, who may say `unsafe`, which words are foreign.

use std::fs;
use std::path::Path;

use super::Fault;

/// Each crate of ours and the ones of ours it may use. Dependencies point one way.
const MAY_USE: &[(&str, &[&str])] = &[
    ("mem", &[]),
    ("wire", &[]),
    ("sys", &["mem"]),
    ("virtqueue", &["mem"]),
    ("virtio", &["mem", "sys", "virtqueue"]),
    ("worker", &["mem", "sys"]),
    ("pcie", &["mem", "sys", "virtqueue", "virtio", "wire", "worker"]),
    ("bridge", &["mem", "sys", "virtqueue", "virtio", "worker"]),
    ("devices", &["mem", "sys", "virtqueue", "virtio", "worker"]),
    ("driver", &["mem", "sys", "virtqueue", "virtio", "wire"]),
    ("port", &["mem", "sys", "virtqueue", "virtio", "wire", "worker", "pcie"]),
    ("transports", UP_TO_DEVICES),
    ("cosim", UP_TO_DEVICES),
    ("sdk", UP_TO_DEVICES),
    ("viaduct", EVERYTHING),
];

const UP_TO_DEVICES: &[&str] =
    &["mem", "wire", "sys", "virtqueue", "virtio", "worker", "pcie", "bridge", "devices", "port"];

#[rustfmt::skip]
const EVERYTHING: &[&str] = &[
    "mem", "wire", "sys", "virtqueue", "virtio", "worker", "pcie", "bridge", "devices",
    "port", "transports", "driver", "cosim", "sdk",
];

const MAY_BE_UNSAFE: &[&str] = &["mem", "sys", "sdk"];

/// Crate, text that must not stand in its code, why.
const FOREIGN: &[(&str, &str, &str)] = &[
    ("virtqueue", "OwnedFd", "virtqueue knows no file descriptor"),
    ("virtqueue", "RawFd", "virtqueue knows no file descriptor"),
    ("virtqueue", "AsFd", "virtqueue knows no file descriptor"),
    ("virtqueue", "rustix", "virtqueue performs no system call"),
    ("wire", "rustix", "wire performs no system call"),
    ("wire", "libc::", "wire performs no system call"),
    ("wire", "std::fs", "wire performs no system call"),
    ("wire", "std::net", "wire performs no system call"),
    ("wire", "std::os", "wire performs no system call"),
    ("virtio", "vhost_user", "virtio names no transport"),
    ("virtio", "vfio_user", "virtio names no transport"),
    ("virtio", "vduse", "virtio names no transport"),
];

/// The faults of a manifest: a dependency that points the wrong way.
pub fn manifest(name: &str, text: &str) -> Vec<Fault> {
    let Some(own) = crate_of(name) else { return Vec::new() };
    let Some((_, allowed)) = MAY_USE.iter().find(|(user, _)| *user == own) else {
        return vec![(0, format!("crate {own} is missing from the table of who may use whom"))];
    };
    let mut faults = Vec::new();
    let mut is_ordinary = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            // Tests may use whatever they like.
            is_ordinary = line.contains("dependencies") && !line.contains("dev-");
        }
        let used = line.split(['.', ' ', '=']).next().unwrap_or_default();
        let is_ours = MAY_USE.iter().any(|(user, _)| *user == used);
        if is_ordinary && is_ours && !allowed.contains(&used) {
            faults.push((number + 1, format!("{own} must not depend on {used}")));
        }
    }
    faults
}

/// Whether the file may hold `unsafe`.
pub fn may_be_unsafe(name: &str) -> bool {
    // Tests of a crate and the fuzz targets are outside the program.
    crate_of(name).is_some_and(|own| MAY_BE_UNSAFE.contains(&own)) || name.contains("/tests/")
}

/// What must not stand in the code of the file's crate, with the reason.
pub fn foreign_words(name: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = crate_of(name).filter(|_| !name.contains("/tests/"));
    FOREIGN.iter().filter(move |(of, ..)| Some(*of) == own).map(|(_, text, why)| (*text, *why))
}

/// Crates that do not forbid `unsafe` themselves though they must.
pub fn all_forbid_unsafe(folder: &Path, files: &[String]) -> Vec<String> {
    let roots = files.iter().filter(|f| f.ends_with("src/lib.rs") || f.ends_with("src/main.rs"));
    let must = roots.filter(|f| !may_be_unsafe(f));
    must.filter(|f| {
        fs::read_to_string(folder.join(f)).is_ok_and(|t| !t.contains("#![forbid(unsafe_code)]"))
    })
    .map(|f| format!("{f}:0: #![forbid(unsafe_code)] is missing"))
    .collect()
}

/// `crates/NAME/...` → `NAME`.
fn crate_of(name: &str) -> Option<&str> {
    name.strip_prefix("crates/")?.split('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_upwards_is_found() {
        let text = "[dependencies]\nvirtio.workspace = true\nthiserror.workspace = true\n";
        let expected = [(2, "mem must not depend on virtio".to_owned())];
        assert_eq!(manifest("crates/mem/Cargo.toml", text), expected);
        assert!(manifest("crates/bridge/Cargo.toml", text).is_empty());
        let test_only = text.replace("[dep", "[dev-dep");
        assert!(manifest("crates/mem/Cargo.toml", &test_only).is_empty());
    }

    #[test]
    fn nobody_uses_itself_or_a_later_crate() {
        for (number, (user, used)) in MAY_USE.iter().enumerate() {
            for name in *used {
                let place = MAY_USE.iter().position(|(n, _)| n == name);
                assert!(place.is_some_and(|p| p < number), "{user} uses {name}");
            }
        }
    }
}
