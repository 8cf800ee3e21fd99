//! What must hold for any bytes whatever: decoding does not panic, and what has been decoded says
//! the same after it has been encoded. Shared by the property tests and the fuzz targets.

use wire::{Framer, Framing, cosim, vfio_user, vhost_user};

/// Treats `bytes` as a vhost-user message of the kind that its first three bytes choose, and as a
/// stream of such messages.
pub fn vhost_user(bytes: &[u8]) {
    let [direction, request, fds, payload @ ..] = bytes else { return };
    let payload = &payload[..payload.len().min(vhost_user::MAX_PAYLOAD)];
    let flags = vhost_user::VERSION | if direction & 1 == 0 { 0 } else { vhost_user::REPLY };
    let header =
        vhost_user::Header { request: (*request).into(), flags, size: payload.len() as u32 };
    one_vhost_user(&header, payload, (*fds).into());
    stream::<vhost_user::VhostUser>(bytes, vhost_user::MAX_PAYLOAD, |header, payload| {
        one_vhost_user(header, payload, payload.len() % 3);
    });
}

/// Treats `bytes` as a vfio-user message of the kind that its first three bytes choose, and as a
/// stream of such messages.
pub fn vfio_user(bytes: &[u8]) {
    let [flags, command, fds, payload @ ..] = bytes else { return };
    let header = vfio_user::Header {
        message_id: 0x1234,
        command: (*command).into(),
        payload_len: payload.len() as u32,
        flags: (flags & 1).into(),
        error: 0,
    };
    one_vfio_user(&header, payload, (*fds).into());
    stream::<vfio_user::VfioUser>(bytes, vfio_user::MAX_PAYLOAD, |header, payload| {
        one_vfio_user(header, payload, payload.len() % 3);
    });
    if let Ok(first) = vfio_user::Capabilities::read(payload) {
        let version = vfio_user::Version { major: 0, minor: 0, capabilities: first };
        one_vfio_user_version(version);
    }
    features(payload);
}

/// Treats `bytes` as a message between port and model of the kind that the first byte chooses, as a
/// stream of such messages, and as the head of a record.
pub fn cosim(bytes: &[u8]) {
    let [kind, fds, payload @ ..] = bytes else { return };
    let payload = &payload[..payload.len().min(cosim::MAX_PAYLOAD)];
    let len = payload.len() as u32;
    one_cosim(&cosim::Header { len, kind: (*kind).into(), fds: (*fds).into() }, payload);
    stream::<cosim::Cosim>(bytes, cosim::MAX_PAYLOAD, one_cosim);
    let _ = cosim::Area::decode(payload);
    let mut words = payload.chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_ne_bytes(bytes)
    });
    let head: [u64; cosim::HEADER_WORDS] =
        std::array::from_fn(|_| words.next().unwrap_or_default());
    if let Ok(record) = cosim::Record::<cosim::RequestKind>::decode(head) {
        assert_eq!(record.encode(), head);
    }
    if let Ok(record) = cosim::Record::<cosim::AnswerKind>::decode(head) {
        assert_eq!(record.encode(), head);
    }
}

fn one_cosim(header: &cosim::Header, payload: &[u8]) {
    let Ok(first) = cosim::Message::decode(header, payload, header.fds.into()) else { return };
    let encoded = encoded(|out| first.encode(out));
    again::<cosim::Cosim>(&encoded, |header, payload| {
        let fds = header.fds.into();
        assert_eq!(cosim::Message::decode(header, payload, fds).as_ref(), Ok(&first));
    });
}

fn one_vhost_user(header: &vhost_user::Header, payload: &[u8], fds: usize) {
    use vhost_user::{BackendRequest, Reply, Request, decode_ack, encode_ack};
    if let Ok(first) = Request::decode(header, payload, fds) {
        let encoded = encoded(|out| first.encode(header.flags, out));
        again::<vhost_user::VhostUser>(&encoded, |header, payload| {
            assert_eq!(Request::decode(header, payload, fds), Ok(first));
        });
    }
    if let Ok(first) = BackendRequest::decode(header, payload, fds) {
        let encoded = encoded(|out| first.encode(header.flags, out));
        again::<vhost_user::VhostUser>(&encoded, |header, payload| {
            assert_eq!(BackendRequest::decode(header, payload, fds), Ok(first));
        });
    }
    if let Ok(first) = Reply::decode(header, payload, fds) {
        let encoded = encoded(|out| first.encode(header.request, out));
        again::<vhost_user::VhostUser>(&encoded, |header, payload| {
            assert_eq!(Reply::decode(header, payload, fds).as_ref(), Ok(&first));
        });
    }
    if let Ok(first) = decode_ack(header, payload, fds) {
        let encoded = encoded(|out| encode_ack(header.request, first, out));
        again::<vhost_user::VhostUser>(&encoded, |header, payload| {
            assert_eq!(decode_ack(header, payload, fds), Ok(first));
        });
    }
}

fn one_vfio_user(header: &vfio_user::Header, payload: &[u8], fds: usize) {
    use vfio_user::{Reply, Request};
    if let Ok(first) = Request::decode(header, payload, fds) {
        let encoded = encoded(|out| first.encode(header.message_id, header.flags, out));
        again::<vfio_user::VfioUser>(&encoded, |header, payload| {
            assert_eq!(Request::decode(header, payload, fds), Ok(first));
        });
    }
    if let Ok(first) = Reply::decode(header, payload, fds) {
        let encoded = encoded(|out| first.encode(header.message_id, header.command, out));
        again::<vfio_user::VfioUser>(&encoded, |header, payload| {
            assert_eq!(Reply::decode(header, payload, fds).as_ref(), Ok(&first));
        });
    }
}

fn one_vfio_user_version(version: vfio_user::Version) {
    use vfio_user::{Reply, command};
    for limit in [0, 20, 60, 200, usize::MAX] {
        let fitted = version.fitted_to(limit);
        let encoded = encoded(|out| Reply::Version(fitted).encode(1, command::VERSION, out));
        assert!(encoded.len() <= limit.max(4).saturating_add(vfio_user::HEADER_LEN));
        again::<vfio_user::VfioUser>(&encoded, |header, payload| {
            assert_eq!(Reply::decode(header, payload, 0), Ok(Reply::Version(fitted)));
        });
    }
}

fn features(data: &[u8]) {
    use vfio_user::feature::{LoggingControl, LoggingReport, MigrationState};
    if let Ok(first) = MigrationState::decode(data) {
        let encoded = encoded(|out| first.encode(out));
        assert_eq!(MigrationState::decode(&encoded), Ok(first));
    }
    if let Ok(first) = LoggingControl::decode(data) {
        let ranges = first.ranges().collect::<Vec<_>>();
        let encoded = encoded(|out| LoggingControl::encode(first.page_size, &ranges, out));
        assert_eq!(LoggingControl::decode(&encoded), Ok(first));
    }
    if let Ok((first, bitmap)) = LoggingReport::decode(data) {
        assert!(bitmap.len() <= data.len());
        let encoded = encoded(|out| first.encode(out));
        assert_eq!(LoggingReport::decode(&encoded), Ok((first, &[][..])));
        assert_eq!(first.bitmap_len() % 8, 0);
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

/// Decodes exactly one message.
fn again<P: Framing>(bytes: &[u8], check: impl FnOnce(&P::Header, &[u8])) {
    let mut framer = Framer::<P>::new(usize::MAX >> 1);
    assert_eq!(framer.feed(bytes), Ok(bytes.len()), "the header that we wrote");
    let (header, payload) = framer.message().expect("we wrote whole messages");
    check(&header, payload);
}

/// Feeds `bytes` in small pieces and checks every message that comes out.
fn stream<P: Framing>(bytes: &[u8], max_payload: usize, mut check: impl FnMut(&P::Header, &[u8])) {
    let mut framer = Framer::<P>::new(max_payload);
    for (turn, piece) in bytes.chunks(1 + bytes.len() % 17).enumerate() {
        let mut rest = piece;
        while !rest.is_empty() {
            let Ok(taken) = framer.feed(rest) else { return };
            rest = &rest[taken..];
            if let Some((header, payload)) = framer.message() {
                check(&header, payload);
                framer.next_message();
                assert!(framer.is_empty());
            } else {
                assert!(rest.is_empty(), "piece {turn}: bytes left over without a message");
            }
        }
    }
}
