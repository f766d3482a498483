//! The file server behind bulkhead's virtio-fs device: FUSE requests in, replies out, over one
//! Unix stream socket.
//!
//! ```text
//!  guest kernel ── virtqueue ── device (VMM process) ══ socket ══ serve() ── *at() calls ── host
//! ```
//!
//! It is our own and not fuse-backend-rs's passthrough: that one (0.14) knows no O_TMPFILE, syncfs and
//! statx, and its inode table cannot be saved.
//!
//! A stream rather than SEQPACKET: a message of 1 MiB would take the kernel one contiguous piece of
//! memory and a forced socket buffer, and a stream lets one read take many requests.
//!
//! It runs in a process of its own that knows neither KVM nor guest memory, and trusts nothing it
//! reads: the guest may write any request, and so may a VMM that the guest took over. What holds
//! whatever they write:
//!
//! - Nothing outside the shares is reached. Every access is an `*at()` call on a descriptor that
//!   was opened from a share's own, with one checked name that is neither "." nor "..", and with
//!   O_NOFOLLOW. There is no absolute path but, through one descriptor, `/proc/self/fd`.
//! - Nothing is opened for I/O but regular files and directories: no device, FIFO or socket.
//! - A read-only share is never written to.
//! - Descriptors held for the guest are bounded ([`limits`]); a guest that wants more gets ENFILE.
//!
//! What it can make the server hold or store at once, whatever it asks for:
//!
//! | | bound |
//! |---|---|
//! | a request, a reply | 1 MiB of file data and the headers (`wire::MESSAGE_MAX`); eight at a time |
//! | a name; an attribute's name | 255 bytes (attributes': the host's kernel) |
//! | an attribute's value; a list of attributes | 64 KiB each, one a request |
//! | known inodes (added shares are among them), open files and directories | [`limits::Budget`], of [`Options::open_files_max`] |
//! | listings between two requests | 1024 directories' of 8 KiB |
//! | locks | none: the guest's kernel keeps them |
//! | names, attributes and bytes on the host's disk | the file system's: give it a quota (a project's, or a file system of its own). A budget of the server's own would have to know what is there already, whoever made it, and to charge every change to it |
//!
//! What went wrong elsewhere, and the tests that it does not here (`tests/` are this crate's, `hostile` and
//! `e2e` the project's):
//!
//! | | there | tests |
//! |---|---|---|
//! | CVE-2020-35517 | a guest made a device node and opened it on the host | `hostile fuse_device_nodes`, `fuse_open_of_what_is_no_file`; `tests/hostile.rs only_regular_files_are_opened`; `e2e device_nodes_are_refused_and_other_files_made` |
//! | CVE-2020-10717 | a guest's open files used up the host's | `hostile limits::files_known_and_open_are_bounded_by_fs_files`, `fuse_open_flood`, `fuse_inode_flood` |
//! | CVE-2021-20263 | capabilities of a file outlived a write to it | `tests/mounted.rs writing_drops_file_capabilities`, `writing_clears_set_id_bits` |
//! | CVE-2022-0358 | a set-group-ID file of a group its maker is not in | `tests/hostile.rs set_group_id_is_the_host_s_to_grant`; `tests/mounted.rs new_files_belong_to_their_maker` |
//! | CVE-2026-47243 | a server without sandbox and filter: links made by the guest led out of the share | `hostile names_in_symlink`, `fuse_symlinks_out`; `tests/hostile.rs names_never_leave_their_directory`; `e2e the_root_is_empty_and_read_only`, `no_thread_has_a_capability_or_is_without_a_filter` |
//!
//! What the guest sees: one file system whose root is a read-only directory with an entry for each
//! [`ShareRoot`], also for those that the monitor adds later ([`share_request`]). The guest's kernel checks permissions (mount with `default_permissions`, as
//! virtio-fs always does), keeps POSIX and BSD locks (they hold within one VM only), and caches
//! data and attributes for [`Options::attr_timeout`]; entries that do not exist are not cached.
//! An open drops the guest's cached pages if the file changed since it was last opened, so a file
//! changed on the host is seen by the next open.
//!
//! Programs and libraries are mapped by a guest whose device has a window, rather than read.
//!
//! Not offered: POSIX ACLs (`system.posix_acl_*` is EOPNOTSUPP), security contexts, ioctl.
//! Device nodes are made if the host lets this process (CAP_MKNOD, which bulkhead's jail takes away);
//! the server itself never opens
//! one.
//!
//! `st_ino` is the host's for files on the first share's file system; for any other file system
//! the number of that file system, in the order met, is mixed into the top 16 bits, so that two
//! host file systems collide only if inode numbers reach 2^48.

mod attr;
mod buffer;
mod credentials;
mod dir;
mod dirents;
mod handles;
mod incoming;
mod inodes;
mod io;
pub mod limits;
mod mapped;
mod namespace;
mod pool;
mod root;
mod server;
mod shares;
mod state;
mod wire;
mod xattr;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use shares::{SHARES_MAX, share_request, unshare_request};
pub use state::{STATE_MAX, save};

/// A host directory, or a single file, that the guest sees by name in the root directory.
#[derive(Debug)]
pub struct ShareRoot {
    /// Its name in the root directory; unique, not empty, without "/", not "." or "..".
    pub name: String,
    /// The directory or file; O_PATH is enough.
    pub fd: OwnedFd,
    /// Answers every request that would write with EROFS.
    pub readonly: bool,
    /// It was copied for this server from what the guest knew, at the moment at which [`Options::state`]
    /// was saved: its files are others and yet the same, and known by their places alone.
    pub copied: bool,
}

/// How to serve.
#[derive(Debug)]
pub struct Options {
    /// For how long the guest may believe an entry of a directory.
    pub entry_timeout: Duration,
    /// For how long the guest may believe attributes, and with them cached data.
    pub attr_timeout: Duration,
    /// `/proc/self/fd` (O_PATH | O_DIRECTORY) of this very process, for a caller that gives up the
    /// host's tree before it calls [`serve`]; `None` opens it.
    pub proc_self_fd: Option<OwnedFd>,
    /// The state file: what another server has [saved](save) there is known to this one, if there is
    /// anything, and this one saves to it. A node ID or handle that the guest remembers of an earlier
    /// server is the same file, or an error (ESTALE, EIO); never another file.
    pub state: Option<File>,
    /// The most files it may have open, one of [`limits::OPEN_FILES`]: nearly all of them are the guest's.
    pub open_files_max: u32,
    /// How many slots of 2 MiB the window has to which the guest maps files; 0 if there is none.
    pub window_slots: u16,
    /// The most threads; the first is the caller's, more are started when requests wait for I/O.
    pub threads_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            entry_timeout: Duration::from_secs(1),
            attr_timeout: Duration::from_secs(1),
            proc_self_fd: None,
            state: None,
            open_files_max: *limits::OPEN_FILES.end(),
            window_slots: 0,
            threads_max: 8,
        }
    }
}

/// Why [`serve`] could not start, or ended before its socket closed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// /proc is not there.
    #[error("cannot open /proc/self/fd; mount proc where the file server starts")]
    Proc(#[source] rustix::io::Errno),
    /// The thread's own working directory and umask could not be set.
    #[error("cannot set up the file server's thread")]
    Thread(#[source] rustix::io::Errno),
    /// No memory for a thread's buffers.
    #[error("cannot map {len} bytes for the file server's buffers")]
    Buffer {
        /// Size asked for, bytes.
        len: usize,
        /// What mmap said.
        source: rustix::io::Errno,
    },
    /// A share's name is no file name, or is there twice.
    #[error("share name {0:?} is not a plain, unique file name")]
    ShareName(String),
    /// A share's descriptor cannot be used.
    #[error("cannot use the descriptor of share {name:?}")]
    Share {
        /// The share's name.
        name: String,
        /// What statx said.
        source: rustix::io::Errno,
    },
    /// What the state file holds is no state.
    #[error("the saved state of the file server is damaged: {0}")]
    State(&'static str),
    /// It cannot be read.
    #[error("cannot read the saved state of the file server")]
    StateFile(#[source] std::io::Error),
    /// The socket failed.
    #[error("cannot read requests from or write replies to the file server's socket")]
    Socket(#[source] std::io::Error),
    /// A message begins with an impossible length, so that the next one cannot be found.
    #[error("a file request of {0} bytes was announced; the device and the file server disagree")]
    Framing(u32),
}

/// Serves requests from `socket`, a `SOCK_STREAM` Unix socket on which every message has the
/// length that its own FUSE header begins with, until the other side closes it.
///
/// Made to be all that a process does: it takes over the calling thread, whose working directory,
/// umask and supplementary groups it changes (other threads keep theirs), and sets the process's
/// limit of open files.
pub fn serve(socket: OwnedFd, shares: Vec<ShareRoot>, options: Options) -> Result<(), ServeError> {
    let threads_max = options.threads_max.max(1);
    let server = server::Server::new(shares, options)?;
    pool::run(&server, socket.into(), threads_max)
}
