//! Sparse files: GNU's old format with its map in the headers, and version 1.0 of its pax format
//! with its map before the data (GNU tar manual, "Storing Sparse Files"). Versions 0.0 and 0.1,
//! which no tar of the last fifteen years writes unless told to, are refused.

use std::io::Read;

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax::Sparse;
use super::{BLOCK, Member, Members, Piece, TarError, malformed};
use crate::limits::SPARSE_MAX;

/// Digits of a number in a version 1.0 map: 64 bits have 20.
const DIGITS_MAX: usize = 20;

/// Pieces in ascending order, as many bytes as are stored, all within the file.
struct Map {
    pieces: Vec<Piece>,
    end: u64,
    bytes: u64,
}

impl Map {
    fn new() -> Self {
        Self { pieces: Vec::new(), end: 0, bytes: 0 }
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), TarError> {
        if self.pieces.len() == SPARSE_MAX {
            let (size, max) = (SPARSE_MAX as u64 + 1, SPARSE_MAX as u64);
            return Err(TarError::TooLong { kind: "sparse map", size, max });
        }
        let end = offset.checked_add(length).filter(|_| offset >= self.end);
        self.end = end.ok_or_else(|| malformed("a sparse map that goes back"))?;
        self.bytes = self.bytes.saturating_add(length);
        self.pieces.push(Piece { offset, length });
        Ok(())
    }

    fn finish(self, stored: u64, size: u64, member: &mut Member) -> Result<(), TarError> {
        if self.bytes != stored || self.end > size {
            return Err(malformed("a sparse map that does not fit its file"));
        }
        (member.pieces, member.size) = (self.pieces, size);
        Ok(())
    }
}

impl<R: Read> Members<R> {
    pub(super) fn gnu_sparse(
        &mut self,
        header: &Header,
        stored: u64,
        member: &mut Member,
    ) -> Result<(), TarError> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse file that is not GNU's"))?;
        let mut map = Map::new();
        push_all(&mut map, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            self.exactly(extension.as_mut_bytes())?;
            push_all(&mut map, &extension.sparse)?;
            more = extension.is_extended();
        }
        map.finish(stored, gnu.real_size().map_err(malformed)?, member)
    }

    pub(super) fn pax_sparse(
        &mut self,
        sparse: Sparse,
        stored: u64,
        member: &mut Member,
    ) -> Result<(), TarError> {
        let (Some(1), Some(size)) = (sparse.major, sparse.real_size) else {
            return Err(malformed("a sparse file of a format other than GNU's 1.0"));
        };
        let mut map = Map::new();
        let mut read = 0;
        for _ in 0..self.map_number(&mut read)? {
            let (offset, length) = (self.map_number(&mut read)?, self.map_number(&mut read)?);
            map.push(offset, length)?;
        }
        let padding = (read.next_multiple_of(BLOCK) - read) as usize;
        self.exactly(&mut [0; BLOCK as usize][..padding])?;
        read += padding as u64;
        let data = stored.checked_sub(read).ok_or_else(|| malformed("a sparse map"))?;
        self.left -= read;
        map.finish(data, size, member)
    }

    /// A decimal number and its newline.
    fn map_number(&mut self, read: &mut u64) -> Result<u64, TarError> {
        let mut digits = String::new();
        loop {
            let mut byte = [0];
            self.exactly(&mut byte)?;
            *read += 1;
            match byte[0] {
                b'\n' => return digits.parse().map_err(|_| malformed("a sparse map")),
                digit if digit.is_ascii_digit() && digits.len() < DIGITS_MAX => {
                    digits.push(digit.into());
                }
                _ => return Err(malformed("a sparse map")),
            }
        }
    }
}

fn push_all(map: &mut Map, pieces: &[GnuSparseHeader]) -> Result<(), TarError> {
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        let number = |number: std::io::Result<u64>| number.map_err(malformed);
        map.push(number(piece.offset())?, number(piece.length())?)?;
    }
    Ok(())
}
