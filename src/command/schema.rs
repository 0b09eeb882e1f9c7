//! `outrigger schema`: what other programs can rely on, for their tools.

use std::io::Write;

use super::{Exit, fail};
use crate::cli::{self, SchemaOf};
use crate::{adapter, event};

pub fn run(args: &cli::Schema) -> Exit {
    let document = match args.which {
        SchemaOf::Events => event::schema(),
        SchemaOf::Openapi => adapter::openapi(),
    };
    match writeln!(std::io::stdout(), "{document:#}") {
        Ok(()) => Exit::Ok,
        Err(e) => fail(Exit::Unavailable, &format!("cannot write: {e}")),
    }
}
