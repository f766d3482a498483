//! Streams between guest and host: vsock in a VM (vsock(7)), Unix sockets in tests.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use bulkhead_protocol::{HOST_CID, HostPort};

/// Connections the kernel may hold until they are accepted: the host makes one or two at a time.
const BACKLOG: libc::c_int = 16;

/// How guest and host reach each other.
#[derive(Debug)]
pub enum Transport {
    /// vsock, as in every VM.
    Vsock,
    /// Unix sockets in a directory: guest port P is `guest_P`, host port P is `host_P`.
    Unix {
        /// The directory.
        dir: PathBuf,
        /// The next port that stands for "any".
        any_port: Cell<u32>,
    },
}

/// A non-blocking listener on a guest port.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    port: u32,
    vsock: bool,
}

impl Transport {
    /// Unix sockets in `dir`.
    pub fn unix(dir: PathBuf) -> Self {
        Self::Unix { dir, any_port: Cell::new(1 << 16) }
    }

    /// Listens on a guest port; `None` lets the transport choose one.
    pub fn listen(&self, port: Option<u32>) -> io::Result<Listener> {
        match self {
            Self::Vsock => listen_vsock(port.unwrap_or(libc::VMADDR_PORT_ANY)),
            Self::Unix { dir, any_port } => {
                let port = port.unwrap_or_else(|| any_port.replace(any_port.get() + 1));
                let listener = UnixListener::bind(dir.join(format!("guest_{port}")))?;
                listener.set_nonblocking(true)?;
                Ok(Listener { fd: listener.into(), port, vsock: false })
            }
        }
    }

    /// Begins to connect to a host port. The socket is non-blocking and becomes writable once the
    /// connection stands.
    pub fn connect(&self, port: HostPort) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock => {
                let fd = vsock_socket()?;
                let address = vsock_address(HOST_CID as u32, port as u32);
                match with_address(&address, |address, len| {
                    // SAFETY: `address` points to `len` bytes of a live sockaddr_vm.
                    unsafe { libc::connect(fd.as_raw_fd(), address, len) }
                }) {
                    Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                    _ => Ok(fd),
                }
            }
            Self::Unix { dir, .. } => {
                let stream = UnixStream::connect(dir.join(format!("host_{}", port as u32)))?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
        }
    }
}

impl Listener {
    /// The guest port it listens on.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Takes a waiting connection from the host as a non-blocking socket, if there is one. Anyone
    /// else's (a container may speak vsock too) is dropped.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            let mut peer = vsock_address(0, 0);
            let mut len = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
            // SAFETY: `peer` is writable for `len` bytes; the kernel writes no more than that.
            let fd = unsafe {
                libc::accept4(
                    self.fd.as_raw_fd(),
                    (&raw mut peer).cast(),
                    &raw mut len,
                    libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                )
            };
            if fd < 0 {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => Err(error),
                };
            }
            // SAFETY: accept4 returned this fd to us alone.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            if !self.vsock || u64::from(peer.svm_cid) == HOST_CID {
                return Ok(Some(fd));
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn listen_vsock(port: u32) -> io::Result<Listener> {
    let fd = vsock_socket()?;
    let mut address = vsock_address(libc::VMADDR_CID_ANY, port);
    with_address(&address, |address, len| {
        // SAFETY: `address` points to `len` bytes of a live sockaddr_vm.
        unsafe { libc::bind(fd.as_raw_fd(), address, len) }
    })?;
    // SAFETY: listen touches no memory of ours.
    check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
    if port == libc::VMADDR_PORT_ANY {
        let mut len = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        // SAFETY: `address` is writable for `len` bytes; the kernel writes no more than that.
        check(unsafe {
            libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len)
        })?;
    }
    Ok(Listener { fd, port: address.svm_port, vsock: true })
}

fn vsock_socket() -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket touches no memory of ours.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, flags, 0) })?;
    // SAFETY: socket returned this fd to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

fn with_address(
    address: &libc::sockaddr_vm,
    call: impl FnOnce(*const libc::sockaddr, libc::socklen_t) -> libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    check(call((&raw const *address).cast(), len)).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
