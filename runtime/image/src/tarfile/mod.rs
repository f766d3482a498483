//! Reads tar archives member by member: POSIX.1-1988 and pax, GNU long names and sparse files.
//!
//! The `tar` crate decodes the headers. What goes from header to header is done here, because that
//! crate reads long names and pax headers of any size into memory, and takes a binary extended
//! attribute with a newline in it for a malformed one. Where archives can be read in two ways, this
//! one follows Go's archive/tar, with which images are made.

mod pax;
mod sparse;

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use crate::limits::{FILE_BYTES_MAX, PATH_MAX, PAX_MAX};
use pax::Pax;

/// Bytes of a block: headers are one, data is padded to them.
const BLOCK: u64 = 512;

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Of the reader below.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The archive ends inside a header or a file.
    #[error("it ends in the middle of a member")]
    Truncated,
    /// A header's checksum is wrong, or a number is not one.
    #[error("it has a malformed header: {0}")]
    Header(String),
    /// A header that is longer than any real one.
    #[error("it has a {kind} of {size} bytes; {max} are the most")]
    TooLong {
        /// What is too long.
        kind: &'static str,
        /// What was announced.
        size: u64,
        /// What is allowed.
        max: u64,
    },
    /// Written while a file was unpacked.
    #[error("a file cannot be written: {0}")]
    Write(#[source] io::Error),
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Regular,
    Directory,
    Symlink,
    Hardlink,
    Fifo,
    /// A character or block device.
    Device,
}

/// A piece of data of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    offset: u64,
    length: u64,
}

/// A member of an archive. Nothing in it has been checked beyond its syntax.
#[derive(Clone, Debug)]
pub struct Member {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// The low twelve bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since the Unix epoch.
    pub mtime: (i64, u32),
    /// Bytes of a regular file, holes included.
    pub size: u64,
    /// Name and value, of those in `SCHILY.xattr.` records.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pieces: Vec<Piece>,
    /// Where its data begins in the archive, bytes.
    pub position: u64,
}

impl Member {
    /// Bytes of data that the archive holds for it.
    pub fn stored(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.length))
    }
}

/// The members of an archive.
pub struct Members<R> {
    source: R,
    /// Bytes of the current member's data and padding that were not read yet.
    left: u64,
    position: u64,
}

fn malformed(what: impl ToString) -> TarError {
    TarError::Header(what.to_string())
}

impl<R: Read> Members<R> {
    /// The members of the archive that `source` holds.
    pub fn new(source: R) -> Self {
        Self { source, left: 0, position: 0 }
    }

    /// The next member; `None` after the last.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let (mut long_path, mut long_link, mut pax) = (None, None, Pax::default());
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                let begun = long_path.is_some() || long_link.is_some() || pax != Pax::default();
                return if begun { Err(TarError::Truncated) } else { Ok(None) };
            };
            let size = header.entry_size().map_err(malformed)?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    long_path = Some(self.text(size, "path")?);
                }
                EntryType::GNULongLink => {
                    long_link = Some(self.text(size, "link target")?);
                }
                EntryType::XHeader => {
                    pax = Pax::parse(&self.extension(size, "pax header", PAX_MAX)?)?;
                }
                // Defaults for all that follows: Go's reader leaves them to the caller, and no
                // engine applies them.
                EntryType::XGlobalHeader => {
                    self.extension(size, "pax header", PAX_MAX)?;
                }
                _ => return self.member(&header, long_path, long_link, pax).map(Some),
            }
        }
    }

    /// Writes the data of a regular file just returned; holes stay holes.
    pub fn copy(&mut self, member: &Member, file: &mut std::fs::File) -> Result<(), TarError> {
        use std::io::{Seek, SeekFrom};
        let mut buffer = vec![0; 64 << 10];
        for piece in &member.pieces {
            file.seek(SeekFrom::Start(piece.offset)).map_err(TarError::Write)?;
            let mut left = piece.length;
            while left > 0 {
                let length = left.min(buffer.len() as u64) as usize;
                self.exactly(&mut buffer[..length])?;
                self.left = self.left.saturating_sub(length as u64);
                file.write_all(&buffer[..length]).map_err(TarError::Write)?;
                left -= length as u64;
            }
        }
        file.set_len(member.size).map_err(TarError::Write)
    }

    /// Where the current member ends, bytes from where this began.
    pub fn end(&self) -> u64 {
        self.position + self.left
    }

    fn member(
        &mut self,
        header: &Header,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: Pax,
    ) -> Result<Member, TarError> {
        let path = pax.path.or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax.linkpath.or(long_link);
        let link = link.or_else(|| Some(header.link_name_bytes()?.into_owned()));
        let mut member = Member {
            kind: kind(header.entry_type(), &path),
            path,
            link: link.unwrap_or_default(),
            mode: header.mode().map_err(malformed)? & 0o7777,
            uid: id(pax.uid, || header.uid())?,
            gid: id(pax.gid, || header.gid())?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (header.mtime().map_err(malformed)? as i64, 0),
            },
            size: 0,
            xattrs: pax.xattrs,
            pieces: Vec::new(),
            position: self.position,
        };
        // As Go has it, links, directories and the like have no data, whatever their size says.
        if member.kind != Kind::Regular {
            return Ok(member);
        }
        let stored = match pax.size {
            Some(size) => size,
            None => header.entry_size().map_err(malformed)?,
        };
        self.left = stored.checked_next_multiple_of(BLOCK).ok_or_else(|| malformed("size"))?;
        if header.entry_type() == EntryType::GNUSparse {
            self.gnu_sparse(header, stored, &mut member)?;
        } else if pax.sparse.any {
            self.pax_sparse(pax.sparse, stored, &mut member)?;
        } else {
            member.size = stored;
            member.pieces = vec![Piece { offset: 0, length: stored }];
        }
        if member.size > FILE_BYTES_MAX {
            let (size, max) = (member.size, FILE_BYTES_MAX);
            return Err(TarError::TooLong { kind: "file", size, max });
        }
        Ok(member)
    }

    /// The next header; `None` at the archive's end, which is a block of zeros, or nothing at all.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = block.iter().enumerate().fold(0u32, |sum, (at, byte)| {
            // The checksum's own field counts as spaces.
            sum + u32::from(if (148..156).contains(&at) { b' ' } else { *byte })
        });
        match header.cksum() {
            Ok(said) if said == sum => Ok(Some(header)),
            Ok(_) => Err(malformed("its checksum is wrong")),
            Err(error) => Err(malformed(error)),
        }
    }

    /// A GNU long name: everything up to its NUL.
    fn text(&mut self, size: u64, kind: &'static str) -> Result<Vec<u8>, TarError> {
        let mut text = self.extension(size, kind, PATH_MAX + 1)?;
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        Ok(text)
    }

    fn extension(&mut self, size: u64, kind: &'static str, max: u64) -> Result<Vec<u8>, TarError> {
        if size > max {
            return Err(TarError::TooLong { kind, size, max });
        }
        let mut data = vec![0; size as usize];
        self.exactly(&mut data)?;
        self.left = size.next_multiple_of(BLOCK) - size;
        Ok(data)
    }

    fn exactly(&mut self, data: &mut [u8]) -> Result<(), TarError> {
        self.source.read_exact(data).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated,
            _ => TarError::Read(error),
        })?;
        self.position += data.len() as u64;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let skipped = io::copy(&mut (&mut self.source).take(self.left), &mut io::sink())?;
        if skipped < self.left {
            return Err(TarError::Truncated);
        }
        self.position += skipped;
        self.left = 0;
        Ok(())
    }
}

fn kind(entry_type: EntryType, path: &[u8]) -> Kind {
    match entry_type {
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        // Before POSIX a directory was a file whose name ends in a slash.
        _ if path.ends_with(b"/") => Kind::Directory,
        _ => Kind::Regular,
    }
}

/// A user or group; all ones means "nobody said" to chown(2).
fn id(pax: Option<u64>, header: impl Fn() -> io::Result<u64>) -> Result<u32, TarError> {
    let id = match pax {
        Some(id) => id,
        None => header().map_err(malformed)?,
    };
    let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| malformed("a user or group above 4294967294"))
}

#[cfg(test)]
mod tests;
