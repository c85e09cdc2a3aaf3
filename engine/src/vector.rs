//! Sums, norms and the like over float32 slices, four at a time.
//!
//! Promises that slices of different lengths are cut to the shorter one, never read beyond.

use crate::math::{exp, sqrt};
use crate::simd::F4;

/// Σ a·b.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let count = a.len().min(b.len());
    let (mut x, mut y) = (F4::zero(), F4::zero());
    let mut i = 0;
    // SAFETY: i stays below count, the shorter of the lengths.
    unsafe {
        while i + 8 <= count {
            x = x.madd(F4::load(a.as_ptr().add(i)), F4::load(b.as_ptr().add(i)));
            y = y.madd(F4::load(a.as_ptr().add(i + 4)), F4::load(b.as_ptr().add(i + 4)));
            i += 8;
        }
    }
    let mut sum = x.add(y).sum();
    while i < count {
        sum += a[i] * b[i];
        i += 1;
    }
    sum
}

/// y += scale · x.
pub fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
    let count = y.len().min(x.len());
    let wide = F4::splat(scale);
    let mut i = 0;
    // SAFETY: i stays below count, the shorter of the lengths.
    unsafe {
        while i + 4 <= count {
            let at = y.as_mut_ptr().add(i);
            F4::load(at).madd(F4::load(x.as_ptr().add(i)), wide).store(at);
            i += 4;
        }
    }
    while i < count {
        y[i] += scale * x[i];
        i += 1;
    }
}

/// out = x / rms(x) · gain; answers 1 / rms.
pub fn rms_norm(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) -> f32 {
    let inverse = 1.0 / sqrt((dot(x, x) / x.len() as f32 + epsilon) as f64) as f32;
    for ((o, &value), &g) in out.iter_mut().zip(x).zip(gain) {
        *o = value * inverse * g;
    }
    inverse
}

/// e to the power x in float32; relative error below 3e-7 for x ≤ 88.
#[inline(always)]
pub fn exp32(x: f32) -> f32 {
    let x = if x < -87.0 { return 0.0 } else if x > 88.0 { 88.0 } else { x };
    const LOG2E: f32 = core::f32::consts::LOG2_E;
    let n = (x * LOG2E + if x < 0.0 { -0.5 } else { 0.5 }) as i32;
    let r = (x - n as f32 * 0.693_359_4) + n as f32 * 2.121_944_4e-4;
    let series = 1.0
        + r * (1.0 + r * (0.5 + r * (1.666_666_6e-1 + r * (4.166_579_6e-2 + r * (8.333_452e-3 + r * 1.398_2e-3)))));
    series * f32::from_bits(((n + 127) as u32) << 23)
}

/// Turn scores into probabilities, in place; answers the logarithm of their sum of exponentials.
pub fn softmax(x: &mut [f32]) -> f32 {
    let most = x.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut sum = 0f64;
    for value in x.iter_mut() {
        *value = exp32(*value - most);
        sum += *value as f64;
    }
    let inverse = (1.0 / sum) as f32;
    for value in x.iter_mut() {
        *value *= inverse;
    }
    most + crate::math::ln(sum) as f32
}

/// x / (1 + e^-x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    if x >= 0.0 {
        1.0 / (1.0 + exp32(-x))
    } else {
        let e = exp32(x);
        e / (1.0 + e)
    }
}

/// The place of the largest number; the first of equals; 0 for none.
pub fn largest(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in x.iter().enumerate() {
        if *value > x[best] {
            best = i;
        }
    }
    best
}

/// e^x in float64, for the few places where the last digits matter.
pub fn exp_exact(x: f32) -> f64 {
    exp(x as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_float32_exact_enough() {
        let mut worst = 0f64;
        for i in -86_000..87_000 {
            let x = i as f32 * 1e-3;
            worst = worst.max((exp32(x) as f64 / (x as f64).exp() - 1.0).abs());
        }
        assert!(worst < 4e-7, "{worst}");
        assert_eq!(exp32(-1000.0), 0.0);
    }
}
