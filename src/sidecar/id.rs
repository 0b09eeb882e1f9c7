//! What an id of a model or of a stored object may look like.

pub fn is_id_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"._:/@+-~".contains(&b)
}

/// The ids that providers use; nothing that could be read as a path, a list or a glob. `#` leads
/// to a deployment of Fireworks.
pub fn is_id(s: &str) -> bool {
    (1..=256).contains(&s.len())
        && s.bytes().all(|b| is_id_byte(b) || b == b'#')
        && !s.contains("..")
        && !s.contains("//")
}
