//! Where things that are made once and kept live, outside the work tree.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// What nobody has used for so long is removed when something new is made: work trees with other
/// recipes may share the folder.
const FORGOTTEN: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// `$VIADUCT_CACHE`, else `$XDG_CACHE_HOME/viaduct`, else `~/.cache/viaduct`. Created if missing.
///
/// The `e2e` crate finds the root by the same rule; the two share no code so that a broken test
/// crate never keeps the gate from running.
pub fn folder() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = set("VIADUCT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("viaduct")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/viaduct")))
        .context("no cache folder: set VIADUCT_CACHE or HOME")?;
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Notes that something of the cache was used now.
pub fn used(place: &Path) -> Result<()> {
    let file = File::open(place).with_context(|| format!("open {}", place.display()))?;
    file.set_modified(SystemTime::now()).with_context(|| format!("touch {}", place.display()))
}

/// Removes the roots and guests' archives that have been forgotten, and says so.
pub fn tidy(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).context("list the cache")? {
        let (entry, oldest) = (entry?, SystemTime::now().checked_sub(FORGOTTEN));
        let (name, found) = (entry.file_name(), entry.metadata()?);
        let ours = ["root-", "initrd-"].iter().any(|p| name.to_string_lossy().starts_with(p));
        if !ours || found.modified().ok() >= oldest {
            continue;
        }
        let path = entry.path();
        println!("== {} has not been used for two weeks: removed", path.display());
        let removed =
            if found.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// FNV-1a, 64 bits: names a recipe. Not a defence against anybody.
pub fn fingerprint(parts: &[&str]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|p| p.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::{FORGOTTEN, fingerprint, tidy, used};

    #[test]
    fn only_what_is_forgotten_and_ours_goes() {
        let cache = tempfile::tempdir().unwrap();
        let [old, fresh, foreign] =
            ["root-1", "root-2", "tools"].map(|name| cache.path().join(name));
        for place in [&old, &fresh, &foreign] {
            fs::create_dir(place).unwrap();
            let long_ago = SystemTime::now() - 2 * FORGOTTEN;
            fs::File::open(place).unwrap().set_modified(long_ago).unwrap();
        }
        let archive = cache.path().join("initrd-1.cpio");
        fs::write(&archive, "x").unwrap();
        used(&fresh).unwrap();
        tidy(cache.path()).unwrap();
        assert_eq!(
            [&old, &fresh, &foreign, &archive].map(|p| p.exists()),
            [false, true, true, true]
        );
    }

    #[test]
    fn the_border_between_parts_counts() {
        assert_eq!(fingerprint(&["ab", "c"]), fingerprint(&["ab", "c"]));
        assert_ne!(fingerprint(&["ab", "c"]), fingerprint(&["a", "bc"]));
    }
}
