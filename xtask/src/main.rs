//! Project tasks. One file per task; a new task is a file, a variant of [`Task`] and a line in
//! `main`.
#![forbid(unsafe_code)]

mod bench;
mod cache;
mod check;
mod fuzz;
mod process;
mod root;
mod test;
mod tidy;

use clap::{Parser, Subcommand};

/// Project tasks of viaduct.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The one-minute gate: format, lints, unit and property tests, loom, tidy. Needs no network,
    /// root or QEMU.
    Check,
    /// The house rules that no compiler checks: sizes, words, unsafe, direction of dependencies.
    Tidy,
    /// Make the private Debian 13 root with the software of the end-to-end tests, unless there.
    Root(root::Options),
    /// Every fuzz target for a while (15 minutes each unless told), or those named.
    Fuzz(fuzz::Options),
    /// Everything: check, the private root, a release build, the end-to-end table.
    Test(test::Options),
    /// Speed and memory: ratios against peers in the same run, kept in `bench/results`.
    Bench(bench::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Check => check::run(),
        Task::Tidy => tidy::run(),
        Task::Root(options) => root::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Bench(options) => bench::run(&options),
    }
}
