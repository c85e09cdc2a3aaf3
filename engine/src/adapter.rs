//! Adapters: the numbers that move a frozen model, and how they become directions for a module.
//!
//! The adapted product is `y = W x + outwardᵀ · R · (inward x) · scale`, with
//! - `xs`: the basis's directions, R the module's own r×r numbers;
//! - `tiny`: the same, R = Σᵢ vᵢ Pᵢ with P from Philox and v shared by a group of modules;
//! - `lora`: inward = A, outward = Bᵀ, no R, scale = alpha / r.
//!
//! Twin of `whit.adapters.vector` and `whit.adapters.lora`. Knows no files (see `compact`).

use crate::basis::Basis;
use crate::error::{filled, Result};
use crate::fail;
use crate::model::{Sizes, PROJECTIONS};
use crate::philox::uniform;
use crate::product::Workspace;
use crate::vector::{add_scaled, dot};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The kinds of adapter; numbers as in the compact file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TinyLoRA.
    Tiny = 1,
    /// LoRA-XS.
    Xs = 2,
    /// LoRA.
    Lora = 3,
}

const P_STREAM: u32 = 0x50;
const A_STREAM: u32 = 0x4C41;
/// Most numbers that P or an adapter may have.
const MOST: usize = 1 << 26;

/// An adapter ready to be used and trained.
pub struct Adapter {
    /// Its kind.
    pub kind: Kind,
    /// r.
    pub rank: usize,
    /// What the change is multiplied by.
    pub scale: f32,
    /// Vectors shared by groups of modules (`tiny`).
    pub groups: usize,
    /// Chooses P (`tiny`) or the first A (`lora`).
    pub seed: u64,
    /// Adapted modules, ascending.
    pub targets: Vec<usize>,
    /// The trained numbers: v (`tiny`), R of each module (`xs`), or A (r × in) and then B, transposed to
    /// r × out, of each module (`lora`).
    pub numbers: Vec<f32>,
    /// R of each target; empty for `lora`.
    pub middle: Vec<f32>,
    basis: Option<Rc<Basis>>,
    place: Vec<u32>,
    starts: Vec<usize>,
    fixed: Vec<f32>,
}

/// What moves one module.
pub struct Delta<'a> {
    /// r × in.
    pub inward: &'a [f32],
    /// r × out.
    pub outward: &'a [f32],
    /// R, r × r.
    pub middle: Option<&'a [f32]>,
    /// Multiplies all of it.
    pub scale: f32,
    /// r.
    pub rank: usize,
}

impl Adapter {
    /// A `tiny` or `xs` adapter at zero. `count` is how many numbers it has in all.
    pub fn vector(
        kind: Kind, basis: Rc<Basis>, targets: Vec<usize>, count: usize, groups: usize, seed: u64,
    ) -> Result<Adapter> {
        let (modules, square) = (targets.len(), basis.rank * basis.rank);
        check_targets(&targets, basis.modules.len())?;
        if targets.iter().any(|&module| basis.modules[module].is_none()) {
            return Err(fail!(WrongBasis, "the adapter moves a module that the basis leaves out"));
        }
        let fits = match kind {
            Kind::Xs => groups == modules && count == modules * square,
            _ => (1..=modules).contains(&groups) && count > 0 && count % groups == 0,
        };
        let fixed_count = if kind == Kind::Tiny && fits { (count / groups).saturating_mul(modules * square) } else { 0 };
        if !fits || count > MOST || fixed_count > MOST {
            return Err(fail!(Adapter, "{count} numbers in {groups} groups do not fit {modules} modules of rank {}", basis.rank));
        }
        let mut fixed = filled(fixed_count, 0f32)?;
        if kind == Kind::Tiny {
            for (part, &module) in fixed.chunks_exact_mut(fixed_count / modules).zip(&targets) {
                uniform(part, seed, [module as u32, 0, P_STREAM], 1.0 / basis.rank as f64);
            }
        }
        let place = places(&targets, basis.modules.len())?;
        Ok(Adapter {
            kind,
            rank: basis.rank,
            scale: 1.0,
            groups,
            seed,
            numbers: filled(count, 0f32)?,
            middle: filled(modules * square, 0f32)?,
            targets,
            basis: Some(basis),
            place,
            starts: Vec::new(),
            fixed,
        })
    }

    /// A LoRA as PEFT begins one: A uniform with variance 1/(3·in), B zero.
    pub fn lora(sizes: &Sizes, rank: usize, scale: f32, targets: Vec<usize>, seed: u64) -> Result<Adapter> {
        check_targets(&targets, sizes.layers * PROJECTIONS)?;
        if !(1..=4096).contains(&rank) || !scale.is_finite() {
            return Err(fail!(Adapter, "a LoRA of rank {rank} and scale {scale}"));
        }
        let mut starts = Vec::new();
        let mut total = 0usize;
        for &module in &targets {
            let (out, wide) = sizes.projection(module % PROJECTIONS);
            starts.push(total);
            total += rank * (out + wide);
        }
        if total > MOST {
            return Err(fail!(Adapter, "a LoRA of {total} numbers; the most is {MOST}"));
        }
        let mut numbers = filled(total, 0f32)?;
        for (&start, &module) in starts.iter().zip(&targets) {
            let wide = sizes.projection(module % PROJECTIONS).1;
            let stream = [module as u32, 0, A_STREAM];
            uniform(&mut numbers[start..start + rank * wide], seed, stream, 1.0 / (3.0 * wide as f64));
        }
        let place = places(&targets, sizes.layers * PROJECTIONS)?;
        Ok(Adapter {
            kind: Kind::Lora,
            rank,
            scale,
            groups: 0,
            seed,
            targets,
            numbers,
            middle: Vec::new(),
            basis: None,
            place,
            starts,
            fixed: Vec::new(),
        })
    }

    /// The basis that a vector adapter moves along.
    pub fn basis(&self) -> Option<&Basis> {
        self.basis.as_deref()
    }

    /// Numbers in the vector of one group.
    fn u(&self) -> usize {
        self.numbers.len() / self.groups.max(1)
    }

    /// Recompute R after `numbers` changed.
    pub fn refresh(&mut self) {
        match self.kind {
            Kind::Lora => {}
            Kind::Xs => self.middle.copy_from_slice(&self.numbers),
            Kind::Tiny => {
                let (u, square, modules) = (self.u(), self.rank * self.rank, self.targets.len());
                self.middle.fill(0.0);
                for (at, middle) in self.middle.chunks_exact_mut(square).enumerate() {
                    let group = at * self.groups / modules;
                    for i in 0..u {
                        add_scaled(middle, self.numbers[group * u + i], &self.fixed[(at * u + i) * square..][..square]);
                    }
                }
            }
        }
    }

    /// Turn gradients of R (as `middle`) into gradients of the numbers, added to `out`.
    pub fn collect(&self, middle: &[f32], out: &mut [f32]) {
        match self.kind {
            Kind::Lora => {}
            Kind::Xs => add_scaled(out, 1.0, middle),
            Kind::Tiny => {
                let (u, square, modules) = (self.u(), self.rank * self.rank, self.targets.len());
                for (at, grad) in middle.chunks_exact(square).enumerate() {
                    let group = at * self.groups / modules;
                    for i in 0..u {
                        out[group * u + i] += dot(grad, &self.fixed[(at * u + i) * square..][..square]);
                    }
                }
            }
        }
    }

    /// Which of the targets a module is.
    pub fn target(&self, module: usize) -> Option<usize> {
        self.place.get(module).copied().filter(|&at| at != u32::MAX).map(|at| at as usize)
    }

    /// Where A and Bᵀ of a target are in `numbers` (`lora` only): starts and the end.
    pub fn lora_part(&self, target: usize, sizes: &Sizes) -> (usize, usize, usize) {
        let (out, wide) = sizes.projection(self.targets[target] % PROJECTIONS);
        let start = self.starts[target];
        (start, start + self.rank * wide, start + self.rank * (wide + out))
    }

    /// What moves a module, if anything does.
    pub fn delta(&self, module: usize, sizes: &Sizes) -> Option<Delta<'_>> {
        let target = self.target(module)?;
        if self.kind == Kind::Lora {
            let (a, b, end) = self.lora_part(target, sizes);
            let (inward, outward) = (&self.numbers[a..b], &self.numbers[b..end]);
            return Some(Delta { inward, outward, middle: None, scale: self.scale, rank: self.rank });
        }
        let directions = self.basis.as_ref()?.modules[module].as_ref()?;
        let square = self.rank * self.rank;
        Some(Delta {
            inward: &directions.inward,
            outward: &directions.outward,
            middle: Some(&self.middle[target * square..(target + 1) * square]),
            scale: self.scale,
            rank: self.rank,
        })
    }
}

impl Delta<'_> {
    /// h = inward x and z = scale · R h of one token.
    pub fn inner(&self, x: &[f32], h: &mut [f32], z: &mut [f32]) {
        for (k, value) in h.iter_mut().enumerate().take(self.rank) {
            *value = dot(x, &self.inward[k * x.len()..(k + 1) * x.len()]);
        }
        for j in 0..self.rank {
            let moved = self.middle.map_or(h[j], |middle| dot(&middle[j * self.rank..(j + 1) * self.rank], &h[..self.rank]));
            z[j] = self.scale * moved;
        }
    }

    /// y += the change, for tokens in rows of `x` and `y`.
    pub fn apply(&self, x: &[f32], wide: usize, y: &mut [f32], out: usize, work: &mut Workspace) -> Result<()> {
        let (h, z) = work.small(self.rank)?;
        for (x, y) in x.chunks_exact(wide).zip(y.chunks_exact_mut(out)) {
            self.inner(x, h, z);
            for (j, &weight) in z.iter().enumerate() {
                add_scaled(y, weight, &self.outward[j * out..(j + 1) * out]);
            }
        }
        Ok(())
    }
}

fn check_targets(targets: &[usize], modules: usize) -> Result<()> {
    let ascending = targets.windows(2).all(|pair| pair[0] < pair[1]);
    if targets.is_empty() || !ascending || targets[targets.len() - 1] >= modules {
        return Err(fail!(Adapter, "the adapter's modules are not among the {modules} of this model"));
    }
    Ok(())
}

fn places(targets: &[usize], modules: usize) -> Result<Vec<u32>> {
    let mut place = filled(modules, u32::MAX)?;
    for (at, &module) in targets.iter().enumerate() {
        place[module] = at as u32;
    }
    Ok(place)
}
