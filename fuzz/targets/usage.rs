//! A reply of any bytes, read by every format and framing, never panics, and cutting it
//! elsewhere never changes what is found.
#![no_main]
use libfuzzer_sys::fuzz_target;
use outrigger::sidecar::provider::registry::PROVIDERS;
use outrigger::sidecar::usage::framing::Framing;
use outrigger::sidecar::usage::meter::Meter;

fuzz_target!(|data: &[u8]| {
    let Some((&at, data)) = data.split_first() else {
        return;
    };
    let (a, b) = data.split_at(usize::from(at).min(data.len()));
    for format in PROVIDERS
        .iter()
        .flat_map(|p| p.endpoints)
        .filter_map(|e| e.usage)
    {
        for framing in [Framing::Document, Framing::Sse, Framing::Lines] {
            let report = |pieces: &[&[u8]]| {
                let mut m = Meter::new(format, framing);
                pieces.iter().for_each(|p| m.feed(p));
                m.finish(true)
            };
            assert_eq!(report(&[data]), report(&[a, b]));
        }
    }
});
