//! A function that is no virtio device: registers that answer at once, after a transfer, or never.

use std::os::fd::BorrowedFd;

use mem::remote::RemoteChannel;
use mem::{Backing, DriverAddress};
use pcie::config::{ConfigSpace, DeviceIds};
use pcie::{
    BarAddress, BarLayout, Completion, Function, FunctionLayout, HostPort, InterruptLayout,
    Mappable, ResetKind,
};

/// Reads as [`ID`].
pub const REG_ID: u64 = 0;
/// Reads 8 bytes at the address, by message, and answers then.
pub const REG_FETCH: u64 = 8;
/// The address.
pub const REG_ADDRESS: u64 = 0x10;
/// Never answers.
pub const REG_NEVER: u64 = 0x18;
/// 1 if the address is in mapped memory, 2 if in memory behind messages, 0 if nowhere.
pub const REG_KIND: u64 = 0x20;
/// Writes the address to itself by message.
pub const REG_STORE: u64 = 0x28;
/// The parts of BAR 2 that may be mapped.
pub const AREAS: [(u64, u64); 2] = [(0x1000, 0x1000), (0x8000, 0x4000)];
pub const ID: u32 = 0x1234_5678;

pub struct Engine {
    layout: FunctionLayout,
    config: ConfigSpace,
    host: Option<HostPort>,
    address: u64,
    channel: Option<Box<dyn RemoteChannel>>,
    fetches: Vec<(u32, Completion)>,
    next_tag: u32,
    kept: Vec<Completion>,
    watch: sys::Epoll,
}

impl Engine {
    pub fn new() -> Self {
        let mut layout = FunctionLayout::default();
        layout.bars[0] = BarLayout::memory32(4096);
        layout.interrupts = InterruptLayout { intx: true, msi: 4, msix: None };
        let ids = DeviceIds { vendor: 0x1234, device: 0x11e9, ..DeviceIds::default() };
        Self {
            config: ConfigSpace::new(ids, &layout.bars, false),
            layout,
            host: None,
            address: 0,
            channel: None,
            fetches: Vec::new(),
            next_tag: 0,
            kept: Vec::new(),
            watch: sys::Epoll::new().unwrap(),
        }
    }

    /// The same with a BAR 2 of 64 KiB before `file`, of which two parts may be mapped.
    pub fn with_memory(file: std::sync::Arc<std::os::fd::OwnedFd>) -> Self {
        let mut engine = Self::new();
        let mut bar = BarLayout::memory64(0x1_0000);
        bar.mappable = Some(Mappable { file, offset: 0x2000, areas: AREAS.to_vec() });
        engine.layout.bars[2] = bar;
        engine
    }

    fn region_kind(&self) -> u64 {
        let map = self.host.as_ref().unwrap().memory.current();
        match map.region(DriverAddress(self.address)).map(|region| &region.backing) {
            Ok(Backing::Mapped { .. }) => 1,
            Ok(Backing::Remote(_)) => 2,
            Err(_) => 0,
        }
    }

    fn channel(&mut self) -> Option<&mut Box<dyn RemoteChannel>> {
        if self.channel.is_none() {
            let map = self.host.as_ref()?.memory.current();
            let region = map.region(DriverAddress(self.address)).ok()?;
            let Backing::Remote(remote) = &region.backing else { return None };
            let channel = remote.open().ok()?;
            self.watch.add(channel.ready_fd(), 0, sys::Interest::Read).unwrap();
            self.channel = Some(channel);
        }
        self.channel.as_mut()
    }

    fn fetch(&mut self, answer: Completion) {
        let (tag, address, len) = (self.next_tag, self.address, answer.len() as u32);
        self.next_tag += 1;
        let Some(channel) = self.channel() else { return answer.all_ones() };
        match channel.read(tag, address, len).and_then(|()| channel.flush()) {
            Ok(()) => self.fetches.push((tag, answer)),
            Err(_) => answer.all_ones(),
        }
    }
}

impl Function for Engine {
    fn layout(&self) -> &FunctionLayout {
        &self.layout
    }

    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn connect(&mut self, host: HostPort) {
        self.host = Some(host);
    }

    fn read(&mut self, at: BarAddress, answer: Completion) {
        match at.offset {
            REG_ID => answer.answer(&ID.to_le_bytes()),
            REG_FETCH => self.fetch(answer),
            REG_NEVER => self.kept.push(answer),
            REG_ADDRESS => answer.answer(&self.address.to_le_bytes()),
            REG_KIND => answer.answer(&self.region_kind().to_le_bytes()),
            _ => answer.answer(&[]),
        }
    }

    fn write(&mut self, at: BarAddress, bytes: &[u8]) {
        let mut value = [0; 8];
        value[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
        match at.offset {
            REG_ADDRESS => self.address = u64::from_le_bytes(value),
            REG_STORE => {
                let address = self.address;
                if let Some(channel) = self.channel() {
                    let _ = channel.write(u32::MAX, address, &value);
                    let _ = channel.flush();
                }
            }
            _ => {}
        }
    }

    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        self.address = 0;
    }

    fn host_present(&mut self, present: bool) {
        if !present {
            self.channel = None;
            self.fetches.drain(..).for_each(|(_, answer)| answer.all_ones());
            self.kept.drain(..).for_each(Completion::all_ones);
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        Some(self.watch.as_fd())
    }

    fn events_ready(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        let fetches = &mut self.fetches;
        let _ = channel.poll(&mut |tag, answer| {
            let Some(at) = fetches.iter().position(|(of, _)| *of == tag) else { return };
            let (_, completion) = fetches.swap_remove(at);
            match answer {
                Ok(bytes) => completion.answer(bytes),
                Err(_) => completion.all_ones(),
            }
        });
    }
}
