//! A weight matrix inside the model file's bytes, and its two layouts.
//!
//! Block formats are rearranged in place, once, at load: the same blocks of four neighbouring rows are
//! woven together, so that one vector instruction serves four rows (`kernels` says how). Nothing grows
//! but `TQ1_0`, which is unpacked to the `TQ2_0` layout. Other types stay as the file has them.
//! Promises that a row read back is bit for bit what `quant::dequantise` gave before weaving.
//!
//! Woven layouts, for rows 4g .. 4g+3 and each block in turn (d, m are half-precision numbers, one for
//! each row): `Q4_0` [4 d][64 bytes], `Q4_1` [4 d][4 m][64 bytes], `Q8_0` [4 d][128 bytes], `TQ2_0`
//! [4 d][256 bytes]. In the bytes, 16-bit lane 2r+p of a 16-byte vector belongs to row r and column
//! parity p; its n-th field (4 or 2 bits) is column 2n+p of the vector's 8 or 16 columns. `Q8_0` has
//! 8 bytes for each pair of columns, again row by row.

use crate::bytes::u16_at;
use crate::error::{filled, Result};
use crate::gguf::Tensor;
use crate::math::half;
use crate::quant::{dequantise, ternary, Type};
use alloc::vec::Vec;

/// How the bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As the file has it.
    Plain(Type),
    /// Woven 4-bit numbers without a least value.
    Four,
    /// Woven 4-bit numbers with a least value.
    FourMin,
    /// Woven 8-bit numbers.
    Eight,
    /// Woven ternary numbers.
    Two,
}

/// A matrix of `rows` outputs by `cols` inputs.
pub struct Matrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The layout.
    pub form: Form,
    at: usize,
    size: usize,
    own: Option<Vec<u8>>,
}

impl Matrix {
    /// Take a tensor of `file` as a matrix, and weave it where its type allows.
    ///
    /// With `rotary` = the size of a head, rows are first put back from the order that GGUF keeps for
    /// rotary embeddings (pairs side by side) to the order of transformers (two halves).
    pub fn take(file: &mut [u8], tensor: &Tensor, rotary: Option<usize>) -> Result<Matrix> {
        let (rows, cols, kind) = (tensor.rows, tensor.cols, tensor.kind);
        let mut matrix = Matrix { rows, cols, form: Form::Plain(kind), at: tensor.at, size: tensor.size, own: None };
        let bytes = &mut file[tensor.at..tensor.at + tensor.size];
        let row = tensor.size / rows;
        if let Some(head) = rotary {
            unrotate(bytes, row, head)?;
        }
        if rows % 4 != 0 {
            return Ok(matrix);
        }
        matrix.form = match kind {
            Type::Q4_0 => Form::Four,
            Type::Q4_1 => Form::FourMin,
            Type::Q8_0 => Form::Eight,
            Type::Tq1 | Type::Tq2 => Form::Two,
            _ => return Ok(matrix),
        };
        let woven = row / kind.bytes() * matrix.form.stride();
        let mut spare = filled(4 * row, 0u8)?;
        let mut own = if kind == Type::Tq1 { filled(rows / 4 * woven, 0u8)? } else { Vec::new() };
        for group in 0..rows / 4 {
            let four = &mut bytes[group * 4 * row..(group + 1) * 4 * row];
            spare.copy_from_slice(four);
            let to = if kind == Type::Tq1 { &mut own[group * woven..(group + 1) * woven] } else { four };
            weave(kind, &spare, to);
        }
        if kind == Type::Tq1 {
            matrix.own = Some(own);
        }
        Ok(matrix)
    }

    /// The matrix's bytes.
    pub fn bytes<'a>(&'a self, file: &'a [u8]) -> &'a [u8] {
        match &self.own {
            Some(own) => own,
            None => &file[self.at..self.at + self.size],
        }
    }

    /// Write row `row` as float32 to `out`, which has `cols` places.
    pub fn row(&self, file: &[u8], row: usize, out: &mut [f32]) {
        let bytes = self.bytes(file);
        if let Form::Plain(kind) = self.form {
            let size = self.cols / kind.block() * kind.bytes();
            dequantise(kind, &bytes[row * size..(row + 1) * size], out);
            return;
        }
        let stride = self.form.stride();
        let group = self.cols / self.form.block() * stride;
        let bytes = &bytes[row / 4 * group..(row / 4 + 1) * group];
        for (block, values) in bytes.chunks_exact(stride).zip(out.chunks_exact_mut(self.form.block())) {
            unweave(self.form, block, row % 4, values);
        }
    }
}

impl Form {
    /// Columns of a block.
    pub fn block(self) -> usize {
        match self {
            Form::Plain(kind) => kind.block(),
            Form::Two => 256,
            _ => 32,
        }
    }

    /// Bytes of a block of four rows woven together.
    pub fn stride(self) -> usize {
        match self {
            Form::Plain(kind) => 4 * kind.bytes(),
            Form::Four => 72,
            Form::FourMin => 80,
            Form::Eight => 136,
            Form::Two => 264,
        }
    }
}

fn unrotate(bytes: &mut [u8], row: usize, head: usize) -> Result<()> {
    let mut spare = filled(row * head, 0u8)?;
    for rows in bytes.chunks_exact_mut(row * head) {
        spare.copy_from_slice(rows);
        for j in 0..head / 2 {
            for side in 0..2 {
                let (from, to) = (2 * j + side, side * (head / 2) + j);
                rows[to * row..(to + 1) * row].copy_from_slice(&spare[from * row..(from + 1) * row]);
            }
        }
    }
    Ok(())
}

/// Weave four rows of blocks, one after the other in `from`, into `to`.
fn weave(kind: Type, from: &[u8], to: &mut [u8]) {
    let (size, row) = (kind.bytes(), from.len() / 4);
    let stride = to.len() / (row / size);
    for (block, out) in to.chunks_exact_mut(stride).enumerate() {
        out.fill(0);
        for r in 0..4 {
            let source = &from[r * row + block * size..][..size];
            let scale = if matches!(kind, Type::Tq1 | Type::Tq2) { size - 2 } else { 0 };
            out[2 * r..2 * r + 2].copy_from_slice(&source[scale..scale + 2]);
            match kind {
                Type::Q4_0 | Type::Q4_1 => {
                    let first = size - 16;
                    if kind == Type::Q4_1 {
                        out[8 + 2 * r..10 + 2 * r].copy_from_slice(&source[2..4]);
                    }
                    for k in 0..32 {
                        let digit = (source[first + (k & 15)] >> ((k >> 4) * 4)) & 15;
                        put(&mut out[4 * first..], k, r, 4, digit);
                    }
                }
                Type::Q8_0 => {
                    for k in 0..32 {
                        out[8 + (k >> 1) * 8 + 2 * r + (k & 1)] = source[2 + k];
                    }
                }
                _ => {
                    let mut digits = [0u8; 256];
                    ternary(kind, source, &mut digits);
                    for (k, digit) in digits.iter().enumerate() {
                        put(&mut out[8..], k, r, 2, *digit);
                    }
                }
            }
        }
    }
}

/// Where column `k` of row `r` is: the byte, and the shift inside it.
#[inline(always)]
fn place(k: usize, r: usize, bits: usize) -> (usize, usize) {
    let columns = 32 / bits;
    let shift = (k % columns / 2) * bits;
    (k / columns * 16 + 2 * (2 * r + (k & 1)) + shift / 8, shift % 8)
}

fn put(out: &mut [u8], k: usize, r: usize, bits: usize, digit: u8) {
    let (byte, shift) = place(k, r, bits);
    out[byte] |= digit << shift;
}

/// The values of row `r` of one woven block.
fn unweave(form: Form, block: &[u8], r: usize, values: &mut [f32]) {
    let d = half(u16_at(block, 2 * r));
    let digit = |first: usize, k: usize, bits: usize| {
        let (byte, shift) = place(k, r, bits);
        ((block[first + byte] >> shift) & ((1 << bits) - 1)) as i32
    };
    match form {
        Form::Four => values.iter_mut().enumerate().for_each(|(k, v)| *v = d * (digit(8, k, 4) - 8) as f32),
        Form::FourMin => {
            let m = half(u16_at(block, 8 + 2 * r));
            values.iter_mut().enumerate().for_each(|(k, v)| *v = d * digit(16, k, 4) as f32 + m);
        }
        Form::Eight => {
            for (k, value) in values.iter_mut().enumerate() {
                *value = d * (block[8 + (k >> 1) * 8 + 2 * r + (k & 1)] as i8) as f32;
            }
        }
        Form::Two => values.iter_mut().enumerate().for_each(|(k, v)| *v = d * (digit(8, k, 2) - 1) as f32),
        Form::Plain(_) => unreachable!("plain matrices are read by dequantise"),
    }
}
