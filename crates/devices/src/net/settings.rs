use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sys::Tap;
use virtio::config::NetConfig;
use virtio::{DeviceError, DeviceType, Features, Identity, ParameterError, Parameters};

use super::frames::Frames;
use super::pcap::Pcap;
use super::port::{Sink, Source};
use super::stream::{StreamSink, StreamSource};
use super::{
    CSUM, CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_VQ,
    GUEST_ANNOUNCE, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, HOST_ECN, HOST_TSO4, HOST_TSO6,
    MAC, MRG_RXBUF, MTU, MULTI_QUEUE, Net, Port, STATUS, Shared,
};
use crate::link::Peering;
use crate::queue::RINGS;
use crate::{OpenError, not_a_power_of_two};

/// Descriptors of the control queue: commands come one by one.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Most queue pairs: more than any machine here has processors.
const MAX_PAIRS: u64 = 64;

/// What a card stands on.
enum Wire {
    Tap(String),
    Listen(PathBuf),
    Dial(PathBuf),
    Datagram(PathBuf, PathBuf),
    Echo,
    Null,
}

/// A network card as the settings describe it.
pub(super) fn net(mut parameters: Parameters) -> Result<Net, OpenError> {
    let wire = wire(&mut parameters)?;
    let pcap = parameters.path("pcap");
    let mac = parameters.text("mac");
    let mtu = parameters.number("mtu", 68..=65535)?;
    let pairs = parameters.number("queues", 1..=MAX_PAIRS)?.unwrap_or(1) as usize;
    let queue_size = queue_size(&mut parameters)?;
    parameters.finish()?;
    let mac = match mac {
        Some(text) => parse_mac(text)?,
        None => made_up_mac(&wire),
    };
    let pcap = match pcap {
        Some(path) => {
            let attempt = DeviceError::system(format!("creating {}", path.display()));
            Some(Arc::new(Pcap::create(&path).map_err(attempt)?))
        }
        None => None,
    };
    let (ports, taps, peering) = connect(&wire, pairs)?;
    let identity = identity(&wire, pairs, queue_size, mtu.is_some());
    let shared = Arc::new(Shared::new(mac, pairs, taps));
    // Until the driver asks for more.
    shared.use_pairs(1);
    let mtu = mtu.unwrap_or(0) as u16;
    Ok(Net { identity, mtu, mac, shared, ports, peering, pcap, features: Features::NONE })
}

/// Descriptors in a queue.
pub(super) fn queue_size(parameters: &mut Parameters) -> Result<u16, OpenError> {
    let queue_size = parameters.number("queue-size", 16..=1024)?.unwrap_or(256) as u16;
    if !queue_size.is_power_of_two() {
        return Err(not_a_power_of_two(queue_size).into());
    }
    Ok(queue_size)
}

fn wire(parameters: &mut Parameters) -> Result<Wire, OpenError> {
    let tap = parameters.text("tap").map(Wire::Tap);
    let listen = parameters.path("stream").map(Wire::Listen);
    let dial = parameters.path("connect").map(Wire::Dial);
    let dgram = parameters.path("dgram");
    let dgram = match (dgram, parameters.path("peer")) {
        (Some(here), Some(there)) => Some(Wire::Datagram(here, there)),
        (None, None) => None,
        (Some(_), None) => return Err(ParameterError::Missing("peer").into()),
        (None, Some(_)) => return Err(ParameterError::Missing("dgram").into()),
    };
    let echo = parameters.flag("echo", false)?.then_some(Wire::Echo);
    let null = parameters.flag("null", false)?.then_some(Wire::Null);
    let mut wires = [tap, listen, dial, dgram, echo, null].into_iter().flatten();
    let wire = wires.next().unwrap_or(Wire::Echo);
    if wires.next().is_some() {
        let what =
            "a network card stands on one of tap=, stream=, connect=, dgram=, echo= and null=";
        return Err(ParameterError::Together(what).into());
    }
    Ok(wire)
}

type Connected = (Vec<Port>, Vec<Arc<Tap>>, Option<Peering>);

fn connect(wire: &Wire, pairs: usize) -> Result<Connected, OpenError> {
    let attempt =
        |what: &str, path: &Path| DeviceError::system(format!("{what} {}", path.display()));
    let single = matches!(wire, Wire::Listen(_) | Wire::Dial(_) | Wire::Datagram(..));
    if single && pairs > 1 {
        let what = "a socket serves one queue pair: leave out queues=";
        return Err(ParameterError::Together(what).into());
    }
    match wire {
        Wire::Tap(name) => {
            let open = |_| Tap::open(name, pairs > 1).map(Arc::new);
            let taps: Result<Vec<_>, _> = (0..pairs).map(open).collect();
            let taps = taps.map_err(DeviceError::system(format!(
                "opening the interface {name} (as root, or after `ip tuntap add {name} mode tap \
                 user $USER vnet_hdr`)"
            )))?;
            let port =
                |tap: &Arc<Tap>| port(Source::Tap(Arc::clone(tap)), Sink::Tap(Arc::clone(tap)));
            Ok((taps.iter().map(port).collect(), taps, None))
        }
        Wire::Listen(path) => {
            let peering = Peering::listen(path).map_err(attempt("listening at", path))?;
            Ok((vec![stream_port(&peering)], Vec::new(), Some(peering)))
        }
        Wire::Dial(path) => {
            let peering = Peering::dial(path.clone()).map_err(attempt("connecting to", path))?;
            Ok((vec![stream_port(&peering)], Vec::new(), Some(peering)))
        }
        Wire::Datagram(here, there) => {
            let socket = bind(here).map_err(attempt("binding a datagram socket at", here))?;
            let socket = Arc::new(socket);
            let sink = Sink::Datagram(Arc::clone(&socket), there.clone());
            Ok((vec![port(Source::Datagram(socket), sink)], Vec::new(), None))
        }
        Wire::Echo => {
            let failed = || DeviceError::system("making the echo of a network card");
            let echo = |_| -> Result<Port, DeviceError> {
                let frames = Arc::new(Frames::new().map_err(failed())?);
                Ok(port(Source::Frames(Arc::clone(&frames)), Sink::Echo(frames)))
            };
            Ok(((0..pairs).map(echo).collect::<Result<_, _>>()?, Vec::new(), None))
        }
        Wire::Null => {
            let ports = (0..pairs).map(|_| port(Source::Nothing, Sink::Nothing)).collect();
            Ok((ports, Vec::new(), None))
        }
    }
}

fn port(source: Source, sink: Sink) -> Port {
    Port { source: Some(source), sink: Some(sink) }
}

fn stream_port(peering: &Peering) -> Port {
    let source = StreamSource::new(Arc::clone(peering.link()));
    let sink = StreamSink::new(Arc::clone(peering.link()));
    port(Source::Stream(Box::new(source)), Sink::Stream(Box::new(sink)))
}

/// A datagram socket at `path`, in the place of one that nobody has open any more.
fn bind(path: &Path) -> std::io::Result<UnixDatagram> {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        let probe = UnixDatagram::unbound()?;
        match probe.connect(path) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            _ => return Err(std::io::ErrorKind::AddrInUse.into()),
        }
    }
    let socket = UnixDatagram::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn identity(wire: &Wire, pairs: usize, queue_size: u16, mtu: bool) -> Identity {
    let mut features = RINGS | MAC | STATUS | MRG_RXBUF | CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA;
    features = features | CTRL_VLAN | CTRL_MAC_ADDR;
    if matches!(wire, Wire::Listen(_) | Wire::Dial(_)) {
        features = features | GUEST_ANNOUNCE;
    }
    if mtu {
        features = features | MTU;
    }
    if pairs > 1 {
        features = features | MULTI_QUEUE;
    }
    if matches!(wire, Wire::Tap(_)) {
        features = features | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | CTRL_GUEST_OFFLOADS;
        features = features | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
    }
    let mut queue_sizes = vec![queue_size; 2 * pairs];
    queue_sizes.push(CONTROL_QUEUE_SIZE);
    let config_len = NetConfig::LEN as u32;
    Identity { device: DeviceType::NET, features, queue_sizes, config_len }
}

pub(super) fn parse_mac(text: String) -> Result<[u8; 6], ParameterError> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    let good = mac.iter_mut().all(|byte| {
        let part = parts.next().filter(|part| part.len() == 2);
        part.and_then(|part| u8::from_str_radix(part, 16).ok()).map(|value| *byte = value).is_some()
    });
    if good && parts.next().is_none() && mac[0] & 1 == 0 {
        return Ok(mac);
    }
    let expected = "the address of one station, as 52:54:00:12:34:56".to_owned();
    Err(ParameterError::Expected { key: "mac".into(), text, expected })
}

/// An address that is the same after a restart and another one for another wire.
fn made_up_mac(wire: &Wire) -> [u8; 6] {
    let name = match wire {
        Wire::Tap(name) => name.as_bytes(),
        Wire::Listen(path) | Wire::Dial(path) | Wire::Datagram(path, _) => {
            path.as_os_str().as_encoded_bytes()
        }
        Wire::Echo => b"echo",
        Wire::Null => b"null",
    };
    mac_of(name)
}

/// An address that belongs to `name`.
pub(super) fn mac_of(name: &[u8]) -> [u8; 6] {
    // FNV-1a.
    let hash = name
        .iter()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, _] = hash.to_be_bytes();
    [0x52, 0x54, 0, a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_as_people_write_them() {
        assert_eq!(parse_mac("52:54:00:AB:cd:01".into()), Ok([0x52, 0x54, 0, 0xab, 0xcd, 1]));
        for bad in
            ["", "52:54:00:ab:cd", "52:54:00:ab:cd:01:02", "53:54:00:ab:cd:01", "5:254:0:0:0:0"]
        {
            assert!(parse_mac(bad.into()).is_err(), "{bad}");
        }
        let tap = made_up_mac(&Wire::Tap("tap0".into()));
        assert_eq!(tap, made_up_mac(&Wire::Tap("tap0".into())));
        assert_ne!(tap, made_up_mac(&Wire::Tap("tap1".into())));
    }
}
