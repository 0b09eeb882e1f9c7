//! Every runtime there is. A test compares this list with the files beside it.

use super::{Runtime, claude, codex, gemini, opencode, pi};
use crate::base::settings::did_you_mean;

/// The first runs where nothing names another.
pub static ALL: [&Runtime; 5] = [&opencode::RUNTIME, &claude::RUNTIME, &codex::RUNTIME, &gemini::RUNTIME, &pi::RUNTIME];

pub fn find(id: &str) -> Option<&'static Runtime> {
    ALL.into_iter().find(|r| r.id == id)
}

/// What there is to say of a name that [`find`] does not know.
pub fn unknown(id: &str) -> String {
    let names: Vec<String> = ALL.iter().map(|r| format!("`{}`", r.id)).collect();
    format!("`{id}` is not a runtime{}; known: {}", did_you_mean(id, ALL.iter().map(|r| r.id)), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_registered() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/adapter/runtime");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|name| name != "mod" && name != "registry")
            .collect();
        files.sort();
        let mut ids: Vec<_> = ALL.iter().map(|r| r.id).collect();
        ids.sort_unstable();
        assert_eq!(files, ids);
    }
}
