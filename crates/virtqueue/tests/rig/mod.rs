//! Memory with rings in it, for tests that hold both sides.
#![allow(dead_code, clippy::unwrap_used)]

pub mod raw;

use std::sync::Arc;

use mem::{Access, DriverAddress, Mapping, MemoryMap, Region, Resolver};
use virtqueue::{
    DeviceQueue, DriverQueue, IndirectArea, QueueAddresses, QueuePosition, QueueSpec, RingFormat,
    Segment, ring_layout,
};

/// Added to every address, so that one used without translation can't work by luck.
pub const POISON: u64 = 0x7_0000_0000;
/// Where indirect tables of the tests' own drivers lie.
pub const TABLES: u64 = POISON + 0x10_0000;
/// Where data lies.
pub const DATA: u64 = POISON + 0x20_0000;
/// Size of the only region.
pub const REGION_BYTES: usize = 0x40_0000;

pub struct Rig {
    pub mapping: Arc<Mapping>,
    pub map: Arc<MemoryMap>,
    pub spec: QueueSpec,
}

/// All feature bits off, from the start.
pub fn plain(format: RingFormat, size: u16) -> QueueSpec {
    let layout = ring_layout(format, size);
    let addresses = QueueAddresses {
        descriptor: DriverAddress(POISON),
        driver: DriverAddress(POISON + layout.driver_offset() as u64),
        device: DriverAddress(POISON + layout.device_offset() as u64),
    };
    let start_at = QueuePosition::start(format);
    QueueSpec {
        size,
        format,
        indirect: false,
        event_idx: false,
        in_order: false,
        addresses,
        start_at,
    }
}

impl Rig {
    pub fn new(spec: QueueSpec) -> Self {
        let mapping = Mapping::new_memfd("rings", REGION_BYTES).unwrap();
        let region = Region::mapped(
            DriverAddress(POISON),
            REGION_BYTES as u64,
            Access::ReadWrite,
            Arc::clone(&mapping),
            0,
        );
        let map = Arc::new(MemoryMap::new(vec![region.unwrap()]).unwrap());
        Self { mapping, map, spec }
    }

    pub fn resolver(&self) -> Resolver {
        Resolver::new(Arc::clone(&self.map))
    }

    pub fn device(&self) -> DeviceQueue {
        DeviceQueue::new(&self.map, &self.spec).unwrap()
    }

    pub fn driver<T>(&self, area: Option<IndirectArea>) -> DriverQueue<T> {
        DriverQueue::new(&self.map, &self.spec, area).unwrap()
    }

    pub fn write(&self, at: DriverAddress, bytes: &[u8]) {
        self.map.write(at, bytes).unwrap();
    }

    pub fn write_u16(&self, at: DriverAddress, offset: u64, value: u16) {
        self.write(DriverAddress(at.0 + offset), &value.to_le_bytes());
    }

    pub fn read_u16(&self, at: DriverAddress, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        self.map.read(DriverAddress(at.0 + offset), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    pub fn read_u32(&self, at: DriverAddress, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.map.read(DriverAddress(at.0 + offset), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }
}

pub fn area(tables: u16, entries: u16) -> IndirectArea {
    IndirectArea { at: DriverAddress(TABLES), tables, entries }
}

pub fn segment(offset: u64, len: u32) -> Segment {
    Segment { addr: DriverAddress(DATA + offset), len }
}
