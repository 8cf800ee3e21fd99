//! The PCI_CFG capability: a window in the configuration space through which firmware without BARs
//! reaches the registers (VIRTIO 1.4, 4.1.4.9).

use super::VirtioPci;

/// Offsets in the capability.
const BAR: u64 = 4;
const DATA: u64 = 16;
const DATA_LEN: usize = 4;

/// Where the window looks.
struct View {
    bar: u8,
    offset: u64,
    len: usize,
}

impl VirtioPci {
    /// Before the configuration space is read: fetches what the window shows, if it is read.
    pub(super) fn refresh_window(&mut self, at: u64, len: usize) {
        if !self.touches_window(at, len) {
            return;
        }
        let mut data = [0; DATA_LEN];
        if let Some(view) = self.view() {
            self.read_bar(view.bar, view.offset, &mut data[..view.len]);
        }
        self.config.put(self.window + DATA as usize, &data);
    }

    /// After the configuration space was written: passes on what was written to the window.
    pub(super) fn forward_window(&mut self, at: u64, len: usize) {
        if !self.touches_window(at, len) {
            return;
        }
        let mut data = [0; DATA_LEN];
        self.config.read(self.window as u64 + DATA, &mut data);
        if let Some(view) = self.view() {
            self.write_bar(view.bar, view.offset, &data[..view.len]);
        }
    }

    fn touches_window(&self, at: u64, len: usize) -> bool {
        let start = self.window as u64 + DATA;
        at < start + DATA_LEN as u64 && at.saturating_add(len as u64) > start
    }

    /// Where the driver has pointed the window, if that can be accessed.
    fn view(&self) -> Option<View> {
        let mut fields = [0; 12];
        self.config.read(self.window as u64 + BAR, &mut fields);
        let word = |at: usize| {
            u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]])
        };
        let (bar, offset, len) = (fields[0], u64::from(word(4)), word(8) as usize);
        let size = self.layout.bars.get(usize::from(bar))?.size;
        let fits = matches!(len, 1 | 2 | 4) && offset + len as u64 <= size;
        (fits && offset.is_multiple_of(len as u64)).then_some(View { bar, offset, len })
    }
}
