//! What can be told of a place on disk before anything is written there, and of a disk that
//! refuses.

use std::io;
use std::path::Path;

/// Whether the user may make a file or a directory at `path`, together with the directories above
/// it that are missing.
///
/// # Errors
/// What is in the way: the nearest thing above `path` that exists.
pub fn can_be_made(path: &Path) -> Result<(), String> {
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    let Some(above) = path.ancestors().find(|dir| dir.exists()) else {
        return Ok(());
    };
    let writable =
        above.is_dir() && rustix::fs::access(above, rustix::fs::Access::WRITE_OK).is_ok();
    writable
        .then_some(())
        .ok_or_else(|| format!("`{}` cannot be written", above.display()))
}

/// Whether there is no room: this can pass, so what was to be written is tried again.
pub fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stands_in_the_way_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(can_be_made(&dir.path().join("a/b")), Ok(()));
        assert_eq!(
            can_be_made(Path::new("a-relative-name-that-is-not-there")),
            Ok(()),
            "below the working directory"
        );
        let refused = can_be_made(&dir.path().join("file/b"));
        assert_eq!(
            refused,
            Err(format!(
                "`{}` cannot be written",
                dir.path().join("file").display()
            ))
        );
    }
}
