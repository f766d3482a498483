//! The attacks by name. Each returns when it is through; the runner looks at what is left of the
//! host.

pub mod cpu;
pub mod floods;
pub mod fuse;
pub mod fuse_files;
pub mod fuse_window;
pub mod fuse_names;
pub mod fuse_protocol;
pub mod queue;
pub mod race;
pub mod transport;
pub mod vsock;

/// An attack: its name on the command line, and what it does.
pub type Attack = (&'static str, fn());

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Attack> {
    [
        transport::ATTACKS,
        queue::ATTACKS,
        race::ATTACKS,
        cpu::ATTACKS,
        fuse_protocol::ATTACKS,
        fuse_files::ATTACKS,
        fuse_window::ATTACKS,
        fuse_names::ATTACKS,
        vsock::ATTACKS,
        floods::ATTACKS,
    ]
    .into_iter()
    .flatten()
}
