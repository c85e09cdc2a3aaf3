//! Running the model: tokens of many sequences in one batch, each sequence with its own adapter.
//!
//! A batch is a list of (sequence, token); the frozen matrices are multiplied once for all of them, and
//! each run of tokens with the same adapter gets that adapter's change on top. Promises that a
//! sequence's result does not depend on its neighbours in the batch, and that a batch that cannot be run
//! leaves every sequence as it was. Knows neither text nor sampling.

use crate::adapter::Adapter;
use crate::attention::{angles, attend, rotate};
use crate::error::{filled, grow, Result};
use crate::fail;
use crate::model::{Model, Sizes, PROJECTIONS};
use crate::product::{forward_many, Workspace};
use crate::vector::{rms_norm, silu};
use alloc::vec::Vec;

/// What a sequence has read so far.
pub struct Sequence {
    /// Tokens read.
    pub length: usize,
    /// Tokens there is room for.
    pub room: usize,
    /// The adapter's handle, if any.
    pub adapter: Option<usize>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Sequence {
    /// An empty sequence with room for `room` tokens.
    pub fn new(sizes: &Sizes, room: usize, adapter: Option<usize>) -> Result<Sequence> {
        if room == 0 || room > sizes.context {
            return Err(fail!(Usage, "room for {room} tokens; this model reads up to {}", sizes.context));
        }
        let all = (sizes.layers * sizes.kv_heads * sizes.head)
            .checked_mul(room)
            .ok_or_else(|| fail!(Memory, "no memory for {room} tokens"))?;
        Ok(Sequence { length: 0, room, adapter, keys: filled(all, 0f32)?, values: filled(all, 0f32)? })
    }
}

/// One token of a batch.
#[derive(Clone, Copy)]
pub struct Item {
    /// Which sequence it continues.
    pub sequence: usize,
    /// The token.
    pub token: u32,
    /// Whether the logits after it are wanted.
    pub wanted: bool,
}

/// Buffers that batches reuse.
#[derive(Default)]
pub struct Scratch {
    work: Workspace,
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    inner: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    angles: Vec<f32>,
    scores: Vec<f32>,
    /// Logits of the wanted tokens, one row of the vocabulary each.
    pub logits: Vec<f32>,
}

/// Adapters by handle.
pub type Adapters = [Option<Adapter>];

struct Batch<'a> {
    model: &'a Model,
    /// (first token, end, adapter) of each run of tokens with one adapter.
    runs: Vec<(usize, usize, &'a Adapter)>,
    count: usize,
}

impl Batch<'_> {
    /// Products of one input with some projections of a layer, adapters included.
    fn project(
        &self, layer: usize, x: &[f32], outs: &mut [(usize, &mut [f32])], work: &mut Workspace,
    ) -> Result<()> {
        let model = self.model;
        let mut pairs = Vec::with_capacity(outs.len());
        for (number, out) in outs.iter_mut() {
            pairs.push((&model.layers[layer].projections[*number], &mut **out));
        }
        forward_many(&mut pairs, &model.file, x, self.count, work)?;
        for (number, out) in outs.iter_mut() {
            let (rows, cols) = model.sizes.projection(*number);
            for &(start, end, adapter) in &self.runs {
                if let Some(delta) = adapter.delta(layer * PROJECTIONS + *number, &model.sizes) {
                    delta.apply(&x[start * cols..end * cols], cols, &mut out[start * rows..end * rows], rows, work)?;
                }
            }
        }
        Ok(())
    }
}

/// Read a batch; afterwards `scratch.logits` holds the wanted rows. Answers how many there are.
pub fn forward(
    model: &Model, sequences: &mut [Option<Sequence>], adapters: &Adapters, items: &[Item], scratch: &mut Scratch,
) -> Result<usize> {
    let positions = check(model, sequences, adapters, items)?;
    let sizes = &model.sizes;
    let (count, dim, kv) = (items.len(), sizes.dim, sizes.kv_heads * sizes.head);
    let batch = Batch { model, runs: runs(sequences, adapters, items), count };
    let Scratch { work, x, normed, q, k, v, inner, gate, up, angles: turns, scores, logits } = scratch;
    for (buffer, wide) in [(&mut *x, dim), (normed, dim), (q, sizes.heads * sizes.head), (k, kv), (v, kv)] {
        grow(buffer, count * wide, 0.0)?;
    }
    for (buffer, wide) in [(&mut *inner, sizes.heads * sizes.head), (gate, sizes.ffn), (up, sizes.ffn)] {
        grow(buffer, count * wide, 0.0)?;
    }
    turns.clear();
    for (t, item) in items.iter().enumerate() {
        model.embedding.row(&model.file, item.token as usize, &mut x[t * dim..(t + 1) * dim]);
        angles(&model.frequencies, positions[t], turns);
    }
    let x = &mut x[..count * dim];
    let normed = &mut normed[..count * dim];
    for (number, layer) in model.layers.iter().enumerate() {
        norm(x, normed, &layer.attention_norm, sizes);
        batch.project(number, normed, &mut [(0, q), (1, k), (2, v)], work)?;
        for (t, item) in items.iter().enumerate() {
            let turn = &turns[t * sizes.head..(t + 1) * sizes.head];
            rotate(&mut q[t * sizes.heads * sizes.head..][..sizes.heads * sizes.head], sizes.head, turn, 1.0);
            rotate(&mut k[t * kv..(t + 1) * kv], sizes.head, turn, 1.0);
            if let Some(sequence) = &mut sequences[item.sequence] {
                let at = (number * sequence.room + positions[t]) * kv;
                sequence.keys[at..at + kv].copy_from_slice(&k[t * kv..(t + 1) * kv]);
                sequence.values[at..at + kv].copy_from_slice(&v[t * kv..(t + 1) * kv]);
            }
        }
        for (t, item) in items.iter().enumerate() {
            if let Some(sequence) = &sequences[item.sequence] {
                let wide = sizes.heads * sizes.head;
                let from = number * sequence.room * kv;
                let out = &mut inner[t * wide..(t + 1) * wide];
                let query = &q[t * wide..(t + 1) * wide];
                attend(sizes, query, &sequence.keys[from..], &sequence.values[from..], positions[t] + 1, scores, out)?;
            }
        }
        batch.project(number, &inner[..count * sizes.heads * sizes.head], &mut [(3, normed)], work)?;
        x.iter_mut().zip(normed.iter()).for_each(|(x, change)| *x += change);
        norm(x, normed, &layer.ffn_norm, sizes);
        batch.project(number, normed, &mut [(4, gate), (5, up)], work)?;
        for (gate, up) in gate[..count * sizes.ffn].iter_mut().zip(up.iter()) {
            *gate = silu(*gate) * up;
        }
        batch.project(number, &gate[..count * sizes.ffn], &mut [(6, normed)], work)?;
        x.iter_mut().zip(normed.iter()).for_each(|(x, change)| *x += change);
    }
    for item in items {
        if let Some(sequence) = &mut sequences[item.sequence] {
            sequence.length += 1;
        }
    }
    let mut wanted = 0;
    for (t, _) in items.iter().enumerate().filter(|(_, item)| item.wanted) {
        rms_norm(&x[t * dim..(t + 1) * dim], &model.output_norm, sizes.epsilon, &mut normed[wanted * dim..(wanted + 1) * dim]);
        wanted += 1;
    }
    grow(logits, wanted * sizes.vocab, 0.0)?;
    if wanted > 0 {
        forward_many(&mut [(model.output(), logits)], &model.file, &normed[..wanted * dim], wanted, work)?;
    }
    Ok(wanted)
}

fn norm(x: &[f32], out: &mut [f32], gain: &[f32], sizes: &Sizes) {
    for (x, out) in x.chunks_exact(sizes.dim).zip(out.chunks_exact_mut(sizes.dim)) {
        rms_norm(x, gain, sizes.epsilon, out);
    }
}

/// Positions of the items, or why the batch cannot be run.
fn check(model: &Model, sequences: &[Option<Sequence>], adapters: &Adapters, items: &[Item]) -> Result<Vec<usize>> {
    let mut lengths: Vec<usize> = sequences.iter().map(|s| s.as_ref().map_or(0, |s| s.length)).collect();
    let mut positions = Vec::with_capacity(items.len());
    for item in items {
        let Some(sequence) = sequences.get(item.sequence).and_then(|s| s.as_ref()) else {
            return Err(fail!(Usage, "there is no sequence {}", item.sequence));
        };
        if item.token as usize >= model.sizes.vocab {
            return Err(fail!(Usage, "there is no token {}", item.token));
        }
        if sequence.adapter.is_some_and(|handle| !adapters.get(handle).is_some_and(Option::is_some)) {
            return Err(fail!(Usage, "sequence {} has an adapter that is gone", item.sequence));
        }
        if lengths[item.sequence] >= sequence.room {
            return Err(fail!(Usage, "sequence {} is full: {} tokens", item.sequence, sequence.room));
        }
        positions.push(lengths[item.sequence]);
        lengths[item.sequence] += 1;
    }
    Ok(positions)
}

fn runs<'a>(
    sequences: &[Option<Sequence>], adapters: &'a Adapters, items: &[Item],
) -> Vec<(usize, usize, &'a Adapter)> {
    let mut runs: Vec<(usize, usize, &Adapter)> = Vec::new();
    for (t, item) in items.iter().enumerate() {
        let handle = sequences[item.sequence].as_ref().and_then(|sequence| sequence.adapter);
        let Some(adapter) = handle.and_then(|handle| adapters[handle].as_ref()) else { continue };
        match runs.last_mut() {
            Some(last) if last.1 == t && core::ptr::eq(last.2, adapter) => last.1 += 1,
            _ => runs.push((t, t + 1, adapter)),
        }
    }
    runs
}
