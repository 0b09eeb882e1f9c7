//! Keys in files. Kubernetes replaces a mounted Secret by swapping a symbolic link, so the
//! path is opened anew each time; nothing is watched, nothing is cached.

use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

pub(super) fn read(dir: &Path, name: &str, key: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let path = dir.join(name).join(key);
    let file = std::fs::File::open(&path).map_err(|e| format!("cannot be read: {e}"))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(super::MAX_SECRET + 4));
    file.take(super::MAX_SECRET as u64 + 4).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    Ok(bytes)
}
