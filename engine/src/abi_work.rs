//! What a host calls, continued: reading tokens, answers and training. See `abi` for how calls work.

use crate::abi::{bytes, call, handle, indices, words};
use crate::engine::Request;
use crate::fail;
use crate::forward::Item;
use crate::sample::Sampler;
use crate::train::{Adam, Row};
use alloc::vec::Vec;

/// An empty sequence with room for so many tokens; adapter -1 for none. Answers its handle.
#[no_mangle]
pub extern "C" fn whit_sequence_new(room: usize, adapter: i32) -> i32 {
    call(|engine, _| engine.new_sequence(room, handle(adapter)))
}

/// Cut a sequence back to its first tokens.
#[no_mangle]
pub extern "C" fn whit_sequence_cut(sequence: usize, length: usize) -> i32 {
    call(|engine, _| engine.cut_sequence(sequence, length).map(|_| 0))
}

/// Give an empty sequence another adapter; -1 for none.
#[no_mangle]
pub extern "C" fn whit_sequence_adapter(sequence: usize, adapter: i32) -> i32 {
    call(|engine, _| engine.set_adapter(sequence, handle(adapter)).map(|_| 0))
}

/// Forget a sequence.
#[no_mangle]
pub extern "C" fn whit_sequence_free(sequence: usize) -> i32 {
    call(|engine, _| engine.free_sequence(sequence).map(|_| 0))
}

/// Read a batch: three words an item: sequence, token, whether its logits are wanted. The result is one
/// word: where the wanted rows of logits are, as float32. Answers how many numbers they have.
#[no_mangle]
pub extern "C" fn whit_read(items: usize, count: usize) -> i32 {
    call(|engine, result| {
        let all = indices(items, count.checked_mul(3).ok_or_else(|| fail!(Usage, "{count} items"))?)?;
        let item = |part: &[usize]| Item { sequence: part[0], token: part[1] as u32, wanted: part[2] != 0 };
        let items: Vec<Item> = all.chunks_exact(3).map(item).collect();
        let logits = engine.read(&items)?;
        result.extend_from_slice(&(logits.as_ptr() as u32).to_le_bytes());
        Ok(logits.len())
    })
}

/// Begin an answer. `stops` is for each stop string its length in a word and its bytes. Answers a handle.
#[no_mangle]
pub extern "C" fn whit_ask(
    prompt: usize, prompt_count: usize, adapter: i32, most: usize, temperature: f32, top_p: f32, min_p: f32, seed: u32,
    ends: usize, end_count: usize, stops: usize, stops_length: usize,
) -> i32 {
    call(|engine, _| {
        let mut reader = crate::bytes::Reader::new(bytes(stops, stops_length)?);
        let mut all = Vec::new();
        while reader.left() > 0 {
            let length = reader.u32()? as u64;
            all.push(reader.take(length)?.to_vec());
        }
        let sampler = Sampler::new(temperature, top_p, min_p, seed as u64);
        let request = Request { adapter: handle(adapter), most, sampler, ends: words(ends, end_count)?, stops: all };
        engine.ask(words(prompt, prompt_count)?, request)
    })
}

/// Move a list of answers one step in one batch. Answers how many of them go on.
#[no_mangle]
pub extern "C" fn whit_advance(answers: usize, count: usize) -> i32 {
    call(|engine, _| {
        let answers = indices(answers, count)?;
        engine.advance(&answers)?;
        let mut left = 0;
        for answer in answers {
            left += engine.answer(answer)?.goes_on() as usize;
        }
        Ok(left)
    })
}

/// Where an answer stands: 0 reading, 1 running, 2 ended, 3 at a stop string, 4 as long as it may be.
#[no_mangle]
pub extern "C" fn whit_answer_status(answer: usize) -> i32 {
    call(|engine, _| Ok(engine.answer(answer)?.status as usize))
}

/// How many tokens of its prompt have been read.
#[no_mangle]
pub extern "C" fn whit_answer_progress(answer: usize) -> i32 {
    call(|engine, _| Ok(engine.answer(answer)?.read()))
}

/// Text that is settled and was not given before; the result.
#[no_mangle]
pub extern "C" fn whit_answer_text(answer: usize) -> i32 {
    call(|engine, result| {
        result.extend_from_slice(engine.answer(answer)?.take_text());
        Ok(result.len())
    })
}

/// All tokens of an answer so far; the result is a list. Answers how many.
#[no_mangle]
pub extern "C" fn whit_answer_tokens(answer: usize) -> i32 {
    call(|engine, result| {
        let tokens = &engine.answer(answer)?.tokens;
        result.extend(tokens.iter().flat_map(|id| id.to_le_bytes()));
        Ok(tokens.len())
    })
}

/// Forget an answer.
#[no_mangle]
pub extern "C" fn whit_answer_free(answer: usize) -> i32 {
    call(|engine, _| engine.free_answer(answer).map(|_| 0))
}

/// Begin training an adapter with AdamW; a `clip` of 0 for none. Answers a handle.
#[no_mangle]
pub extern "C" fn whit_trainer_new(
    adapter: usize, beta1: f64, beta2: f64, epsilon: f64, decay: f64, clip: f64,
) -> i32 {
    call(|engine, _| engine.new_trainer(adapter, Adam { beta1, beta2, epsilon, decay, clip }))
}

/// Add the gradient of some rows, or with `only_loss` none. Three words a row: how many of the tokens are
/// its own, where its completion begins, the weight of its loss (float32). The result is each row's loss,
/// summed over its completion's tokens, in float64.
#[no_mangle]
pub extern "C" fn whit_learn(
    trainer: usize, rows: usize, row_count: usize, tokens: usize, token_count: usize, only_loss: i32,
) -> i32 {
    call(|engine, result| {
        let tokens = words(tokens, token_count)?;
        let mut left = &tokens[..];
        let mut all = Vec::new();
        for row in words(rows, row_count.checked_mul(3).ok_or_else(|| fail!(Usage, "{row_count} rows"))?)?.chunks_exact(3) {
            if row[0] as usize > left.len() {
                return Err(fail!(Usage, "a row of {} tokens where {} are left", row[0], left.len()));
            }
            let (own, rest) = left.split_at(row[0] as usize);
            left = rest;
            all.push(Row { tokens: own, start: row[1] as usize, weight: f32::from_bits(row[2]) });
        }
        let losses = engine.learn(trainer, &all, only_loss != 0)?;
        result.extend(losses.iter().flat_map(|loss| loss.to_le_bytes()));
        Ok(losses.len())
    })
}

/// Move the adapter one step; the result is the gradient's norm in float64.
#[no_mangle]
pub extern "C" fn whit_step(trainer: usize, rate: f64) -> i32 {
    call(|engine, result| {
        result.extend_from_slice(&engine.step(trainer, rate)?.to_le_bytes());
        Ok(0)
    })
}

/// A part of a trainer's state, float32 in place: 0 gradient, 1 mean of gradients, 2 mean of squares. The
/// result is one word: where it is. Answers how many numbers it has.
#[no_mangle]
pub extern "C" fn whit_trainer_state(trainer: usize, which: usize) -> i32 {
    call(|engine, result| {
        let trainer = engine.trainer(trainer)?;
        let part = match which {
            0 => &mut trainer.gradients.numbers,
            1 | 2 => &mut trainer.means[which - 1],
            _ => return Err(fail!(Usage, "a trainer has no part {which}")),
        };
        result.extend_from_slice(&(part.as_mut_ptr() as u32).to_le_bytes());
        Ok(part.len())
    })
}

/// How many steps were taken; with `set` not negative, say so.
#[no_mangle]
pub extern "C" fn whit_trainer_steps(trainer: usize, set: i32) -> i32 {
    call(|engine, _| {
        let trainer = engine.trainer(trainer)?;
        if set >= 0 {
            trainer.steps = set as u32;
        }
        Ok(trainer.steps as usize)
    })
}

/// Forget a trainer; its adapter stays.
#[no_mangle]
pub extern "C" fn whit_trainer_free(trainer: usize) -> i32 {
    call(|engine, _| engine.free_trainer(trainer).map(|_| 0))
}
