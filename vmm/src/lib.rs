//! The micro-VM monitor: one process a container.
//!
//! Data flows one way: [`VmSpec`] → [`machine::Machine`] → [`ending::Ended`] →
//! [`spec::Report`]. The guest owns its kernel: nothing it writes is trusted, and what it writes to
//! its devices is parsed in `bulkhead-devices` alone.

pub mod boot;
pub mod bus;
pub mod cmdline;
pub mod control;
pub mod ending;
pub mod fs_worker;
pub mod host_events;
pub mod idmap;
pub mod jail;
pub mod kernel_log;
pub mod layout;
pub mod leash;
pub mod machine;
mod marks;
pub mod memory;
pub mod net;
pub mod parent;
pub mod probe;
pub mod program;
mod running;
mod save_point;
mod saved;
mod shares;
pub mod signals;
pub mod snapshot;
mod spawn;
pub mod spec;
pub mod timeline;
pub mod vcpu;
pub mod vm;
pub mod window;

pub use spec::VmSpec;
