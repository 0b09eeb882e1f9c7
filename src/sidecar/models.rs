//! The provider's list of models, cut down to those that the session may use.
//!
//! The list is held whole, so it is counted in the memory for bodies like a request. Its entries
//! stay the provider's own text: only the id of each is read.

use std::time::Duration;

use hyper::Response;
use hyper::body::{Body, Bytes, Incoming};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::redact::Redactor;
use super::refusal::{Code, Refusal};
use crate::sidecar::steps::body::{BodyMemory, READ_BUFFER, Share};
use crate::sidecar::steps::scope::Permit;

/// Largest list that is taken in. OpenRouter's, the longest known, has about 1 MiB.
const MAX_LIST: usize = 8 << 20;
const LIST_TIME: Duration = Duration::from_secs(30);

/// The keys under which providers list their models.
const LISTS: [&str; 2] = ["data", "models"];

/// An entry of a list: its id stands under one of these keys.
#[derive(Deserialize)]
struct ModelEntry<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
}

/// The list for the client.
#[derive(Debug)]
pub struct Filtered {
    pub list: Bytes,
    /// It held the workspace's key, which was overwritten.
    pub echoed: bool,
}

/// The bytes of a list, which give their memory back when the client has them: hyper forgets the
/// body as soon as it has the last of it in its queue.
struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// # Errors
/// `upstream_invalid` when the reply is not a list or is too long, `upstream_timeout`, `busy`.
pub async fn filter(
    permit: &Permit,
    reply: Response<Incoming>,
    mut redactor: Redactor,
    memory: &BodyMemory,
    turns: &Semaphore,
) -> Result<Filtered, Refusal> {
    let mut share = Share::default();
    let whole =
        tokio::time::timeout(LIST_TIME, collect(reply.into_body(), &mut share, memory)).await;
    let whole = whole.map_err(|_| {
        Refusal::new(
            Code::UpstreamTimeout,
            "the provider's list of models did not arrive in time",
        )
    })??;
    // The filtered list is as long as the whole at most, and so is its clean copy.
    memory.reserve(&mut share, 2 * whole.len()).await?;
    // A long list takes milliseconds: one at a time, so that others have their turn in between.
    let _turn = turns.acquire().await;
    tokio::task::yield_now().await;
    let list = retain(&whole, |id| permit.shows(id)).map_err(|e| unreadable(&e.to_string()))?;
    drop(whole);
    let bytes = [redactor.feed(list.into()), redactor.finish()].concat();
    Ok(Filtered {
        list: Bytes::from_owner(Held {
            bytes,
            _share: share,
        }),
        echoed: redactor.hits > 0,
    })
}

async fn collect(
    mut body: Incoming,
    share: &mut Share,
    memory: &BodyMemory,
) -> Result<Vec<u8>, Refusal> {
    let mut whole = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
    {
        let Ok(piece) = frame.map_err(|e| unreadable(&e.to_string()))?.into_data() else {
            continue;
        };
        if whole.len() + piece.len() > MAX_LIST {
            return Err(unreadable("it is longer than 8 MiB"));
        }
        if whole.len() + piece.len() > whole.capacity() {
            let more = (2 * (whole.len() + piece.len())).max(READ_BUFFER) - whole.capacity();
            memory.reserve(share, more).await?;
            whole.reserve_exact(whole.capacity() + more - whole.len());
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

fn unreadable(cause: &str) -> Refusal {
    Refusal::new(
        Code::UpstreamInvalid,
        "the provider's list of models could not be read",
    )
    .cause(cause)
}

/// The document without the entries whose id is not shown.
fn retain(document: &[u8], shows: impl Fn(&str) -> bool) -> serde_json::Result<Vec<u8>> {
    let shown = |entry: &&RawValue| -> bool {
        let Ok(entry) = serde_json::from_str::<ModelEntry<'_>>(entry.get()) else {
            return false;
        };
        let id = [entry.id, entry.model, entry.name]
            .into_iter()
            .flatten()
            .find_map(|v| serde_json::from_str::<String>(v.get()).ok());
        id.is_some_and(|id| shows(id.strip_prefix("models/").unwrap_or(&id)))
    };
    if let Ok(entries) = serde_json::from_slice::<Vec<&RawValue>>(document) {
        return serde_json::to_vec(&entries.into_iter().filter(|e| shown(e)).collect::<Vec<_>>());
    }
    let parts: indexmap::IndexMap<String, &RawValue> = serde_json::from_slice(document)?;
    let mut out = vec![b'{'];
    for (i, (key, value)) in parts.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, key)?;
        out.push(b':');
        match serde_json::from_str::<Vec<&RawValue>>(value.get()) {
            Ok(entries) if LISTS.contains(&key.as_str()) => {
                serde_json::to_writer(
                    &mut out,
                    &entries.into_iter().filter(|e| shown(e)).collect::<Vec<_>>(),
                )?;
            }
            _ => out.extend_from_slice(value.get().as_bytes()),
        }
    }
    out.push(b'}');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_as_the_provider_wrote_them() {
        let keep = |id: &str| id.starts_with("keep");
        let run = |list: &str| String::from_utf8(retain(list.as_bytes(), keep).unwrap()).unwrap();
        assert_eq!(
            run(
                r#"{"object":"list", "data":[{"id":"keep-1","x":1.50},{"id":"drop"},{"x":1},3],"has_more":false}"#
            ),
            r#"{"object":"list","data":[{"id":"keep-1","x":1.50}],"has_more":false}"#
        );
        assert_eq!(
            run(r#"{"models":[{"name":"models/keep-2"},{"name":"models/x"}]}"#),
            r#"{"models":[{"name":"models/keep-2"}]}"#
        );
        assert_eq!(run(r#"[{"id":"keep"},{"id":"x"}]"#), r#"[{"id":"keep"}]"#);
        assert!(retain(b"no list", keep).is_err());
    }
}
