//! One engine: a model, its adapters, and the work in hand, all by handle.
//!
//! Promises that a call that fails changes nothing that was there before, and that a handle is never
//! given twice, so that an adapter that was freed is an error and never another one. Knows neither
//! pointers nor a host's language; `abi` does.

use crate::adapter::{Adapter, Kind};
use crate::basis::Basis;
use crate::compact;
use crate::error::Result;
use crate::fail;
use crate::forward::{forward, Item, Scratch, Sequence};
use crate::generate::Answer;
use crate::model::Model;
use crate::sample::Sampler;
use crate::train::{Adam, Row, Trainer};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Everything that a host works with.
#[derive(Default)]
pub struct Engine {
    model: Option<Model>,
    bases: Vec<Rc<Basis>>,
    adapters: Vec<Option<Adapter>>,
    sequences: Vec<Option<Sequence>>,
    answers: Vec<Option<Answer>>,
    trainers: Vec<Option<Trainer>>,
    scratch: Scratch,
}

/// What an answer is asked for.
pub struct Request {
    /// The adapter's handle, if any.
    pub adapter: Option<usize>,
    /// Most tokens.
    pub most: usize,
    /// How tokens are chosen.
    pub sampler: Sampler,
    /// Tokens that end the answer, besides the model's own.
    pub ends: Vec<u32>,
    /// Strings that end the answer.
    pub stops: Vec<Vec<u8>>,
}

fn put<T>(all: &mut Vec<Option<T>>, one: T) -> usize {
    all.push(Some(one));
    all.len() - 1
}

fn at<'a, T>(all: &'a mut [Option<T>], handle: usize, what: &str) -> Result<&'a mut T> {
    all.get_mut(handle).and_then(Option::as_mut).ok_or_else(|| fail!(Usage, "there is no {what} {handle}"))
}

impl Engine {
    /// Read a model; all that belonged to the one before is gone.
    pub fn load(&mut self, file: Vec<u8>) -> Result<()> {
        let model = Model::load(file)?;
        *self = Engine { model: Some(model), ..Engine::default() };
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> Result<&Model> {
        self.model.as_ref().ok_or_else(|| fail!(Usage, "no model is loaded"))
    }

    /// Add a basis; a second one of the same fingerprint takes no room.
    pub fn add_basis(&mut self, bytes: &[u8]) -> Result<()> {
        let basis = Basis::read(bytes, &self.model()?.sizes)?;
        if self.bases.iter().any(|other| other.base != basis.base) {
            return Err(fail!(WrongBase, "the basis was derived from another base than the one before"));
        }
        if self.bases.iter().all(|other| other.fingerprint != basis.fingerprint) {
            self.bases.push(Rc::new(basis));
        }
        Ok(())
    }

    /// Read a compact adapter.
    pub fn read_adapter(&mut self, bytes: &[u8]) -> Result<usize> {
        let adapter = compact::read(bytes, self.model()?.sizes.layers, &self.bases)?;
        Ok(put(&mut self.adapters, adapter))
    }

    /// The compact file of an adapter.
    pub fn write_adapter(&mut self, handle: usize, exact: bool) -> Result<Vec<u8>> {
        let layers = self.model()?.sizes.layers;
        compact::write(at(&mut self.adapters, handle, "adapter")?, layers, exact)
    }

    /// A vector adapter at zero.
    pub fn new_vector(
        &mut self, kind: Kind, rank: usize, targets: Vec<usize>, count: usize, groups: usize, seed: u64,
    ) -> Result<usize> {
        let basis = self.bases.iter().find(|basis| basis.rank == rank);
        let basis = basis.ok_or_else(|| fail!(WrongBasis, "no basis of rank {rank} is loaded"))?.clone();
        Ok(put(&mut self.adapters, Adapter::vector(kind, basis, targets, count, groups, seed)?))
    }

    /// A LoRA that changes nothing yet.
    pub fn new_lora(&mut self, rank: usize, scale: f32, targets: Vec<usize>, seed: u64) -> Result<usize> {
        let adapter = Adapter::lora(&self.model()?.sizes, rank, scale, targets, seed)?;
        Ok(put(&mut self.adapters, adapter))
    }

    /// An adapter, to read or set its numbers; call `refresh` after setting.
    pub fn adapter(&mut self, handle: usize) -> Result<&mut Adapter> {
        at(&mut self.adapters, handle, "adapter")
    }

    /// Forget an adapter.
    pub fn free_adapter(&mut self, handle: usize) -> Result<()> {
        at(&mut self.adapters, handle, "adapter")?;
        self.adapters[handle] = None;
        Ok(())
    }

    /// An empty sequence.
    pub fn new_sequence(&mut self, room: usize, adapter: Option<usize>) -> Result<usize> {
        if let Some(handle) = adapter {
            at(&mut self.adapters, handle, "adapter")?;
        }
        let sequence = Sequence::new(&self.model()?.sizes, room, adapter)?;
        Ok(put(&mut self.sequences, sequence))
    }

    /// Cut a sequence back to its first `length` tokens.
    pub fn cut_sequence(&mut self, handle: usize, length: usize) -> Result<()> {
        let sequence = at(&mut self.sequences, handle, "sequence")?;
        sequence.length = sequence.length.min(length);
        Ok(())
    }

    /// Give an empty sequence another adapter.
    pub fn set_adapter(&mut self, handle: usize, adapter: Option<usize>) -> Result<()> {
        if let Some(adapter) = adapter {
            at(&mut self.adapters, adapter, "adapter")?;
        }
        let sequence = at(&mut self.sequences, handle, "sequence")?;
        if sequence.length > 0 && sequence.adapter != adapter {
            return Err(fail!(Usage, "sequence {handle} was read with another adapter; cut it to 0 tokens first"));
        }
        sequence.adapter = adapter;
        Ok(())
    }

    /// Forget a sequence.
    pub fn free_sequence(&mut self, handle: usize) -> Result<()> {
        at(&mut self.sequences, handle, "sequence")?;
        self.sequences[handle] = None;
        Ok(())
    }

    /// Read a batch; answers the logits of the wanted tokens, row by row.
    pub fn read(&mut self, items: &[Item]) -> Result<&[f32]> {
        let Engine { model, sequences, adapters, scratch, .. } = self;
        let model = model.as_ref().ok_or_else(|| fail!(Usage, "no model is loaded"))?;
        let rows = forward(model, sequences, adapters, items, scratch)?;
        Ok(&scratch.logits[..rows * model.sizes.vocab])
    }

    /// Begin an answer to a prompt.
    pub fn ask(&mut self, prompt: Vec<u32>, mut request: Request) -> Result<usize> {
        let model = self.model()?;
        let context = model.sizes.context;
        if prompt.is_empty() || prompt.len() >= context {
            return Err(fail!(Usage, "a prompt of {} tokens; this model reads 1 to {}", prompt.len(), context - 1));
        }
        let most = request.most.min(context - prompt.len());
        request.ends.push(model.tokenizer.eos);
        request.stops.retain(|stop| !stop.is_empty());
        let sequence = self.new_sequence(prompt.len() + most, request.adapter)?;
        let answer = Answer::new(sequence, prompt, most, request.sampler, request.ends, request.stops);
        Ok(put(&mut self.answers, answer))
    }

    /// Move some answers one step, all in one batch. Those that have ended stay as they are.
    pub fn advance(&mut self, handles: &[usize]) -> Result<()> {
        let (mut items, mut counts) = (Vec::new(), Vec::new());
        for (place, &handle) in handles.iter().enumerate() {
            if handles[..place].contains(&handle) {
                return Err(fail!(Usage, "answer {handle} twice in one batch"));
            }
            let before = items.len();
            at(&mut self.answers, handle, "answer")?.items(&mut items);
            counts.push(items.len() - before);
        }
        if items.is_empty() {
            return Ok(());
        }
        self.read(&items)?;
        let model = self.model.as_ref().ok_or_else(|| fail!(Usage, "no model is loaded"))?;
        let mut rows = self.scratch.logits.chunks_exact(model.sizes.vocab);
        for (&handle, count) in handles.iter().zip(counts) {
            let answer = at(&mut self.answers, handle, "answer")?;
            if answer.goes_on() && answer.noted(count) {
                if let Some(row) = rows.next() {
                    answer.choose(row, &model.tokenizer);
                }
            }
        }
        Ok(())
    }

    /// An answer.
    pub fn answer(&mut self, handle: usize) -> Result<&mut Answer> {
        at(&mut self.answers, handle, "answer")
    }

    /// Forget an answer and its sequence.
    pub fn free_answer(&mut self, handle: usize) -> Result<()> {
        let sequence = at(&mut self.answers, handle, "answer")?.sequence;
        self.answers[handle] = None;
        self.sequences[sequence] = None;
        Ok(())
    }

    /// Begin training an adapter.
    pub fn new_trainer(&mut self, adapter: usize, adam: Adam) -> Result<usize> {
        let trainer = Trainer::new(adapter, at(&mut self.adapters, adapter, "adapter")?, adam)?;
        Ok(put(&mut self.trainers, trainer))
    }

    /// A trainer, to read or set its state.
    pub fn trainer(&mut self, handle: usize) -> Result<&mut Trainer> {
        at(&mut self.trainers, handle, "trainer")
    }

    /// Add the gradient of some rows; answers the sum of each row's losses.
    pub fn learn(&mut self, handle: usize, rows: &[Row], only_loss: bool) -> Result<Vec<f64>> {
        let Engine { model, adapters, trainers, .. } = self;
        let model = model.as_ref().ok_or_else(|| fail!(Usage, "no model is loaded"))?;
        let trainer = at(trainers, handle, "trainer")?;
        let adapter = at(adapters, trainer.adapter, "adapter")?;
        trainer.learn(model, adapter, rows, only_loss)
    }

    /// Move the adapter one step of Adam; answers the gradient's norm.
    pub fn step(&mut self, handle: usize, rate: f64) -> Result<f64> {
        let trainer = at(&mut self.trainers, handle, "trainer")?;
        trainer.step(at(&mut self.adapters, trainer.adapter, "adapter")?, rate)
    }

    /// Forget a trainer; its adapter stays.
    pub fn free_trainer(&mut self, handle: usize) -> Result<()> {
        at(&mut self.trainers, handle, "trainer")?;
        self.trainers[handle] = None;
        Ok(())
    }
}
