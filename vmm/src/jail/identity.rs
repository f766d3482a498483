//! Who a jailed process is, and what it may still do.

use std::fs;
use std::io;
use std::ops::Range;

use rustix::fs::{Gid, Uid};
use rustix::process::{
    DumpableBehavior, getppid, parent_process_death_signal, set_dumpable_behavior,
    set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{Builder, JailError};

/// What it takes to build a jail without a user namespace.
const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::CHOWN);

/// Whether this process can build a jail without a user namespace.
pub fn is_privileged() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(NEEDED))
}

/// A user and group that no one else has: `wanted`, if this user namespace has it, else its last one,
/// which is for nothing else. `None` if there is no other than this process's own.
pub fn spare_user(wanted: u32) -> Option<u32> {
    let maps = ["/proc/self/uid_map", "/proc/self/gid_map"].map(fs::read_to_string);
    let [users, groups] = maps.map(|map| ids(&map.unwrap_or_default()));
    let has = |ids: &[Range<u64>]| ids.iter().any(|range| range.contains(&wanted.into()));
    if has(&users) && has(&groups) {
        return Some(wanted);
    }
    let last = |ids: &[Range<u64>]| ids.iter().map(|range| range.end - 1).max();
    let last = last(&users)?.min(last(&groups)?);
    u32::try_from(last).ok().filter(|last| *last > 0)
}

/// The IDs that a uid_map or gid_map (user_namespaces(7)) knows inside.
fn ids(map: &str) -> Vec<Range<u64>> {
    let ids = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
        let (first, _, length) = (numbers.next()??, numbers.next()?, numbers.next()??);
        Some(first..first.checked_add(length)?)
    };
    map.lines().filter_map(ids).filter(|range| !range.is_empty()).collect()
}

/// Becomes user and group `user`, without any capability and any way to get one back.
pub fn become_nobody(user: u32, builder: Builder) -> Result<(), JailError> {
    let parent = getppid();
    let death = parent_process_death_signal().map_err(JailError::at("PR_GET_PDEATHSIG"))?;
    if let Builder::Root { .. } = builder {
        drop_bounding_set(CapabilitySet::empty())?;
        set_thread_groups(&[]).map_err(JailError::at("dropping groups"))?;
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        set_thread_res_gid(gid, gid, gid).map_err(JailError::at("changing the group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(JailError::at("changing the user"))?;
    }
    keep_capabilities(CapabilitySet::empty())?;
    // A change of user takes the signal away that ends this process with its parent. Had the parent
    // died meanwhile, nobody would be told any more.
    set_parent_process_death_signal(death).map_err(JailError::at("PR_SET_PDEATHSIG"))?;
    if death.is_some() && getppid() != parent {
        let gone = io::Error::from(io::ErrorKind::NotFound);
        return Err(JailError { action: "waiting for the parent", source: gone });
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(JailError::at("PR_SET_DUMPABLE"))
}

/// Lets the file worker have `passed` when it is executed, for it to build its own jail: a user that
/// is not root loses capabilities there. [`keep_capabilities`] takes it back.
pub fn pass_on(passed: CapabilitySet) -> Result<(), JailError> {
    let failed = || JailError::at("passing capabilities on to the file worker");
    let own = capabilities(None).map_err(failed())?;
    set_capabilities(None, CapabilitySets { inheritable: passed, ..own }).map_err(failed())?;
    passed
        .iter()
        .try_for_each(|capability| configure_capability_in_ambient_set(capability, true))
        .map_err(failed())
}

/// Keeps `kept` alone, for good.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<(), JailError> {
    clear_ambient_capability_set().map_err(JailError::at("dropping ambient capabilities"))?;
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable };
    set_capabilities(None, sets).map_err(JailError::at("dropping capabilities"))?;
    set_no_new_privs(true).map_err(JailError::at("PR_SET_NO_NEW_PRIVS"))
}

/// Drops what is not in `kept` from the set that bounds what can ever be had.
pub fn drop_bounding_set(kept: CapabilitySet) -> Result<(), JailError> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(JailError::at("dropping bounding capabilities")(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_say_which_ids_there_are() {
        assert_eq!(ids("0 1000 1\n1 100000 65536\n"), [0..1, 1..65537]);
        assert_eq!(ids("0 0 4294967295").first(), Some(&(0..4_294_967_295)));
        assert_eq!(ids("0 0 0\n1 x\n"), []);
    }

    #[test]
    fn root_of_the_host_has_every_user_to_spare() {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap();
        if map.split_whitespace().eq(["0", "0", "4294967295"]) {
            assert_eq!(spare_user(0x7000_0001), Some(0x7000_0001));
        }
    }
}
