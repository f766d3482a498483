//! OCI bundles: what a container engine hands over, and what becomes of it.
//!
//! ```text
//! config.json ── Bundle::load ──▶ Bundle (checked) ── plan ──▶ VmSpec for the host
//!                                     │                        ContainerSpec for the guest
//!                                     └── cgroup ─────────────▶ limits around VMM and fs worker
//! ```

pub mod bundle;
pub mod cgroup;
pub mod plan;
#[cfg(test)]
pub mod testing;
