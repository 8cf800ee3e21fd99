//! The network rows: frames to a device that sends each one back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use driver::Nic;

use super::path::Path;
use super::report::{Meter, Row};
use crate::address::{self, Address};

/// Frames sent and received.
pub const FRAMES: u64 = 100_000;

/// Bytes of a frame.
const FRAME_BYTES: usize = 1514;

/// Frames on their way at most, and buffers of each queue.
const WINDOW: u16 = 128;

/// How long a frame may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A device that sends every frame back.
pub fn device() -> Address {
    Address {
        scheme: "net".into(),
        values: BTreeMap::from([("echo".into(), address::value("on"))]),
    }
}

/// Runs a row.
pub fn run(path: Path) -> Result<Row> {
    let (access, memory, wish) = path.attach()?;
    let mut nic = Nic::open(access, memory, wish, WINDOW * 2)?;
    let mut meter = Meter::start("net", FRAMES, &path);
    let mut sent_at = vec![Instant::now(); usize::from(WINDOW)];
    let (mut sent, mut received) = (0u64, 0u64);
    while received < FRAMES {
        let before = sent;
        while sent < FRAMES && sent - received < u64::from(WINDOW) {
            sent_at[(sent % u64::from(WINDOW)) as usize] = Instant::now();
            if !nic.send(&frame(sent))? {
                break;
            }
            sent += 1;
        }
        if sent > before {
            nic.flush();
        }
        let mut wrong = None;
        let count = nic.receive(|found| {
            if found.get(12..) != Some(&frame(received)[12..]) {
                wrong.get_or_insert(received);
            }
            meter.done(FRAME_BYTES as u64, sent_at[(received % u64::from(WINDOW)) as usize]);
            received += 1;
        })?;
        ensure!(wrong.is_none(), "frame {wrong:?} came back changed or out of order");
        if count == 0 {
            nic.wait(LIMIT)?;
        }
    }
    let (kicks, interrupts) = nic.notifications();
    let row = meter.finish(&path, kicks + interrupts);
    drop(nic);
    path.close()?;
    Ok(row)
}

/// A frame that carries its number: two made-up addresses, an experimental type (IEEE 802, 88b5),
/// the number, and a pattern.
fn frame(number: u64) -> [u8; FRAME_BYTES] {
    let mut frame = [number as u8; FRAME_BYTES];
    frame[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 2]);
    frame[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..22].copy_from_slice(&number.to_be_bytes());
    frame
}
