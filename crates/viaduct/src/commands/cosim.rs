//! `viaduct cosim`: a PCIe device in a virtual machine, whose model is RTL in a simulator.

use std::path::{Path, PathBuf};

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cosim::{Clock, Job, Program, Simulator};
use sys::{Epoll, FileWatch, Interest};

use super::keeper::Keeper;
use crate::address::Usage;
use crate::cli;

/// A pause after which an editor has written what it wanted to write.
const SETTLE: Duration = Duration::from_millis(30);

/// Builds the simulation and serves it until stopped.
pub fn run(options: &cli::Cosim) -> Result<()> {
    let names = || cosim::SIMULATORS.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
    let simulator = cosim::simulator(&options.sim)
        .ok_or_else(|| Usage(format!("no simulator {}: there are {}", options.sim, names())))?;
    let job = job(options)?;
    std::fs::create_dir_all(&job.folder)
        .with_context(|| format!("can't make the folder {}", job.folder.display()))?;
    let program = simulator.build(&job)?;
    if options.build_only {
        println!("{}", program.command_line());
        return Ok(());
    }
    let socket = options.socket.as_deref().context("--socket is missing")?;
    let watch = |keeper: Option<&Keeper>| match keeper.filter(|_| options.watch) {
        Some(keeper) => watch(simulator, job, &program, keeper.replacer()),
        None => Ok(()),
    };
    super::pcie::serve(socket, Some(&program.command_line()), &options.service, watch)
}

/// Builds anew whenever a source changes, in a thread that lasts as long as the program.
fn watch(
    simulator: &'static dyn Simulator,
    job: Job,
    program: &Program,
    mut replace: Box<dyn FnMut() + Send>,
) -> Result<()> {
    let mut watch = FileWatch::new().context("can't watch the sources")?;
    let add = move |watch: &mut FileWatch, program: &Program| {
        program.made_from.iter().try_for_each(|path| {
            watch.add(path).with_context(|| format!("can't watch {}", path.display()))
        })
    };
    add(&mut watch, program)?;
    let epoll = Epoll::new()?;
    epoll.add(&watch, 0, Interest::Read)?;
    let mut rebuild = move || -> Result<()> {
        let mut ready = Vec::new();
        loop {
            epoll.wait(&mut ready, None)?;
            if !watch.drain() {
                continue;
            }
            // An editor may be about to write the next file.
            while !epoll_is_quiet(&epoll, &mut watch)? {}
            let begin = Instant::now();
            match simulator.build(&job) {
                Ok(program) => {
                    let took = begin.elapsed().as_secs_f64();
                    tracing::info!("a source has changed: built anew in {took:.1} s");
                    add(&mut watch, &program)?;
                    replace();
                }
                Err(error) => tracing::error!("the old simulation goes on: {error}"),
            }
        }
    };
    let begin = move || {
        if let Err(error) = rebuild() {
            tracing::error!("the sources are not watched any more: {error:#}");
        }
    };
    std::thread::Builder::new()
        .name("watch".into())
        .spawn(begin)
        .context("can't start a thread")?;
    Ok(())
}

/// Whether nothing more is written for a moment.
fn epoll_is_quiet(epoll: &Epoll, watch: &mut FileWatch) -> Result<bool> {
    let mut ready = Vec::new();
    epoll.wait(&mut ready, Some(SETTLE))?;
    Ok(ready.is_empty() || !watch.drain())
}

fn job(options: &cli::Cosim) -> Result<Job> {
    let whole = |path: &PathBuf| {
        std::path::absolute(path).with_context(|| format!("can't use {}", path.display()))
    };
    let sources: Vec<PathBuf> = options.sources.iter().map(whole).collect::<Result<_>>()?;
    let folder = match &options.build {
        Some(folder) => whole(folder)?,
        None => usual_folder(options, &sources),
    };
    Ok(Job {
        top: options.top.clone(),
        sources,
        includes: options.includes.iter().map(whole).collect::<Result<_>>()?,
        defines: options.defines.clone(),
        parameters: options.parameters.clone(),
        options: options.options.clone(),
        settings: options.settings.clone(),
        clock: clock(&options.clock)?,
        wave: options.wave.as_ref().map(whole).transpose()?,
        folder,
    })
}

/// A folder of the cache for this simulator, this top and these sources.
fn usual_folder(options: &cli::Cosim, sources: &[PathBuf]) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let socket = options.socket.as_deref().map(Path::to_path_buf);
    // Two cards of one design may run at the same time, with other parameters.
    (sources, &options.parameters, &options.defines, &options.wave, socket).hash(&mut hasher);
    let name = format!("{}-{}-{:016x}", options.sim, options.top, hasher.finish());
    cosim::cache_folder().join("cosim").join(name)
}

fn clock(text: &str) -> Result<Clock> {
    let wrong = || Usage(format!("--clock {text}: free, paced:FREQUENCY or locked:CYCLES"));
    let number = |text: &str| {
        let (digits, unit) = match text.strip_suffix(['k', 'M']) {
            Some(digits) if text.ends_with('k') => (digits, 1_000),
            Some(digits) => (digits, 1_000_000),
            None => (text, 1),
        };
        digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0)
    };
    match text.split_once(':') {
        None if text == "free" => Ok(Clock::Free),
        Some(("paced", rest)) => Ok(Clock::Paced(number(rest).ok_or_else(wrong)?)),
        Some(("locked", rest)) => Ok(Clock::Locked(number(rest).ok_or_else(wrong)?)),
        _ => Err(wrong().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_read() {
        assert_eq!(clock("free").unwrap(), Clock::Free);
        assert_eq!(clock("paced:10M").unwrap(), Clock::Paced(10_000_000));
        assert_eq!(clock("locked:100").unwrap(), Clock::Locked(100));
        for wrong in ["paced", "paced:0", "locked:x", "fast", "paced:99999999999999M"] {
            assert!(clock(wrong).is_err(), "{wrong}");
        }
    }
}
