//! The GGUF container: what keys and tensors a file says it holds, and where.
//!
//! Promises that every name, number and extent it hands out lies inside the file, that tensors do not
//! overlap, and that nothing is allocated by a size that a file claims before that size was compared
//! with the file's own length. Knows nothing of what a key or a tensor means.
//! Source: ggml's `docs/gguf.md`, versions 2 and 3.

use crate::bytes::Reader;
use crate::error::Result;
use crate::fail;
use crate::quant::Type;
use alloc::string::String;
use alloc::vec::Vec;

/// A value of a metadata key.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Any whole number or truth value.
    Integer(i128),
    /// Any floating point number.
    Float(f64),
    /// Bytes that should be UTF-8.
    String(&'a [u8]),
    /// A list: the GGUF type of its items, how many, and the bytes from the first item on.
    Array(u32, usize, &'a [u8]),
}

/// A tensor: its extents (fastest first), number type, and bytes `at .. at + size` of the file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name, as UTF-8 (lossy).
    pub name: String,
    /// Columns: the length of one row.
    pub cols: usize,
    /// Rows: the product of the other extents.
    pub rows: usize,
    /// The number type.
    pub kind: Type,
    /// First byte in the file.
    pub at: usize,
    /// Bytes it takes.
    pub size: usize,
}

/// What a file holds.
pub struct Gguf<'a> {
    keys: Vec<(&'a [u8], Value<'a>)>,
    /// The tensors, in the file's order.
    pub tensors: Vec<Tensor>,
}

const MOST_KEYS: u64 = 1 << 16;
const MOST_TENSORS: u64 = 1 << 16;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn fixed_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn value<'a>(reader: &mut Reader<'a>, kind: u32) -> Result<Value<'a>> {
    Ok(match kind {
        0 | 7 => Value::Integer(reader.u8()? as i128),
        1 => Value::Integer(reader.u8()? as i8 as i128),
        2 => Value::Integer(reader.u16()? as i128),
        3 => Value::Integer(reader.u16()? as i16 as i128),
        4 => Value::Integer(reader.u32()? as i128),
        5 => Value::Integer(reader.u32()? as i32 as i128),
        6 => Value::Float(reader.f32()? as f64),
        10 => Value::Integer(reader.u64()? as i128),
        11 => Value::Integer(reader.u64()? as i64 as i128),
        12 => Value::Float(f64::from_bits(reader.u64()?)),
        STRING => Value::String(reader.string()?),
        ARRAY => {
            let (item, count) = (reader.u32()?, reader.u64()?);
            let start = reader.at;
            if let Some(size) = fixed_size(item) {
                let total = size.checked_mul(count).ok_or_else(|| fail!(Damaged, "a list of {count} items"))?;
                reader.take(total)?;
            } else if item == STRING {
                for _ in 0..count {
                    reader.string()?; // fails at the file's end, so a false count costs no more than the file
                }
            } else {
                return Err(fail!(Unsupported, "a list of items of type {item}"));
            }
            Value::Array(item, count as usize, &reader.all[start..reader.at])
        }
        other => return Err(fail!(Damaged, "metadata of unknown type {other}")),
    })
}

impl<'a> Gguf<'a> {
    /// Read the head of a file. `file` is all of it.
    pub fn read(file: &'a [u8]) -> Result<Gguf<'a>> {
        let mut reader = Reader::new(file);
        if reader.take(4).map(|magic| magic != b"GGUF").unwrap_or(true) {
            return Err(fail!(Damaged, "not a GGUF file"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(fail!(Unsupported, "GGUF version {version}; this engine reads 2 and 3"));
        }
        let (tensor_count, key_count) = (reader.u64()?, reader.u64()?);
        if tensor_count > MOST_TENSORS || key_count > MOST_KEYS {
            return Err(fail!(Damaged, "{tensor_count} tensors and {key_count} keys are more than any model has"));
        }
        let mut keys = Vec::new();
        for _ in 0..key_count {
            let name = reader.string()?;
            let kind = reader.u32()?;
            keys.push((name, value(&mut reader, kind)?));
        }
        let mut gguf = Gguf { keys, tensors: Vec::new() };
        let mut heads = Vec::new();
        for _ in 0..tensor_count {
            heads.push(head(&mut reader)?);
        }
        let alignment = gguf.integer("general.alignment")?.unwrap_or(32);
        if !(1..=1 << 20).contains(&alignment) {
            return Err(fail!(Damaged, "an alignment of {alignment}"));
        }
        let start = (reader.at as u64).div_ceil(alignment as u64) * alignment as u64;
        for (name, cols, rows, kind, offset) in heads {
            gguf.tensors.push(place(file.len() as u64, start, name, cols, rows, kind, offset)?);
        }
        gguf.check_overlap()?;
        Ok(gguf)
    }

    fn check_overlap(&self) -> Result<()> {
        let mut order: Vec<&Tensor> = self.tensors.iter().collect();
        order.sort_by_key(|tensor| (tensor.at, tensor.size));
        for pair in order.windows(2) {
            if pair[0].at + pair[0].size > pair[1].at {
                return Err(fail!(Damaged, "tensors {} and {} overlap", pair[0].name, pair[1].name));
            }
        }
        Ok(())
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.keys.iter().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| *value)
    }

    /// All keys whose value is a string, in the file's order.
    pub fn texts(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + '_ {
        self.keys.iter().filter_map(|(key, value)| match value {
            Value::String(text) => Some((*key, *text)),
            _ => None,
        })
    }

    /// A whole number, if the key is there.
    pub fn integer(&self, key: &str) -> Result<Option<i128>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => Ok(Some(number)),
            Some(_) => Err(fail!(Damaged, "{key} is not a whole number")),
        }
    }

    /// A whole number between `least` and `most`; `default` where the key is absent.
    pub fn count(&self, key: &str, least: usize, most: usize, default: Option<usize>) -> Result<usize> {
        match (self.integer(key)?, default) {
            (Some(n), _) if n >= least as i128 && n <= most as i128 => Ok(n as usize),
            (Some(n), _) => Err(fail!(Damaged, "{key} is {n}; expected {least} to {most}")),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(fail!(Damaged, "{key} is missing")),
        }
    }

    /// A floating point number, if the key is there.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(number)),
            Some(_) => Err(fail!(Damaged, "{key} is not a finite number")),
        }
    }

    /// A string's bytes, if the key is there.
    pub fn string(&self, key: &str) -> Result<Option<&'a [u8]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(bytes)) => Ok(Some(bytes)),
            Some(_) => Err(fail!(Damaged, "{key} is not a string")),
        }
    }

    /// A list of strings, if the key is there.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a [u8]>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(STRING, count, bytes)) => {
                let mut reader = Reader::new(bytes);
                (0..count).map(|_| reader.string()).collect::<Result<Vec<_>>>().map(Some)
            }
            Some(_) => Err(fail!(Damaged, "{key} is not a list of strings")),
        }
    }

    /// A list of 32-bit whole numbers, if the key is there.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(4 | 5, count, bytes)) => {
                let mut reader = Reader::new(bytes);
                (0..count).map(|_| reader.u32().map(|n| n as i32)).collect::<Result<Vec<_>>>().map(Some)
            }
            Some(_) => Err(fail!(Damaged, "{key} is not a list of whole numbers")),
        }
    }
}

type Head = (String, u64, u64, u32, u64);

fn head(reader: &mut Reader) -> Result<Head> {
    let name = String::from_utf8_lossy(reader.string()?).into_owned();
    let dimensions = reader.u32()?;
    if !(1..=4).contains(&dimensions) {
        return Err(fail!(Damaged, "tensor {name} has {dimensions} dimensions"));
    }
    let cols = reader.u64()?;
    let mut rows = 1u64;
    for _ in 1..dimensions {
        rows = rows.checked_mul(reader.u64()?).ok_or_else(|| fail!(Damaged, "tensor {name} is too large"))?;
    }
    Ok((name, cols, rows, reader.u32()?, reader.u64()?))
}

fn place(file: u64, start: u64, name: String, cols: u64, rows: u64, kind: u32, offset: u64) -> Result<Tensor> {
    let kind = Type::from_number(kind).ok_or_else(|| fail!(Unsupported, "tensor {name} is of number type {kind}"))?;
    let (block, bytes) = (kind.block() as u64, kind.bytes() as u64);
    if cols == 0 || rows == 0 || cols % block != 0 {
        return Err(fail!(Damaged, "tensor {name} of {rows} rows by {cols} does not fit its number type"));
    }
    let end = (cols / block)
        .checked_mul(bytes)
        .and_then(|row| row.checked_mul(rows))
        .and_then(|size| Some((start.checked_add(offset)?, size)))
        .filter(|(at, size)| at.checked_add(*size).is_some_and(|end| end <= file));
    match end {
        Some((at, size)) => {
            Ok(Tensor { name, cols: cols as usize, rows: rows as usize, kind, at: at as usize, size: size as usize })
        }
        None => Err(fail!(Damaged, "tensor {name} lies beyond the end of the file; was it cut short?")),
    }
}
