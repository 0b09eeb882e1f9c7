//! Ids of stored objects that this sidecar's own replies have named.
//!
//! Libraries refer to items of earlier replies by their id (`item_reference`, a container that
//! code ran in). What a reply to this session has named may be named again without a grant's
//! `stored_objects`; any other id could be another session's.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard};

use crate::base::sync::lock;

/// Ids that are remembered, the latest: some 100 replies of many items each, in about 1 MiB.
const MAX: usize = 32_768;

#[derive(Debug, Default)]
pub struct KnownObjects {
    hasher: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    hashes: HashSet<u64>,
    order: VecDeque<u64>,
}

impl KnownObjects {
    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Remembers what a reply of this provider named.
    pub fn remember(&self, provider: &str, ids: Vec<String>) {
        if ids.is_empty() {
            return;
        }
        let mut known = self.lock();
        for id in ids {
            let hash = self.hasher.hash_one((provider, id.as_str()));
            if known.hashes.insert(hash) {
                known.order.push_back(hash);
            }
            if known.order.len() > MAX
                && let Some(oldest) = known.order.pop_front()
            {
                known.hashes.remove(&oldest);
            }
        }
    }

    pub fn knows(&self, provider: &str, id: &str) -> bool {
        self.lock()
            .hashes
            .contains(&self.hasher.hash_one((provider, id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_ids_are_known() {
        let objects = KnownObjects::default();
        objects.remember("p", (0..MAX + 10).map(|i| format!("msg_{i}")).collect());
        assert!(objects.knows("p", "msg_10") && objects.knows("p", &format!("msg_{}", MAX + 9)));
        assert!(
            !objects.knows("p", "msg_9")
                && !objects.knows("p", "msg_x")
                && !objects.knows("q", "msg_10")
        );
    }
}
