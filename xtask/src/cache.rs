//! Where things that are made once and kept live, outside the work tree.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

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
    use super::fingerprint;

    #[test]
    fn the_border_between_parts_counts() {
        assert_eq!(fingerprint(&["ab", "c"]), fingerprint(&["ab", "c"]));
        assert_ne!(fingerprint(&["ab", "c"]), fingerprint(&["a", "bc"]));
    }
}
