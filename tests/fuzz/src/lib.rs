//! Everything that reads hostile bytes, each as a [`Target`]: a function of bytes that may do
//! whatever it likes but panic, hang, or touch what it must not.
//!
//! `make fuzz` has libFuzzer search inputs for a fixed time (src/main.rs); `cargo test` runs each
//! target on its seeds, the committed corpus and some mutations of both (tests/smoke.rs).

mod agent;
mod control;
mod documents;
mod fuse;
mod images;
mod input;
mod kernel;
mod mutate;
mod queues;
mod scratch;
mod snapshot;
mod transport;
mod vsock;
mod window;

use std::path::Path;

pub use mutate::Mutator;

/// Something that reads what it cannot trust.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its file in corpus/.
    pub name: &'static str,
    /// Feeds it an input.
    pub run: fn(&[u8]),
    /// Valid inputs, made by what usually makes them: always of the current format.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    /// Its seeds, and what fuzzing has found so far that goes new ways: the file in corpus/, in which
    /// each input stands behind its length, two bytes, little-endian.
    pub fn inputs(&self) -> Vec<Vec<u8>> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name);
        let found = std::fs::read(file).unwrap_or_default();
        let mut found = input::Input(&found);
        let mut inputs = (self.seeds)();
        while !found.is_empty() {
            let len = found.u16();
            inputs.push(found.bytes(len.into()).to_vec());
        }
        inputs
    }
}

/// All of them.
pub const TARGETS: [Target; 20] = [
    Target { name: "transport", run: transport::run, seeds: transport::seeds },
    Target { name: "rng_queue", run: queues::rng, seeds: queues::seeds },
    Target { name: "net_queue", run: queues::net, seeds: queues::seeds },
    Target { name: "fs_queue", run: queues::fs, seeds: queues::seeds },
    Target { name: "vsock_queue", run: queues::vsock, seeds: queues::seeds },
    Target { name: "vsock_packets", run: vsock::run, seeds: vsock::seeds },
    Target { name: "vsock_saved", run: vsock::saved, seeds: vsock::saved_seeds },
    Target { name: "fuse_replies", run: fuse::replies, seeds: fuse::reply_seeds },
    Target { name: "fuse_requests", run: fuse::requests, seeds: fuse::request_seeds },
    Target { name: "fuse_saved", run: fuse::saved, seeds: fuse::saved_seeds },
    Target { name: "fs_window", run: window::run, seeds: window::seeds },
    Target { name: "kernel_file", run: kernel::run, seeds: kernel::seeds },
    Target { name: "snapshot", run: snapshot::run, seeds: snapshot::seeds },
    Target { name: "kernel_log", run: snapshot::kernel_log, seeds: snapshot::kernel_log_seeds },
    Target { name: "vm_spec", run: documents::vm_spec, seeds: documents::vm_spec_seeds },
    Target { name: "bundle", run: documents::bundle, seeds: documents::bundle_seeds },
    Target { name: "image_documents", run: images::documents, seeds: images::document_seeds },
    Target { name: "image_layer", run: images::layer, seeds: images::layer_seeds },
    Target { name: "control", run: control::run, seeds: control::seeds },
    Target { name: "agent", run: agent::run, seeds: agent::seeds },
];
