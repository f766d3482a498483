//! End-to-end: real containers in real VMs, on a KVM that can host Linux. See tests/e2e/run.

mod bad_input;
mod checkpoint;
mod checkpoint_network;
mod checkpoint_terminal;
mod clone;
mod containerd;
mod doctor;
mod files;
mod images;
mod jail;
mod late_network;
mod lifecycle;
mod limits;
mod network;
mod oci_config;
mod overlay;
mod passt;
mod podman;
mod podman_checkpoint;
mod podman_network;
mod podman_pod;
mod process;
mod rootless;
mod snapshot;
mod stdio;
mod taken_over;
