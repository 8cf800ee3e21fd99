//! Every vfio-user message there and back, and cut at every byte.

use proptest::prelude::*;
use wire::vfio_user::{
    COMMANDS, Capabilities, DeviceInfo, DmaMap, DmaUnmap, HEADER_LEN, Header, IoFd, IoFdKind,
    IrqAction, IrqData, IrqInfo, Migration, MultiWrites, NO_REPLY, RegionInfo, RegionIoFds, Reply,
    Request, SetIrqs, SparseArea, TwinSocket, Version, Write, command,
};

/// Numbers to fill fields with.
type Numbers = [u64; 4];

/// The request with this number, its fields filled from `n` and `data`, and how many descriptors
/// it takes along. `data` has 1 to 256 bytes; `writes` has what REGION_WRITE_MULTI carries.
fn request<'a>(
    number: u16,
    n: Numbers,
    data: &'a [u8],
    writes: &MultiWrites<'a>,
) -> (Request<'a>, usize) {
    let (argsz, index) = (n[0] as u32, n[1] as u32);
    let (offset, region) = (n[2] >> 1, n[3] as u32);
    let count = (n[3] % (1 << 20)) as u32 + 1;
    let request = match number {
        command::VERSION => Request::Version(version(n)),
        command::DMA_MAP => {
            let map = DmaMap { flags: argsz, offset, address: n[0] >> 1, size: n[1] >> 1 };
            return (Request::DmaMap(map), index as usize & 1);
        }
        command::DMA_UNMAP => Request::DmaUnmap(dma_unmap(n)),
        command::DEVICE_GET_INFO => Request::DeviceGetInfo { argsz },
        command::DEVICE_GET_REGION_INFO => Request::DeviceGetRegionInfo { argsz, index },
        command::DEVICE_GET_REGION_IO_FDS => Request::DeviceGetRegionIoFds { argsz, index },
        command::DEVICE_GET_IRQ_INFO => Request::DeviceGetIrqInfo { argsz, index },
        command::DEVICE_SET_IRQS => return set_irqs(n, data),
        command::REGION_READ => Request::RegionRead { offset, region, count },
        command::REGION_WRITE => Request::RegionWrite { offset, region, data },
        command::DMA_READ => Request::DmaRead { address: offset, count: count.into() },
        command::DMA_WRITE => Request::DmaWrite { address: offset, data },
        command::DEVICE_RESET => Request::DeviceReset,
        command::REGION_WRITE_MULTI => Request::RegionWriteMulti(*writes),
        command::DEVICE_FEATURE => Request::DeviceFeature { argsz, flags: index, data },
        command::MIG_DATA_READ => Request::MigDataRead { argsz, size: count },
        command::MIG_DATA_WRITE => Request::MigDataWrite { data },
        command => Request::Unknown { command, payload: data },
    };
    (request, 0)
}

fn set_irqs<'a>(n: Numbers, data: &'a [u8]) -> (Request<'a>, usize) {
    let action = [IrqAction::Mask, IrqAction::Unmask, IrqAction::Trigger][n[0] as usize % 3];
    let (index, start) = (n[1] as u32, n[2] as u32 >> 1);
    let (data, count, fds) = match n[3] % 4 {
        0 => (IrqData::None, n[2] as u32 >> 1, 0),
        1 => (IrqData::Bool(data), data.len() as u32, 0),
        2 => (IrqData::Eventfd, n[2] as u32 >> 1, 0),
        _ => (IrqData::Eventfd, (n[2] % 17) as u32, (n[2] % 17) as usize),
    };
    (Request::DeviceSetIrqs(SetIrqs { data, action, index, start, count }), fds)
}

/// A reply, the command that it answers, and how many descriptors it takes along.
fn reply<'a>(number: u16, n: Numbers, data: &'a [u8]) -> (Reply<'a>, usize) {
    let (flags, index) = (n[0] as u32, n[1] as u32);
    let (offset, region) = (n[2] >> 1, n[3] as u32);
    let count = (n[3] % (1 << 20)) as u32 + 1;
    let reply = match number {
        command::VERSION => Reply::Version(version(n)),
        command::DMA_UNMAP => Reply::DmaUnmap(dma_unmap(n)),
        command::DEVICE_GET_INFO => {
            Reply::DeviceInfo(DeviceInfo { flags, regions: index, irqs: region })
        }
        command::DEVICE_GET_REGION_INFO => {
            let area = SparseArea { offset, size: n[0] >> 1 };
            let info = RegionInfo::new(flags, index, n[2], n[3], vec![area; n[3] as usize % 5]);
            return (Reply::RegionInfo(info.fitted_to(n[0] as u32)), n[3] as usize % 2);
        }
        command::DEVICE_GET_REGION_IO_FDS => {
            let kind = [IoFdKind::IoEventFd, IoFdKind::IoRegionFd, IoFdKind::Other(2)];
            let kind = kind[n[0] as usize % 3];
            let io_fd = IoFd { offset, size: n[0], fd_index: index, kind, flags, data: n[1] };
            let fds = RegionIoFds::new(index, vec![io_fd; n[3] as usize % 5]);
            return (Reply::RegionIoFds(fds.fitted_to(n[0] as u32)), n[3] as usize % 17);
        }
        command::DEVICE_GET_IRQ_INFO => Reply::IrqInfo(IrqInfo { flags, index, count: region }),
        command::REGION_READ => Reply::RegionRead { offset, region, data },
        command::REGION_WRITE => Reply::RegionWrite { offset, region, count },
        command::DMA_READ => Reply::DmaRead { address: offset, data },
        command::DMA_WRITE => Reply::DmaWrite { address: offset, count: n[0] },
        command::REGION_WRITE_MULTI => Reply::RegionWriteMulti(n[0]),
        command::DEVICE_FEATURE => Reply::DeviceFeature { argsz: flags, flags: index, data },
        command::MIG_DATA_READ => Reply::MigDataRead { data },
        _ => Reply::Done,
    };
    (if n[2] & 7 == 7 { Reply::Failed(index) } else { reply }, 0)
}

fn version(n: Numbers) -> Version {
    let migration = Migration { pgsize: n[0], max_bitmap_size: n[1] };
    let capabilities = Capabilities {
        max_msg_fds: n[0],
        max_data_xfer_size: n[1],
        max_dma_maps: n[2],
        pgsizes: n[3],
        twin_socket: TwinSocket {
            supported: n[0] & 1 == 0,
            fd_index: (n[1] & 1 == 0).then_some(n[2]),
        },
        write_multiple: n[2] & 1 == 0,
        migration: (n[3] & 1 == 0).then_some(migration),
    };
    Version { major: n[0] as u16, minor: n[1] as u16, capabilities }
}

fn dma_unmap(n: Numbers) -> DmaUnmap {
    DmaUnmap { argsz: n[0] as u32, flags: n[1] as u32, address: n[2], size: n[3] }
}

fn numbers() -> impl Strategy<Value = Numbers> {
    prop::array::uniform4(prop_oneof![any::<u64>(), 0u64..512, Just(u64::MAX)])
}

/// Splits an encoded message, checking that it is exactly one.
fn parts(encoded: &[u8]) -> (Header, &[u8]) {
    let (header, payload) = encoded.split_first_chunk::<HEADER_LEN>().expect("a header");
    let header = Header::decode(header).expect("our own header");
    assert_eq!(header.payload_len as usize, payload.len());
    (header, payload)
}

proptest! {
    #[test]
    fn requests(
        command in 0u16..21,
        message_id: u16,
        n in numbers(),
        data in prop::collection::vec(any::<u8>(), 1..257),
        no_reply: bool,
    ) {
        let writes = data.chunks(8).map(|data| Write {
            offset: n[0] >> 1,
            region: n[1] as u32,
            data,
        });
        let mut buffer = Vec::new();
        let writes = MultiWrites::lay_out(&writes.collect::<Vec<_>>(), &mut buffer);
        let (request, fds) = request(command, n, &data, &writes);
        prop_assert_eq!(request.command(), command);
        let mut encoded = Vec::new();
        request.encode(message_id, if no_reply { NO_REPLY } else { 0 }, &mut encoded);
        let (header, payload) = parts(&encoded);
        prop_assert_eq!((header.message_id, header.command), (message_id, command));
        prop_assert_eq!(header.wants_reply(), !no_reply);
        prop_assert_eq!(Request::decode(&header, payload, fds), Ok(request));
        for end in 0..payload.len() {
            if let Err(error) = Request::decode(&header, &payload[..end], fds) {
                prop_assert!(!error.is_fatal(), "cut at {}: {}", end, error);
            }
        }
        if let Some(rule) = COMMANDS.iter().find(|rule| rule.command == command) {
            prop_assert!(fds <= rule.max_fds);
            prop_assert!(Request::decode(&header, payload, rule.max_fds + 1).is_err());
        }
    }

    #[test]
    fn replies(
        command in 0u16..21,
        message_id: u16,
        n in numbers(),
        data in prop::collection::vec(any::<u8>(), 1..257),
    ) {
        let (reply, fds) = reply(command, n, &data);
        let mut encoded = Vec::new();
        reply.encode(message_id, command, &mut encoded);
        let (header, payload) = parts(&encoded);
        prop_assert!(header.is_reply());
        prop_assert_eq!((header.message_id, header.command), (message_id, command));
        let decoded = Reply::decode(&header, payload, fds);
        prop_assert_eq!(decoded.as_ref(), Ok(&reply));
        for end in 0..payload.len() {
            if let Err(error) = Reply::decode(&header, &payload[..end], fds) {
                prop_assert!(!error.is_fatal(), "cut at {}: {}", end, error);
            }
        }
    }

    #[test]
    fn multi_writes_keep_their_order(
        writes in prop::collection::vec(
            (0u64..1 << 40, 0u32..9, prop::collection::vec(any::<u8>(), 1..9)),
            0..200,
        ),
    ) {
        let writes = writes
            .iter()
            .map(|(offset, region, data)| Write { offset: *offset, region: *region, data })
            .collect::<Vec<_>>();
        let mut buffer = Vec::new();
        let laid_out = MultiWrites::lay_out(&writes, &mut buffer);
        let mut encoded = Vec::new();
        Request::RegionWriteMulti(laid_out).encode(1, NO_REPLY, &mut encoded);
        let (header, payload) = parts(&encoded);
        let Ok(Request::RegionWriteMulti(decoded)) = Request::decode(&header, payload, 0) else {
            panic!("just encoded");
        };
        prop_assert_eq!(decoded.len(), writes.len());
        prop_assert_eq!(decoded.iter().collect::<Vec<_>>(), writes);
    }
}
