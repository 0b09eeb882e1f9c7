//! `outrigger completions`, `outrigger man` and `outrigger version`: made from the command line's
//! own description.

use clap::CommandFactory;

use super::{Exit, fail, print};
use crate::cli::{Cli, Completions};

pub fn completions(args: &Completions) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "outrigger", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// The page of the program, and those of its commands behind it.
pub fn man() -> Exit {
    let mut text = Vec::new();
    let mut command = Cli::command();
    command.build();
    let pages = std::iter::once(command.clone()).chain(
        command
            .get_subcommands()
            .filter(|c| c.get_name() != "help")
            .cloned(),
    );
    for page in pages {
        if let Err(e) = clap_mangen::Man::new(page).render(&mut text) {
            return fail(Exit::Software, &format!("the page cannot be made: {e}"));
        }
    }
    print(&String::from_utf8_lossy(&text))
}

pub fn version() -> Exit {
    print(&format!("outrigger {}\n", env!("CARGO_PKG_VERSION")))
}
