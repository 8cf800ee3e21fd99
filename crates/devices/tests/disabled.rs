//! A queue that the driver has disabled: its ring may have become anything.
#![allow(clippy::unwrap_used)]

mod rig;

use std::time::Duration;

use rig::{REGION, Rig};
use virtio::Features;

/// Bytes of the rig's memory where rings are; nothing else of it is used here.
const RINGS_BYTES: usize = 64 << 10;

fn rings(rig: &Rig) -> Vec<u8> {
    let mut bytes = vec![0; RINGS_BYTES];
    rig.space.current().read(mem::DriverAddress(rig::POISON), &mut bytes).unwrap();
    bytes
}

/// User Mode Linux makes the next ring where the one was that it has disabled. A word about
/// notifications for the old ring then says that it wants no interrupts.
#[test]
fn not_a_byte_of_a_disabled_ring_is_written() {
    for scheme in ["blk", "rng", "net"] {
        for packed in [Features::NONE, Features::RING_PACKED] {
            for event_idx in [Features::NONE, Features::EVENT_IDX] {
                let settings: &[_] = match scheme {
                    "blk" => &[("ram", "65536")],
                    "net" => &[("echo", "on")],
                    _ => &[],
                };
                let wanted = Features::VERSION_1 | packed | event_idx;
                let mut rig = Rig::open(scheme, settings, wanted);
                let queue = rig.queue(0, 16);
                assert!(rig.mark() < rig::POISON + (RINGS_BYTES as u64).min(REGION));
                rig.device.enable_queue(0, false).unwrap();
                let noise = vec![0x5a; RINGS_BYTES];
                rig.put(mem::DriverAddress(rig::POISON), &noise);
                // Whatever wakes a queue up.
                rig.space.replace((*rig.space.current()).clone());
                rig.device.memory_changed().unwrap();
                queue.kick.signal();
                std::thread::sleep(Duration::from_millis(30));
                assert!(rings(&rig) == noise, "{scheme}, {wanted}");
            }
        }
    }
}
