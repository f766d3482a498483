//! Container images: what may be named, a content-addressed store on disk, and the root file
//! system of a container made from it. Knows OCI images and files; no VM, no KVM, no network.
//!
//! ```text
//! reference ─▶ layout directory │ archive ─▶ image (manifest, configuration, layers; all checked)
//!                                              │ decompress, hash, unpack: one pass
//!                                              ▼
//!           store: names/ ─▶ blobs/ (configuration) ─▶ layers/ ─▶ overlay of a container
//! ```
//!
//! Everything read from an image is hostile: digests and sizes are verified while streaming,
//! documents and counts are bounded ([`limits`]), and no path of a layer reaches outside the
//! directory it is unpacked to ([`unpack`]).

mod compression;
pub mod config;
mod copy;
pub mod digest;
pub mod import;
pub mod layer;
pub mod limits;
mod measured;
pub mod overlay;
pub mod reference;
pub mod source;
pub mod store;
mod tarfile;
pub mod unpack;
pub mod user;

#[cfg(test)]
mod testing;
