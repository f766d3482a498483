//! The VM's control socket: one JSON object a line in, one a line out.
//!
//! ```text
//! {"verb":"pause"}     {"result":"done"}
//! {"verb":"resume"}    {"result":"done"}
//! {"verb":"stats"}     {"result":"stats","paused":false,"vcpus":1,"memory_mib":128,...}
//! {"verb":"plug","mac":[2,0,0,0,0,1],"mtu":1500} and a tap   {"result":"done"}
//! {"verb":"share","shares":[{"name":"v0","readonly":true}]} and a directory or file for each   {"result":"done"}
//! {"verb":"unshare","names":["v0"]}   {"result":"done"}
//! {"verb":"snapshot","then":"end"} and two files     {"result":"ready"}, {"result":"done"}
//! {"verb":"freeze"}    {"result":"refused","message":"..."}
//! ```
//!
//! The socket is inherited ([`crate::VmSpec::control_fd`]); whoever can connect to it is trusted with
//! the VM. A client is not trusted with the event loop: lines and clients are bounded, and one that
//! does not read its answers is dropped.

mod client;
pub(crate) mod descriptor;
mod server;

use serde::{Deserialize, Serialize};

pub use bulkhead_fs_server::SHARES_MAX;
pub use client::{Client, ClientError, NewShare};
pub use server::{ClientId, Command, Control};

/// The longest line either side takes, bytes: [`SHARES_MAX`] shares with names of 255.
pub const LINE_MAX: usize = 64 << 10;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Stops all vCPUs; nothing is to do if they are stopped already.
    Pause,
    /// Lets them go on.
    Resume,
    /// Asks for figures.
    Stats,
    /// Puts a network interface in the next of [`crate::VmSpec::net_places`], or of the interfaces
    /// without a tap, which come first. Its tap, as a
    /// [`crate::spec::NetSpec`] has it, comes with the line (SCM_RIGHTS, unix(7)).
    Plug {
        /// The interface's address.
        mac: [u8; 6],
        /// The most bytes of a frame's payload; the driver's default if not given.
        mtu: Option<u16>,
    },
    /// Shows the guest more files, in the root directory of its virtio-fs mount; all of these or none. A
    /// descriptor for each comes with the line, in this order, as [`crate::spec::Share::fd`] has it. The VM
    /// is not saved as long as it has any.
    Share {
        /// 1 to [`SHARES_MAX`].
        shares: Vec<ShareEntry>,
    },
    /// Takes such shares away, all of these or none, and closes what the guest has open of them. What it has mapped
    /// of their programs stays until it lets go of that.
    Unshare {
        /// Their names, 1 to [`SHARES_MAX`].
        names: Vec<String>,
    },
    /// Saves the VM when its agent next stands still (save_point.rs): state and memory, to the empty
    /// files that come with the line; only the difference from a third, if the VM's memory is a mapping of
    /// that, which the fourth is to tell: /proc/PID/pagemap. [`Response::Ready`] comes first, [`Response::Done`] when it is
    /// saved.
    Snapshot {
        /// What becomes of the VM.
        then: Then,
    },
}

/// A share to be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareEntry {
    /// Its name, as [`crate::spec::Share::name`]; unlike all that the VM has.
    pub name: String,
    /// Refuses every write on the host's side.
    #[serde(default)]
    pub readonly: bool,
}

/// What becomes of a VM that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It goes on.
    GoOn,
    /// It goes on when the client's connection ends: what belongs to it can be copied until then.
    Stand,
    /// It ends.
    End,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    /// It is done.
    Done,
    /// The agent may be asked to stand still.
    Ready,
    /// Figures.
    Stats(Stats),
    /// It is not done.
    Refused {
        /// One sentence.
        message: String,
    },
}

/// Figures of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The vCPUs are stopped.
    pub paused: bool,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Memory of the guest, MiB.
    pub memory_mib: u32,
    /// Since the VM began to run, ms.
    pub uptime_ms: u64,
    /// VM exits so far; `None` where nobody counts them (see [`crate::VmSpec::timeline_from_ns`]).
    pub exits: Option<u64>,
}
