//! What can go wrong, as a number for the host and a sentence for its user.
//!
//! Promises that nothing a file or a host says makes the engine panic: it answers with one of these.

use alloc::string::String;
use alloc::vec::Vec;

/// The class of a failure; the number is what crosses to the host (negated).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host called with something that cannot be: an unknown handle, a length out of range.
    Usage = 1,
    /// The model file is truncated or contradicts itself.
    Damaged = 2,
    /// The model file is well formed, but of a kind that this engine does not run.
    Unsupported = 3,
    /// There is no memory for what was asked.
    Memory = 4,
    /// The adapter or basis file is damaged.
    Adapter = 5,
    /// The adapter or basis was made for another base.
    WrongBase = 6,
    /// The adapter was made along another basis.
    WrongBasis = 7,
    /// Training cannot go on.
    Training = 8,
}

/// A failure: its class, and a sentence that says what happened.
#[derive(Clone, Debug)]
pub struct Error {
    /// The class.
    pub kind: Kind,
    /// What happened, for a person.
    pub message: String,
}

/// The result of everything that can fail.
pub type Result<T> = core::result::Result<T, Error>;

/// Build an [`Error`]: `fail!(Damaged, "tensor {name} ...")`.
#[macro_export]
macro_rules! fail {
    ($kind:ident, $($arg:tt)*) => {
        $crate::error::Error { kind: $crate::error::Kind::$kind, message: alloc::format!($($arg)*) }
    };
}

/// A vector of `count` copies of `value`, or an error where memory does not reach.
pub fn filled<T: Clone>(count: usize, value: T) -> Result<Vec<T>> {
    let mut all = Vec::new();
    all.try_reserve_exact(count).map_err(|_| fail!(Memory, "no memory for {count} values"))?;
    all.resize(count, value);
    Ok(all)
}

/// Make `buffer` hold at least `count` values, keeping what it has.
pub fn grow<T: Clone>(buffer: &mut Vec<T>, count: usize, value: T) -> Result<()> {
    if buffer.len() < count {
        buffer.try_reserve_exact(count - buffer.len()).map_err(|_| fail!(Memory, "no memory for {count} values"))?;
        buffer.resize(count, value);
    }
    Ok(())
}
