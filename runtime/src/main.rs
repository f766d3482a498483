//! The command line; see the library.

#![no_main]

use std::ffi::{c_char, c_int};

/// What the C library calls; std has the arguments from it already.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    bulkhead_vmm::program::begin();
    std::process::exit(bulkhead::main().into())
}
