use virtio::Features;

use super::{CSUM, HOST_TSO4, HOST_TSO6};

/// Bytes of `virtio_net_hdr` up to `num_buffers`, which only VERSION_1 and MRG_RXBUF bring (VIRTIO
/// 1.4, 5.1.6).
pub(super) const SHORT_HEADER: usize = 10;

/// Bytes of the whole header.
pub(super) const HEADER: usize = 12;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_ECN, beside the type.
const GSO_ECN: u8 = 0x80;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Checks the header of a frame to send, `len` bytes long without it, in place: what was not
/// negotiated or does not fit the frame is refused, what means nothing is cleared. `header` is our
/// own copy.
pub(super) fn check(header: &mut [u8; HEADER], len: usize, features: Features) -> bool {
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (hdr_len, gso_size, start, offset) = (field(2), field(4), field(6), field(8));
    let (flags, gso) = (header[0] & NEEDS_CSUM, header[1]);
    if flags != 0 && (!features.has(CSUM) || start + offset + 2 > len) {
        return false;
    }
    let allowed = match gso & !GSO_ECN {
        GSO_NONE => gso == GSO_NONE,
        GSO_TCPV4 => features.has(HOST_TSO4),
        GSO_TCPV6 => features.has(HOST_TSO6),
        _ => false,
    };
    if !allowed || (gso != GSO_NONE && (flags == 0 || gso_size == 0 || hdr_len > len)) {
        return false;
    }
    header[0] = flags;
    if gso == GSO_NONE {
        header[2..6].fill(0);
    }
    if flags == 0 {
        header[6..10].fill(0);
    }
    header[SHORT_HEADER..].fill(0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso: u8, fields: [u16; 4]) -> [u8; HEADER] {
        let mut bytes = [0xff; HEADER];
        (bytes[0], bytes[1]) = (flags, gso);
        for (at, field) in fields.iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn headers_that_do_not_fit_their_frame_are_refused() {
        let all = CSUM | HOST_TSO4 | HOST_TSO6;
        let good = |mut header, features| check(&mut header, 1000, features);
        assert!(good(header(1, 0, [0, 0, 34, 16]), CSUM));
        assert!(good(header(1, 0, [0, 0, 982, 16]), CSUM), "at the very end");
        assert!(!good(header(1, 0, [0, 0, 983, 16]), CSUM), "one byte behind it");
        assert!(!good(header(1, 0, [0, 0, 0xffff, 0xffff]), CSUM));
        assert!(!good(header(1, 0, [0, 0, 34, 16]), Features::NONE), "not negotiated");
        assert!(good(header(1, 1, [54, 1448, 34, 16]), all));
        assert!(good(header(1, 0x84, [74, 1428, 54, 16]), all));
        assert!(!good(header(1, 1, [54, 1448, 34, 16]), CSUM), "not negotiated");
        assert!(!good(header(0, 1, [54, 1448, 34, 16]), all), "without a checksum");
        assert!(!good(header(1, 1, [54, 0, 34, 16]), all), "pieces of nothing");
        assert!(!good(header(1, 1, [0xffff, 0xffff, 34, 16]), all));
        assert!(!good(header(1, 3, [54, 1448, 34, 16]), all), "UDP is not offered");
        assert!(!good(header(1, 0x80, [54, 1448, 34, 16]), all));
    }

    #[test]
    fn what_means_nothing_is_cleared() {
        let mut header = header(2, 0, [0xffff; 4]);
        assert!(check(&mut header, 60, Features::NONE));
        assert_eq!(header, [0; HEADER]);
    }
}
