//! Archives in the format that Linux unpacks as its first file system (`newc`; Linux:
//! driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;

/// An archive under construction: paths without a leading slash, and what is there. Folders above a
/// path come by themselves.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

const FOLDER: u32 = 0o04_0755;
const FILE: u32 = 0o10_0644;
const PROGRAM: u32 = 0o10_0755;
const LINK: u32 = 0o12_0777;
const CONSOLE: u32 = 0o02_0600;

impl Archive {
    /// An empty folder.
    pub fn folder(&mut self, path: &str) {
        self.put(path, FOLDER, Vec::new());
    }

    /// A file.
    pub fn file(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, FILE, content);
    }

    /// A file that can be run.
    pub fn program(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, PROGRAM, content);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, LINK, target.into());
    }

    /// The character device that the kernel opens for its first program.
    pub fn console(&mut self, path: &str) {
        self.put(path, CONSOLE, Vec::new());
    }

    fn put(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert((FOLDER, Vec::new()));
        }
        self.entries.insert(path.to_owned(), (mode, content));
    }

    /// The bytes of the archive. A folder sorts before what is in it, as the kernel wants.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, (mode, content))) in self.entries.iter().enumerate() {
            write(&mut out, number + 1, path, *mode, content);
        }
        write(&mut out, 0, "TRAILER!!!", 0, &[]);
        out
    }
}

fn write(out: &mut Vec<u8>, inode: usize, path: &str, mode: u32, content: &[u8]) {
    let name_size = path.len() + 1;
    // Linux: admin-guide/devices.txt, /dev/console.
    let (major, minor) = if mode == CONSOLE { (5, 1) } else { (0, 0) };
    let mode = mode as usize;
    let fields = [inode, mode, 0, 0, 1, 0, content.len(), 0, 0, major, minor, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

/// Headers and contents start at multiples of four.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_in_a_folder() {
        let mut archive = Archive::default();
        archive.file("/a/b", b"hello".to_vec());
        let bytes = archive.bytes();
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> = ["a\0", "a/b\0", "hello", "TRAILER!!!"].map(|s| text.find(s)).into();
        assert!(places.is_sorted() && places.iter().all(Option::is_some), "{places:?}");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        // The size of `hello`: the seventh field of the second header, which is at 112 + 4.
        let second = bytes.windows(6).skip(6).position(|w| w == b"070701").map(|at| at + 6);
        let size = second.map(|at| &bytes[at + 6 + 6 * 8..at + 6 + 7 * 8]);
        assert_eq!(size, Some(&b"00000005"[..]));
    }
}
