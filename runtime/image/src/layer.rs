//! From a layer's file to a directory, in one pass: read, hash, decompress, hash, unpack.

use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;

use crate::compression;
use crate::digest::Digest;
use crate::limits::LAYER_BYTES_MAX;
use crate::measured::Measured;
use crate::unpack::{UnpackError, unpack};

/// Room for a file's header and padding beside its data, however many files there are.
const ARCHIVE_BYTES_MAX: u64 = 2 * LAYER_BYTES_MAX;

/// Why a layer cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Other bytes than the manifest says: damaged or forged.
    #[error(
        "layer {digest} is damaged: its file has {has} bytes of digest {found}, not {size} bytes"
    )]
    Blob {
        /// As the manifest has it.
        digest: Digest,
        /// As the manifest has it.
        size: u64,
        /// What it really is.
        found: Digest,
        /// Bytes there are.
        has: u64,
    },
    /// More bytes than the manifest says.
    #[error("layer {digest} is damaged: its file has more than the {size} bytes it should have")]
    Longer {
        /// As the manifest has it.
        digest: Digest,
        /// As the manifest has it.
        size: u64,
    },
    /// Another archive than the configuration says.
    #[error("layer {diff_id} is not the one the image's configuration means: it holds {found}")]
    DiffId {
        /// As the configuration has it.
        diff_id: Digest,
        /// What it really is.
        found: Digest,
    },
    /// Its archive cannot be decompressed or unpacked.
    #[error("layer {diff_id} cannot be unpacked: {source}")]
    Unpack {
        /// Which.
        diff_id: Digest,
        /// Why.
        source: UnpackError,
    },
    /// The file it is in.
    #[error("layer {diff_id} cannot be read: {source}")]
    Read {
        /// Which.
        diff_id: Digest,
        /// Why.
        source: io::Error,
    },
}

/// Unpacks the layer in `file` into the empty directory `root`, using the directory `trash`.
/// `blob` is what the manifest says of the file. Returns the bytes the layer's files hold.
pub fn extract(
    file: impl Read,
    blob: Option<(Digest, u64)>,
    diff_id: Digest,
    root: OwnedFd,
    trash: OwnedFd,
) -> Result<u64, LayerError> {
    let read = |source| LayerError::Read { diff_id, source };
    let limit = blob.map_or(ARCHIVE_BYTES_MAX, |(_, size)| size);
    let mut file = Measured::new(file, limit);
    let unpacked = decompress_and_unpack(&mut file, root, trash);
    // A damaged file is the reason of whatever else went wrong.
    if let Some((digest, size)) = blob {
        let (found, has) = match file.finish() {
            Ok(measured) => measured,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(LayerError::Longer { digest, size });
            }
            Err(error) => return Err(read(error)),
        };
        if (found, has) != (digest, size) {
            return Err(LayerError::Blob { digest, size, found, has });
        }
    }
    match unpacked {
        Ok((bytes, found)) if found == diff_id => Ok(bytes),
        Ok((_, found)) => Err(LayerError::DiffId { diff_id, found }),
        Err(source) => Err(LayerError::Unpack { diff_id, source }),
    }
}

fn decompress_and_unpack(
    file: &mut impl Read,
    root: OwnedFd,
    trash: OwnedFd,
) -> Result<(u64, Digest), UnpackError> {
    let broken = |error: io::Error| UnpackError::Tar(error.into());
    let plain = compression::plain(BufReader::with_capacity(128 << 10, file)).map_err(broken)?;
    let mut plain = BufReader::new(Measured::new(plain, ARCHIVE_BYTES_MAX));
    let bytes = unpack(&mut plain, root, trash)?;
    // What follows the last member belongs to the layer's digest as well.
    let (digest, _) = plain.into_inner().finish().map_err(broken)?;
    Ok((bytes, digest))
}
