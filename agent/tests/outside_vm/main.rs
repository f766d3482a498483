//! The real agent, its real namespaces, mounts and processes, on this machine instead of in a VM:
//! Unix sockets take the place of vsock, a directory that of virtio-fs.
//!
//! Needs root and a static busybox.

mod confinement;
mod container;
mod exec;
mod harness;
mod members;
mod streams;
mod users;
