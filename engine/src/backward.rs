//! The model's equations with memory, and backwards: gradients with respect to an adapter's numbers.
//!
//! The frozen weights get no gradient; what flows through them is `Wᵀ dy`. Rows of several sequences
//! stand one after the other; attention keeps them apart. Everything that the way back needs is kept
//! from the way forward while it fits `BUDGET`; beyond that only each layer's input is kept and a layer
//! is run again when its turn comes. Checked against PyTorch in `tests/engine`. Knows no loss.

use crate::adapter::Adapter;
use crate::attention::{angles, attend, attend_backward, rotate, Backward};
use crate::error::{filled, grow, Result};
use crate::model::{Model, Sizes, PROJECTIONS};
use crate::product::{self, forward_many, Workspace};
use crate::vector::{add_scaled, dot, rms_norm, sigmoid, silu};
use alloc::vec::Vec;

/// Bytes of kept values beyond which layers are run again instead.
const BUDGET: usize = 160 << 20;

/// What one layer computed on the way forward.
#[derive(Default)]
struct Kept {
    x: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    inner: Vec<f32>,
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// A pass over some rows, forwards and then backwards.
#[derive(Default)]
pub struct Pass {
    kept: Vec<Kept>,
    inputs: Vec<Vec<f32>>,
    lean: bool,
    /// (first token, end) of each row.
    rows: Vec<(usize, usize)>,
    turns: Vec<f32>,
    count: usize,
    work: Workspace,
    spare: Vec<f32>,
    normed: Vec<f32>,
    act: Vec<f32>,
    d_normed: Vec<f32>,
    d_wide: Vec<f32>,
    d_gate: Vec<f32>,
    d_q: Vec<f32>,
    d_k: Vec<f32>,
    d_v: Vec<f32>,
}

/// Gradients of an adapter.
#[derive(Default)]
pub struct Gradients {
    /// Of its numbers.
    pub numbers: Vec<f32>,
    /// Of R, for vector adapters, until `Adapter::collect` turns them into those of the numbers.
    pub middle: Vec<f32>,
}

fn zeroed(buffer: &mut Vec<f32>, count: usize) -> Result<&mut [f32]> {
    buffer.clear();
    grow(buffer, count, 0.0)?;
    Ok(&mut buffer[..])
}

fn norm_rows(x: &[f32], gain: &[f32], sizes: &Sizes, out: &mut Vec<f32>) -> Result<()> {
    zeroed(out, x.len())?;
    for (x, out) in x.chunks_exact(sizes.dim).zip(out.chunks_exact_mut(sizes.dim)) {
        rms_norm(x, gain, sizes.epsilon, out);
    }
    Ok(())
}

/// dx += the gradient through `out = x / rms(x) · gain`.
pub fn norm_backward(x: &[f32], gain: &[f32], sizes: &Sizes, dy: &[f32], dx: &mut [f32]) {
    let dim = sizes.dim;
    for ((x, dy), dx) in x.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
        let mean = dot(x, x) / dim as f32 + sizes.epsilon;
        let inverse = 1.0 / crate::math::sqrt(mean as f64) as f32;
        let along: f32 = x.iter().zip(dy).zip(gain).map(|((x, d), g)| x * d * g).sum();
        let pull = along * inverse * inverse * inverse / dim as f32;
        for i in 0..dim {
            dx[i] += dy[i] * gain[i] * inverse - x[i] * pull;
        }
    }
}

impl Pass {
    /// Run the layers over rows of tokens; `x` becomes the last residual stream, (tokens, dim).
    pub fn forward(&mut self, model: &Model, adapter: &Adapter, rows: &[&[u32]], x: &mut Vec<f32>) -> Result<()> {
        let sizes = &model.sizes;
        self.rows.clear();
        self.turns.clear();
        self.count = rows.iter().map(|row| row.len()).sum();
        zeroed(x, self.count * sizes.dim)?;
        let mut t = 0;
        for row in rows {
            self.rows.push((t, t + row.len()));
            for (position, &token) in row.iter().enumerate() {
                model.embedding.row(&model.file, token as usize, &mut x[t * sizes.dim..(t + 1) * sizes.dim]);
                angles(&model.frequencies, position, &mut self.turns);
                t += 1;
            }
        }
        let wide = 2 * sizes.dim + 2 * (sizes.heads + sizes.kv_heads) * sizes.head + 2 * sizes.ffn;
        self.lean = self.count.saturating_mul(4 * wide * sizes.layers) > BUDGET;
        self.kept.resize_with(if self.lean { 1 } else { sizes.layers }, Kept::default);
        self.inputs.resize_with(if self.lean { sizes.layers } else { 0 }, Vec::new);
        for layer in 0..sizes.layers {
            if self.lean {
                zeroed(&mut self.inputs[layer], x.len())?.copy_from_slice(x);
            }
            self.layer(model, adapter, layer, x)?;
        }
        Ok(())
    }

    fn project(
        &mut self, model: &Model, adapter: &Adapter, layer: usize, x: &[f32], outs: &mut [(usize, &mut Vec<f32>)],
    ) -> Result<()> {
        for (number, out) in outs.iter_mut() {
            zeroed(out, self.count * model.sizes.projection(*number).0)?;
        }
        let mut pairs = Vec::with_capacity(outs.len());
        for (number, out) in outs.iter_mut() {
            pairs.push((&model.layers[layer].projections[*number], &mut out[..]));
        }
        forward_many(&mut pairs, &model.file, x, self.count, &mut self.work)?;
        for (number, out) in outs.iter_mut() {
            let (rows, cols) = model.sizes.projection(*number);
            if let Some(delta) = adapter.delta(layer * PROJECTIONS + *number, &model.sizes) {
                delta.apply(x, cols, out, rows, &mut self.work)?;
            }
        }
        Ok(())
    }

    /// One layer: `x` in, `x` out, and what it computed in `kept`.
    fn layer(&mut self, model: &Model, adapter: &Adapter, number: usize, x: &mut [f32]) -> Result<()> {
        let (sizes, layer) = (&model.sizes, &model.layers[number]);
        let (wide, kv) = (sizes.heads * sizes.head, sizes.kv_heads * sizes.head);
        let mut kept = core::mem::take(&mut self.kept[if self.lean { 0 } else { number }]);
        let mut normed = core::mem::take(&mut self.normed);
        zeroed(&mut kept.x, x.len())?.copy_from_slice(x);
        norm_rows(x, &layer.attention_norm, sizes, &mut normed)?;
        self.project(model, adapter, number, &normed, &mut [(0, &mut kept.q), (1, &mut kept.k), (2, &mut kept.v)])?;
        for (t, turn) in self.turns.chunks_exact(sizes.head).enumerate() {
            rotate(&mut kept.q[t * wide..(t + 1) * wide], sizes.head, turn, 1.0);
            rotate(&mut kept.k[t * kv..(t + 1) * kv], sizes.head, turn, 1.0);
        }
        zeroed(&mut kept.inner, self.count * wide)?;
        for &(start, end) in &self.rows {
            for t in start..end {
                let out = &mut kept.inner[t * wide..(t + 1) * wide];
                let (query, from) = (&kept.q[t * wide..(t + 1) * wide], start * kv);
                attend(sizes, query, &kept.k[from..], &kept.v[from..], t + 1 - start, &mut self.spare, out)?;
            }
        }
        self.project(model, adapter, number, &kept.inner, &mut [(3, &mut normed)])?;
        add_scaled(x, 1.0, &normed);
        zeroed(&mut kept.middle, x.len())?.copy_from_slice(x);
        norm_rows(x, &layer.ffn_norm, sizes, &mut normed)?;
        self.project(model, adapter, number, &normed, &mut [(4, &mut kept.gate), (5, &mut kept.up)])?;
        let mut act = core::mem::take(&mut self.act);
        zeroed(&mut act, kept.gate.len())?;
        activate(&kept, &mut act);
        self.project(model, adapter, number, &act, &mut [(6, &mut normed)])?;
        add_scaled(x, 1.0, &normed);
        (self.act, self.normed) = (act, normed);
        self.kept[if self.lean { 0 } else { number }] = kept;
        Ok(())
    }

    /// From the gradient of the last residual stream to gradients of the adapter, added to `out`.
    /// `dx` is used up.
    pub fn backward(&mut self, model: &Model, adapter: &Adapter, dx: &mut [f32], out: &mut Gradients) -> Result<()> {
        let lowest = adapter.targets[0] / PROJECTIONS;
        for number in (lowest..model.sizes.layers).rev() {
            if self.lean {
                let mut x = core::mem::take(&mut self.inputs[number]);
                self.layer(model, adapter, number, &mut x)?;
                self.inputs[number] = x;
            }
            let at = if self.lean { 0 } else { number };
            let kept = core::mem::take(&mut self.kept[at]);
            self.layer_backward(model, adapter, number, &kept, dx, out, number > lowest)?;
            self.kept[at] = kept;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn layer_backward(
        &mut self, model: &Model, adapter: &Adapter, number: usize, kept: &Kept, dx: &mut [f32], out: &mut Gradients,
        more: bool,
    ) -> Result<()> {
        let (sizes, layer, count) = (&model.sizes, &model.layers[number], self.count);
        let (wide, kv) = (sizes.heads * sizes.head, sizes.kv_heads * sizes.head);
        let mut through = Through { model, adapter, layer: number, count, out, work: &mut self.work };
        zeroed(&mut self.act, count * sizes.ffn)?;
        activate(kept, &mut self.act);
        let d_act = zeroed(&mut self.d_wide, count * sizes.ffn)?;
        through.step(6, &self.act, dx, d_act, true)?;
        let d_gate = zeroed(&mut self.d_gate, count * sizes.ffn)?;
        for i in 0..d_act.len() {
            let (gate, share) = (kept.gate[i], sigmoid(kept.gate[i]));
            d_gate[i] = d_act[i] * kept.up[i] * share * (1.0 + gate * (1.0 - share));
            d_act[i] *= gate * share;
        }
        norm_rows(&kept.middle, &layer.ffn_norm, sizes, &mut self.normed)?;
        let d_normed = zeroed(&mut self.d_normed, count * sizes.dim)?;
        through.step(4, &self.normed, d_gate, d_normed, true)?;
        through.step(5, &self.normed, d_act, d_normed, true)?;
        norm_backward(&kept.middle, &layer.ffn_norm, sizes, d_normed, dx);

        let d_inner = zeroed(&mut self.d_wide, count * wide)?;
        through.step(3, &kept.inner, dx, d_inner, true)?;
        let d_q = zeroed(&mut self.d_q, count * wide)?;
        let (d_k, d_v) = (zeroed(&mut self.d_k, count * kv)?, zeroed(&mut self.d_v, count * kv)?);
        for &(start, end) in &self.rows {
            let (q, k) = (start * wide..end * wide, start * kv..end * kv);
            let mut b = Backward {
                q: &kept.q[q.clone()],
                k: &kept.k[k.clone()],
                v: &kept.v[k.clone()],
                dout: &d_inner[q.clone()],
                dq: &mut d_q[q],
                dk: &mut d_k[k.clone()],
                dv: &mut d_v[k],
            };
            attend_backward(sizes, end - start, &mut b, &mut self.spare)?;
        }
        for (t, turn) in self.turns.chunks_exact(sizes.head).enumerate() {
            rotate(&mut d_q[t * wide..(t + 1) * wide], sizes.head, turn, -1.0);
            rotate(&mut d_k[t * kv..(t + 1) * kv], sizes.head, turn, -1.0);
        }
        norm_rows(&kept.x, &layer.attention_norm, sizes, &mut self.normed)?;
        let d_normed = zeroed(&mut self.d_normed, count * sizes.dim)?;
        for (projection, dy) in [(0, d_q), (1, d_k), (2, d_v)] {
            through.step(projection, &self.normed, dy, d_normed, more)?;
        }
        norm_backward(&kept.x, &layer.attention_norm, sizes, d_normed, dx);
        Ok(())
    }
}

fn activate(kept: &Kept, act: &mut [f32]) {
    for ((act, gate), up) in act.iter_mut().zip(&kept.gate).zip(&kept.up) {
        *act = silu(*gate) * up;
    }
}

/// The way back through one projection.
struct Through<'a> {
    model: &'a Model,
    adapter: &'a Adapter,
    layer: usize,
    count: usize,
    out: &'a mut Gradients,
    work: &'a mut Workspace,
}

impl Through<'_> {
    /// `dx` += the gradient of the input `x`, given that of the output; the adapter's own go to `out`.
    /// With `more` false nothing below needs `dx`, and it is left alone.
    fn step(&mut self, number: usize, x: &[f32], dy: &[f32], dx: &mut [f32], more: bool) -> Result<()> {
        let sizes = &self.model.sizes;
        let (rows, cols) = sizes.projection(number);
        if more {
            let matrix = &self.model.layers[self.layer].projections[number];
            product::backward(matrix, &self.model.file, dy, self.count, dx, self.work)?;
        }
        let module = self.layer * PROJECTIONS + number;
        let (Some(delta), Some(target)) = (self.adapter.delta(module, sizes), self.adapter.target(module)) else {
            return Ok(());
        };
        let rank = delta.rank;
        let mut small = filled(4 * rank, 0f32)?;
        let (h, rest) = small.split_at_mut(rank);
        let (z, rest) = rest.split_at_mut(rank);
        let (dz, dh) = rest.split_at_mut(rank);
        for t in 0..self.count {
            let (x, dy) = (&x[t * cols..(t + 1) * cols], &dy[t * rows..(t + 1) * rows]);
            delta.inner(x, h, z);
            for j in 0..rank {
                dz[j] = delta.scale * dot(dy, &delta.outward[j * rows..(j + 1) * rows]);
            }
            if let Some(middle) = delta.middle {
                let grads = &mut self.out.middle[target * rank * rank..(target + 1) * rank * rank];
                dh.fill(0.0);
                for j in 0..rank {
                    add_scaled(&mut grads[j * rank..(j + 1) * rank], dz[j], h);
                    add_scaled(dh, dz[j], &middle[j * rank..(j + 1) * rank]);
                }
            } else {
                let (a, b, end) = self.adapter.lora_part(target, sizes);
                let (grad_a, grad_b) = self.out.numbers[a..end].split_at_mut(b - a);
                dh.copy_from_slice(dz);
                for j in 0..rank {
                    add_scaled(&mut grad_b[j * rows..(j + 1) * rows], delta.scale * h[j], dy);
                    add_scaled(&mut grad_a[j * cols..(j + 1) * cols], dh[j], x);
                }
            }
            if more {
                for k in 0..rank {
                    add_scaled(&mut dx[t * cols..(t + 1) * cols], dh[k], &delta.inward[k * cols..(k + 1) * cols]);
                }
            }
        }
        Ok(())
    }
}
