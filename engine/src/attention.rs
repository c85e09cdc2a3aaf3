//! Rotary embeddings and causal attention, forwards and backwards, over rows of float32.
//!
//! Heads are side by side in a row; a group of query heads shares one key and value head (GQA). The
//! rotation is that of transformers: a head's first half with its second. Knows no weights.

use crate::error::{grow, Result};
use crate::math::{sin_cos, sqrt};
use crate::model::Sizes;
use crate::vector::{add_scaled, dot, softmax};
use alloc::vec::Vec;

/// Cosines and sines of one position, for the pairs of one head.
pub fn angles(frequencies: &[f32], position: usize, out: &mut Vec<f32>) {
    for &frequency in frequencies {
        // The product is rounded to float32, as transformers does.
        let (sine, cosine) = sin_cos((position as f32 * frequency) as f64);
        out.push(cosine as f32);
        out.push(sine as f32);
    }
}

/// Turn every head of `row` by the angles, or back with `direction` = -1.
pub fn rotate(row: &mut [f32], head: usize, angles: &[f32], direction: f32) {
    for part in row.chunks_exact_mut(head) {
        let (first, second) = part.split_at_mut(head / 2);
        for ((a, b), angle) in first.iter_mut().zip(second).zip(angles.chunks_exact(2)) {
            let (cosine, sine) = (angle[0], angle[1] * direction);
            (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
        }
    }
}

fn steepness(sizes: &Sizes) -> f32 {
    (1.0 / sqrt(sizes.head as f64)) as f32
}

/// Attention of one token over `count` positions of `keys` and `values` (rows of kv_heads · head).
pub fn attend(
    sizes: &Sizes, q: &[f32], keys: &[f32], values: &[f32], count: usize, scores: &mut Vec<f32>, out: &mut [f32],
) -> Result<()> {
    let (head, wide) = (sizes.head, sizes.kv_heads * sizes.head);
    let shared = sizes.heads / sizes.kv_heads;
    grow(scores, count, 0.0)?;
    let scores = &mut scores[..count];
    for h in 0..sizes.heads {
        let from = h / shared * head;
        let query = &q[h * head..(h + 1) * head];
        for (t, score) in scores.iter_mut().enumerate() {
            *score = dot(query, &keys[t * wide + from..][..head]) * steepness(sizes);
        }
        softmax(scores);
        let out = &mut out[h * head..(h + 1) * head];
        out.fill(0.0);
        for (t, &weight) in scores.iter().enumerate() {
            add_scaled(out, weight, &values[t * wide + from..][..head]);
        }
    }
    Ok(())
}

/// What attention read and what comes back for it; rows of one sequence of `count` tokens.
pub struct Backward<'a> {
    /// Queries, keys and values as attention saw them.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Gradient of the result.
    pub dout: &'a [f32],
    /// Gradients, added to.
    pub dq: &'a mut [f32],
    /// Of the keys.
    pub dk: &'a mut [f32],
    /// Of the values.
    pub dv: &'a mut [f32],
}

/// Gradients of `attend` for all tokens of one sequence.
pub fn attend_backward(sizes: &Sizes, count: usize, b: &mut Backward, spare: &mut Vec<f32>) -> Result<()> {
    let (head, wide, row) = (sizes.head, sizes.kv_heads * sizes.head, sizes.heads * sizes.head);
    let (shared, steep) = (sizes.heads / sizes.kv_heads, steepness(sizes));
    grow(spare, 2 * count, 0.0)?;
    let (weights, slopes) = spare.split_at_mut(count);
    for h in 0..sizes.heads {
        let from = h / shared * head;
        for t in 0..count {
            let query = &b.q[t * row + h * head..][..head];
            let dout = &b.dout[t * row + h * head..][..head];
            let weights = &mut weights[..t + 1];
            for (s, weight) in weights.iter_mut().enumerate() {
                *weight = dot(query, &b.k[s * wide + from..][..head]) * steep;
            }
            softmax(weights);
            let mut mean = 0f32;
            for s in 0..=t {
                slopes[s] = dot(dout, &b.v[s * wide + from..][..head]);
                mean += slopes[s] * weights[s];
            }
            for s in 0..=t {
                add_scaled(&mut b.dv[s * wide + from..][..head], weights[s], dout);
                let slope = weights[s] * (slopes[s] - mean) * steep;
                add_scaled(&mut b.dq[t * row + h * head..][..head], slope, &b.k[s * wide + from..][..head]);
                add_scaled(&mut b.dk[s * wide + from..][..head], slope, query);
            }
        }
    }
    Ok(())
}
