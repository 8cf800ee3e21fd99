//! The C interface that simulations are written for.

use std::env;
use std::path::{Path, PathBuf};

use crate::CosimError;

/// `viaduct.h`, to be written into a build folder.
pub const HEADER: &str = include_str!("../../sdk/include/viaduct.h");

/// Where `libviaduct.so` is.
#[derive(Clone, Debug)]
pub struct Library {
    /// Its folder.
    pub folder: PathBuf,
}

impl Library {
    /// In `$VIADUCT_LIB`, else beside this program, else in `../lib` from there, else where the
    /// system keeps libraries.
    ///
    /// # Errors
    /// It is in none of them.
    pub fn find() -> Result<Self, CosimError> {
        let places = places();
        let found = places.iter().find(|place| place.join("libviaduct.so").exists());
        let looked = || places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        let folder = found.cloned().ok_or_else(|| CosimError::NoLibrary(looked().join(", ")))?;
        Ok(Self { folder })
    }

    /// What a linker is told: the program finds the library again when it is started.
    #[must_use]
    pub fn link_arguments(&self) -> Vec<String> {
        let folder = self.folder.display();
        vec![format!("-L{folder}"), format!("-Wl,-rpath,{folder}"), "-lviaduct".to_owned()]
    }
}

fn places() -> Vec<PathBuf> {
    if let Some(said) = env::var_os("VIADUCT_LIB").filter(|value| !value.is_empty()) {
        return vec![said.into()];
    }
    let own = env::current_exe().ok().and_then(|path| path.canonicalize().ok());
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let mut places = Vec::new();
    if let Some(beside) = beside {
        // A test's program is one folder deeper than what cargo builds for people.
        places.extend([beside.join("../lib"), beside.join("..")].map(|p| tidy(&p)));
        places.insert(0, beside);
    }
    let machine = env::consts::ARCH;
    places.extend(["/usr/local/lib".into(), format!("/usr/lib/{machine}-linux-gnu").into()]);
    places.push("/usr/lib".into());
    places
}

fn tidy(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}
