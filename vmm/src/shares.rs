//! Shares that a running VM gets, and gives back: for containers that join it.
//!
//! ```text
//!  want ──▶ waiting ──▶ the file worker's, one at a time ──▶ what became of it, for the client
//! ```
//!
//! Nobody waits: the guest runs on, and so does the event loop.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{MutexGuard, PoisonError};

use bulkhead_devices::fs::{FILES_MAX, FsDevice};
use bulkhead_devices::virtio::mmio::Transport;
use bulkhead_fs_server::{SHARES_MAX, share_request, unshare_request};
use event_manager::SubscriberOps;

use crate::control::{ClientId, ShareEntry};
use crate::machine::Loop;
use crate::net::Place;
use crate::spec::{Share, SpecError, is_share_name};

const _: () = assert!(SHARES_MAX <= FILES_MAX);

/// How many changes wait at a time.
const WAITING_MAX: usize = 8;

/// Why a VM with such shares is not saved.
pub const NOT_SAVED: &str = "containers have joined it, and files were shared with them that a saved VM would not find again";

/// What a client wants.
#[derive(Debug)]
pub enum Change {
    /// New shares, and a descriptor for each.
    Add(Vec<ShareEntry>, Vec<OwnedFd>),
    /// An end of shares that were added.
    Remove(Vec<String>),
}

/// Why shares stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum SharesError {
    /// Nothing, or too much, at once.
    #[error("{0} shares in one request; it takes 1 to {SHARES_MAX}")]
    Count(usize),
    /// Descriptors are missing, or left over.
    #[error("{files} descriptors came with {shares} shares; each takes one")]
    Files {
        /// How many shares.
        shares: usize,
        /// How many descriptors.
        files: usize,
    },
    /// A name that is none, or is taken.
    #[error(transparent)]
    Name(#[from] SpecError),
    /// Not one of those that were added.
    #[error("no share called {0:?} was added to this VM")]
    Unknown(String),
    /// Too many changes wait.
    #[error("too many changes of shares are under way; try again")]
    Busy,
    /// The event loop.
    #[error("cannot reach the file device: {0}")]
    EventLoop(#[from] event_manager::Error),
    /// The worker.
    #[error("the file worker does not take the change: {0}")]
    Worker(#[source] io::Error),
}

/// Those shares.
pub struct Shares {
    /// Where the file device is.
    device: Place,
    /// Names from the beginning.
    at_start: HashSet<String>,
    added: HashSet<String>,
    waiting: VecDeque<(ClientId, Change)>,
    under_way: Option<(ClientId, Names)>,
    refused: Vec<(ClientId, SharesError)>,
}

/// What becomes of which names, once the worker has agreed.
#[derive(Debug, PartialEq, Eq)]
enum Names {
    Added(Vec<String>),
    Removed(Vec<String>),
}

impl Shares {
    /// None yet; a VM with the file device at `device` begins with `shares`.
    pub fn new(device: Place, shares: &[Share]) -> Self {
        Self {
            device,
            at_start: shares.iter().map(|share| share.name.clone()).collect(),
            added: HashSet::new(),
            waiting: VecDeque::new(),
            under_way: None,
            refused: Vec::new(),
        }
    }

    /// Whether the VM has shares it did not begin with, or is about to.
    pub fn any(&self) -> bool {
        !self.added.is_empty() || self.under_way.is_some() || !self.waiting.is_empty()
    }

    /// Notes a change for [`Shares::go_on`].
    pub fn want(&mut self, client: ClientId, change: Change) {
        match self.check_count(&change) {
            Ok(()) => self.waiting.push_back((client, change)),
            Err(error) => self.refused.push((client, error)),
        }
    }

    fn check_count(&self, change: &Change) -> Result<(), SharesError> {
        let count = match change {
            Change::Add(shares, files) if shares.len() != files.len() => {
                return Err(SharesError::Files { shares: shares.len(), files: files.len() });
            }
            Change::Add(shares, _) => shares.len(),
            Change::Remove(names) => names.len(),
        };
        if !(1..=SHARES_MAX).contains(&count) {
            return Err(SharesError::Count(count));
        }
        let held = |change: &Change| match change {
            Change::Add(_, files) => files.len(),
            Change::Remove(_) => 0,
        };
        let waiting: usize = self.waiting.iter().map(|(_, change)| held(change)).sum();
        if self.waiting.len() >= WAITING_MAX || waiting + held(change) > SHARES_MAX {
            return Err(SharesError::Busy);
        }
        Ok(())
    }

    /// Carries changes out, as far as the worker has got; returns what became of them.
    pub fn go_on(&mut self, events: &mut Loop) -> Vec<(ClientId, Result<(), SharesError>)> {
        let refused = self.refused.drain(..);
        let mut results: Vec<_> = refused.map(|(client, error)| (client, Err(error))).collect();
        loop {
            if self.under_way.is_some() {
                let Some(answer) = self.answer() else { return results };
                let Some((client, names)) = self.under_way.take() else { return results };
                if answer.is_ok() {
                    self.settle(names);
                }
                results.push((client, answer.map_err(SharesError::Worker)));
            }
            let Some((client, change)) = self.waiting.pop_front() else { return results };
            match self.begin(change, events) {
                Ok(names) => self.under_way = Some((client, names)),
                Err(error) => results.push((client, Err(error))),
            }
        }
    }

    fn answer(&mut self) -> Option<io::Result<()>> {
        match lock(&self.device).device_mut::<FsDevice>() {
            Some(device) => device.take_answer(),
            None => Some(Err(io::ErrorKind::NotFound.into())),
        }
    }

    /// Asks the worker.
    fn begin(&self, change: Change, events: &mut Loop) -> Result<Names, SharesError> {
        let names = self.check(&change)?;
        let (message, files) = match change {
            Change::Add(shares, files) => {
                let shares = shares.iter().map(|share| (share.name.as_str(), share.readonly));
                (share_request(shares), files)
            }
            Change::Remove(names) => {
                (unshare_request(names.iter().map(String::as_str)), Vec::new())
            }
        };
        let mut transport = lock(&self.device);
        let mut ops = events.event_ops(self.device.subscriber)?;
        let device = transport.device_mut::<FsDevice>();
        let device = device.ok_or_else(|| SharesError::Worker(io::ErrorKind::NotFound.into()))?;
        device.ask(message, files, &mut ops).map_err(SharesError::Worker)?;
        Ok(names)
    }

    /// Checks what the worker would, too, but in words: names.
    fn check(&self, change: &Change) -> Result<Names, SharesError> {
        match change {
            Change::Add(shares, _) => {
                let mut new = HashSet::new();
                for ShareEntry { name, .. } in shares {
                    let taken = self.at_start.contains(name) || self.added.contains(name);
                    if taken || !is_share_name(name) || !new.insert(name) {
                        return Err(SpecError::ShareName(name.clone()).into());
                    }
                }
                Ok(Names::Added(shares.iter().map(|share| share.name.clone()).collect()))
            }
            Change::Remove(names) => match names.iter().find(|name| !self.added.contains(*name)) {
                Some(name) => Err(SharesError::Unknown(name.clone())),
                None => Ok(Names::Removed(names.clone())),
            },
        }
    }

    fn settle(&mut self, names: Names) {
        match names {
            Names::Added(names) => self.added.extend(names),
            Names::Removed(names) => self.added.retain(|name| !names.contains(name)),
        }
    }
}

fn lock(device: &Place) -> MutexGuard<'_, Transport> {
    device.transport.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::thread::{self, JoinHandle};

    use bulkhead_devices::GuestMemory;
    use bulkhead_devices::testing::CountingInterrupt;
    use bulkhead_fs_server::{Options, ServeError, serve};
    use event_manager::EventManager;
    use rustix::fs::{Mode, OFlags};
    use vm_memory::GuestAddress;

    use super::*;

    /// A VM that has come as far as a file device, and its worker.
    struct Vm {
        shares: Shares,
        events: Loop,
        worker: JoinHandle<Result<(), ServeError>>,
        dir: tempfile::TempDir,
    }

    impl Vm {
        fn new() -> Self {
            let (near, far) = UnixStream::pair().unwrap();
            let worker = thread::spawn(move || serve(far.into(), vec![], Options::default()));
            let transport = Arc::new(Mutex::new(file_device(near)));
            let mut events: Loop = EventManager::new().unwrap();
            let subscriber = events.add_subscriber(transport.clone());
            let begun = [Share { name: "rootfs".to_owned(), ..Share::default() }];
            let shares = Shares::new(Place { subscriber, transport }, &begun);
            Self { shares, events, worker, dir: tempfile::tempdir().unwrap() }
        }

        fn files(&self, count: usize) -> Vec<OwnedFd> {
            let open = |dir: &Path| rustix::fs::open(dir, OFlags::PATH, Mode::empty()).unwrap();
            (0..count).map(|_| open(self.dir.path())).collect()
        }

        fn add(&self, names: &[&str]) -> Change {
            Change::Add(entries(names), self.files(names.len()))
        }

        /// Serves until as many changes are carried out; who was told what.
        fn results(&mut self, count: usize) -> Vec<(ClientId, String)> {
            let mut results = Vec::new();
            while results.len() < count {
                let told = |result: Result<(), SharesError>| match result {
                    Ok(()) => "done".to_owned(),
                    Err(error) => error.to_string(),
                };
                let gone_on = self.shares.go_on(&mut self.events).into_iter();
                results.extend(gone_on.map(|(client, result)| (client, told(result))));
                if results.len() < count {
                    assert!(self.events.run_with_timeout(20_000).unwrap() > 0, "{results:?}");
                }
            }
            results
        }

        fn finish(self) {
            drop((self.shares, self.events));
            self.worker.join().unwrap().unwrap();
        }
    }

    fn file_device(socket: UnixStream) -> Transport {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let device = Box::new(FsDevice::new("test", socket.into()));
        let line = Arc::new(CountingInterrupt::default());
        Transport::new(device, Arc::new(memory), line).unwrap()
    }

    fn entries(names: &[&str]) -> Vec<ShareEntry> {
        let entry = |name: &&str| ShareEntry { name: (*name).to_owned(), readonly: true };
        names.iter().map(entry).collect()
    }

    fn remove(names: &[&str]) -> Change {
        Change::Remove(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn shares_come_and_go_in_the_order_asked_for() {
        let mut vm = Vm::new();
        assert!(!vm.shares.any());
        let changes = [vm.add(&["a", "b"]), vm.add(&["c", "a"]), remove(&["a"]), vm.add(&["a"])];
        for (client, change) in (1..).zip(changes) {
            vm.shares.want(client, change);
        }
        assert!(vm.shares.any(), "what is under way counts");
        let results = vm.results(4);
        let told: Vec<_> = results.iter().map(|(client, told)| (*client, told.as_str())).collect();
        let taken = "share name \"a\" is not a plain, unique file name";
        assert_eq!(told, [(1, "done"), (2, taken), (3, "done"), (4, "done")]);
        vm.shares.want(5, remove(&["a", "b"]));
        assert_eq!(vm.results(1), [(5, "done".to_owned())]);
        assert!(!vm.shares.any());
        vm.finish();
    }

    #[test]
    fn names_and_numbers_are_checked() {
        let mut vm = Vm::new();
        let told = |vm: &mut Vm, change| {
            vm.shares.want(1, change);
            vm.results(1).remove(0).1
        };
        let two_files = Change::Add(entries(&["a"]), vm.files(2));
        let no_file = Change::Add(entries(&["a"]), vec![]);
        assert!(told(&mut vm, two_files).starts_with("2 descriptors came with 1 shares"));
        assert!(told(&mut vm, no_file).starts_with("0 descriptors came with 1 shares"));
        let names: Vec<String> = (0..=SHARES_MAX).map(|number| format!("n{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for names in [&[][..], &names] {
            let change = vm.add(names);
            assert!(told(&mut vm, change).contains("it takes 1 to 128"));
            assert!(told(&mut vm, remove(names)).contains("it takes 1 to 128"));
        }
        let long = "x".repeat(256);
        for name in ["rootfs", "", ".", "..", "a/b", "a\0b", &long] {
            let change = vm.add(&["fine", name]);
            assert_eq!(
                told(&mut vm, change),
                format!("share name {name:?} is not a plain, unique file name")
            );
        }
        for names in [["fine"], ["rootfs"]] {
            let told = told(&mut vm, remove(&names));
            assert_eq!(told, format!("no share called {:?} was added to this VM", names[0]));
        }
        assert!(!vm.shares.any());
        for (client, names) in [(1, &names[..SHARES_MAX]), (2, &["one"][..])] {
            let change = vm.add(names);
            vm.shares.want(client, change);
        }
        let busy = SharesError::Busy.to_string();
        assert_eq!(vm.results(2), [(2, busy), (1, "done".to_owned())]);
        vm.finish();
    }

    #[test]
    fn a_worker_that_has_ended_is_no_reason_to_wait() {
        let mut vm = Vm::new();
        let (near, _) = UnixStream::pair().unwrap();
        *lock(&vm.shares.device) = file_device(near);
        let change = vm.add(&["a"]);
        vm.shares.want(1, change);
        let told = vm.results(1).remove(0).1;
        assert!(told.starts_with("the file worker does not take the change"), "{told}");
        assert!(!vm.shares.any());
        vm.finish();
    }
}
