use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::testing::{Driver, FREE_MEMORY};

const WRITE: u16 = 2;
const PAGE: u64 = super::PAGE as u64;

/// Fills four pages, reports `len` bytes from `offset` on, and tells which of the pages are zero then.
fn zero_after(offset: u64, len: u32, flags: u16) -> [bool; 4] {
    let mut driver = Driver::start(Box::new(Balloon::default()));
    let base = FREE_MEMORY.start.next_multiple_of(PAGE);
    driver.memory.write_slice(&[7; 4 * PAGE as usize], GuestAddress(base)).unwrap();
    let queue = driver.queue(REPORTS);
    queue.write_descriptor(0, base + offset, len, flags, 0);
    queue.publish(0);
    driver.kick(REPORTS);
    let used = driver.wait_used(REPORTS);
    assert_eq!((used.head, used.len), (0, 0));
    let page = |index: u64| {
        let mut bytes = [0; PAGE as usize];
        driver.memory.read_slice(&mut bytes, GuestAddress(base + index * PAGE)).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "half a page was taken");
        bytes[0] == 0
    };
    [0, 1, 2, 3].map(page)
}

#[test]
fn reported_pages_go_back_to_the_host() {
    assert_eq!(zero_after(PAGE, 2 * PAGE as u32, WRITE), [false, true, true, false]);
}

#[test]
fn of_a_block_only_whole_pages_go() {
    assert_eq!(zero_after(1, 2 * PAGE as u32, WRITE), [false, true, false, false]);
    assert_eq!(zero_after(PAGE + 1, PAGE as u32, WRITE), [false; 4]);
    assert_eq!(zero_after(PAGE, PAGE as u32 - 1, WRITE), [false; 4]);
}

#[test]
fn what_is_no_report_changes_nothing() {
    assert_eq!(zero_after(0, PAGE as u32, 0), [false; 4], "a readable buffer");
    assert_eq!(zero_after(1 << 40, PAGE as u32, WRITE), [false; 4], "outside of memory");
    assert_eq!(zero_after(0, 0, WRITE), [false; 4], "empty");
}

#[test]
fn there_is_no_balloon_to_fill() {
    let mut driver = Driver::start(Box::new(Balloon::default()));
    for queue in [0, 1] {
        driver.queue(queue).post(&[&[0; 4]], &[]);
        driver.kick(queue);
        driver.run();
        assert_eq!(driver.queue(queue).take_used(), None);
    }
}
