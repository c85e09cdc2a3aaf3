//! The compact adapter file, read and written; the twin of `whit.adapters.compact`, which draws it.
//!
//! Promises that every length is compared with the file's own before anything is allocated, and that an
//! adapter of another base or basis is refused.

use crate::adapter::{Adapter, Kind};
use crate::basis::Basis;
use crate::bytes::{f32_at, u16_at, Reader};
use crate::checksum::crc32;
use crate::error::Result;
use crate::fail;
use crate::math::half;
use crate::model::PROJECTIONS;
use alloc::rc::Rc;
use alloc::vec::Vec;

const HEADER: usize = 34;
const MOST_NUMBERS: usize = 1 << 22;
const MAP: u8 = 0x80;

fn targets_of(mask: u8, layers: usize) -> Vec<usize> {
    (0..layers * PROJECTIONS).filter(|module| mask >> (module % PROJECTIONS) & 1 == 1).collect()
}

/// Read a compact file for a model of `layers` layers, along one of `bases`.
pub fn read(bytes: &[u8], layers: usize, bases: &[Rc<Basis>]) -> Result<Adapter> {
    if bytes.len() < HEADER + 4 || &bytes[..4] != b"whit" {
        return Err(fail!(Adapter, "not a whit adapter, or one that was cut short"));
    }
    let (body, sum) = bytes.split_at(bytes.len() - 4);
    if crc32(body).to_le_bytes() != sum {
        return Err(fail!(Adapter, "the adapter's checksum is wrong: it was damaged on its way"));
    }
    let mut reader = Reader::new(body);
    reader.take(4)?;
    let (version, kind, number) = (reader.u8()?, reader.u8()?, reader.u8()?);
    let (rank, mask, its_layers) = (reader.u8()? as usize, reader.u8()?, reader.u8()? as usize);
    let (seed, groups, count) = (reader.u16()? as u64, reader.u16()? as usize, reader.u32()? as usize);
    let (base, fingerprint) = (reader.take(8)?, reader.take(8)?);
    let kind = match kind {
        1 => Kind::Tiny,
        2 => Kind::Xs,
        other => return Err(fail!(Adapter, "an adapter of unknown kind {other}")),
    };
    if version != 1 || !(1..=3).contains(&number) || count > MOST_NUMBERS {
        return Err(fail!(Adapter, "an adapter of version {version}, number type {number}, {count} numbers"));
    }
    if its_layers != layers || !bases.iter().any(|basis| basis.base[..8] == *base) {
        return Err(fail!(WrongBase, "the adapter was made for another base"));
    }
    let basis = bases
        .iter()
        .find(|basis| basis.rank == rank && basis.fingerprint[..8] == *fingerprint)
        .ok_or_else(|| fail!(WrongBasis, "the adapter moves along a basis of rank {rank} that is not loaded"))?;
    let targets = if mask & MAP != 0 {
        let length = reader.u16()? as u64;
        let map = reader.take(length)?;
        (0..map.len() * 8).filter(|module| map[module / 8] >> (module % 8) & 1 == 1).collect()
    } else {
        targets_of(mask, layers)
    };
    let size = if number == 3 { 4 } else { 2 };
    if reader.left() != count * size {
        return Err(fail!(Adapter, "the adapter has {} bytes of payload for {count} numbers", reader.left()));
    }
    let payload = reader.take((count * size) as u64)?;
    let mut adapter = Adapter::vector(kind, basis.clone(), targets, count, groups, seed)?;
    for (i, value) in adapter.numbers.iter_mut().enumerate() {
        *value = match number {
            1 => f32::from_bits((u16_at(payload, 2 * i) as u32) << 16),
            2 => half(u16_at(payload, 2 * i)),
            _ => f32_at(payload, 4 * i),
        };
    }
    if adapter.numbers.iter().any(|value| !value.is_finite()) {
        return Err(fail!(Adapter, "the adapter holds NaN or infinite numbers"));
    }
    adapter.refresh();
    Ok(adapter)
}

/// The compact file of a `tiny` or `xs` adapter; in bfloat16, or with `exact` in float32.
pub fn write(adapter: &Adapter, layers: usize, exact: bool) -> Result<Vec<u8>> {
    let Some(basis) = adapter.basis() else {
        return Err(fail!(Usage, "a LoRA has no compact file; read its numbers instead"));
    };
    let fits = layers <= 255 && adapter.groups <= 0xFFFF && adapter.seed <= 0xFFFF;
    if !fits || adapter.numbers.len() > MOST_NUMBERS || adapter.numbers.iter().any(|value| !value.is_finite()) {
        return Err(fail!(Adapter, "this adapter does not fit a compact file"));
    }
    let mask = adapter.targets.iter().fold(0u8, |mask, module| mask | 1 << (module % PROJECTIONS));
    let regular = targets_of(mask, layers) == adapter.targets;
    let mut out = Vec::new();
    out.extend_from_slice(b"whit");
    let number = if exact { 3 } else { 1 };
    let mask = if regular { mask } else { MAP };
    out.extend_from_slice(&[1, adapter.kind as u8, number, adapter.rank as u8, mask, layers as u8]);
    out.extend_from_slice(&(adapter.seed as u16).to_le_bytes());
    out.extend_from_slice(&(adapter.groups as u16).to_le_bytes());
    out.extend_from_slice(&(adapter.numbers.len() as u32).to_le_bytes());
    out.extend_from_slice(&basis.base[..8]);
    out.extend_from_slice(&basis.fingerprint[..8]);
    if !regular {
        let mut map = alloc::vec![0u8; adapter.targets.last().map_or(0, |last| last / 8 + 1)];
        adapter.targets.iter().for_each(|module| map[module / 8] |= 1 << (module % 8));
        out.extend_from_slice(&(map.len() as u16).to_le_bytes());
        out.extend_from_slice(&map);
    }
    for value in &adapter.numbers {
        let bits = value.to_bits() as u64;
        match exact {
            true => out.extend_from_slice(&value.to_le_bytes()),
            // To the nearest, ties to even.
            false => out.extend_from_slice(&(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16).to_le_bytes()),
        }
    }
    let sum = crc32(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    Ok(out)
}
