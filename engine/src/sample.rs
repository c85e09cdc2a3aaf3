//! Choosing the next token from logits.
//!
//! Greedy at temperature 0. Otherwise: divide by the temperature, keep tokens of at least `min_p` times
//! the likeliest one's probability, then the fewest likeliest that together reach `top_p`, and roll.
//! The same seed gives the same tokens. Knows no text.

use crate::philox::Dice;
use crate::vector::{exp_exact, largest};
use alloc::vec::Vec;

/// How to choose.
pub struct Sampler {
    /// 0 for the likeliest token.
    pub temperature: f32,
    /// 1 for all.
    pub top_p: f32,
    /// 0 for all.
    pub min_p: f32,
    dice: Dice,
    kept: Vec<(u32, f64)>,
}

impl Sampler {
    /// A sampler; values out of range are brought into it.
    pub fn new(temperature: f32, top_p: f32, min_p: f32, seed: u64) -> Sampler {
        let within = |x: f32, most: f32, default: f32| if x.is_nan() { default } else { x.clamp(0.0, most) };
        Sampler {
            temperature: within(temperature, 100.0, 0.0),
            top_p: within(top_p, 1.0, 1.0),
            min_p: within(min_p, 1.0, 0.0),
            dice: Dice::new(seed),
            kept: Vec::new(),
        }
    }

    /// The next token.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let best = largest(logits);
        if self.temperature < 1e-4 || !logits.get(best).is_some_and(|x| x.is_finite()) {
            return best as u32;
        }
        let (most, kept) = (logits[best], &mut self.kept);
        kept.clear();
        for (id, &logit) in logits.iter().enumerate() {
            let odds = exp_exact((logit - most) / self.temperature);
            if odds >= self.min_p as f64 && odds > 1e-9 {
                kept.push((id as u32, odds));
            }
        }
        let total: f64 = kept.iter().map(|(_, odds)| odds).sum();
        let mut mass = total;
        if self.top_p < 1.0 {
            kept.sort_by(|a, b| b.1.total_cmp(&a.1));
            mass = 0.0;
            let mut count = 0;
            while count < kept.len() && (count == 0 || mass < self.top_p as f64 * total) {
                mass += kept[count].1;
                count += 1;
            }
            kept.truncate(count);
        }
        let mut left = self.dice.roll() * mass;
        for &(id, odds) in kept.iter() {
            left -= odds;
            if left < 0.0 {
                return id;
            }
        }
        kept.last().map_or(best as u32, |&(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(sampler: &mut Sampler, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0f64; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn tokens_fall_as_often_as_their_odds_say() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let all = shares(&mut Sampler::new(1.0, 1.0, 0.0, 7), &logits);
        for (share, expected) in all.iter().zip([0.5, 0.3, 0.15, 0.05]) {
            assert!((share - expected).abs() < 0.015, "{all:?}");
        }
        let top = shares(&mut Sampler::new(1.0, 0.75, 0.0, 7), &logits);
        assert!((top[0] - 0.625).abs() < 0.015 && top[2] == 0.0, "{top:?}");
        let min = shares(&mut Sampler::new(1.0, 1.0, 0.2, 7), &logits);
        assert!(min[3] == 0.0 && min[2] > 0.1, "{min:?}");
        assert_eq!(shares(&mut Sampler::new(0.0, 1.0, 0.0, 7), &logits)[0].round(), 1.0);
    }

    #[test]
    fn the_seed_decides() {
        let logits = [0.0; 50];
        let run = |seed| {
            let mut sampler = Sampler::new(1.0, 1.0, 0.0, seed);
            (0..20).map(|_| sampler.choose(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
