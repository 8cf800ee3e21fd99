//! Options of a model on another machine.

use std::path::PathBuf;

use clap::Args;

/// A model on another machine.
#[derive(Args, Debug)]
pub struct Far {
    /// Wait here for the model of another machine, which 'viaduct pcie --connect' runs there
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["connect", "model"])]
    pub listen: Option<String>,
    /// Run the model for the port of another machine, which waits there with --listen
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["socket", "faults", "record"])]
    pub connect: Option<String>,
    /// Both machines prove to each other that they know what is in this file; by default what
    /// VIADUCT_TOKEN says
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Let anybody in who can reach the address
    #[arg(long, conflicts_with = "token_file")]
    pub no_token: bool,
    #[command(flatten)]
    pub tls: FarTls,
}

/// TLS between the two machines.
#[derive(Args, Debug)]
pub struct FarTls {
    /// TLS, with the certificate of this machine in this file (PEM, then those who signed it);
    /// needed with --listen, for the other machine to ask for with --connect
    #[arg(long = "tls-cert", value_name = "FILE", conflicts_with = "self_signed")]
    pub cert: Option<PathBuf>,
    /// The key of that certificate; by default in the same file
    #[arg(long = "tls-key", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// TLS, with a certificate and its key in this file, which is made where there is none
    #[arg(long = "tls-self-signed", value_name = "FILE")]
    pub self_signed: Option<PathBuf>,
    /// The other machine has a certificate that one of those in this file signed
    #[arg(long = "tls-ca", value_name = "FILE", conflicts_with = "pins")]
    pub ca: Option<PathBuf>,
    /// The other machine has this very certificate, as it prints it; may be given several times
    #[arg(long = "tls-pin", value_name = "sha256:HEX")]
    pub pins: Vec<String>,
    /// The name in the listening machine's certificate; by default the host it is called by
    #[arg(long = "tls-name", value_name = "NAME", requires = "connect")]
    pub name: Option<String>,
}
