//! Names that are kept for good.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::base::sync::lock;

/// A provider's name as a label: kept for good, once for each name that was ever configured,
/// so that counting a request copies no text.
pub fn label(name: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = lock(&KNOWN);
    if let Some(label) = known.get(name) {
        return label;
    }
    let label: &'static str = Box::leak(name.to_owned().into_boxed_str());
    known.insert(label);
    label
}
