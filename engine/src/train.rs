//! Training an adapter: the loss over completions, its gradient, and Adam.
//!
//! Loss is the cross-entropy of the completion's tokens and of nothing else. `learn` adds a batch's
//! gradient; `step` moves the numbers (AdamW: Kingma & Ba 2015, Loshchilov & Hutter 2019) and forgets
//! the gradient. A loss or gradient that is not finite is an error and moves nothing. The host keeps the
//! schedule, and can read and restore the whole state.

use crate::adapter::Adapter;
use crate::backward::{norm_backward, Gradients, Pass};
use crate::error::{filled, grow, Result};
use crate::fail;
use crate::math::{pow, sqrt};
use crate::model::Model;
use crate::product::{self, forward, Workspace};
use crate::vector::{dot, rms_norm, softmax};
use alloc::vec::Vec;

/// Completion tokens whose logits are in memory at once.
const CHUNK: usize = 64;

/// A row to learn from.
pub struct Row<'a> {
    /// Prompt and completion.
    pub tokens: &'a [u32],
    /// Where the completion begins; at least 1.
    pub start: usize,
    /// What the sum of its tokens' losses is multiplied by.
    pub weight: f32,
}

/// How Adam moves.
#[derive(Clone, Copy)]
pub struct Adam {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squares.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub epsilon: f64,
    /// Share of the numbers taken away at each step, times the learning rate.
    pub decay: f64,
    /// Largest norm of a gradient; longer ones are shortened. 0 for any.
    pub clip: f64,
}

/// The state of training one adapter.
pub struct Trainer {
    /// The adapter's handle.
    pub adapter: usize,
    /// How Adam moves.
    pub adam: Adam,
    /// Steps taken.
    pub steps: u32,
    /// Gradients collected since the last step.
    pub gradients: Gradients,
    /// Mean of gradients, then mean of squares; as long as the adapter's numbers.
    pub means: [Vec<f32>; 2],
    pass: Pass,
    work: Workspace,
    x: Vec<f32>,
    dx: Vec<f32>,
    normed: Vec<f32>,
    d_normed: Vec<f32>,
    logits: Vec<f32>,
}

impl Trainer {
    /// A trainer that has not taken a step.
    pub fn new(handle: usize, adapter: &Adapter, adam: Adam) -> Result<Trainer> {
        let count = adapter.numbers.len();
        Ok(Trainer {
            adapter: handle,
            adam,
            steps: 0,
            gradients: Gradients { numbers: filled(count, 0f32)?, middle: filled(adapter.middle.len(), 0f32)? },
            means: [filled(count, 0f32)?, filled(count, 0f32)?],
            pass: Pass::default(),
            work: Workspace::default(),
            x: Vec::new(),
            dx: Vec::new(),
            normed: Vec::new(),
            d_normed: Vec::new(),
            logits: Vec::new(),
        })
    }

    /// Add the gradient of some rows; answers each row's loss, summed over its completion's tokens.
    /// With `only_loss` no gradient is taken.
    pub fn learn(&mut self, model: &Model, adapter: &Adapter, rows: &[Row], only_loss: bool) -> Result<Vec<f64>> {
        for (number, row) in rows.iter().enumerate() {
            if row.start == 0 || row.start >= row.tokens.len() || row.tokens.len() > model.sizes.context {
                return Err(fail!(
                    Usage,
                    "row {number}: a completion from {} in {} tokens; at least one token on either side, and at most {}",
                    row.start, row.tokens.len(), model.sizes.context
                ));
            }
            if row.tokens.iter().any(|&token| token as usize >= model.sizes.vocab) {
                return Err(fail!(Usage, "row {number}: a token that the vocabulary does not have"));
            }
        }
        let tokens: Vec<&[u32]> = rows.iter().map(|row| row.tokens).collect();
        let mut x = core::mem::take(&mut self.x);
        self.pass.forward(model, adapter, &tokens, &mut x)?;
        let losses = self.head(model, rows, &x, only_loss);
        self.x = x;
        let losses = losses?;
        if losses.iter().any(|loss| !loss.is_finite()) {
            return Err(fail!(Training, "the loss is not a finite number; lower the learning rate"));
        }
        if !only_loss {
            let mut dx = core::mem::take(&mut self.dx);
            let done = self.pass.backward(model, adapter, &mut dx, &mut self.gradients);
            self.dx = dx;
            if done.is_err() {
                // Half a batch's gradient is worth nothing.
                self.gradients.numbers.fill(0.0);
                self.gradients.middle.fill(0.0);
            }
            done?;
            adapter.collect(&self.gradients.middle, &mut self.gradients.numbers);
            self.gradients.middle.fill(0.0);
        }
        Ok(losses)
    }

    /// Losses, and the gradient of the last residual stream in `dx`.
    fn head(&mut self, model: &Model, rows: &[Row], x: &[f32], only_loss: bool) -> Result<Vec<f64>> {
        let (dim, vocab) = (model.sizes.dim, model.sizes.vocab);
        // (position in x, token to come, row)
        let mut wanted = Vec::new();
        let mut first = 0;
        for (number, row) in rows.iter().enumerate() {
            for at in row.start..row.tokens.len() {
                wanted.push((first + at - 1, row.tokens[at] as usize, number));
            }
            first += row.tokens.len();
        }
        self.dx.clear();
        grow(&mut self.dx, x.len(), 0.0)?;
        let mut losses = filled(rows.len(), 0f64)?;
        for chunk in wanted.chunks(CHUNK) {
            grow(&mut self.normed, chunk.len() * dim, 0.0)?;
            grow(&mut self.logits, chunk.len() * vocab, 0.0)?;
            for (i, &(at, _, _)) in chunk.iter().enumerate() {
                let out = &mut self.normed[i * dim..(i + 1) * dim];
                rms_norm(&x[at * dim..(at + 1) * dim], &model.output_norm, model.sizes.epsilon, out);
            }
            let normed = &self.normed[..chunk.len() * dim];
            forward(model.output(), &model.file, normed, chunk.len(), &mut self.logits, &mut self.work)?;
            for (i, &(_, token, row)) in chunk.iter().enumerate() {
                let logits = &mut self.logits[i * vocab..(i + 1) * vocab];
                let score = logits[token];
                losses[row] += (softmax(logits) - score) as f64;
                logits[token] -= 1.0;
                logits.iter_mut().for_each(|value| *value *= rows[row].weight);
            }
            if only_loss {
                continue;
            }
            self.d_normed.clear();
            grow(&mut self.d_normed, chunk.len() * dim, 0.0)?;
            let d_logits = &self.logits[..chunk.len() * vocab];
            product::backward(model.output(), &model.file, d_logits, chunk.len(), &mut self.d_normed, &mut self.work)?;
            for (i, &(at, _, _)) in chunk.iter().enumerate() {
                let (here, dy) = (at * dim..(at + 1) * dim, &self.d_normed[i * dim..(i + 1) * dim]);
                norm_backward(&x[here.clone()], &model.output_norm, &model.sizes, dy, &mut self.dx[here]);
            }
        }
        Ok(losses)
    }

    /// Move the adapter's numbers by one step of Adam; answers the gradient's norm before shortening.
    pub fn step(&mut self, adapter: &mut Adapter, rate: f64) -> Result<f64> {
        let gradient = &mut self.gradients.numbers;
        let norm = sqrt(dot(gradient, gradient) as f64);
        if !norm.is_finite() || !rate.is_finite() {
            gradient.fill(0.0);
            return Err(fail!(Training, "the gradient is not finite; lower the learning rate"));
        }
        let shorten = if self.adam.clip > 0.0 && norm > self.adam.clip { self.adam.clip / norm } else { 1.0 };
        self.steps += 1;
        let Adam { beta1, beta2, epsilon, decay, .. } = self.adam;
        let correct1 = 1.0 - pow(beta1, self.steps as f64);
        let correct2 = sqrt(1.0 - pow(beta2, self.steps as f64));
        let [first, second] = &mut self.means;
        for i in 0..gradient.len() {
            let g = gradient[i] as f64 * shorten;
            let m = beta1 * first[i] as f64 + (1.0 - beta1) * g;
            let v = beta2 * second[i] as f64 + (1.0 - beta2) * g * g;
            (first[i], second[i]) = (m as f32, v as f32);
            let kept = adapter.numbers[i] as f64 * (1.0 - rate * decay);
            adapter.numbers[i] = (kept - rate * (m / correct1) / (sqrt(v) / correct2 + epsilon)) as f32;
        }
        gradient.fill(0.0);
        adapter.refresh();
        Ok(norm)
    }
}
