use std::env;
use std::path::PathBuf;

/// Where things are kept that need not be made twice: `$VIADUCT_CACHE`, else
/// `$XDG_CACHE_HOME/viaduct`, else `~/.cache/viaduct`; a temporary folder for who has no home.
#[must_use]
pub fn cache_folder() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("VIADUCT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("viaduct")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/viaduct")))
        .unwrap_or_else(|| env::temp_dir().join("viaduct"))
}
