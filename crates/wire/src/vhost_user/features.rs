//! Feature bits that vhost-user itself defines: two in the virtio feature word, and the protocol
//! features ("Protocol features").

/// Virtio feature bit 26: the device can log its writes (`VHOST_F_LOG_ALL`, "Migration").
pub const VHOST_F_LOG_ALL: u64 = 1 << 26;
/// Virtio feature bit 30, unused by virtio: protocol features can be negotiated
/// (`VHOST_USER_F_PROTOCOL_FEATURES`, "Communication").
pub const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Bit 0: GET_QUEUE_NUM is answered.
pub const MQ: u64 = 1 << 0;
/// Bit 1: SET_LOG_BASE carries a descriptor of shared memory.
pub const LOG_SHMFD: u64 = 1 << 1;
/// Bit 2: SEND_RARP.
pub const RARP: u64 = 1 << 2;
/// Bit 3: any request may ask for an acknowledgement.
pub const REPLY_ACK: u64 = 1 << 3;
/// Bit 4: NET_SET_MTU.
pub const MTU: u64 = 1 << 4;
/// Bit 5: the second socket, on which the device's side makes requests.
pub const BACKEND_REQ: u64 = 1 << 5;
/// Bit 6: SET_VRING_ENDIAN.
pub const CROSS_ENDIAN: u64 = 1 << 6;
/// Bit 7: CREATE_CRYPTO_SESSION and CLOSE_CRYPTO_SESSION.
pub const CRYPTO_SESSION: u64 = 1 << 7;
/// Bit 8: the three postcopy requests.
pub const PAGEFAULT: u64 = 1 << 8;
/// Bit 9: GET_CONFIG, SET_CONFIG and the message about a changed configuration.
pub const CONFIG: u64 = 1 << 9;
/// Bit 10: requests on the second socket may carry descriptors.
pub const BACKEND_SEND_FD: u64 = 1 << 10;
/// Bit 11: the device's side may hand over a page to be used as doorbell.
pub const HOST_NOTIFIER: u64 = 1 << 11;
/// Bit 12: GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub const INFLIGHT_SHMFD: u64 = 1 << 12;
/// Bit 13: RESET_DEVICE.
pub const RESET_DEVICE: u64 = 1 << 13;
/// Bit 14: notifications as messages; only together with [`BACKEND_REQ`] and [`REPLY_ACK`].
pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
/// Bit 15: GET_MAX_MEM_SLOTS, ADD_MEM_REG and REM_MEM_REG.
pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// Bit 16: SET_STATUS and GET_STATUS.
pub const STATUS: u64 = 1 << 16;
/// Bit 17: memory regions carry two more fields for Xen.
pub const XEN_MMAP: u64 = 1 << 17;
/// Bit 18: the shared object requests.
pub const SHARED_OBJECT: u64 = 1 << 18;
/// Bit 19: SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
pub const DEVICE_STATE: u64 = 1 << 19;
/// Bit 20: GET_VRING_BASE does not wait for requests in flight; needs [`INFLIGHT_SHMFD`].
pub const GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
/// Bit 21: ring addresses are guest physical addresses.
pub const GPA_ADDRESSES: u64 = 1 << 21;
/// Bit 22: GET_SHMEM_CONFIG, SHMEM_MAP and SHMEM_UNMAP.
pub const SHMEM_MAP: u64 = 1 << 22;

/// Names of the protocol features, without their common prefix; the index is the bit.
pub const NAMES: [&str; 23] = [
    "MQ",
    "LOG_SHMFD",
    "RARP",
    "REPLY_ACK",
    "MTU",
    "BACKEND_REQ",
    "CROSS_ENDIAN",
    "CRYPTO_SESSION",
    "PAGEFAULT",
    "CONFIG",
    "BACKEND_SEND_FD",
    "HOST_NOTIFIER",
    "INFLIGHT_SHMFD",
    "RESET_DEVICE",
    "INBAND_NOTIFICATIONS",
    "CONFIGURE_MEM_SLOTS",
    "STATUS",
    "XEN_MMAP",
    "SHARED_OBJECT",
    "DEVICE_STATE",
    "GET_VRING_BASE_INFLIGHT",
    "GPA_ADDRESSES",
    "SHMEM_MAP",
];

/// The bits set in a word of protocol features, lowest first, each with its name if it has one.
pub fn protocol_feature_names(bits: u64) -> impl Iterator<Item = (u32, Option<&'static str>)> {
    (0..u64::BITS)
        .filter(move |bit| bits & 1 << bit != 0)
        .map(|bit| (bit, NAMES.get(bit as usize).copied()))
}

/// Whether the protocol features contradict each other: in-band notifications without the two
/// features that they are built on ("In-band notifications": the connection has to be closed).
pub fn is_contradictory(protocol_features: u64) -> bool {
    let needed = BACKEND_REQ | REPLY_ACK;
    protocol_features & INBAND_NOTIFICATIONS != 0 && protocol_features & needed != needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sit_on_their_bits() {
        let named = |bits| protocol_feature_names(bits).map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(named(REPLY_ACK | STATUS), [Some("REPLY_ACK"), Some("STATUS")]);
        assert_eq!(named(GPA_ADDRESSES | SHMEM_MAP), [Some("GPA_ADDRESSES"), Some("SHMEM_MAP")]);
        assert_eq!(protocol_feature_names(1 << 63).collect::<Vec<_>>(), [(63, None)]);
        assert_eq!(protocol_feature_names(u64::MAX).count(), 64);
    }

    #[test]
    fn inband_notifications_need_two_others() {
        assert!(is_contradictory(INBAND_NOTIFICATIONS));
        assert!(is_contradictory(INBAND_NOTIFICATIONS | BACKEND_REQ));
        assert!(!is_contradictory(INBAND_NOTIFICATIONS | BACKEND_REQ | REPLY_ACK));
        assert!(!is_contradictory(0));
    }
}
