//! The number types of GGUF tensors, and their values as float32.
//!
//! Promises the same float32 values as the `gguf` Python package, bit for bit. Knows rows of bytes;
//! nothing of models. Layouts: ggml's `ggml-common.h`.

use crate::bytes::{f32_at, u16_at};
use crate::math::half;

/// A number type that this engine reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 32-bit floats.
    F32,
    /// 16-bit floats (IEEE half).
    F16,
    /// 16-bit floats (the upper half of a float32).
    Bf16,
    /// 32 numbers of 4 bits, one scale.
    Q4_0,
    /// 32 numbers of 4 bits, a scale and a least value.
    Q4_1,
    /// 32 numbers of 8 bits, one scale.
    Q8_0,
    /// 256 numbers of 6 bits in 16 groups.
    Q6K,
    /// 256 ternary numbers, five to a byte.
    Tq1,
    /// 256 ternary numbers, four to a byte.
    Tq2,
}

impl Type {
    /// The type that ggml gives this number.
    pub fn from_number(number: u32) -> Option<Type> {
        Some(match number {
            0 => Type::F32,
            1 => Type::F16,
            2 => Type::Q4_0,
            3 => Type::Q4_1,
            8 => Type::Q8_0,
            14 => Type::Q6K,
            30 => Type::Bf16,
            34 => Type::Tq1,
            35 => Type::Tq2,
            _ => return None,
        })
    }

    /// How many numbers a block has.
    pub fn block(self) -> usize {
        match self {
            Type::F32 | Type::F16 | Type::Bf16 => 1,
            Type::Q4_0 | Type::Q4_1 | Type::Q8_0 => 32,
            Type::Q6K | Type::Tq1 | Type::Tq2 => 256,
        }
    }

    /// How many bytes a block takes.
    pub fn bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::F16 | Type::Bf16 => 2,
            Type::Q4_0 => 18,
            Type::Q4_1 => 20,
            Type::Q8_0 => 34,
            Type::Q6K => 210,
            Type::Tq1 => 54,
            Type::Tq2 => 66,
        }
    }
}

/// The whole numbers of one ternary block (0, 1, 2), whichever of the two layouts it has.
pub fn ternary(kind: Type, block: &[u8], out: &mut [u8; 256]) {
    if kind == Type::Tq2 {
        for (i, value) in out.iter_mut().enumerate() {
            *value = (block[(i >> 7) * 32 + (i & 31)] >> (((i >> 5) & 3) * 2)) & 3;
        }
        return;
    }
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    // Three runs: 32 bytes of five digits, 16 bytes of five, 4 bytes of four.
    for (first, width, digits, to) in [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)] {
        for digit in 0..digits {
            for j in 0..width {
                let shifted = block[first + j].wrapping_mul(POWERS[digit]) as u16;
                out[to + digit * width + j] = ((shifted * 3) >> 8) as u8;
            }
        }
    }
}

/// Write the values of `bytes`, whole blocks of `kind`, to `out`; the lengths must match.
pub fn dequantise(kind: Type, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len() / kind.bytes() * kind.block(), out.len());
    for (block, values) in bytes.chunks_exact(kind.bytes()).zip(out.chunks_exact_mut(kind.block())) {
        match kind {
            Type::F32 => values[0] = f32_at(block, 0),
            Type::F16 => values[0] = half(u16_at(block, 0)),
            Type::Bf16 => values[0] = f32::from_bits((u16_at(block, 0) as u32) << 16),
            Type::Q4_0 => {
                let d = half(u16_at(block, 0));
                for j in 0..16 {
                    values[j] = d * ((block[2 + j] & 15) as i32 - 8) as f32;
                    values[j + 16] = d * ((block[2 + j] >> 4) as i32 - 8) as f32;
                }
            }
            Type::Q4_1 => {
                let (d, m) = (half(u16_at(block, 0)), half(u16_at(block, 2)));
                for j in 0..16 {
                    values[j] = d * (block[4 + j] & 15) as f32 + m;
                    values[j + 16] = d * (block[4 + j] >> 4) as f32 + m;
                }
            }
            Type::Q8_0 => {
                let d = half(u16_at(block, 0));
                for j in 0..32 {
                    values[j] = d * (block[2 + j] as i8) as f32;
                }
            }
            Type::Q6K => six_bits(block, values),
            Type::Tq1 | Type::Tq2 => {
                let mut digits = [0u8; 256];
                ternary(kind, block, &mut digits);
                let d = half(u16_at(block, kind.bytes() - 2));
                for (value, digit) in values.iter_mut().zip(digits) {
                    *value = d * (digit as i32 - 1) as f32;
                }
            }
        }
    }
}

fn six_bits(block: &[u8], values: &mut [f32]) {
    let d = half(u16_at(block, 208));
    for (i, value) in values.iter_mut().enumerate() {
        let (side, quarter, j) = (i >> 7, (i >> 5) & 3, i & 31);
        let low = (block[side * 64 + (quarter & 1) * 32 + j] >> ((quarter >> 1) * 4)) & 15;
        let high = (block[128 + side * 32 + j] >> (quarter * 2)) & 3;
        let scale = block[192 + (i >> 4)] as i8 as f32;
        *value = (d * scale) * ((low | high << 4) as i32 - 32) as f32;
    }
}
