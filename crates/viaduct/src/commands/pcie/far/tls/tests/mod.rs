use super::super::proof::{self, NotProved, Token};
use super::*;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use sys::Received;

/// Certificates of an authority and of machines, in files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let mut ca = rcgen::CertificateParams::new([]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        let key = rcgen::KeyPair::generate().unwrap();
        files.write("ca", ca.self_signed(&key).unwrap().pem());
        let ca = rcgen::Issuer::new(ca, key);
        let machine = |name: &str, change: &dyn Fn(&mut rcgen::CertificateParams)| {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            change(&mut params);
            let key = rcgen::KeyPair::generate().unwrap();
            let signed = params.signed_by(&key, &ca).unwrap();
            files.write(name, signed.pem() + &key.serialize_pem());
        };
        machine("good", &|_| ());
        machine("other", &|_| ());
        machine("expired", &|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        machine("early", &|params| params.not_before = rcgen::date_time_ymd(3000, 1, 1));
        files
    }

    fn write(&self, name: &str, text: String) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Options as words: cert, ca, pin, name or made, and a file or text.
    fn options(&self, words: &[(&str, &str)]) -> cli::FarTls {
        let mut options = none();
        for (what, value) in words {
            let path = self.path(value);
            match *what {
                "cert" => options.cert = Some(path),
                "made" => options.self_signed = Some(path),
                "ca" => options.ca = Some(path),
                "pin" => options.pins.push(fingerprint(&path)),
                _ => options.name = Some((*value).to_owned()),
            }
        }
        options
    }
}

fn none() -> cli::FarTls {
    cli::FarTls { cert: None, key: None, self_signed: None, ca: None, pins: vec![], name: None }
}

fn fingerprint(path: &Path) -> String {
    let options = cli::FarTls { cert: Some(path.to_owned()), ..none() };
    Identity::of(&options).unwrap().unwrap().fingerprint().to_string()
}

fn token() -> Token {
    Token::new(b"a token of both machines").unwrap()
}

type Met = Result<Ready, String>;

/// Both ends up to the end of the proofs.
fn meet(listens: &cli::FarTls, connects: &cli::FarTls) -> [Met; 2] {
    let (a, b) = Connection::pair().unwrap();
    let [listens, connects] =
        [Security::of_listener(listens), Security::of_caller(connects, "localhost:1")]
            .map(|security| security.unwrap());
    let prove = |security: Security, socket, prove: fn(&mut Ready, &Token) -> _| {
        let proved = security.over(socket).map_err(NotProved::from).and_then(|mut ready| {
            prove(&mut ready, &token())?;
            Ok(ready)
        });
        proved.map_err(|error: NotProved| error.to_string())
    };
    let caller = std::thread::spawn(move || prove(connects, b, proof::to_listener));
    let listener = prove(listens, a, proof::to_caller);
    [listener, caller.join().unwrap()]
}

#[test]
fn who_has_the_right_certificate_is_let_in() {
    let files = Files::new();
    for (listens, connects) in [
        (vec![("cert", "good")], vec![("ca", "ca")]),
        (vec![("cert", "good")], vec![("pin", "other"), ("pin", "good")]),
        (vec![("cert", "good"), ("ca", "ca")], vec![("ca", "ca"), ("cert", "other")]),
        (vec![("cert", "good"), ("pin", "other")], vec![("ca", "ca"), ("cert", "other")]),
        // Made by the first that needs it, and the same ever after.
        (vec![("made", "own")], vec![("name", "viaduct"), ("ca", "own")]),
        (vec![("made", "own")], vec![("pin", "own")]),
        // Whoever names this very certificate knows how old it is.
        (vec![("cert", "expired")], vec![("pin", "expired")]),
    ] {
        let options = files.options(&listens);
        Identity::of(&options).unwrap();
        let met = meet(&options, &files.options(&connects));
        let [Ok(a), Ok(b)] = met else { panic!("{listens:?} {connects:?}: {met:?}") };
        assert!(a.binding == b.binding && a.binding.len() == 32);
    }
}

#[test]
fn who_has_not_is_told_why() {
    let files = Files::new();
    std::fs::write(files.path("alone"), make_own()).unwrap();
    for (listens, connects, [at_listener, at_caller]) in [
        (vec![("cert", "good")], vec![("ca", "alone")], ["knows no authority", "nobody in our"]),
        (vec![("cert", "expired")], vec![("ca", "ca")], ["not valid now", "has expired"]),
        (vec![("cert", "early")], vec![("ca", "ca")], ["not valid now", "not valid yet"]),
        (
            vec![("cert", "good")],
            vec![("ca", "ca"), ("name", "elsewhere")],
            ["does not accept", "another name"],
        ),
        (vec![("cert", "good")], vec![("pin", "other")], ["does not accept", "not what our"]),
        (vec![("cert", "good"), ("ca", "ca")], vec![("ca", "ca")], ["no certificate", "wants a"]),
        (
            vec![("cert", "good"), ("pin", "good")],
            vec![("ca", "ca"), ("cert", "other")],
            ["not what our", "does not accept"],
        ),
        (
            vec![("cert", "good"), ("ca", "ca")],
            vec![("ca", "ca"), ("cert", "expired")],
            ["has expired", "not valid now"],
        ),
        // One of them has no TLS at all, and nothing is proved to it.
        (vec![("cert", "good")], vec![], ["no TLS: give it --tls-ca", "speaks TLS"]),
        (vec![], vec![("ca", "ca")], ["speaks TLS", "no TLS: give it --tls-cert"]),
    ] {
        let begin = Instant::now();
        let met = meet(&files.options(&listens), &files.options(&connects));
        let [Err(a), Err(b)] = met else { panic!("{listens:?} {connects:?}: {met:?}") };
        assert!(a.contains(at_listener), "{listens:?} {connects:?}: {a}");
        assert!(b.contains(at_caller), "{listens:?} {connects:?}: {b}");
        assert!(begin.elapsed() < 4 * LIMIT);
    }
}

fn make_own() -> String {
    rcgen::generate_simple_self_signed(["someone".to_owned()]).unwrap().cert.pem()
}

#[test]
fn a_mistake_in_the_options_is_named() {
    let files = Files::new();
    files.write("text", "no certificate".into());
    for (listens, words, expected) in [
        (true, vec![("ca", "ca")], "needs --tls-cert"),
        (true, vec![("cert", "text")], "no certificate in PEM"),
        (true, vec![("cert", "ca")], "no private key in PEM"),
        (true, vec![("cert", "nowhere")], "can't read"),
        (false, vec![("cert", "good")], "needs --tls-ca or --tls-pin"),
        (false, vec![("ca", "ca"), ("name", "a b")], "is no name"),
    ] {
        let options = files.options(&words);
        let made = if listens {
            Security::of_listener(&options)
        } else {
            Security::of_caller(&options, "[::1]:4711")
        };
        let error = format!("{:#}", made.map(drop).unwrap_err());
        assert!(error.contains(expected), "{words:?}: {error}");
    }
    for text in ["sha1:00", "sha256:00", &"0".repeat(64), &format!("sha256:{}é", "0".repeat(62))] {
        assert!(pins::Fingerprint::parse(text).is_err(), "{text}");
    }
    let pin = fingerprint(&files.path("good"));
    let colons: Vec<String> = pin.as_bytes()[7..].chunks(2).map(text).collect();
    let colons = format!("sha256:{}", colons.join(":"));
    assert_eq!(pins::Fingerprint::parse(&colons).unwrap().to_string(), pin);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).to_uppercase()
}

#[test]
fn another_token_is_refused_behind_the_right_certificate() {
    let files = Files::new();
    let [listens, connects] = [[("cert", "good")], [("ca", "ca")]].map(|w| files.options(&w));
    let (a, b) = Connection::pair().unwrap();
    let caller = std::thread::spawn(move || {
        let security = Security::of_caller(&connects, "localhost:1").unwrap();
        let other = Token::new(b"a token of somebody else").unwrap();
        proof::to_listener(&mut security.over(b).unwrap(), &other)
    });
    let mut ready = Security::of_listener(&listens).unwrap().over(a).unwrap();
    let found = proof::to_caller(&mut ready, &token());
    assert!(matches!(found, Err(NotProved::Token)), "{found:?}");
    drop(ready);
    assert!(matches!(caller.join().unwrap(), Err(NotProved::Closed)));
}

/// A proof is worth nothing in another session: somebody in the middle, who has TLS with both.
#[test]
fn a_proof_that_is_handed_on_opens_nothing() {
    let files = Files::new();
    let (middle_out, listener) = Connection::pair().unwrap();
    let (caller, middle_in) = Connection::pair().unwrap();
    let [listens, connects] = [[("cert", "good")], [("pin", "good")]].map(|w| files.options(&w));
    let (own, deceived) = (files.options(&[("cert", "other")]), files.options(&[("pin", "other")]));
    let listener = std::thread::spawn(move || {
        let mut ready = Security::of_listener(&listens).unwrap().over(listener).unwrap();
        proof::to_caller(&mut ready, &token())
    });
    let caller = std::thread::spawn(move || {
        let security = Security::of_caller(&deceived, "localhost:1").unwrap();
        proof::to_listener(&mut security.over(caller).unwrap(), &token())
    });
    let out = Security::of_caller(&connects, "localhost:1").unwrap().over(middle_out);
    let into = Security::of_listener(&own).unwrap().over(middle_in);
    let mut ends = [out.unwrap().carrier, into.unwrap().carrier];
    let mut bytes = [0; 256];
    let end = Instant::now() + 4 * LIMIT;
    while !(listener.is_finished() && caller.is_finished()) && Instant::now() < end {
        for (from, to) in [(0, 1), (1, 0)] {
            if let Ok(Received::Bytes(len)) = ends[from].receive(&mut bytes) {
                let _ = ends[to].send(&bytes[..len]);
            }
        }
        let fds = [ends[0].as_fd(), ends[1].as_fd()];
        sys::wait_for_any(&fds, Duration::from_millis(10)).unwrap();
    }
    assert!(matches!(listener.join().unwrap(), Err(NotProved::Token)));
    drop(ends);
    assert!(caller.join().unwrap().is_err());
}

#[test]
fn much_goes_through_in_order_and_little_waits() {
    let files = Files::new();
    let met = meet(&files.options(&[("cert", "good")]), &files.options(&[("ca", "ca")]));
    let [Ok(mut a), Ok(mut b)] = met else { panic!("{met:?}") };
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n >> 4) as u8 ^ n as u8).collect();
    let (mut sent, mut got) = (0, Vec::new());
    // Nobody takes anything: what waits has a limit.
    while let Some(len) = a.carrier.send(&bytes[sent..]).unwrap() {
        sent += len;
    }
    assert!(sent < 1 << 20 && a.carrier.has_output(), "{sent} bytes were taken");
    let mut chunk = vec![0; 50_000];
    while got.len() < bytes.len() {
        match b.carrier.receive(&mut chunk).unwrap() {
            Received::Bytes(len) => got.extend_from_slice(&chunk[..len]),
            Received::Nothing => {
                a.carrier.flush().unwrap();
                if sent < bytes.len() {
                    sent += a.carrier.send(&bytes[sent..]).unwrap().unwrap_or(0);
                }
            }
            Received::Closed => panic!("closed"),
        }
    }
    assert!(got == bytes && !a.carrier.has_output());
    assert_eq!(b.carrier.receive(&mut chunk).unwrap(), Received::Nothing);
    a.carrier.shutdown();
    assert_eq!(b.carrier.receive(&mut chunk).unwrap(), Received::Closed);
}

/// Noise instead of packets ends a session that is up, and one that is not yet.
#[test]
fn noise_ends_it() {
    let files = Files::new();
    let options = files.options(&[("cert", "good")]);
    for noise in [&b"\x16\x03\x01\xff\xff"[..], b"\x17\x03\x03\x00\x04abcd", &[0; 64]] {
        let security = Security::of_listener(&options).unwrap();
        let (a, b) = Connection::pair().unwrap();
        b.send_all(noise, &[], LIMIT).unwrap();
        drop(b);
        assert!(security.over(a).is_err());
    }
    let (a, b) = Connection::pair().unwrap();
    let raw = Connection::new(b.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let caller = files.options(&[("ca", "ca")]);
    let caller = std::thread::spawn(move || {
        Security::of_caller(&caller, "localhost:1").unwrap().over(b).unwrap()
    });
    let mut ready = Security::of_listener(&options).unwrap().over(a).unwrap();
    let _caller = caller.join().unwrap();
    raw.send_all(b"\x17\x03\x03\x00\x20 thirty-two bytes that nobody sealed", &[], LIMIT).unwrap();
    let error = ready.carrier.receive(&mut [0; 64]).unwrap_err().to_string();
    assert!(error.contains("no TLS with the other end"), "{error}");
}
