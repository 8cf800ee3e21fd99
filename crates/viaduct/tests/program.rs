//! The program as a person uses it: what it prints, how it ends, what it leaves behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

fn viaduct() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

fn output(words: &[&str]) -> Output {
    viaduct().args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program that serves, and is killed when the test is over.
struct Serving {
    child: Child,
    /// Kept open: who prints into a closed pipe ends.
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Serving {
    /// Starts it and waits until it says how to attach to it.
    fn start(words: &[&str]) -> (Self, String) {
        let mut child =
            viaduct().args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let hint = lines.next().expect("it says how to attach").unwrap();
        (Self { child, lines: Some(lines) }, hint)
    }

    /// Sends SIGTERM; returns the exit status and how long it took.
    fn stop(mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        (status.code(), start.elapsed())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder_with_image() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let image = image.display().to_string();
    (folder, image)
}

fn socket(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[test]
fn a_device_and_a_bridge_are_what_probe_says_and_end_within_a_second() {
    let (folder, image) = folder_with_image();
    let (disk, bridged) = (socket(&folder, "disk"), socket(&folder, "bridged"));
    let path = format!("path={image}");
    let (device, hint) =
        Serving::start(&["device", "blk", "--socket-path", &disk, &path, "queues=3"]);
    assert!(hint.contains("memory-backend-memfd"), "{hint}");

    let probed = text(&output(&["probe", &format!("vhost-user:{disk}")]).stdout);
    assert!(probed.contains("device             blk"), "{probed}");
    assert!(probed.contains("queues             3"), "{probed}");
    assert!(probed.contains("RING_PACKED"), "{probed}");
    assert!(probed.lines().any(|l| l.trim().starts_with("capacity") && l.ends_with("8192")));

    let ends = [format!("vfio-user:{bridged}"), format!("vhost-user:{disk}")];
    let (bridge, hint) = Serving::start(&["bridge", &ends[0], &ends[1], "mode=copy"]);
    assert!(hint.contains("-m "), "{hint}");
    let probed = text(&output(&["probe", &ends[0]]).stdout);
    assert!(probed.contains("blk (virtio-pci)"), "{probed}");
    assert!(probed.lines().any(|l| l.trim().starts_with("capacity") && l.ends_with("8192")));

    for (serving, socket) in [(bridge, bridged), (device, disk)] {
        let (status, time) = serving.stop();
        assert_eq!(status, Some(0));
        assert!(time < Duration::from_secs(1), "took {time:?}");
        assert!(!Path::new(&socket).exists(), "the socket is removed");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the image is left");
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = socket(&folder, "socket");
    drop(UnixListener::bind(&path).unwrap());
    let (serving, _) = Serving::start(&["device", "rng", "--socket-path", &path]);
    let second = output(&["device", "rng", "--socket-path", &path]);
    assert_eq!(second.status.code(), Some(3));
    assert!(text(&second.stderr).contains(&path), "{}", text(&second.stderr));
    drop(serving);
    fs::write(socket(&folder, "file"), "precious").unwrap();
    let third = output(&["device", "rng", "--socket-path", &socket(&folder, "file")]);
    assert_eq!(third.status.code(), Some(3));
    assert_eq!(fs::read_to_string(socket(&folder, "file")).unwrap(), "precious");
}

#[test]
fn many_bridges_run_from_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("bridges.toml");
    let mut toml = String::from("workers = 2\n");
    for index in 0..8 {
        let path = socket(&folder, &format!("s{index}"));
        toml += &format!(
            "[bridge.b{index}]\ndriver = \"vhost-user:{path}\"\ndevice = \"blk:ram=1M\"\n\
             mode = \"copy\"\nqueue-size = 64\n"
        );
    }
    fs::write(&config, toml).unwrap();
    let mut command = viaduct();
    command.args(["run", config.to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let running = Serving { child, lines: None };
    let deadline = Instant::now() + Duration::from_secs(20);
    for index in 0..8 {
        let path = socket(&folder, &format!("s{index}"));
        while !Path::new(&path).exists() {
            assert!(Instant::now() < deadline, "{path} does not appear");
            std::thread::yield_now();
        }
        let probed = text(&output(&["probe", &format!("vhost-user:{path},type=blk")]).stdout);
        assert!(probed.lines().any(|l| l.trim().starts_with("capacity") && l.ends_with("2048")));
    }
    // Where nothing happens there are no threads but the supervisor's and the workers'; when
    // something does, there is one again.
    let tasks = format!("/proc/{}/task", running.child.id());
    let rest = || {
        while fs::read_dir(&tasks).unwrap().count() > 3 {
            assert!(Instant::now() < deadline, "idle bridges keep their threads");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    for index in [3, 5] {
        rest();
        let path = socket(&folder, &format!("s{index}"));
        let probed = text(&output(&["probe", &format!("vhost-user:{path},type=blk")]).stdout);
        assert!(probed.lines().any(|l| l.trim().starts_with("capacity") && l.ends_with("2048")));
    }
    rest();
    let (status, time) = running.stop();
    assert_eq!(status, Some(0));
    assert!(time < Duration::from_secs(1), "took {time:?}");
}

#[test]
fn mistakes_are_answered_with_what_would_be_right() {
    let cases: [(&[&str], i32, &str); 21] = [
        (&["bridge", "vfio-user:/x"], 2, "Usage"),
        (&["bridge", "nonsense", "rng:"], 2, "SCHEME:PATH"),
        (&["bridge", "rng:", "rng:"], 2, "vfio-user:"),
        (&["bridge", "vfio-usr:/tmp/x", "rng:"], 2, "did you mean vfio-user:?"),
        (&["bridge", "vfio-user:/tmp/x", "blk:rom=1M"], 2, "in blk:rom=1M: unknown setting rom="),
        (&["device", "blok", "--socket-path=/tmp/x"], 2, "did you mean blk?"),
        (&["device", "blk", "null=1M"], 2, "--socket-path"),
        (&["probe", "vhost-user:/nowhere,timeout=20"], 3, "no vhost-user daemon at /nowhere"),
        (&["bridge", "vfio-user:/nowhere/at/all", "rng:"], 3, "/nowhere/at/all"),
        (&["bridge", "vfio-user:/tmp/x", "blk:path=/nowhere/disk"], 3, "/nowhere/disk"),
        (&["bridge", "vfio-user:/tmp/x", "rng:", "mode=quick"], 2, "translate"),
        (&["pcie", "--connect", "192.0.2.1:9", "--model", "x"], 2, "--token-file"),
        (&["pcie", "--connect", "127.0.0.1:9"], 2, "--model-socket"),
        (&["run", "/nowhere.toml"], 1, "/nowhere.toml"),
        (&["bridge", "vfio-user:/tmp/x", "blk:"], 2, "one of path=FILE, ram=SIZE and null=SIZE"),
        (&["bridge", "vfio-user:/tmp/x", "net:queue-size=20"], 2, "expected a power of two"),
        (&["bridge", "vfio-user:/tmp/x", "net:echo=on,null=on"], 2, "stands on one of"),
        (&["bridge", "vhost-user:/tmp/x,fd=3", "rng:"], 2, "not several"),
        (&["bridge", "vfio-user:/tmp/x,fd=3", "rng:"], 2, "not both"),
        (
            &["bridge", "vfio-user:/tmp/x", "rng:", "mode=pass", "requests-per-second=1"],
            2,
            "mode=pass is not possible",
        ),
        (
            &["bridge", "vfio-user:/tmp/x", "rng:", "mode=remote", "driver-ring=packed"],
            2,
            "mode=remote is not possible",
        ),
    ];
    for (words, status, needle) in cases {
        let output = output(words);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {error}");
        assert!(error.contains(needle), "{words:?}: {error}");
        assert!(!error.contains("panicked"), "{words:?}: {error}");
    }
}

#[test]
fn a_signal_prints_counters_and_another_one_grows_a_disk() {
    let (folder, image) = folder_with_image();
    let path = socket(&folder, "socket");
    let (mut serving, _) = Serving::start(&[
        "bridge",
        &format!("vhost-user:{path}"),
        &format!("blk:path={image}"),
        "mode=copy",
    ]);
    kill_process(Pid::from_child(&serving.child), Signal::USR1).unwrap();
    let lines = serving.lines.as_mut().unwrap();
    assert!(lines.any(|line| line.unwrap().contains("no requests yet")));
    let capacity = || {
        let probed = text(&output(&["probe", &format!("vhost-user:{path},type=blk")]).stdout);
        let line = probed.lines().find(|line| line.trim().starts_with("capacity"));
        line.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok()).unwrap()
    };
    let before = capacity();
    fs::File::options().write(true).open(&image).unwrap().set_len(before * 1024).unwrap();
    assert_eq!(capacity(), before, "nobody has looked");
    kill_process(Pid::from_child(&serving.child), Signal::USR2).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while capacity() != before * 2 {
        assert!(Instant::now() < deadline, "the disk does not grow");
    }
    assert_eq!(serving.stop().0, Some(0));
}

#[test]
fn what_tools_ask_for_is_printed() {
    let capabilities = text(&output(&["device", "blk", "--print-capabilities"]).stdout);
    assert!(capabilities.contains("\"type\": \"block\""), "{capabilities}");
    assert!(capabilities.contains("\"read-only\""), "{capabilities}");
    let folder = tempfile::tempdir().unwrap();
    let pages = socket(&folder, "man");
    assert!(output(&["man", &pages]).status.success());
    let page = fs::read_to_string(Path::new(&pages).join("viaduct-bridge.1")).unwrap();
    assert!(page.contains("mode=auto"), "the page has the settings");
    let page = fs::read_to_string(Path::new(&pages).join("viaduct-pcie-fault.1")).unwrap();
    assert!(page.contains("NAME,key=value"), "the page has the grammar");
    let script = text(&output(&["completions", "bash"]).stdout);
    assert!(script.contains("viaduct"), "{script}");
    for command in ["bridge", "device", "run", "probe", "demo"] {
        let help = output(&[command, "--help"]);
        assert!(help.status.success(), "{command} --help");
    }
}

#[test]
fn the_demo_runs_and_says_what_to_do_next() {
    let demo = output(&["demo", "--mib", "2"]);
    let (shown, errors) = (text(&demo.stdout), text(&demo.stderr));
    assert!(demo.status.success(), "{shown}{errors}");
    for row in
        ["blk  copy", "blk  translate", "blk  pass", "net  copy", "net  translate", "net  pass"]
    {
        assert_eq!(shown.matches(row).count(), 2, "{row} in\n{shown}");
    }
    assert!(shown.contains("qemu-system-x86_64"), "{shown}");
}

#[test]
fn who_is_out_of_descriptors_is_told_which_limit_to_raise() {
    let folder = TempDir::new().unwrap();
    let mut file = String::new();
    for number in 0..20 {
        let socket = folder.path().join(number.to_string());
        let socket = socket.display();
        file += &format!("[bridge.b{number}]\ndriver = \"vhost-user:{socket}\"\n");
        file += "device = \"blk:null=1M\"\n";
    }
    let path = folder.path().join("many.toml");
    fs::write(&path, file).unwrap();
    let program = env!("CARGO_BIN_EXE_viaduct");
    let script = format!("ulimit -n 60; exec {program} run {}", path.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let errors = text(&output.stderr);
    assert!(!output.status.success() && errors.contains("ulimit -Hn"), "{errors}");
    // With the limit the program raises to, not the one it was started with.
    let script = format!("ulimit -Sn 60; exec timeout 1 {program} run {}", path.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(text(&output.stdout).contains("b19:"), "{}", text(&output.stderr));
}

/// As systemd starts a service: with a socket it has made as descriptor 3, and one to be told at.
#[test]
fn a_service_manager_hands_over_its_socket_and_hears_of_start_and_end() {
    for (scheme, probed) in [("vfio-user", ""), ("vhost-user", ",type=rng")] {
        let folder = TempDir::new().unwrap();
        let (path, told) = (socket(&folder, "activated"), socket(&folder, "notify"));
        let listener = UnixListener::bind(&path).unwrap();
        let manager = UnixDatagram::bind(&told).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let hears = || {
            let mut word = [0; 64];
            let len = manager.recv(&mut word).unwrap();
            text(&word[..len]).trim().to_owned()
        };
        // Only the shell can give it that number.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" 3<&0 0</dev/null", "sh", env!("CARGO_BIN_EXE_viaduct")]);
        shell.args(["bridge", &format!("{scheme}:fd=3"), "rng:"]).env("NOTIFY_SOCKET", &told);
        shell.stdin(OwnedFd::from(listener)).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = shell.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut service = Serving { child, lines: Some(lines) };
        assert_eq!(hears(), "READY=1");
        let hint = service.lines.as_mut().unwrap().find(|line| {
            let line = line.as_ref().unwrap();
            line.contains("socket,id=viaduct") || line.contains("vfio-user-pci")
        });
        let hint = hint.unwrap().unwrap();
        assert!(hint.contains(&path), "QEMU has to be told the path and not a number: {hint}");
        let probe = output(&["probe", &format!("{scheme}:{path}{probed}")]);
        assert!(probe.status.success(), "{}", text(&probe.stderr));
        let (status, time) = service.stop();
        assert_eq!(status, Some(0));
        assert!(time < Duration::from_secs(1), "took {time:?}");
        assert_eq!(hears(), "STOPPING=1");
        assert!(Path::new(&path).exists(), "the socket is the manager's");
    }
}
