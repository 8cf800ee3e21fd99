//! The peer: rust-vmm's virtio-queue, in the three ways its users call it.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
};

use super::{BATCH, LEN, SIZE};
use crate::contest::Sample;
use crate::lab::Lab;
use crate::threads::Busy;

const REGION: u64 = 16 << 20;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x5000;
const BUFFERS: u64 = 4 * REGION;

/// A queue with all descriptors in place, so that making one available is storing an index.
struct Ring {
    memory: GuestMemoryMmap,
    queue: Queue,
    available: u16,
}

impl Ring {
    fn new() -> Result<Self> {
        let starts = [0, 2, 4, 8].map(|at| (GuestAddress(at * REGION), REGION as usize));
        let memory = GuestMemoryMmap::<()>::from_ranges(&starts)?;
        for index in 0..u64::from(SIZE) {
            let at = DESCRIPTORS + 16 * index;
            memory.write_obj(BUFFERS + 4096 * index, GuestAddress(at))?;
            memory.write_obj(LEN, GuestAddress(at + 8))?;
            /// The buffer is for the device to write.
            const WRITE: u16 = 2;
            memory.write_obj(WRITE, GuestAddress(at + 12))?;
            memory.write_obj(index as u16, GuestAddress(AVAILABLE + 4 + 2 * index))?;
        }
        let mut queue = Queue::new(SIZE)?;
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        Ok(Self { memory, queue, available: 0 })
    }

    fn offer(&mut self) -> Result<()> {
        self.available = self.available.wrapping_add(BATCH);
        let at = GuestAddress(AVAILABLE + 2);
        Ok(self.memory.store(self.available, at, Ordering::Release)?)
    }

    fn run(mut self, lab: &Lab, mut batch: impl FnMut(&mut Self) -> Result<u64>) -> Result<Sample> {
        let mut busy = Busy::default();
        let window = lab.open_short();
        while window.is_open() {
            self.offer()?;
            let mut outcome = Ok(());
            busy.poll(|| {
                batch(&mut self).unwrap_or_else(|error| {
                    outcome = Err(error);
                    0
                })
            });
            outcome?;
        }
        Ok(vec![lab.ns(busy.per_unit())])
    }
}

/// One chain after the other.
pub fn pop(lab: &Lab) -> Result<Sample> {
    Ring::new()?.run(lab, |ring| {
        let mut taken = 0;
        while let Some(mut chain) = ring.queue.pop_descriptor_chain(&ring.memory) {
            let head = chain.head_index();
            let descriptor = chain.next().context("an empty chain")?;
            let slice = ring.memory.get_slice(descriptor.addr(), descriptor.len() as usize)?;
            std::hint::black_box(slice.len());
            ring.queue.add_used(&ring.memory, head, LEN)?;
            taken += 1;
        }
        Ok(taken)
    })
}

/// All chains of a batch, then all used elements.
pub fn iter(lab: &Lab) -> Result<Sample> {
    let mut heads = Vec::with_capacity(usize::from(SIZE));
    Ring::new()?.run(lab, move |ring| {
        heads.clear();
        for mut chain in ring.queue.iter(&ring.memory)? {
            heads.push(chain.head_index());
            let descriptor = chain.next().context("an empty chain")?;
            let slice = ring.memory.get_slice(descriptor.addr(), descriptor.len() as usize)?;
            std::hint::black_box(slice.len());
        }
        for &head in &heads {
            ring.queue.add_used(&ring.memory, head, LEN)?;
        }
        Ok(heads.len() as u64)
    })
}

/// As its vhost-user daemons do it: memory that may be exchanged at any time.
pub fn atomic(lab: &Lab) -> Result<Sample> {
    let ring = Ring::new()?;
    let space = GuestMemoryAtomic::new(ring.memory.clone());
    ring.run(lab, move |ring| {
        let memory = space.memory();
        let mut taken = 0;
        while let Some(mut chain) = ring.queue.pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let descriptor = chain.next().context("an empty chain")?;
            let slice = memory.get_slice(descriptor.addr(), descriptor.len() as usize)?;
            std::hint::black_box(slice.len());
            ring.queue.add_used(&*memory, head, LEN)?;
            taken += 1;
        }
        Ok(taken)
    })
}
