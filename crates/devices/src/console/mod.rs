//! Console (VIRTIO 1.4, 5.3) on the process's terminal, a pseudo-terminal or a socket, and further
//! ports on sockets.
//!
//! ```text
//!   receive queue  <-- Input  --  terminal, pseudo-terminal, socket
//!   transmit queue --- Output -->
//!   control queues --- Messages:  ports, their names, who has them open, the window's size
//! ```
//!
//! Output that nobody takes waits for a second and is dropped then: a guest never hangs on its
//! console. What it deliberately lacks: ports that come and go.

mod control;
mod line;
mod serve;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use sys::WindowSignal;
use virtio::config::{ConsoleConfig, read_bytes};
use virtio::{
    DeviceError, DeviceEvent, DeviceType, EventSink, Features, Identity, ParameterError,
    Parameters, VirtioDevice,
};

use crate::queue::{BuiltIn, Model, RINGS};
use crate::{DeviceKind, OpenError};
use control::{Messages, Port};
use line::Line;
use serve::{ConsoleQueue, Receive, Transmit};

pub(crate) static DEVICE: DeviceKind = DeviceKind {
    scheme: "console",
    help: "console on the terminal, a pseudo-terminal or a socket",
    settings: &[
        "stdio=on  this process's input and output (the default)",
        "pty=on  a fresh pseudo-terminal, whose path is printed",
        "link=PATH  with pty: a link to it",
        "socket=PATH  a socket for one client at a time",
        "null=on  no input, output is forgotten",
        "ports=NAME:NAME  further ports, /dev/virtio-ports/NAME in the guest; needs port-dir",
        "port-dir=DIR  the sockets of the further ports are DIR/NAME",
    ],
    open,
};

const SIZE: Features = Features::bit(0);
const MULTIPORT: Features = Features::bit(1);
const EMERG_WRITE: Features = Features::bit(2);

/// Offset of `emerg_wr` in the config.
const EMERGENCY_OFFSET: u32 = 8;

/// As many as User Mode Linux asks for, whatever it is offered.
const QUEUE_SIZE: u16 = 256;

/// Most ports: two queues each, and the control queues.
const MAX_PORTS: usize = 31;

/// Longest name of a port.
const MAX_NAME: usize = 64;

fn open(parameters: Parameters) -> Result<Box<dyn VirtioDevice>, OpenError> {
    Ok(Box::new(BuiltIn::new(Console::from_parameters(parameters)?)?))
}

/// The control side of a console.
struct Console {
    identity: Identity,
    ports: Vec<Arc<Port>>,
    lines: Vec<Line>,
    messages: Arc<Messages>,
    window: Option<WindowSignal>,
    multiport: bool,
}

/// What a queue is for.
#[derive(Clone, Copy)]
enum Role {
    Receive(usize),
    Transmit(usize),
    ControlReceive,
    ControlTransmit,
}

impl Role {
    /// VIRTIO 1.4, 5.3.2: the first port, the control queues, the other ports.
    fn of(index: u16) -> Self {
        let pair = usize::from(index / 2);
        match (pair, index % 2) {
            (1, 0) => Self::ControlReceive,
            (1, _) => Self::ControlTransmit,
            (_, 0) => Self::Receive(pair.saturating_sub(1)),
            _ => Self::Transmit(pair.saturating_sub(1)),
        }
    }
}

impl Console {
    fn from_parameters(mut parameters: Parameters) -> Result<Self, OpenError> {
        let stdio = parameters.flag("stdio", false)?;
        let pty = parameters.flag("pty", false)?;
        let link = parameters.path("link");
        let socket = parameters.path("socket");
        let null = parameters.flag("null", false)?;
        let names = parameters.text("ports").unwrap_or_default();
        let names: Vec<String> =
            names.split(':').filter(|n| !n.is_empty()).map(Into::into).collect();
        let folder = parameters.path("port-dir");
        parameters.finish()?;
        let ways = [stdio, pty, socket.is_some(), null].iter().filter(|way| **way).count();
        if ways > 1 || (link.is_some() && !pty) {
            let what = "a console is on one of stdio=, pty= (with link=), socket= and null=";
            return Err(ParameterError::Together(what).into());
        }
        let failed = |what: String| DeviceError::system(what);
        let first = if pty {
            let (mut line, path) =
                Line::pty().map_err(failed("making a pseudo-terminal".into()))?;
            println!("console on {}", path.display());
            if let Some(link) = link {
                let attempt = failed(format!("linking {} to it", link.display()));
                line.link(&path, link).map_err(attempt)?;
            }
            line
        } else if let Some(path) = &socket {
            Line::socket(path).map_err(failed(format!("listening at {}", path.display())))?
        } else if null {
            Line::nothing()
        } else {
            Line::stdio().map_err(failed("taking over the terminal".into()))?
        };
        let mut lines = vec![first];
        let folder = match folder {
            None if !names.is_empty() => return Err(ParameterError::Missing("port-dir").into()),
            folder => folder.unwrap_or_default(),
        };
        for name in &names {
            lines.push(port_line(&folder, name)?);
        }
        Ok(Self::new(lines, names)?)
    }

    fn new(lines: Vec<Line>, names: Vec<String>) -> Result<Self, DeviceError> {
        let failed = || DeviceError::system("setting up a console");
        if lines.len() > MAX_PORTS {
            return Err(DeviceError::Refused(format!("at most {} further ports", MAX_PORTS - 1)));
        }
        let names = std::iter::once(String::new()).chain(names);
        let ports = names.map(Port::new).collect::<Result<Vec<_>, _>>().map_err(failed())?;
        let messages = Arc::new(Messages::new(ports.clone()).map_err(failed())?);
        let mut features = RINGS | EMERG_WRITE;
        let window = match lines[0].size() {
            Some((columns, rows)) => {
                features = features | SIZE;
                messages.set_size(columns, rows);
                Some(WindowSignal::install().map_err(failed())?)
            }
            None => None,
        };
        let mut queues = 2;
        if ports.len() > 1 {
            features = features | MULTIPORT;
            queues = 2 + 2 * ports.len();
        }
        for (port, line) in lines.iter().enumerate() {
            messages.set_connected(port, line.is_open());
        }
        let identity = Identity {
            device: DeviceType::CONSOLE,
            features,
            queue_sizes: vec![QUEUE_SIZE; queues],
            config_len: ConsoleConfig::LEN as u32,
        };
        Ok(Self { identity, ports, lines, messages, window, multiport: false })
    }
}

/// The socket of a further port.
fn port_line(folder: &Path, name: &str) -> Result<Line, DeviceError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.len() > MAX_NAME || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(DeviceError::Refused(format!(
            "ports={name}: a name has letters, digits, dots, dashes, and {MAX_NAME} of them at most"
        )));
    }
    let path = folder.join(name);
    let attempt = DeviceError::system(format!("listening at {}", path.display()));
    Line::socket(&path).map_err(attempt)
}

impl Model for Console {
    type Queue = ConsoleQueue;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let (cols, rows) = self.lines[0].size().unwrap_or_default();
        let max_nr_ports = self.ports.len() as u32;
        let config = ConsoleConfig { cols, rows, max_nr_ports, emerg_wr: 0 };
        read_bytes(&config.encode(), offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        match (offset, bytes) {
            // The low byte of the number is a character. If there is no room for it, it is lost.
            (EMERGENCY_OFFSET, [character, ..]) => {
                let _ = self.lines[0].emergency.write(&[*character]);
                Ok(())
            }
            _ => Err(DeviceError::BadConfigWrite(offset)),
        }
    }

    fn accept(&mut self, features: Features) -> Result<(), DeviceError> {
        self.multiport = features.has(MULTIPORT);
        self.ports.iter().for_each(|port| port.set_open(!self.multiport));
        Ok(())
    }

    fn make_queue(&mut self, index: u16) -> Result<ConsoleQueue, DeviceError> {
        let gone = DeviceError::NoSuchQueue(index);
        Ok(match Role::of(index) {
            Role::Receive(port) => {
                let input = self.lines[port].input.take().ok_or(gone)?;
                ConsoleQueue::Receive(Receive::new(input, Arc::clone(&self.ports[port])))
            }
            Role::Transmit(port) => {
                let output = self.lines[port].output.take().ok_or(gone)?;
                ConsoleQueue::Transmit(Transmit::new(output))
            }
            Role::ControlReceive => ConsoleQueue::ControlReceive(Arc::clone(&self.messages)),
            Role::ControlTransmit => ConsoleQueue::ControlTransmit(Arc::clone(&self.messages)),
        })
    }

    fn retire_queue(&mut self, index: u16, queue: ConsoleQueue) {
        match (queue, Role::of(index)) {
            (ConsoleQueue::Receive(receive), Role::Receive(port)) => {
                self.lines[port].input = Some(receive.into_input());
            }
            (ConsoleQueue::Transmit(transmit), Role::Transmit(port)) => {
                self.lines[port].output = Some(transmit.into_output());
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.messages.reset();
        self.multiport = false;
        self.ports.iter().for_each(|port| port.set_open(true));
    }

    fn control_fds(&self) -> Vec<BorrowedFd<'_>> {
        let peerings = self.lines.iter().filter_map(|line| line.peering.as_ref());
        let mut fds: Vec<_> = peerings.flat_map(|peering| peering.control_fds()).collect();
        fds.extend(self.window.iter().map(AsFd::as_fd));
        fds
    }

    fn control_ready(&mut self, events: &EventSink) -> bool {
        let mut changed = false;
        for (port, line) in self.lines.iter_mut().enumerate() {
            if line.peering.as_mut().is_some_and(|peering| peering.ready()) {
                changed = true;
                self.messages.set_connected(port, line.is_open());
            }
        }
        if self.window.is_some_and(WindowSignal::drain)
            && let Some((columns, rows)) = self.lines[0].size()
        {
            self.messages.set_size(columns, rows);
            events.send(DeviceEvent::ConfigChanged);
        }
        changed
    }
}
