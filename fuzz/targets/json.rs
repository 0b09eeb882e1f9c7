//! What the push parser accepts, `serde_json` accepts, wherever the document is cut.
#![no_main]
use libfuzzer_sys::fuzz_target;
use outrigger::base::json::{Flow, Parser};

fn accepts(pieces: &[&[u8]], flow: Flow) -> bool {
    let mut p = Parser::new();
    pieces
        .iter()
        .try_for_each(|b| p.feed(b, &mut |_| flow))
        .and_then(|()| p.finish(&mut |_| flow))
        .is_ok()
}

fuzz_target!(|data: &[u8]| {
    let Some((&at, data)) = data.split_first() else {
        return;
    };
    let (a, b) = data.split_at(usize::from(at).min(data.len()));
    let ours = accepts(&[data], Flow::Visit);
    assert_eq!(ours, accepts(&[a, b], Flow::Visit));
    assert_eq!(ours, accepts(&[a, b], Flow::Skip));
    match serde_json::from_slice::<serde_json::Value>(data) {
        Ok(_) => assert!(ours || deep(data)),
        Err(e) if ours => {
            // The two liberties: a lone surrogate, and a number beyond a float.
            let e = e.to_string();
            assert!(
                e.contains("surrogate")
                    || e.contains("hex escape")
                    || e.contains("out of range")
                    || e.contains("recursion"),
                "{e}"
            );
        }
        Err(_) => {}
    }
});

fn deep(data: &[u8]) -> bool {
    data.iter().filter(|b| matches!(b, b'[' | b'{')).count() >= 128
}
