//! `outrigger schema`: what other programs can rely on, for their tools.

use super::{Exit, print};
use crate::cli::{self, SchemaOf};
use crate::{adapter, event};

pub fn run(args: &cli::Schema) -> Exit {
    let document = match args.which {
        SchemaOf::Events => event::schema(),
        SchemaOf::Openapi => adapter::openapi(),
    };
    print(&format!("{document:#}\n"))
}
