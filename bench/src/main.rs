//! Benchmarks: ratios against a peer in the same run.
//!
//! How it measures, and how to read the tables: `docs/benchmarks.md`.

#![forbid(unsafe_code)]

mod contest;
mod disk;
mod groups;
mod halts;
mod lab;
mod memory;
mod placement;
mod plot;
mod programs;
mod raw;
mod report;
mod testpmd;
mod threads;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use groups::GROUPS;
use lab::Lab;
use report::Report;

#[global_allocator]
static ALLOCATOR: sys::CountingAllocator = sys::CountingAllocator;

/// Measures viaduct against its peers and writes tables and plots.
#[derive(Parser)]
struct Arguments {
    /// Only the groups whose name contains one of these words.
    words: Vec<String>,
    /// Say which groups there are.
    #[arg(long)]
    list: bool,
    /// Short windows and few of them: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Where the results go.
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        for group in GROUPS {
            println!("{:10} {}", group.name, group.about);
        }
        return Ok(());
    }
    // Many drivers at once have many descriptors.
    sys::raise_file_limit();
    let lab = Lab::new(arguments.results, arguments.quick)?;
    let mut failed = Vec::new();
    for group in GROUPS {
        let words = &arguments.words;
        if !words.is_empty() && !words.iter().any(|word| group.name.contains(word)) {
            continue;
        }
        println!("\n# {}", group.name);
        let mut report = Report::new(group.name, group.about);
        // A peer that is missing on this machine must not keep the others from being measured.
        match (group.run)(&lab, &mut report) {
            Ok(()) => report.finish(&lab)?,
            Err(error) => {
                eprintln!("{}: {error:#}", group.name);
                failed.push(group.name);
            }
        }
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}
