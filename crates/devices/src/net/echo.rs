//! What answers at the other end of a network card that is connected to nothing: every address
//! answers ARP and ping, and any other frame comes back.

/// Hardware address of everybody there: locally administered.
const MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x61, 0x64, 0x75];

const ETHERNET: usize = 14;
/// Ethernet and an ARP packet for IPv4.
const ARP_BYTES: usize = ETHERNET + 28;
/// Ethernet, the shortest IPv4 header, and the start of an ICMP message.
const ICMP_BYTES: usize = ETHERNET + 20 + 8;

/// Turns `frame` into the answer to it; returns false if there is none.
pub(super) fn answer(frame: &mut [u8]) -> bool {
    if frame.len() < ETHERNET {
        return false;
    }
    let kind = [frame[12], frame[13]];
    if kind == [8, 6] && frame.len() >= ARP_BYTES && frame[ETHERNET..ETHERNET + 8] == ARP_REQUEST {
        return answer_arp(frame);
    }
    if kind == [8, 0] && frame.len() >= ICMP_BYTES && frame[ETHERNET] == 0x45 && frame[23] == 1 {
        answer_ping(frame);
    }
    turn_back(frame);
    true
}

/// Hardware type, protocol, lengths and operation of a request for an IPv4 address.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

fn answer_arp(frame: &mut [u8]) -> bool {
    let arp = &mut frame[ETHERNET..ARP_BYTES];
    let (sender, target) =
        ([arp[14], arp[15], arp[16], arp[17]], [arp[24], arp[25], arp[26], arp[27]]);
    if sender == target || sender == [0; 4] {
        // The driver's side asks whether its own address is taken.
        return false;
    }
    arp[7] = 2;
    arp.copy_within(8..14, 18);
    arp[8..14].copy_from_slice(&MAC);
    arp[14..18].copy_from_slice(&target);
    arp[24..28].copy_from_slice(&sender);
    turn_back(frame);
    true
}

fn answer_ping(frame: &mut [u8]) {
    let (ip, icmp) = frame[ETHERNET..].split_at_mut(20);
    if icmp[0] != 8 {
        return;
    }
    // The sum over a header does not change when two words of it change places.
    let (source, destination) = ip[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    // Type 8 becomes 0, so the sum's complement grows by as much (RFC 1624).
    icmp[0] = 0;
    let sum = u32::from(u16::from_be_bytes([icmp[2], icmp[3]])) + 0x0800;
    let sum = (sum & 0xffff) + (sum >> 16);
    icmp[2..4].copy_from_slice(&(sum as u16).to_be_bytes());
}

/// Sends the frame to where it came from. A source address must be a single one.
fn turn_back(frame: &mut [u8]) {
    let (destination, source) = frame[..12].split_at_mut(6);
    if destination[0] & 1 == 0 {
        destination.swap_with_slice(source);
    } else {
        destination.copy_from_slice(source);
        source.copy_from_slice(&MAC);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        !((sum & 0xffff) + (sum >> 16)) as u16
    }

    #[test]
    fn whoever_is_asked_for_is_there() {
        let mut frame = [&[0xff; 6][..], &GUEST, &[8, 6], &ARP_REQUEST, &GUEST].concat();
        frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        let mut probe = frame.clone();
        assert!(answer(&mut frame));
        let mut expected = [&GUEST[..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &MAC].concat();
        expected.extend([10, 0, 0, 1]);
        expected.extend(GUEST);
        expected.extend([10, 0, 0, 2]);
        assert_eq!(frame, expected);
        probe[28..32].fill(0);
        assert!(!answer(&mut probe), "a probe for the own address");
    }

    #[test]
    fn ping_is_answered_with_right_sums() {
        let mut frame = [&MAC[..], &GUEST, &[8, 0]].concat();
        frame.extend([0x45, 0, 0, 36, 0, 1, 0, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
        frame.extend([8, 0, 0, 0, 0x12, 0x34, 0, 1, 0xab, 0xcd, 0xef, 1, 2, 3, 4, 5]);
        let ip = sum(&frame[14..34]).to_be_bytes();
        frame[24..26].copy_from_slice(&ip);
        let icmp = sum(&frame[34..]).to_be_bytes();
        frame[36..38].copy_from_slice(&icmp);
        assert!(answer(&mut frame));
        assert_eq!((sum(&frame[14..34]), sum(&frame[34..])), (0, 0));
        assert_eq!(
            (&frame[..6], frame[34], &frame[26..34]),
            (&GUEST[..], 0, &[10, 0, 0, 1, 10, 0, 0, 2][..])
        );
    }

    #[test]
    fn anything_else_comes_back() {
        let mut frame = [&MAC[..], &GUEST, &[0x88, 0xb5], &[7; 46]].concat();
        assert!(answer(&mut frame));
        assert_eq!(frame, [&GUEST[..], &MAC, &[0x88, 0xb5], &[7; 46]].concat());
        assert!(!answer(&mut [1; 13]));
    }
}
