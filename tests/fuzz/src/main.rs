//! libFuzzer's way in. `BULKHEAD_FUZZ_TARGET` names the target; with `BULKHEAD_FUZZ_CORPUS=DIR` the
//! inputs it is known by are written there first.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use bulkhead_fuzz::{TARGETS, Target};

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn choose() {
    let name = std::env::var("BULKHEAD_FUZZ_TARGET").unwrap_or_default();
    let chosen = TARGETS.iter().find(|target| target.name == name);
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    let chosen = chosen.unwrap_or_else(|| panic!("BULKHEAD_FUZZ_TARGET is one of {names:?}"));
    if let Some(dir) = std::env::var_os("BULKHEAD_FUZZ_CORPUS") {
        for (number, seed) in chosen.inputs().iter().enumerate() {
            let file = Path::new(&dir).join(format!("given-{number}"));
            std::fs::write(&file, seed).expect("the directory of the corpus can be written to");
        }
    }
    let _ = CHOSEN.set(*chosen);
}

libfuzzer_sys::fuzz_target!(init: choose(), |input: &[u8]| {
    if let Some(target) = CHOSEN.get() {
        (target.run)(input);
    }
});
