//! Splitting the bytes of a connection elsewhere never changes the verdict.
#![no_main]
use libfuzzer_sys::fuzz_target;
use outrigger::base::framing::{HeadScanner, Verdict};

fn verdict(pieces: &[&[u8]]) -> (bool, Option<u16>) {
    let mut s = HeadScanner::default();
    for p in pieces {
        match s.scan(p) {
            Verdict::Pass => {}
            Verdict::BadHead { good, fault } | Verdict::BadBody { good, fault } => {
                assert!(good <= p.len());
                return (false, Some(fault.status));
            }
        }
    }
    (true, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&at, data)) = data.split_first() else {
        return;
    };
    let at = usize::from(at).min(data.len());
    let (a, b) = data.split_at(at);
    let (whole, split) = (verdict(&[data]), verdict(&[a, b]));
    assert_eq!(whole.0, split.0);
});
