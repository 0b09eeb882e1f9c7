//! `outrigger runtimes`: what each runtime can do, and whether it is here.

use serde_json::{Value, json};

use super::{Exit, print};
use crate::adapter::process;
use crate::adapter::runtime::{Runtime, registry};
use crate::cli;

pub fn run(args: &cli::Runtimes) -> Exit {
    let all: Vec<Value> = registry::ALL.into_iter().map(described).collect();
    let text = if args.json {
        format!("{:#}\n", Value::from(all))
    } else {
        all.iter().map(shown).collect()
    };
    print(&text)
}

fn described(runtime: &Runtime) -> Value {
    let program = process::find(runtime.program, std::env::var_os("PATH").as_ref());
    json!({
        "id": runtime.id,
        "name": runtime.name,
        "tier": runtime.capabilities.tier(),
        "verified": runtime.verified,
        "verified_from": runtime.verified_from,
        "program": program.map(|p| p.display().to_string()),
        "install": runtime.install(),
        "default_model": runtime.default_model,
        "providers": runtime.providers,
        "capabilities": runtime.capabilities,
    })
}

fn shown(runtime: &Value) -> String {
    let text = |key: &str| runtime[key].as_str().unwrap_or_default();
    let able = |is: bool| {
        let all = runtime["capabilities"].as_object().into_iter().flatten();
        all.filter(|(_, v)| **v == Value::Bool(is))
            .map(|(name, _)| name.replace('_', " "))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found = runtime["program"].as_str().map_or_else(
        || format!("not installed ({})", text("install")),
        str::to_owned,
    );
    let without = Some(able(false))
        .filter(|s| !s.is_empty())
        .map_or_else(String::new, |s| format!("\n    without  {s}"));
    format!(
        "{:<10} {:<11} {} (verified with {})\n    program  {found}\n    can      {}{without}\n",
        text("id"),
        text("tier"),
        text("name"),
        text("verified"),
        able(true),
    )
}
