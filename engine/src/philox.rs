//! Philox 4x32-10: random numbers that are the same in Rust, Python and JavaScript, bit for bit.
//!
//! Word `4b + lane` of a stream is lane `lane` of the block whose counter is `(b, stream…)`; the twin of
//! `whit.adapters.philox`. Source: Salmon, Moraes, Dror, Shaw, SC 2011.

use crate::math::sqrt;

/// The block of four words with this counter.
pub fn block(counter: [u32; 4], key: u64) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let (p0, p1) = (0xD251_1F53u64 * c0 as u64, 0xCD9E_8D57u64 * c2 as u64);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// Fill `out` with numbers uniform on (-a, a) of the given variance.
pub fn uniform(out: &mut [f32], key: u64, stream: [u32; 3], variance: f64) {
    let width = sqrt(3.0 * variance);
    for (b, four) in out.chunks_mut(4).enumerate() {
        let words = block([b as u32, stream[0], stream[1], stream[2]], key);
        for (value, word) in four.iter_mut().zip(words) {
            let centred = (2.0 * word as f64 + 1.0 - 4294967296.0) / 4294967296.0;
            *value = (centred * width) as f32;
        }
    }
}

/// A stream of numbers between 0 and 1, for sampling.
pub struct Dice {
    key: u64,
    used: u32,
}

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Dice {
        Dice { key: seed, used: 0 }
    }

    /// The next number, 0 ≤ x < 1, with 32 random bits.
    pub fn roll(&mut self) -> f64 {
        let word = block([self.used / 4, 0, 0, 0x44], self.key)[self.used as usize % 4];
        self.used = self.used.wrapping_add(1);
        word as f64 / 4294967296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_words_come_out() {
        // Known answers from the Random123 distribution (kat_vectors, philox4x32 10).
        assert_eq!(block([0; 4], 0), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(block([u32::MAX; 4], u64::MAX), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let key = 0x299f31d0_a4093822;
        assert_eq!(
            block([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], key),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }
}
