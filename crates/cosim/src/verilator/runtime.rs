//! Verilator's runtime library: compiled once for each version of Verilator and of the compiler,
//! and kept in the cache, so that an edit of a design costs the design alone.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::thread;

use super::ADVICE;
use crate::error::file;
use crate::{CosimError, Tool, cache_folder};

/// Words for the compiler that runtime and design must agree on.
pub struct Flags {
    words: Vec<String>,
}

impl Flags {
    pub fn new(include: &Path, fst: bool, vcd: bool) -> Self {
        let include = include.display();
        let traces = fst || vcd;
        let switch = |name: &str, on: bool| format!("-D{name}={}", u8::from(on));
        let mut words: Vec<String> =
            ["-std=gnu++17", "-O3", "-g0", "-DVERILATOR=1", "-fcf-protection=none", "-w"]
                .map(str::to_owned)
                .into();
        words.extend([
            switch("VM_COVERAGE", false),
            switch("VM_SC", false),
            switch("VM_TIMING", false),
            switch("VM_TRACE", traces),
            switch("VM_TRACE_FST", fst),
            switch("VM_TRACE_VCD", vcd),
        ]);
        words.extend(["-isystem".to_owned(), include.to_string()]);
        words.extend(["-isystem".to_owned(), format!("{include}/vltstd")]);
        Self { words }
    }

    pub fn words(&self) -> &[String] {
        &self.words
    }
}

/// The compiler.
pub fn compiler() -> Tool {
    Tool::new("g++", ADVICE)
}

/// Compiles those `names` of the runtime's files that are not in the cache yet; the objects.
pub fn objects(
    version: &str,
    include: &Path,
    flags: &Flags,
    names: &[String],
) -> Result<Vec<PathBuf>, CosimError> {
    let mut hasher = DefaultHasher::new();
    (version, compiler().arg("--version").run()?, flags.words()).hash(&mut hasher);
    let folder = cache_folder().join("verilator").join(format!("{:016x}", hasher.finish()));
    fs::create_dir_all(&folder).map_err(file("can't make the folder", &folder))?;
    thread::scope(|scope| {
        let compile = |name: &String| {
            let (source, object) = (include.join(name).with_extension("cpp"), folder.join(name));
            let object = object.with_extension("o");
            scope.spawn(move || {
                if !object.exists() {
                    one(&source, &object, flags)?;
                }
                Ok(object)
            })
        };
        let threads: Vec<_> = names.iter().map(compile).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

/// Compiles one file. Somebody else may be at it too: the object appears as a whole.
fn one(source: &Path, object: &Path, flags: &Flags) -> Result<(), CosimError> {
    tracing::info!("compiling {} once", source.display());
    let part = object.with_extension(format!("{}.part", std::process::id()));
    compiler().args(flags.words()).arg("-c").arg("-o").arg(&part).arg(source).run()?;
    fs::rename(&part, object).map_err(file("can't rename", &part))
}

/// The runtime's files that a design needs, as the makefile fragment beside it says.
pub fn needed(classes: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_global = false;
    for line in classes.lines() {
        if let Some((variable, _)) = line.split_once("+=") {
            is_global = variable.trim().starts_with("VM_GLOBAL_");
        } else if is_global {
            let name = line.trim().trim_end_matches('\\').trim();
            if name.is_empty() || name.starts_with('#') {
                is_global = false;
            } else {
                names.push(name.to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_makefile_tells_what_is_needed() {
        let classes = "VM_CLASSES_FAST += \\\n\tVcard \\\n\n# Generated support classes\n\
                       VM_SUPPORT_SLOW += \\\n\tVcard__Syms \\\n\nVM_GLOBAL_FAST += \\\n\
                       \tverilated \\\n\tverilated_threads \\\n\n# slow\nVM_GLOBAL_SLOW += \\\n\n";
        assert_eq!(needed(classes), ["verilated", "verilated_threads"]);
    }
}
