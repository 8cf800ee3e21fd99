//! A DMA engine with the registers of `examples/dma/README.md`.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use mem::DriverAddress;
use pcie::config::{ConfigSpace, Msix};
use pcie::{BarAddress, BarLayout, Built, Completion, Description, Dma, DmaError};
use pcie::{Function, FunctionLayout, HostPort, ResetKind};

const ID: u32 = u32::from_le_bytes(*b"VDMA");
const SOURCE: usize = 0x08;
const DESTINATION: usize = 0x10;
const LENGTH: usize = 0x18;
const COMMAND: usize = 0x1c;
const STATUS: usize = 0x20;
const PENDING: usize = 0x24;
const COUNT: usize = 0x28;
const REGISTERS: usize = 0x40;

const BUSY: u32 = 1 << 0;
const DONE: u32 = 1 << 1;
const FAILED: u32 = 1 << 2;

/// Names of the two halves of a copy.
const READ: u64 = 0;
const WRITE: u64 = 1;

struct Engine {
    built: Built,
    host: Option<(HostPort, Dma)>,
    registers: [u8; REGISTERS],
}

impl Engine {
    fn new(built: Built) -> Self {
        let mut registers = [0; REGISTERS];
        registers[..4].copy_from_slice(&ID.to_le_bytes());
        Self { built, host: None, registers }
    }

    fn get(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|n| self.registers[at + n]))
    }

    fn set(&mut self, at: usize, value: u32) {
        self.registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn start(&mut self) {
        self.set(STATUS, BUSY);
        let (source, len) = (DriverAddress(self.get(SOURCE)), self.get(LENGTH) as u32);
        if let Some((_, dma)) = &mut self.host {
            dma.read(READ, source, len as usize);
        }
        self.advance();
    }

    /// Looks at what has become of the transfers; in mapped memory they are done at once.
    fn advance(&mut self) {
        let Some((_, dma)) = &mut self.host else { return };
        let mut ends = Vec::new();
        dma.poll(|name, result| ends.push((name, result.map(<[u8]>::to_vec))));
        for (name, result) in ends {
            match (name, result) {
                (READ, Ok(bytes)) => self.write_back(&bytes),
                (_, result) => self.finish(result.map(drop)),
            }
        }
    }

    fn write_back(&mut self, bytes: &[u8]) {
        let destination = DriverAddress(self.get(DESTINATION));
        if let Some((_, dma)) = &mut self.host {
            dma.write(WRITE, destination, bytes);
        }
        self.advance();
    }

    fn finish(&mut self, result: Result<(), DmaError>) {
        self.set(STATUS, if result.is_ok() { DONE } else { DONE | FAILED });
        self.set(COUNT, (self.get(COUNT) as u32).wrapping_add(1));
        self.set(PENDING, 1);
        if let Some((host, _)) = &self.host {
            host.interrupts.signal_any(0);
        }
    }
}

impl Function for Engine {
    fn layout(&self) -> &FunctionLayout {
        &self.built.layout
    }

    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.built.config
    }

    fn connect(&mut self, host: HostPort) {
        self.host = Dma::new(&host).ok().map(|dma| (host, dma));
    }

    fn read(&mut self, at: BarAddress, answer: Completion) {
        answer.answer(self.registers.get(at.offset as usize..).unwrap_or_default());
    }

    fn write(&mut self, at: BarAddress, bytes: &[u8]) {
        let place = at.offset as usize;
        match place {
            COMMAND if bytes[0] == 1 => self.start(),
            PENDING => {
                self.set(PENDING, 0);
                if let Some((host, _)) = &self.host {
                    host.interrupts.set_intx(false);
                }
            }
            SOURCE..COMMAND | 0x30..REGISTERS if place + bytes.len() <= REGISTERS => {
                self.registers[place..place + bytes.len()].copy_from_slice(bytes);
            }
            _ => {}
        }
    }

    fn reset(&mut self, kind: ResetKind) {
        self.registers[4..].fill(0);
        if let Some((host, dma)) = &mut self.host {
            dma.forget();
            host.interrupts.set_intx(false);
        }
        if kind == ResetKind::Machine || self.built.config.power_state() == 0 {
            self.built.config.reset();
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.host.as_ref().map(|(_, dma)| dma.as_fd())
    }

    fn events_ready(&mut self) {
        self.advance();
    }
}

fn main() -> ExitCode {
    let description = Description::new(0x1234, 0x0da7)
        .bar(0, BarLayout::memory32(0x1000))
        .intx()
        .msi(1)
        .msix(Msix { vectors: 1, bar: 0, table: 0x800, pending: 0xc00 });
    port::main("dma engine", || Ok(Box::new(Engine::new(description.build()?))))
}
