//! A card whose model is on another machine: two programs with a wire between them that can be cut.

use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cards;
use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::runner::Case;

const LIMIT: Duration = Duration::from_secs(180);
/// What the listening end prints before its address.
const WAITING: &str = "waiting for a model at ";
/// What the listening end logs when a model was let in.
const HERE: &str = "is here";

/// What it prints before the fingerprint of its certificate.
const PIN: &str = "our certificate: --tls-pin ";

/// The rows.
pub fn cases(all: bool) -> Vec<Case> {
    let name = "guest 6.12, dma engine in c on another machine, the wire is cut";
    let plain = all.then(|| Case::new(name, LIMIT, |lab| cut(lab, false)));
    let name = "guest 6.12, dma engine in c on another machine, tls, the wire is cut";
    plain.into_iter().chain([Case::new(name, LIMIT, |lab| cut(lab, true))]).collect()
}

fn cut(lab: &Lab, tls: bool) -> Result<()> {
    let program = cards::compile(lab, "dma-c", include_str!("../../examples/dma/c/dma.c"))?;
    let token = lab.write("token", b"the token of both machines\n")?;
    let other = lab.write("other", b"some token of someone else\n")?;
    let socket = lab.path("card");
    let mut command = lab.viaduct()?;
    // A machine that is busy with other things is slow twice here.
    command.args(["pcie", "--deadline", "2000", "--listen", "127.0.0.1:0", "--socket"]);
    command.arg(&socket).arg("--token-file").arg(&token);
    let certificate = lab.path("tls.pem");
    if tls {
        command.arg("--tls-self-signed").arg(&certificate);
    }
    let mut viaduct = lab.start("viaduct", command)?;
    viaduct.prints(WAITING)?;
    let printed = viaduct.printed();
    let after = |text| printed.split_once(text).and_then(|(_, rest)| rest.lines().next());
    let address = after(WAITING).context("no address")?;
    let wire = Wire::to(address)?;
    let pin = after(PIN).map(|pin| ["--tls-pin", pin]);
    let pin = pin.as_ref().map_or(&[][..], |words| words);
    ensure!(tls != pin.is_empty(), "no fingerprint: {printed}");
    if tls {
        is_seen_by_openssl(lab, address, &certificate)?;
        let elsewhere = ["--tls-pin".into(), format!("sha256:{}", "0".repeat(64))];
        let elsewhere = elsewhere.each_ref().map(String::as_str);
        for (name, words, why) in [
            ("plain", &[][..], "the other end speaks TLS"),
            ("deceived", &elsewhere, "not what our --tls-pin says"),
        ] {
            let mut stranger = model_end(lab, name, &wire, words, &token, &program)?;
            stranger.prints(why)?;
            stranger.kill();
        }
    }
    let mut stranger = model_end(lab, "stranger", &wire, pin, &other, &program)?;
    stranger.prints("it has another token")?;
    stranger.kill();
    ensure!(model_ends(&viaduct) == 0, "a model with another token was let in");
    let mut far = model_end(lab, "far", &wire, pin, &token, &program)?;
    far.prints("has the model")?;
    viaduct.listens_at(&socket)?;
    let mut guest = cards::plug(cards::plan(lab)?, &socket).boot()?;
    guest.shell.run("dma sysfs 40")?;
    guest.shell.run(
        "(dma faults 1500 >/tmp/load.log 2>&1; echo $? >/tmp/load.status) </dev/null &
         sleep 0.3; test ! -e /tmp/load.status",
    )?;
    let before = model_ends(&viaduct);
    wire.cut();
    viaduct
        .until("find the model again", lab.deadline(), |viaduct| model_ends(viaduct) > before)?;
    let printed = guest.shell.run_within(
        LIMIT,
        "until test -e /tmp/load.status; do sleep 0.1; done; cat /tmp/load.log
         test $(cat /tmp/load.status) = 0 && dma faults 40",
    )?;
    let load = printed.lines().find(|line| line.starts_with("1500 copies")).unwrap_or_default();
    ensure!(load.contains("vanished") && !load.contains("vanished 0 "), "no cut: {printed}");
    guest.qemu.is_alive()?;
    far.is_alive()?;
    viaduct.is_alive()
}

fn model_end(
    lab: &Lab,
    name: &str,
    wire: &Wire,
    tls: &[&str],
    token: &Path,
    program: &Path,
) -> Result<Daemon> {
    let mut command = lab.viaduct()?;
    command.args(["pcie", "--connect", &wire.address]).args(tls);
    command.arg("--token-file").arg(token).arg("--model").arg(program);
    lab.start(name, command)
}

/// Another implementation of TLS finds the certificate good, and is not let in; with an older
/// version it gets nothing.
fn is_seen_by_openssl(lab: &Lab, address: &str, certificate: &Path) -> Result<()> {
    let client = |version: &str| -> Result<Command> {
        let mut command = lab.program("openssl")?;
        command.args(["s_client", "-connect", address, version, "-verify_return_error"]);
        command.args(["-verify_hostname", "viaduct", "-showcerts", "-CAfile"]).arg(certificate);
        Ok(command)
    };
    let printed = lab.run("openssl", client("-tls1_3")?)?;
    ensure!(printed.contains("Verification: OK"), "another certificate: {printed}");
    let pem = std::fs::read_to_string(certificate)?;
    let line = pem.lines().nth(1).context("no certificate")?;
    ensure!(printed.contains(line), "another certificate: {printed}");
    let mut old = lab.start("openssl-old", client("-tls1_2")?)?;
    ensure!(old.succeeds().is_err(), "TLS 1.2 is there: {}", old.printed());
    Ok(())
}

/// How many times the port let a model in.
fn model_ends(viaduct: &Daemon) -> usize {
    viaduct.printed().matches(HERE).count()
}

/// A wire between two machines.
struct Wire {
    address: String,
    ends: Arc<Mutex<Vec<TcpStream>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Leads to `target`.
    fn to(target: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let address = listener.local_addr()?.to_string();
        let (ends, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (kept, ended) = (Arc::clone(&ends), Arc::clone(&is_over));
        let target = target.to_owned();
        let thread = std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(far) = TcpStream::connect(&target) else { continue };
                if lead(&near, &far).and_then(|()| lead(&far, &near)).is_ok() {
                    lock(&kept).extend([near, far]);
                }
            }
        });
        Ok(Self { address, ends, is_over, thread: Some(thread) })
    }

    /// Ends every connection, whatever is on its way.
    fn cut(&self) {
        lock(&self.ends).drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(ends: &Mutex<Vec<TcpStream>>) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
    ends.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries what comes from one end to the other, and its end too.
fn lead(from: &TcpStream, to: &TcpStream) -> std::io::Result<()> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    from.set_nodelay(true)?;
    std::thread::spawn(move || {
        let _ = copy(&mut from, &mut to);
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
    Ok(())
}
