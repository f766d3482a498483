//! A kernel that attacks the monitor it runs on: `attack=NAME` on its command line says how. It
//! tells on the serial console when it begins and ends, and then resets the machine.
//!
//! Raw memory, ports and instructions are all there is to it, so nearly all of it is unsafe; no
//! soundness is claimed beyond that of an attack that works.
#![no_std]
#![no_main]
#![allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]

mod attacks;
mod boot;
mod io;
mod virtio;

use core::panic::PanicInfo;

use io::{get, print};

/// Longest command line.
const CMDLINE_MAX: usize = 2048;

#[unsafe(no_mangle)]
extern "C" fn main(start_info: u64) -> ! {
    boot::set_up_faults(0);
    let cmdline: u64 = get(start_info + 24);
    let text = unsafe { core::slice::from_raw_parts(cmdline as *const u8, CMDLINE_MAX) };
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(0);
    let words = text[..end].split(|byte| *byte == b' ');
    let asked = words.filter_map(|word| word.strip_prefix(b"attack=")).next().unwrap_or_default();
    match attacks::all().find(|(name, _)| name.as_bytes() == asked) {
        Some((name, attack)) => {
            print("begin ");
            print(name);
            print("\n");
            attack();
            print("end ");
            print(name);
            print("\n");
        }
        None => {
            for (name, _) in attacks::all() {
                print("attack ");
                print(name);
                print("\n");
            }
        }
    }
    boot::reset()
}

/// Fails the attack: the runner looks for this word.
pub fn fail(what: &str) {
    print("FAILED ");
    print(what);
    print("\n");
}

/// Asked for by core as it comes with the toolchain; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    print("FAILED panic");
    if let Some(place) = info.location() {
        print(" at ");
        print(place.file());
        print(":");
        io::print_number(place.line().into());
    }
    print("\n");
    boot::reset()
}

/// Tells a number.
pub fn print_count(what: &str, count: u64) {
    print(what);
    io::print_number(count);
    print("\n");
}
