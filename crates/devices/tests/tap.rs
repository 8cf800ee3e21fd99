//! The network card on a tap interface, in a network namespace of its own. Who is not root and may
//! not make one has nothing to test.
#![allow(clippy::unwrap_used)]

mod rig;

use std::process::Command;

use rig::Rig;
use virtio::Features;
use virtqueue::Segment;

const INSIDE: &str = "VIADUCT_TEST_IN_NAMESPACE";
const HEADER: usize = 12;
const CARD: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];

#[test]
fn the_kernel_answers_on_a_tap() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let tried = Command::new("unshare").args(["-rn", "ip", "link"]).output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        // Others may be forbidden to make them; root without them lacks a program or a module.
        assert!(
            !rustix::process::geteuid().is_root(),
            "root can't make a network namespace with ip in it: {tried:?}"
        );
        eprintln!("no network namespaces here");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.arg("-rn").arg(program).args(["--exact", "the_kernel_answers_on_a_tap", "--nocapture"]);
    let output = command.env(INSIDE, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// The one's complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Asks for the hardware address of 10.9.0.1, which is the kernel.
fn who_has() -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &CARD, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &CARD].concat();
    frame.extend([10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
    frame
}

/// A ping from 10.9.0.2, with the checksum of ICMP left to the other side if `partial`.
fn ping(kernel: &[u8], partial: bool) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 84, 0, 1, 0, 0, 64, 1, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
    let header = sum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&header);
    let mut icmp = vec![8, 0, 0, 0, 0, 7, 0, 1];
    icmp.extend((0..56).map(|n| n as u8));
    if !partial {
        let whole = sum(&icmp).to_be_bytes();
        icmp[2..4].copy_from_slice(&whole);
    }
    [kernel, &CARD, &[8, 0], &ip, &icmp].concat()
}

fn inside() {
    for settings in [&[("tap", "vd0")][..], &[("tap", "vd0"), ("queues", "2")]] {
        let mut rig = Rig::open("net", settings, Features::VERSION_1);
        ip("link set vd0 up");
        ip("addr add 10.9.0.1/24 dev vd0");
        let (mut receive, mut transmit) = (rig.queue(0, 64), rig.queue(1, 64));
        if settings.len() > 1 {
            let (_more, _still_more) = (rig.queue(2, 64), rig.queue(3, 64));
            let mut control = rig.queue(4, 16);
            for pairs in [2, 1, 2, 1] {
                assert_eq!(rig.ask(&mut control, &[4, 0, pairs, 0], 1, 8).0, [0]);
            }
            // Offloads may be changed while the card runs.
            assert_eq!(rig.ask(&mut control, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], 1, 8).0, [0]);
        }
        let buffers: Vec<_> =
            (0..32).map(|_| Segment { addr: rig.room(2048, 1), len: 2048 }).collect();
        for (token, buffer) in buffers.iter().enumerate() {
            receive.offer(&[], &[*buffer], token as u64);
        }
        receive.publish();
        let mut exchange = |header: [u8; HEADER], frame: &[u8], wanted: &dyn Fn(&[u8]) -> bool| {
            let segments = rig.scatter(&[&header[..], frame].concat(), 33);
            transmit.offer(&segments, &[], 0);
            transmit.publish();
            transmit.wait();
            // The kernel also sends things nobody asked for.
            loop {
                let (token, written) = receive.wait();
                let buffer = buffers[token as usize];
                let answer = rig.get(buffer.addr, written as usize);
                receive.offer(&[], &[buffer], token);
                receive.publish();
                if wanted(&answer[HEADER..]) {
                    return answer[HEADER..].to_vec();
                }
            }
        };
        let is_reply = |frame: &[u8]| frame[12..14] == [8, 6] && frame[21] == 2;
        let kernel = exchange([0; HEADER], &who_has(), &is_reply)[6..12].to_vec();
        let is_pong = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 0;
        let pong = exchange([0; HEADER], &ping(&kernel, false), &is_pong);
        assert_eq!((&pong[..6], sum(&pong[34..98])), (&CARD[..], 0));
        // The checksum left to the kernel: from byte 34 on, at 2 bytes from there.
        let mut header = [0; HEADER];
        (header[0], header[6], header[8]) = (1, 34, 2);
        exchange(header, &ping(&kernel, true), &is_pong);
    }
}
