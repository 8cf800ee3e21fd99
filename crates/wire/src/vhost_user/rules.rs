//! Tables of what may travel with each message, and how it is answered.

use super::features;

/// Most file descriptors in one message: one per region of SET_MEM_TABLE ("at most 8 descriptors
/// in each message" for the other direction).
pub const MAX_FDS: usize = 8;

/// How many file descriptors a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdCount {
    /// The least it needs.
    pub least: usize,
    /// The most it may carry.
    pub most: usize,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a payload of its own, always.
    Payload,
    /// With a payload of its own if LOG_SHMFD has been negotiated, otherwise as [`Self::IfAsked`].
    PayloadWithLogShmfd,
    /// With an acknowledgement, a u64 that is zero for success, if the request has the
    /// [`NEED_REPLY`](super::NEED_REPLY) flag.
    IfAsked,
}

/// One row of [`REQUESTS`] or [`BACKEND_REQUESTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRule {
    /// The request's number.
    pub id: u32,
    /// Its name without the common prefix.
    pub name: &'static str,
    /// Descriptors that come with the request.
    pub fds: FdCount,
    /// Descriptors that come with its answer.
    pub reply_fds: FdCount,
    /// How it is answered.
    pub answer: Answer,
}

/// The requests of the driver's side; the row of request `id` is `id - 1`.
pub const REQUESTS: [RequestRule; 44] = [
    plain(id::GET_FEATURES, "GET_FEATURES").replies(),
    plain(id::SET_FEATURES, "SET_FEATURES"),
    plain(id::SET_OWNER, "SET_OWNER"),
    plain(id::RESET_OWNER, "RESET_OWNER"),
    plain(id::SET_MEM_TABLE, "SET_MEM_TABLE").fds(0, MAX_FDS),
    RequestRule {
        answer: Answer::PayloadWithLogShmfd,
        ..plain(id::SET_LOG_BASE, "SET_LOG_BASE").fds(0, 1)
    },
    plain(id::SET_LOG_FD, "SET_LOG_FD").fds(1, 1),
    plain(id::SET_VRING_NUM, "SET_VRING_NUM"),
    plain(id::SET_VRING_ADDR, "SET_VRING_ADDR"),
    plain(id::SET_VRING_BASE, "SET_VRING_BASE"),
    plain(id::GET_VRING_BASE, "GET_VRING_BASE").replies(),
    plain(id::SET_VRING_KICK, "SET_VRING_KICK").fds(0, 1),
    plain(id::SET_VRING_CALL, "SET_VRING_CALL").fds(0, 1),
    plain(id::SET_VRING_ERR, "SET_VRING_ERR").fds(0, 1),
    plain(id::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES").replies(),
    plain(id::SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES"),
    plain(id::GET_QUEUE_NUM, "GET_QUEUE_NUM").replies(),
    plain(id::SET_VRING_ENABLE, "SET_VRING_ENABLE"),
    plain(id::SEND_RARP, "SEND_RARP"),
    plain(id::NET_SET_MTU, "NET_SET_MTU"),
    plain(id::SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD").fds(1, 1),
    // The text wants an answer always; senders set NEED_REPLY, also without REPLY_ACK negotiated.
    plain(id::IOTLB_MSG, "IOTLB_MSG"),
    plain(id::SET_VRING_ENDIAN, "SET_VRING_ENDIAN"),
    plain(id::GET_CONFIG, "GET_CONFIG").replies(),
    plain(id::SET_CONFIG, "SET_CONFIG"),
    plain(id::CREATE_CRYPTO_SESSION, "CREATE_CRYPTO_SESSION").replies(),
    plain(id::CLOSE_CRYPTO_SESSION, "CLOSE_CRYPTO_SESSION"),
    plain(id::POSTCOPY_ADVISE, "POSTCOPY_ADVISE").replies().reply_fds(0, 1),
    plain(id::POSTCOPY_LISTEN, "POSTCOPY_LISTEN"),
    plain(id::POSTCOPY_END, "POSTCOPY_END").replies(),
    plain(id::GET_INFLIGHT_FD, "GET_INFLIGHT_FD").replies().reply_fds(0, 1),
    plain(id::SET_INFLIGHT_FD, "SET_INFLIGHT_FD").fds(1, 1),
    plain(id::GPU_SET_SOCKET, "GPU_SET_SOCKET").fds(1, 1),
    plain(id::RESET_DEVICE, "RESET_DEVICE"),
    plain(id::VRING_KICK, "VRING_KICK"),
    plain(id::GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS").replies(),
    plain(id::ADD_MEM_REG, "ADD_MEM_REG").fds(1, 1),
    // Some senders add a descriptor, which is to be closed unused.
    plain(id::REM_MEM_REG, "REM_MEM_REG").fds(0, 1),
    plain(id::SET_STATUS, "SET_STATUS"),
    plain(id::GET_STATUS, "GET_STATUS").replies(),
    plain(id::GET_SHARED_OBJECT, "GET_SHARED_OBJECT").replies().reply_fds(0, 1),
    plain(id::SET_DEVICE_STATE_FD, "SET_DEVICE_STATE_FD").fds(1, 1).replies().reply_fds(0, 1),
    plain(id::CHECK_DEVICE_STATE, "CHECK_DEVICE_STATE").replies(),
    plain(id::GET_SHMEM_CONFIG, "GET_SHMEM_CONFIG").replies(),
];

/// The requests of the device's side, on the second socket; the row of request `id` is `id - 1`.
pub const BACKEND_REQUESTS: [RequestRule; 10] = [
    plain(1, "BACKEND_IOTLB_MSG"),
    plain(2, "BACKEND_CONFIG_CHANGE_MSG"),
    plain(3, "BACKEND_VRING_HOST_NOTIFIER_MSG").fds(0, 1),
    plain(4, "BACKEND_VRING_CALL"),
    plain(5, "BACKEND_VRING_ERR"),
    plain(6, "BACKEND_SHARED_OBJECT_ADD"),
    plain(7, "BACKEND_SHARED_OBJECT_REMOVE"),
    plain(8, "BACKEND_SHARED_OBJECT_LOOKUP").reply_fds(0, 1),
    plain(9, "BACKEND_SHMEM_MAP").fds(1, 1),
    plain(10, "BACKEND_SHMEM_UNMAP"),
];

/// The row of a request of the driver's side, if its number is known.
pub fn rule(id: u32) -> Option<&'static RequestRule> {
    REQUESTS.get(id.checked_sub(1)? as usize)
}

/// Whether a request of the driver's side is answered, and with what, given what has been
/// negotiated. `None` means that nothing is sent. Requests that are not known are acknowledged
/// if they ask for it.
pub fn answer(id: u32, needs_reply: bool, protocol_features: u64) -> Option<Answer> {
    let log_shmfd = protocol_features & features::LOG_SHMFD != 0;
    match rule(id).map(|rule| rule.answer) {
        Some(Answer::Payload) => Some(Answer::Payload),
        Some(Answer::PayloadWithLogShmfd) if log_shmfd => Some(Answer::Payload),
        _ => needs_reply.then_some(Answer::IfAsked),
    }
}

const fn plain(id: u32, name: &'static str) -> RequestRule {
    let none = FdCount { least: 0, most: 0 };
    RequestRule { id, name, fds: none, reply_fds: none, answer: Answer::IfAsked }
}

impl RequestRule {
    const fn fds(self, least: usize, most: usize) -> Self {
        Self { fds: FdCount { least, most }, ..self }
    }

    const fn reply_fds(self, least: usize, most: usize) -> Self {
        Self { reply_fds: FdCount { least, most }, ..self }
    }

    const fn replies(self) -> Self {
        Self { answer: Answer::Payload, ..self }
    }
}

/// Numbers of the requests of the driver's side ("Front-end message types").
#[allow(missing_docs)]
pub mod id {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const CREATE_CRYPTO_SESSION: u32 = 26;
    pub const CLOSE_CRYPTO_SESSION: u32 = 27;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const POSTCOPY_LISTEN: u32 = 29;
    pub const POSTCOPY_END: u32 = 30;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GPU_SET_SOCKET: u32 = 33;
    pub const RESET_DEVICE: u32 = 34;
    pub const VRING_KICK: u32 = 35;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const GET_SHARED_OBJECT: u32 = 41;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
    pub const GET_SHMEM_CONFIG: u32 = 44;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sit_at_their_number() {
        for (row, rule) in REQUESTS.iter().enumerate() {
            assert_eq!(rule.id as usize, row + 1, "{}", rule.name);
            assert!(rule.fds.least <= rule.fds.most && rule.fds.most <= MAX_FDS);
        }
        for (row, rule) in BACKEND_REQUESTS.iter().enumerate() {
            assert_eq!(rule.id as usize, row + 1, "{}", rule.name);
        }
        assert_eq!(rule(0), None);
        assert_eq!(rule(45), None);
        assert_eq!(rule(44).map(|rule| rule.name), Some("GET_SHMEM_CONFIG"));
    }

    #[test]
    fn answers_depend_on_what_was_negotiated() {
        assert_eq!(answer(id::GET_FEATURES, false, 0), Some(Answer::Payload));
        assert_eq!(answer(id::SET_FEATURES, false, 0), None);
        assert_eq!(answer(id::SET_FEATURES, true, 0), Some(Answer::IfAsked));
        assert_eq!(answer(id::SET_LOG_BASE, false, 0), None);
        assert_eq!(answer(id::SET_LOG_BASE, false, features::LOG_SHMFD), Some(Answer::Payload));
        assert_eq!(answer(999, true, 0), Some(Answer::IfAsked));
        assert_eq!(answer(0, false, u64::MAX), None);
    }
}
