//! Reading little-endian numbers from bytes that nobody vouches for.
//!
//! Promises that every read is checked against the end first, and that no sum of lengths overflows.

use crate::error::Result;
use crate::fail;

/// A position in a slice of bytes; every step forward is checked.
pub struct Reader<'a> {
    /// All the bytes.
    pub all: &'a [u8],
    /// Where the next read begins.
    pub at: usize,
}

macro_rules! number {
    ($name:ident, $type:ty) => {
        /// The next little-endian number.
        pub fn $name(&mut self) -> Result<$type> {
            let bytes = self.take(core::mem::size_of::<$type>() as u64)?;
            let mut buffer = [0u8; core::mem::size_of::<$type>()];
            buffer.copy_from_slice(bytes);
            Ok(<$type>::from_le_bytes(buffer))
        }
    };
}

impl<'a> Reader<'a> {
    /// A reader at the start of `all`.
    pub fn new(all: &'a [u8]) -> Self {
        Reader { all, at: 0 }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.all.len() - self.at
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        if count > self.left() as u64 {
            return Err(fail!(Damaged, "the file ends early: {count} bytes wanted at {}, {} left", self.at, self.left()));
        }
        let start = self.at;
        self.at += count as usize;
        Ok(&self.all[start..self.at])
    }

    number!(u8, u8);
    number!(u16, u16);
    number!(u32, u32);
    number!(u64, u64);
    number!(f32, f32);

    /// A GGUF string: its length in 64 bits, then its bytes.
    pub fn string(&mut self) -> Result<&'a [u8]> {
        let length = self.u64()?;
        self.take(length)
    }
}

/// The little-endian u16 at `at`. The caller has checked the length.
#[inline(always)]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The little-endian f32 at `at`. The caller has checked the length.
#[inline(always)]
pub fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
