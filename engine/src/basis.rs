//! The fixed directions of a base, U·S and V of every module, as the host hands them over.
//!
//! Layout (little-endian): `WHITBAS1`, u32 rank, u32 modules, the base's fingerprint (32 bytes), the
//! basis's fingerprint (32), CRC-32 of everything after it; then for each module u32 number, u32 out,
//! u32 in, U·S (out × r) and V (in × r) in bfloat16, row by row. `whit.engine.basis` writes it.
//! Promises that sizes agree with the model. Does not compute a basis.

use crate::bytes::{u16_at, Reader};
use crate::checksum::crc32;
use crate::error::{filled, Result};
use crate::fail;
use crate::model::{Sizes, PROJECTIONS};
use alloc::vec::Vec;

/// Directions of one module, each direction in one run of memory.
pub struct Directions {
    /// V, transposed: rank × in.
    pub inward: Vec<f32>,
    /// U·S, transposed: rank × out.
    pub outward: Vec<f32>,
}

/// The directions of a base at one rank.
pub struct Basis {
    /// Directions of a module.
    pub rank: usize,
    /// The fingerprint of the base it was derived from.
    pub base: [u8; 32],
    /// Its own.
    pub fingerprint: [u8; 32],
    /// By module number; none for a module that it leaves out.
    pub modules: Vec<Option<Directions>>,
}

impl Basis {
    /// Read a basis for a model of these sizes.
    pub fn read(bytes: &[u8], sizes: &Sizes) -> Result<Basis> {
        let mut reader = Reader::new(bytes);
        if reader.take(8).map(|magic| magic != b"WHITBAS1").unwrap_or(true) {
            return Err(fail!(Adapter, "not a basis for this engine"));
        }
        let (rank, count) = (reader.u32()? as usize, reader.u32()? as usize);
        let mut fingerprints = [[0u8; 32]; 2];
        for fingerprint in &mut fingerprints {
            fingerprint.copy_from_slice(reader.take(32)?);
        }
        if reader.u32()? != crc32(&bytes[reader.at..]) {
            return Err(fail!(Adapter, "the basis is damaged: its checksum is wrong"));
        }
        let most = sizes.layers * PROJECTIONS;
        if !(1..=64).contains(&rank) || count > most {
            return Err(fail!(Adapter, "a basis of rank {rank} for {count} modules; this model has {most}"));
        }
        let mut modules: Vec<Option<Directions>> = Vec::new();
        modules.resize_with(most, || None);
        for _ in 0..count {
            let (module, out, wide) = (reader.u32()? as usize, reader.u32()? as usize, reader.u32()? as usize);
            if module >= most || sizes.projection(module % PROJECTIONS) != (out, wide) {
                return Err(fail!(WrongBase, "the basis has module {module} as {out} by {wide}; this model does not"));
            }
            let outward = transposed(reader.take(2 * (out * rank) as u64)?, rank)?;
            let inward = transposed(reader.take(2 * (wide * rank) as u64)?, rank)?;
            modules[module] = Some(Directions { inward, outward });
        }
        let [base, fingerprint] = fingerprints;
        Ok(Basis { rank, base, fingerprint, modules })
    }
}

fn transposed(bytes: &[u8], rank: usize) -> Result<Vec<f32>> {
    let length = bytes.len() / 2 / rank;
    let mut all = filled(length * rank, 0f32)?;
    for i in 0..length {
        for k in 0..rank {
            all[k * length + i] = f32::from_bits((u16_at(bytes, 2 * (i * rank + k)) as u32) << 16);
        }
    }
    Ok(all)
}
