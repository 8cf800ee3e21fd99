use std::ops::Index;

/// So many bytes, of which those behind the last that is not zero take up no memory: most of a PCI
/// Express configuration space is empty, and most of its masks.
#[derive(Clone, Debug)]
pub(super) struct Image {
    bytes: Vec<u8>,
    len: usize,
}

impl Image {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self { bytes: Vec::new(), len }
    }

    /// A copy of these bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut image = Self::zeros(bytes.len());
        image.put(0, bytes);
        image
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The byte at `at`; `None` behind the end.
    pub(super) fn get(&self, at: usize) -> Option<u8> {
        (at < self.len).then(|| self[at])
    }

    /// Sets the bytes from `at` on if all of them are within.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return;
        }
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| at + last + 1);
        if used > self.bytes.len() {
            self.bytes.resize(used, 0);
        }
        let places = self.bytes.iter_mut().skip(at);
        places.zip(bytes).for_each(|(place, &byte)| *place = byte);
    }

    /// All of them.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut all = self.bytes.clone();
        all.resize(self.len, 0);
        all
    }
}

impl Index<usize> for Image {
    type Output = u8;

    /// Zero where nothing was put.
    fn index(&self, at: usize) -> &u8 {
        self.bytes.get(at).unwrap_or(&0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_take_up_nothing_and_are_there_all_the_same() {
        let mut image = Image::zeros(4096);
        image.put(10, &[1, 2, 0, 0]);
        image.put(4000, &[0; 96]);
        image.put(4095, &[1, 1]);
        assert_eq!(image.bytes.len(), 12);
        assert_eq!((image.get(11), image.get(4095), image.get(4096)), (Some(2), Some(0), None));
        image.put(9, &[7, 0, 0]);
        assert_eq!(image.to_vec()[8..14], [0, 7, 0, 0, 0, 0]);
        assert_eq!(Image::of(&image.to_vec()).to_vec(), image.to_vec());
    }
}
