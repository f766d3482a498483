//! What an image may ask for at most. Far above any image in use, low enough to end.

/// Bytes of a manifest, an index or a configuration: what registries accept for a manifest.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// Layers of an image: what overlayfs stacks (OVL_MAX_STACK of fs/overlayfs/params.h) less the
/// writable one.
pub const LAYERS_MAX: usize = 499;
/// Bytes of a layer, unpacked.
pub const LAYER_BYTES_MAX: u64 = 256 << 30;
/// Bytes of one file as it is seen, holes included.
pub const FILE_BYTES_MAX: u64 = 1 << 40;
/// Files, directories and links of a layer.
pub const ENTRIES_MAX: u64 = 4_000_000;
/// Names in a path. Deep trees cost a descriptor a level to remove.
pub const DEPTH_MAX: usize = 256;
/// Bytes of a path: PATH_MAX of linux/limits.h.
pub const PATH_MAX: u64 = 4096;
/// Bytes of a pax header: extended attributes are 64 KiB each at most.
pub const PAX_MAX: u64 = 1 << 20;
/// Pieces of data of a sparse file.
pub const SPARSE_MAX: usize = 100_000;
/// Members of an archive that holds an image.
pub const MEMBERS_MAX: usize = 100_000;
/// Indexes that name indexes.
pub const INDEX_DEPTH_MAX: usize = 4;
