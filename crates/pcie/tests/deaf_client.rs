//! A client that asks and never takes the answers. Alone in its process, because it counts system
//! calls.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::engine::{self, Engine, ID};
use support::{Raw, Served};
use wire::vfio_user::Request;

#[test]
fn a_client_that_takes_no_answers_costs_neither_memory_nor_time() {
    let served = Served::new(Box::new(Engine::new()));
    let mut deaf = Raw::greeted(&served.path);
    let mut message = Vec::new();
    Request::RegionRead { offset: 0, region: 0, count: 4096 }.encode(1, 0, &mut message);
    let many = message.repeat(256);
    // Answers are a hundred times longer than questions: soon the service listens no more.
    let limit = Duration::from_millis(300);
    let stalls = (0..10_000).any(|_| deaf.connection.send_all(&many, &[], limit).is_err());
    assert!(stalls, "the service takes questions without end");
    let before = sys::system_calls();
    std::thread::sleep(Duration::from_millis(200));
    let calls = sys::system_calls() - before;
    assert!(calls < 100, "{calls} system calls while there is nothing to do");
    // When it listens again it is served again.
    let mut answers = 0;
    while deaf.connection.wait_readable(limit).is_ok() {
        deaf.receive().unwrap();
        answers += 1;
    }
    assert!(answers > 500, "{answers}");
    drop(deaf);
    let mut next = Raw::greeted(&served.path);
    assert_eq!(next.read(0, engine::REG_ID, 4), Ok(ID.to_le_bytes().to_vec()));
}
