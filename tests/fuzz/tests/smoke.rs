//! Each target on its seeds, on the committed corpus, and on mutations of both for a second or two.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{panic, process, thread};

use bulkhead_fuzz::{Mutator, TARGETS, Target};

/// How long a target is given mutations.
const TIME: Duration = Duration::from_millis(1500);
/// No input takes so long.
const HANG: Duration = Duration::from_secs(20);

/// Runs all of a target's inputs on this thread; says which one it was if it does not come back.
fn smoke(target: Target) {
    let (send, receive) = mpsc::channel::<Vec<u8>>();
    let watchdog = thread::spawn(move || {
        let mut current = Vec::new();
        loop {
            match receive.recv_timeout(HANG) {
                Ok(input) => current = input,
                Err(RecvTimeoutError::Disconnected) => return current,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("{} hangs on {current:02x?}", target.name);
                    process::abort();
                }
            }
        }
    });
    let inputs = target.inputs();
    let mut mutator = Mutator::new(0x6275_6c6b);
    let begun = Instant::now();
    let ran = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let mutations = std::iter::repeat_with(|| mutator.mutate(&inputs));
        let mut count = 0;
        for input in inputs.iter().cloned().chain(mutations) {
            let _ = send.send(input.clone());
            (target.run)(&input);
            count += 1;
            if count > inputs.len() && begun.elapsed() > TIME {
                break;
            }
        }
        count
    }));
    drop(send);
    let last = watchdog.join().expect("the watchdog ends when the inputs do");
    match ran {
        Ok(count) => println!("{}: {count} inputs, {} of them given", target.name, inputs.len()),
        Err(panic) => {
            eprintln!("{} fails on {last:02x?}", target.name);
            panic::resume_unwind(panic);
        }
    }
}

/// One after the other on each CPU: the harness would start a thread for each of them all.
#[test]
fn no_target_fails() {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(2, |count| count.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let take = || next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                while let Some(target) = TARGETS.get(take()) {
                    smoke(*target);
                }
            });
        }
    });
}
