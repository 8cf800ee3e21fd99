//! `viaduct probe`: what is really offered at a socket.

use std::path::Path;

use anyhow::{Context, Result, bail};
use driver::{Access, GuestMemory, PciDevice};
use transports::{Findings, TRANSPORTS};
use virtio::{DeviceType, Features, config};

use crate::address::{Address, Usage};
use crate::cli::Probe;
use crate::ends;

/// Memory shown to a PCI device, which is only asked for its registers.
const MEMORY_BYTES: usize = 1 << 20;

/// Most queues of a PCI device that are listed.
const MAX_QUEUES: u16 = 256;

/// Connects, asks, prints.
pub fn run(options: &Probe) -> Result<()> {
    let address = Address::parse(&options.end)?;
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == address.scheme);
    if let Some(probe) = transport.and_then(|transport| transport.probe) {
        let findings = probe(address.parameters());
        let findings = findings.map_err(|error| ends::explained("device", &address, error))?;
        print_daemon(&findings);
        return Ok(());
    }
    match (address.scheme.as_str(), address.values.get("path")) {
        ("vfio-user", Some(path)) => {
            let path = Path::new(&path.text);
            let socket = sys::connect_unix(path);
            let socket = socket.map_err(|why| ends::not_opened("device", &address, why))?;
            print_pci(socket).with_context(|| format!("asking {}", options.end))
        }
        _ => bail!(Usage(format!(
            "can't probe '{}': give vhost-user:PATH or vfio-user:PATH",
            options.end
        ))),
    }
}

fn print_daemon(findings: &Findings) {
    let device = findings.device;
    let name = device.map_or("unknown; add type= to see its config".into(), |d| d.to_string());
    println!("device             {name}");
    print_features(findings.features, device);
    println!("protocol features  {}", or_none(&findings.protocol_features.join(" ")));
    match findings.queues {
        Some(queues) => println!("queues             {queues}"),
        None => println!("queues             not said (no MQ)"),
    }
    println!("memory regions     {} at most", findings.memory_slots);
    match device {
        Some(device) if !findings.config.is_empty() => print_config(device, &findings.config),
        Some(_) => println!("config             none"),
        None => {}
    }
}

fn print_features(features: Features, device: Option<DeviceType>) {
    println!("features           {features}");
    println!("                   {}", or_none(&features.names(device).join(" ")));
}

fn print_config(device: DeviceType, bytes: &[u8]) {
    println!("config             {} bytes", bytes.len());
    let Some(fields) = config::show(device, bytes) else {
        println!("                   {bytes:02x?}");
        return;
    };
    for (field, value) in fields {
        println!("  {field:<32} {value}");
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// A virtio-pci device behind a vfio-user socket, as a driver finds it after a reset.
fn print_pci(socket: sys::Connection) -> Result<()> {
    let memory = GuestMemory::new(MEMORY_BYTES)?;
    let mut pci = PciDevice::new(socket, &memory, true)?;
    let device = pci.device_type();
    println!("device             {device} (virtio-pci)");
    pci.reset()?;
    print_features(pci.features()?, Some(device));
    let mut sizes = Vec::new();
    for index in 0..MAX_QUEUES {
        match pci.max_queue_size(index)? {
            0 => break,
            size => sizes.push(size.to_string()),
        }
    }
    println!("queues             {}, of size {}", sizes.len(), sizes.join(" "));
    let mut bytes = vec![0; config::len_of(device) as usize];
    pci.read_config(0, &mut bytes)?;
    print_config(device, &bytes);
    Ok(())
}
