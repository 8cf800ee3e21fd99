//! A port between a driver and models that are well, slow, silent and gone.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mem::DriverAddress;
use pcie::BarLayout;
use port::{Model, ModelError, PortOptions};
use rig::{
    BASE, COPY, DEADLINE, FROM_MEMORY, Habits, Rig, Running, SILENT, STALL, memory, read, until,
    wait, write,
};
use sys::EventFd;

#[test]
fn a_function_that_computes_its_configuration_space_is_no_model() {
    let mut function = Habits::new(Arc::default());
    function.computes_config = true;
    let rig = Rig::new(PortOptions::default);
    let refused = Model::connect(Some(&rig.models), "computes", Box::new(function));
    assert!(matches!(refused, Err(ModelError::Computes)));
    // The port still waits for one that can be.
    let _model = rig.model();
    assert_eq!(read(&mut rig.driver(&memory(), true), 0), 0);
}

fn copies(shared: bool) {
    let rig = Rig::new(PortOptions::default);
    let _model = rig.model();
    let memory = memory();
    let mut driver = rig.driver(&memory, shared);
    let event = Arc::new(EventFd::new().unwrap());
    // MSI-X vector 1.
    driver.set_interrupts(2, 1, &[Arc::clone(&event)]).unwrap();
    write(&mut driver, 0, BASE + 0x100);
    for round in 0..20 {
        let to = BASE + 0x1000 + round * 256;
        write(&mut driver, 8, to);
        write(&mut driver, COPY, 1);
        wait(&event);
        let mut copied = [0; 64];
        memory.map().unwrap().read(DriverAddress(to), &mut copied).unwrap();
        assert!(copied.iter().enumerate().all(|(n, byte)| *byte == n as u8 ^ 0x5a));
    }
    if shared {
        assert_eq!(read(&mut driver, FROM_MEMORY), 0x5958_5b5a);
    }
}

#[test]
fn a_model_copies_host_memory_that_is_shared() {
    copies(true);
}

#[test]
fn a_model_copies_host_memory_by_messages() {
    copies(false);
}

#[test]
fn registers_hold_and_long_reads_come_in_order() {
    let rig = Rig::new(PortOptions::default);
    let _model = rig.model();
    let mut driver = rig.driver(&memory(), true);
    for value in 0..2000u64 {
        write(&mut driver, 0x40, value * 0x1_0001);
        assert_eq!(read(&mut driver, 0x40), value as u32 * 0x1_0001);
    }
    let mut long = vec![0; 100_000];
    driver.read(2, 3, &mut long).unwrap();
    assert!(long.iter().enumerate().all(|(n, byte)| *byte == (n + 3) as u8));
    let mut ids = [0; 4];
    driver.read(7, 0, &mut ids).unwrap();
    assert_eq!(ids, [0x34, 0x12, 0x78, 0x56]);
}

#[test]
fn a_read_that_is_never_answered_gets_ones_and_others_are_answered() {
    let rig = Rig::new(PortOptions::default);
    let _model = rig.model();
    let mut driver = rig.driver(&memory(), true);
    write(&mut driver, 0x40, 7);
    let begin = Instant::now();
    assert_eq!(read(&mut driver, SILENT), u32::MAX);
    assert!(begin.elapsed() >= DEADLINE && begin.elapsed() < 20 * DEADLINE);
    assert_eq!(read(&mut driver, 0x40), 7, "the model is well otherwise");
}

#[test]
fn a_model_that_stands_still_costs_one_deadline_and_loses_no_write() {
    let rig = Rig::new(PortOptions::default);
    let _model = rig.model();
    let mut driver = rig.driver(&memory(), true);
    until(&mut driver, 0, 0);
    write(&mut driver, STALL, 100);
    assert_eq!(read(&mut driver, 0x40), u32::MAX);
    let begin = Instant::now();
    for n in 0..20u64 {
        write(&mut driver, 0x40 + 8 * (n % 4), n + 1);
        assert_eq!(read(&mut driver, 0x40), u32::MAX);
    }
    assert!(begin.elapsed() < Duration::from_millis(600), "each read waited");
    until(&mut driver, 0x40, 17);
    assert_eq!((read(&mut driver, 0x48), read(&mut driver, 0x58)), (18, 20));
}

#[test]
fn a_model_that_dies_comes_back_reset() {
    let rig = Rig::new(PortOptions::default);
    let mut model = rig.model();
    let memory = memory();
    let mut driver = rig.driver(&memory, true);
    let event = Arc::new(EventFd::new().unwrap());
    driver.set_interrupts(2, 1, &[Arc::clone(&event)]).unwrap();
    for round in 0..20 {
        write(&mut driver, 0x40, 99);
        assert_eq!(read(&mut driver, 0x40), 99);
        model.kill();
        until(&mut driver, 0x40, u32::MAX);
        write(&mut driver, 0x48, 5);
        model = rig.model();
        let begin = Instant::now();
        until(&mut driver, 0x40, 0);
        assert!(begin.elapsed() < Duration::from_secs(1), "it took {:?}", begin.elapsed());
        assert_eq!(read(&mut driver, 0x48), 0, "written while nobody was there");
        let mut command = [0; 2];
        driver.read(7, 4, &mut command).unwrap();
        assert_eq!(command, [6, 0], "the configuration is the port's");
        // Memory and interrupts are there again.
        write(&mut driver, 0, BASE + 0x100);
        write(&mut driver, 8, BASE + 0x1000 + round);
        write(&mut driver, COPY, 1);
        wait(&event);
    }
    drop(model);
}

#[test]
fn a_function_level_reset_reaches_the_model_before_it_is_answered() {
    let rig = Rig::new(PortOptions::default);
    let _model = rig.model();
    let mut driver = rig.driver(&memory(), true);
    write(&mut driver, 0x40, 1);
    let before = rig.resets.load(Ordering::SeqCst);
    // Device Control of the PCI Express capability, which follows power management at 0x40.
    driver.write(7, 0x48 + 8, &0x8000u16.to_le_bytes()).unwrap();
    assert_eq!(rig.resets.load(Ordering::SeqCst), before + 1);
    assert_eq!(read(&mut driver, 0x40), 0);
    driver.reset().unwrap();
    assert_eq!(rig.resets.load(Ordering::SeqCst), before + 2);
}

#[test]
fn no_bus_mastering_no_messages() {
    let rig = Rig::new(PortOptions::default);
    let _model = rig.model();
    let mut driver = rig.driver(&memory(), false);
    driver.write(7, 4, &2u16.to_le_bytes()).unwrap();
    write(&mut driver, 0, BASE + 0x100);
    assert_eq!(read(&mut driver, FROM_MEMORY), u32::MAX);
}

#[test]
fn a_second_model_and_another_model_are_refused() {
    let rig = Rig::new(PortOptions::default);
    let model = rig.model();
    let mut driver = rig.driver(&memory(), true);
    until(&mut driver, 0x40, 0);
    let refused = |mut model: Running| match model.result() {
        Err(ModelError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(rig.model()), "another model is attached");
    model.kill();
    until(&mut driver, 0x40, u32::MAX);
    let other = rig::description().bar(0, BarLayout::memory32(0x2000));
    let resets = Arc::clone(&rig.resets);
    let why = refused(Running::start(rig.models.clone(), move || Habits::of(&other, resets)));
    assert!(why.starts_with("bar 0 has 8192 bytes and had 4096"), "{why}");
    let _model = rig.model();
    until(&mut driver, 0x40, 0);
}

#[test]
fn a_model_that_takes_nothing_is_given_up_before_memory_runs_out() {
    let rig = Rig::new(|| PortOptions { backlog_bytes: 64 << 10, ..PortOptions::default() });
    let model = rig.model();
    let mut driver = rig.driver(&memory(), true);
    write(&mut driver, STALL, 200);
    for n in 0..5000u64 {
        write(&mut driver, 0x40, n);
    }
    assert_eq!(read(&mut driver, 0x40), u32::MAX);
    let mut model = model;
    assert!(matches!(model.result(), Err(ModelError::Gone)), "it was not told");
    let _model = rig.model();
    until(&mut driver, 0x40, 0);
}

#[test]
fn a_longer_deadline_is_waited_for() {
    let deadline = 50 * DEADLINE;
    let rig = Rig::new(move || PortOptions { deadline, ..PortOptions::default() });
    let _model = rig.model();
    let mut driver = rig.driver(&memory(), true);
    write(&mut driver, 0x40, 77);
    let begin = Instant::now();
    write(&mut driver, STALL, 30);
    assert_eq!(read(&mut driver, 0x40), 77);
    assert!(begin.elapsed() > 2 * DEADLINE, "{:?}", begin.elapsed());
}
