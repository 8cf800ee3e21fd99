//! `viaduct pcie fault`: makes a running port misbehave.

use anyhow::Result;
use port::fault::KINDS;

use super::{beside, control, spec};
use crate::cli;

/// Does what the words say.
pub fn run(options: &cli::PcieFault) -> Result<()> {
    let Some(socket) = &options.socket else {
        for info in KINDS {
            println!("{:20} {}", info.name, info.help);
        }
        return Ok(());
    };
    let path = beside(socket, ".control");
    let words: Vec<&str> = options.words.iter().map(String::as_str).collect();
    match &words[..] {
        [] | ["list"] => {
            let answer = control::ask(&path, "list")?;
            print!("{}", if answer.is_empty() { "no faults\n" } else { &answer });
        }
        ["clear"] => println!("{} cleared", control::ask(&path, "clear")?.trim()),
        ["clear", names @ ..] => {
            for name in names {
                println!("{} cleared", control::ask(&path, &format!("clear {name}"))?.trim());
            }
        }
        faults => {
            // All are understood before the first is done.
            faults.iter().try_for_each(|text| spec::parse(text).map(drop))?;
            for text in faults {
                control::ask(&path, &format!("add {text}"))?;
            }
        }
    }
    Ok(())
}
