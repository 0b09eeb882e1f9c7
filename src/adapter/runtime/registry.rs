//! Every runtime there is. A test compares this list with the files beside it.

use super::{Runtime, claude, codex, gemini, opencode, pi};
use crate::base::settings::did_you_mean;

/// The first runs where nothing names another.
pub static ALL: [&Runtime; 5] = [
    &opencode::RUNTIME,
    &claude::RUNTIME,
    &codex::RUNTIME,
    &gemini::RUNTIME,
    &pi::RUNTIME,
];

pub fn find(id: &str) -> Option<&'static Runtime> {
    ALL.into_iter().find(|r| r.id == id)
}

/// The message for a name that [`find`] does not know.
pub fn unknown(id: &str) -> String {
    let names: Vec<String> = ALL.iter().map(|r| format!("`{}`", r.id)).collect();
    format!(
        "`{id}` is not a runtime{}; known: {}",
        did_you_mean(id, ALL.iter().map(|r| r.id)),
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_documentation_install_the_version_that_was_verified() {
        let pinned = include_str!("../../../tests/clients/package.json");
        let (table, builders) = (
            include_str!("../../../docs/runtimes.md"),
            include_str!("../../../docs/image-builders.md"),
        );
        for runtime in ALL {
            let (package, version) = (runtime.package, runtime.verified);
            assert!(
                pinned.contains(&format!("\"{package}\": \"{version}\"")),
                "tests/clients/package.json: {package} {version}"
            );
            assert!(
                builders.contains(&format!("{package}@{version}")),
                "docs/image-builders.md: {package}@{version}"
            );
            assert!(
                table.contains(&format!("| {} ", runtime.verified_range())),
                "docs/runtimes.md: {}",
                runtime.verified_range()
            );
            assert!(
                runtime.is_verified(version)
                    && runtime.is_verified(runtime.verified_from)
                    && runtime.accept_version(version).is_ok()
            );
        }
        let pi = find("pi").unwrap();
        assert!(
            pi.is_verified("0.80.10")
                && !pi.is_verified("0.87.2")
                && !pi.is_verified("0.9")
                && !pi.is_verified("rubbish")
        );
        assert!(pi.accept_version("1.5.2").is_ok());
        assert!(
            pi.accept_version("2.0.0")
                .unwrap_err()
                .contains(&format!("@earendil-works/pi-coding-agent@{}", pi.verified))
        );
    }
}
