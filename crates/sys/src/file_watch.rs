use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// Files that somebody edits, as something to wait for (inotify).
///
/// Their folders are watched and not they themselves: most editors write another file and rename
/// it.
#[derive(Debug)]
pub struct FileWatch {
    fd: OwnedFd,
    names: HashSet<Vec<u8>>,
    folders: HashSet<PathBuf>,
}

impl FileWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { fd, names: HashSet::new(), folders: HashSet::new() })
    }

    /// Watches this file too.
    ///
    /// # Errors
    /// Its folder is not there, or the system watches as much as it may.
    pub fn add(&mut self, path: &Path) -> io::Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        self.names.insert(name.as_bytes().to_vec());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        if self.folders.insert(folder.to_path_buf()) {
            inotify::add_watch(&self.fd, folder, WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO)?;
        }
        Ok(())
    }

    /// Takes in what has happened; whether a file of that name was written in one of the folders.
    pub fn drain(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut has_changed = false;
        // An error is that there are no more.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            has_changed |= name.is_none_or(|name| self.names.contains(name.as_bytes()));
        }
        has_changed
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_and_renaming_are_seen_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.sv");
        std::fs::write(&file, "1").unwrap();
        let mut watch = FileWatch::new().unwrap();
        watch.add(&file).unwrap();
        assert!(!watch.drain());
        std::fs::write(folder.path().join("b.sv"), "1").unwrap();
        assert!(!watch.drain());
        std::fs::write(&file, "2").unwrap();
        assert!(watch.drain());
        std::fs::rename(folder.path().join("b.sv"), &file).unwrap();
        assert!(watch.drain());
        assert!(!watch.drain());
    }
}
