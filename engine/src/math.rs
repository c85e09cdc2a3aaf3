//! The few functions of mathematics that `core` lacks, the same to the last bit on every machine.
//!
//! Promises errors below one unit of float32 over the ranges that a model uses. Knows no vectors:
//! the fast path for `exp` over many numbers is in `kernels`.

const LN2: f64 = core::f64::consts::LN_2;

/// e to the power x, for float64; relative error about 1e-14.
pub fn exp(x: f64) -> f64 {
    if x > 709.0 {
        return f64::INFINITY;
    }
    if x < -745.0 {
        return 0.0;
    }
    if x.is_nan() {
        return x;
    }
    let n = round(x / LN2);
    let r = x - n * LN2;
    let (mut term, mut sum) = (1.0, 1.0);
    for i in 1..14 {
        term *= r / i as f64;
        sum += term;
    }
    scale(sum, n as i32)
}

fn scale(x: f64, n: i32) -> f64 {
    let half = n / 2;
    let power = |k: i32| f64::from_bits(((1023 + k) as u64) << 52);
    x * power(half) * power(n - half)
}

/// The whole number nearest to x (halves away from zero); |x| below 2^52.
pub fn round(x: f64) -> f64 {
    (if x < 0.0 { x - 0.5 } else { x + 0.5 }) as i64 as f64
}

/// The natural logarithm of a positive number.
pub fn ln(x: f64) -> f64 {
    if x <= 0.0 {
        return if x == 0.0 { f64::NEG_INFINITY } else { f64::NAN };
    }
    if !x.is_finite() {
        return x;
    }
    let scaled = if x < f64::MIN_POSITIVE { x * (1u64 << 54) as f64 } else { x };
    let bits = scaled.to_bits();
    let mut exponent = ((bits >> 52) & 0x7FF) as i64 - 1023 - if x < f64::MIN_POSITIVE { 54 } else { 0 };
    let mut mantissa = f64::from_bits((bits & 0x000F_FFFF_FFFF_FFFF) | (1023u64 << 52));
    if mantissa > core::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // atanh series: ln m = 2 (z + z³/3 + z⁵/5 + …), z = (m - 1) / (m + 1), |z| < 0.172.
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let mut sum = 0.0;
    for i in (0..12).rev() {
        sum = sum * square + 1.0 / (2 * i + 1) as f64;
    }
    2.0 * z * sum + exponent as f64 * LN2
}

/// x to the power y, for positive x.
pub fn pow(x: f64, y: f64) -> f64 {
    exp(y * ln(x))
}

/// The square root, rounded as IEEE 754 asks.
#[inline(always)]
pub fn sqrt(x: f64) -> f64 {
    #[cfg(target_arch = "wasm32")]
    {
        use core::arch::wasm32::{f64x2_extract_lane, f64x2_splat, f64x2_sqrt};
        f64x2_extract_lane::<0>(f64x2_sqrt(f64x2_splat(x)))
    }
    #[cfg(not(target_arch = "wasm32"))]
    x.sqrt()
}

/// Sine and cosine of an angle below about 2^20.
pub fn sin_cos(x: f64) -> (f64, f64) {
    const HALF_PI_HIGH: f64 = 1.570_796_326_734_125_6;
    const HALF_PI_LOW: f64 = 6.077_100_506_506_192e-11;
    let turns = round(x / core::f64::consts::FRAC_PI_2);
    let r = (x - turns * HALF_PI_HIGH) - turns * HALF_PI_LOW;
    let square = r * r;
    let (mut sine, mut cosine) = (0.0, 0.0);
    for i in (0..9).rev() {
        let n = (2 * i) as f64;
        sine = 1.0 - sine * square / ((n + 2.0) * (n + 3.0));
        cosine = 1.0 - cosine * square / ((n + 1.0) * (n + 2.0));
    }
    sine *= r;
    match (turns as i64).rem_euclid(4) {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// The float32 that a half-precision number stands for.
#[inline(always)]
pub fn half(h: u16) -> f32 {
    let magnitude = f32::from_bits(((h & 0x7FFF) as u32) << 13) * f32::from_bits(0x7780_0000); // times 2^112
    let wide = if h & 0x7C00 == 0x7C00 { f32::from_bits(0x7F80_0000 | ((h & 0x3FF) as u32) << 13) } else { magnitude };
    if h & 0x8000 != 0 {
        -wide
    } else {
        wide
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_the_library() {
        for i in -2000..2000 {
            let x = i as f64 * 0.35;
            assert!((exp(x) - x.exp()).abs() <= 1e-13 * x.exp(), "exp {x}");
            let (s, c) = sin_cos(x * 7.0);
            assert!((s - (x * 7.0).sin()).abs() < 1e-12 && (c - (x * 7.0).cos()).abs() < 1e-12, "sin {x}");
            if x > 0.0 {
                assert!((ln(x) - x.ln()).abs() < 1e-13);
                assert!((pow(x, -0.37) / x.powf(-0.37) - 1.0).abs() < 1e-13);
            }
        }
    }

    #[test]
    fn every_half_is_read() {
        for h in 0..=u16::MAX {
            let (exponent, fraction) = ((h >> 10) & 31, (h & 1023) as f64);
            let size = match exponent {
                0 => fraction * 2f64.powi(-24),
                31 => continue,
                e => (1.0 + fraction / 1024.0) * 2f64.powi(e as i32 - 15),
            };
            assert_eq!(half(h) as f64, if h >> 15 == 1 { -size } else { size });
        }
    }
}
