//! What follows the header: the structures of "Payload", in the order of their fields on the wire.

mod device;
mod memory;
mod ring;

pub use device::{Config, DeviceState, DeviceStateDirection, MAX_CONFIG_LEN};
pub use memory::{
    Iotlb, IotlbKind, LogBase, MAX_TABLE_REGIONS, MemoryRegion, MemoryTable, ShmemConfig,
    ShmemMapping,
};
pub use ring::{Inflight, VRING_ADDR_F_LOG, VringAddr, VringArea, VringFd, VringState};
