//! Matrix times activations, forwards, and its transpose, for the backward pass.
//!
//! Forwards, woven matrices are multiplied in whole numbers: activations are rounded to 15 bits and a
//! sign for each 32 of them, so that the result is float32 matter for matter (relative error about
//! 1e-5) and yet as fast as 8-bit schemes on SIMD128, whose dot product is of int16 anyway.
//! Promises that lengths are checked before a pointer is used. Knows no models.

use crate::error::{grow, Result};
use crate::matrix::{Form, Matrix};
use crate::simd::{F4, H8, I4};
use crate::vector::{add_scaled, dot};
use alloc::vec::Vec;

/// Columns that share one activation scale.
const BLOCK: usize = 32;

/// Activations of `count` tokens, rounded for the whole-number kernels.
#[derive(Default)]
pub struct Rounded {
    numbers: Vec<i16>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

impl Rounded {
    /// Round `x`, rows of `cols` numbers (a multiple of 32).
    pub fn set(&mut self, x: &[f32]) -> Result<()> {
        let blocks = x.len() / BLOCK;
        grow(&mut self.numbers, x.len(), 0)?;
        grow(&mut self.scales, blocks, 0.0)?;
        grow(&mut self.sums, blocks, 0.0)?;
        for (b, values) in x.chunks_exact(BLOCK).enumerate() {
            let mut most = F4::zero();
            for four in values.chunks_exact(4) {
                most = most.max(unsafe { F4::load(four.as_ptr()) }.abs());
            }
            let most = most.lanes().iter().fold(0f32, |a, &b| if b > a { b } else { a });
            // Below this the inverse is infinite; what is not finite must stay so, for training to notice.
            let (scale, inverse) = if most > 1e-30 { (most / 32767.0, 32767.0 / most) } else { (0.0, 0.0) };
            let (mut sum, mut odd) = (0i32, !most.is_finite());
            for (number, &value) in self.numbers[b * BLOCK..].iter_mut().zip(values) {
                let scaled = value * inverse;
                let rounded = (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32;
                *number = rounded as i16;
                sum += rounded;
                odd |= value.is_nan();
            }
            let scale = if odd { f32::NAN } else { scale };
            self.scales[b] = scale;
            self.sums[b] = sum as f32 * scale;
        }
        Ok(())
    }
}

/// Buffers that products reuse.
#[derive(Default)]
pub struct Workspace {
    rounded: Rounded,
    panel: Vec<f32>,
    small: Vec<f32>,
}

impl Workspace {
    /// Two small vectors of `rank` numbers.
    pub fn small(&mut self, rank: usize) -> Result<(&mut [f32], &mut [f32])> {
        grow(&mut self.small, 2 * rank, 0.0)?;
        let (a, b) = self.small.split_at_mut(rank);
        Ok((a, &mut b[..rank]))
    }
}

/// One layout of woven blocks: how to get at eight columns of four rows.
trait Woven {
    const STRIDE: usize;
    /// Activation blocks (32 columns) in one weight block.
    const PARTS: usize;
    /// Eight columns `8c ..` of part `part`: four vectors of two columns each.
    unsafe fn columns(block: *const u8, part: usize, c: usize) -> [H8; 4];
    /// What is added for each unit of the activations' sum, given the scales d.
    unsafe fn least(block: *const u8, d: F4) -> Option<F4>;
}

struct Four;
struct FourMin;
struct Eight;
struct Two;

#[inline(always)]
unsafe fn nibbles(from: *const u8) -> [H8; 4] {
    let v = H8::load(from);
    [v.bits::<0, 15>(), v.bits::<4, 15>(), v.bits::<8, 15>(), v.bits::<12, 15>()]
}

impl Woven for Four {
    const STRIDE: usize = 72;
    const PARTS: usize = 1;
    #[inline(always)]
    unsafe fn columns(block: *const u8, _: usize, c: usize) -> [H8; 4] {
        nibbles(block.add(8 + 16 * c))
    }
    #[inline(always)]
    unsafe fn least(_: *const u8, d: F4) -> Option<F4> {
        Some(d.mul(F4::splat(-8.0)))
    }
}

impl Woven for FourMin {
    const STRIDE: usize = 80;
    const PARTS: usize = 1;
    #[inline(always)]
    unsafe fn columns(block: *const u8, _: usize, c: usize) -> [H8; 4] {
        nibbles(block.add(16 + 16 * c))
    }
    #[inline(always)]
    unsafe fn least(block: *const u8, _: F4) -> Option<F4> {
        Some(F4::load_half(block.add(8)))
    }
}

impl Woven for Eight {
    const STRIDE: usize = 136;
    const PARTS: usize = 1;
    #[inline(always)]
    unsafe fn columns(block: *const u8, _: usize, c: usize) -> [H8; 4] {
        let from = block.add(8 + 32 * c);
        [
            H8::load_bytes(from),
            H8::load_bytes(from.add(8)),
            H8::load_bytes(from.add(16)),
            H8::load_bytes(from.add(24)),
        ]
    }
    #[inline(always)]
    unsafe fn least(_: *const u8, _: F4) -> Option<F4> {
        None
    }
}

impl Woven for Two {
    const STRIDE: usize = 264;
    const PARTS: usize = 8;
    #[inline(always)]
    unsafe fn columns(block: *const u8, part: usize, c: usize) -> [H8; 4] {
        let v = H8::load(block.add(8 + 32 * part + 16 * (c / 2)));
        if c % 2 == 0 {
            [v.bits::<0, 3>(), v.bits::<2, 3>(), v.bits::<4, 3>(), v.bits::<6, 3>()]
        } else {
            [v.bits::<8, 3>(), v.bits::<10, 3>(), v.bits::<12, 3>(), v.bits::<14, 3>()]
        }
    }
    #[inline(always)]
    unsafe fn least(_: *const u8, d: F4) -> Option<F4> {
        Some(d.mul(F4::splat(-1.0)))
    }
}

/// `out[t][4g + r]` for T tokens from `t` and G row groups from `g`.
///
/// # Safety
/// The caller has checked that all of it lies inside `bytes`, `x` and `out`.
#[inline(always)]
unsafe fn tile<W: Woven, const G: usize, const T: usize>(
    bytes: *const u8, x: &Rounded, cols: usize, rows: usize, g: usize, t: usize, out: *mut f32,
) {
    let blocks = cols / (BLOCK * W::PARTS);
    let activation_blocks = cols / BLOCK;
    let mut total = [[F4::zero(); T]; G];
    for b in 0..blocks {
        let at: [*const u8; G] = core::array::from_fn(|i| bytes.add(((g + i) * blocks + b) * W::STRIDE));
        for part in 0..W::PARTS {
            let column = (b * W::PARTS + part) * BLOCK;
            let mut whole = [[I4::zero(); T]; G];
            for c in 0..4 {
                let weights: [[H8; 4]; G] = core::array::from_fn(|i| W::columns(at[i], part, c));
                for s in 0..T {
                    let from = x.numbers.as_ptr().add((t + s) * cols + column + 8 * c);
                    for n in 0..4 {
                        let pair = H8::load_pair(from.add(2 * n));
                        for i in 0..G {
                            whole[i][s] = whole[i][s].dot(weights[i][n], pair);
                        }
                    }
                }
            }
            for i in 0..G {
                let d = F4::load_half(at[i]);
                let least = W::least(at[i], d);
                for s in 0..T {
                    let place = (t + s) * activation_blocks + b * W::PARTS + part;
                    let scale = d.mul(F4::load_splat(x.scales.as_ptr().add(place)));
                    total[i][s] = total[i][s].madd(whole[i][s].floats(), scale);
                    if let Some(least) = least {
                        total[i][s] = total[i][s].madd(least, F4::load_splat(x.sums.as_ptr().add(place)));
                    }
                }
            }
        }
    }
    for i in 0..G {
        for s in 0..T {
            total[i][s].store(out.add((t + s) * rows + 4 * (g + i)));
        }
    }
}

fn woven<W: Woven>(bytes: &[u8], x: &Rounded, cols: usize, rows: usize, count: usize, out: &mut [f32]) {
    let groups = rows / 4;
    assert!(bytes.len() == groups * (cols / (BLOCK * W::PARTS)) * W::STRIDE && out.len() >= count * rows);
    assert!(x.numbers.len() >= count * cols && x.scales.len() >= count * cols / BLOCK);
    let (from, to) = (bytes.as_ptr(), out.as_mut_ptr());
    let mut g = 0;
    // SAFETY: the lengths were compared above; every tile stays inside groups and count.
    unsafe {
        while g < groups {
            let pair = g + 2 <= groups;
            let mut t = 0;
            while pair && t + 2 <= count {
                tile::<W, 2, 2>(from, x, cols, rows, g, t, to);
                t += 2;
            }
            if pair && t < count {
                tile::<W, 2, 1>(from, x, cols, rows, g, t, to);
                t += 1;
            }
            while t < count {
                tile::<W, 1, 1>(from, x, cols, rows, g, t, to);
                t += 1;
            }
            g += if pair { 2 } else { 1 };
        }
    }
}

/// `out[t] = W x[t]` for `count` tokens: `x` is (count, cols), `out` (count, rows).
pub fn forward(m: &Matrix, file: &[u8], x: &[f32], count: usize, out: &mut [f32], work: &mut Workspace) -> Result<()> {
    forward_many(&mut [(m, out)], file, x, count, work)
}

/// The same for several matrices that share their input, rounding it once.
pub fn forward_many(
    many: &mut [(&Matrix, &mut [f32])], file: &[u8], x: &[f32], count: usize, work: &mut Workspace,
) -> Result<()> {
    if many.iter().any(|(m, _)| !matches!(m.form, Form::Plain(_))) {
        work.rounded.set(x)?;
    }
    for (m, out) in many.iter_mut() {
        let (bytes, rounded) = (m.bytes(file), &work.rounded);
        match m.form {
            Form::Four => woven::<Four>(bytes, rounded, m.cols, m.rows, count, out),
            Form::FourMin => woven::<FourMin>(bytes, rounded, m.cols, m.rows, count, out),
            Form::Eight => woven::<Eight>(bytes, rounded, m.cols, m.rows, count, out),
            Form::Two => woven::<Two>(bytes, rounded, m.cols, m.rows, count, out),
            Form::Plain(_) => {
                grow(&mut work.panel, m.cols, 0.0)?;
                for row in 0..m.rows {
                    m.row(file, row, &mut work.panel[..m.cols]);
                    for t in 0..count {
                        out[t * m.rows + row] = dot(&work.panel[..m.cols], &x[t * m.cols..(t + 1) * m.cols]);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Rows unpacked at a time on the way back.
const PANEL: usize = 16;

/// `dx[t] += Wᵀ dy[t]` for `count` tokens: `dy` is (count, rows), `dx` (count, cols).
pub fn backward(m: &Matrix, file: &[u8], dy: &[f32], count: usize, dx: &mut [f32], work: &mut Workspace) -> Result<()> {
    let (rows, cols) = (m.rows, m.cols);
    grow(&mut work.panel, PANEL * cols, 0.0)?;
    for first in (0..rows).step_by(PANEL) {
        let deep = PANEL.min(rows - first);
        for r in 0..deep {
            m.row(file, first + r, &mut work.panel[r * cols..(r + 1) * cols]);
        }
        let panel = &work.panel[..deep * cols];
        let mut t = 0;
        while t + 4 <= count && cols % 8 == 0 {
            let (dy, dx) = (&dy[t * rows..(t + 4) * rows], &mut dx[t * cols..(t + 4) * cols]);
            // SAFETY: the slices above are exactly four tokens long, and the panel `deep` rows.
            unsafe { back_tile(panel.as_ptr(), deep, dy.as_ptr().add(first), rows, dx.as_mut_ptr(), cols) };
            t += 4;
        }
        while t < count {
            for r in 0..deep {
                let weight = dy[t * rows + first + r];
                add_scaled(&mut dx[t * cols..(t + 1) * cols], weight, &panel[r * cols..(r + 1) * cols]);
            }
            t += 1;
        }
    }
    Ok(())
}

#[inline(always)]
unsafe fn back_tile(panel: *const f32, deep: usize, dy: *const f32, rows: usize, dx: *mut f32, cols: usize) {
    for k in (0..cols).step_by(8) {
        let at: [*mut f32; 4] = core::array::from_fn(|s| dx.add(s * cols + k));
        let mut sums: [[F4; 2]; 4] = core::array::from_fn(|s| [F4::load(at[s]), F4::load(at[s].add(4))]);
        for r in 0..deep {
            let from = panel.add(r * cols + k);
            let (a, b) = (F4::load(from), F4::load(from.add(4)));
            for (s, sum) in sums.iter_mut().enumerate() {
                let weight = F4::load_splat(dy.add(s * rows + r));
                *sum = [sum[0].madd(a, weight), sum[1].madd(b, weight)];
            }
        }
        for (s, sum) in sums.iter().enumerate() {
            sum[0].store(at[s]);
            sum[1].store(at[s].add(4));
        }
    }
}
