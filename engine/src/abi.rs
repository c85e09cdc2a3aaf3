//! What a host calls: plain numbers in, plain numbers out.
//!
//! A call answers with a number that is not negative, or with a negative one: the class of the error
//! (`error::Kind`), whose message is then the result. Bytes go in through memory that `whit_alloc` gave;
//! bytes come out through `whit_result` and `whit_result_len`, valid until the next call. Lists are of
//! 32-bit little-endian words. `docs/engine.md` has the table of calls.
//! Promises that a pointer outside memory is an error and no trap.

use crate::adapter::Kind;
use crate::engine::Engine;
use crate::error::Result;
use crate::fail;
use alloc::vec::Vec;
use core::cell::UnsafeCell;

#[derive(Default)]
struct State {
    engine: Engine,
    result: Vec<u8>,
}

struct Cell(UnsafeCell<Option<State>>);

// SAFETY: this build has one thread, and no call is made from within another.
unsafe impl Sync for Cell {}

static STATE: Cell = Cell(UnsafeCell::new(None));

pub(crate) fn call(work: impl FnOnce(&mut Engine, &mut Vec<u8>) -> Result<usize>) -> i32 {
    // SAFETY: see `Cell`; the reference ends with this call.
    let state = unsafe { &mut *STATE.0.get() }.get_or_insert_with(State::default);
    state.result.clear();
    match work(&mut state.engine, &mut state.result) {
        Ok(number) => number.min(i32::MAX as usize) as i32,
        Err(error) => {
            state.result.clear();
            state.result.extend_from_slice(error.message.as_bytes());
            -(error.kind as i32)
        }
    }
}

pub(crate) fn bytes<'a>(from: usize, length: usize) -> Result<&'a [u8]> {
    let memory = core::arch::wasm32::memory_size(0) * 65536;
    match from.checked_add(length) {
        _ if length == 0 => Ok(&[]),
        // SAFETY: inside memory, and the host does not write while it waits for the call to end.
        Some(end) if from > 0 && end <= memory => Ok(unsafe { core::slice::from_raw_parts(from as *const u8, length) }),
        _ => Err(fail!(Usage, "{length} bytes at {from} are outside of memory")),
    }
}

pub(crate) fn words(from: usize, count: usize) -> Result<Vec<u32>> {
    let all = bytes(from, count.checked_mul(4).ok_or_else(|| fail!(Usage, "{count} words"))?)?;
    Ok(all.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
}

pub(crate) fn indices(from: usize, count: usize) -> Result<Vec<usize>> {
    Ok(words(from, count)?.into_iter().map(|word| word as usize).collect())
}

pub(crate) fn handle(number: i32) -> Option<usize> {
    (number >= 0).then_some(number as usize)
}

/// The version of this table of calls.
#[no_mangle]
pub extern "C" fn whit_abi() -> i32 {
    1
}

/// Memory for `length` bytes, or 0.
#[no_mangle]
pub extern "C" fn whit_alloc(length: usize) -> usize {
    let mut all: Vec<u8> = Vec::new();
    if length == 0 || length > isize::MAX as usize || all.try_reserve_exact(length).is_err() {
        return 0;
    }
    core::mem::ManuallyDrop::new(all).as_mut_ptr() as usize
}

/// Give back what `whit_alloc` gave.
///
/// # Safety
/// Both numbers must be those of one `whit_alloc`, and not have been given to `whit_load`.
#[no_mangle]
pub unsafe extern "C" fn whit_free(at: usize, length: usize) {
    drop(Vec::from_raw_parts(at as *mut u8, 0, length));
}

/// Where the last call's result begins.
#[no_mangle]
pub extern "C" fn whit_result() -> usize {
    // SAFETY: see `Cell`.
    unsafe { &*STATE.0.get() }.as_ref().map_or(0, |state| state.result.as_ptr() as usize)
}

/// How many bytes the last call's result has.
#[no_mangle]
pub extern "C" fn whit_result_len() -> usize {
    // SAFETY: see `Cell`.
    unsafe { &*STATE.0.get() }.as_ref().map_or(0, |state| state.result.len())
}

/// Load a GGUF file; its memory, from `whit_alloc`, belongs to the engine from now on.
///
/// # Safety
/// Both numbers must be those of one `whit_alloc`.
#[no_mangle]
pub unsafe extern "C" fn whit_load(at: usize, length: usize) -> i32 {
    let file = Vec::from_raw_parts(at as *mut u8, length, length);
    call(|engine, _| engine.load(file).map(|_| 0))
}

/// A size of the model: 0 vocabulary, 1 width, 2 layers, 3 context, 4 heads, 5 key and value heads,
/// 6 numbers in a head, 7 feed-forward width, 8 first token, 9 last token, 10 whether texts begin with 8.
#[no_mangle]
pub extern "C" fn whit_size(which: u32) -> i32 {
    call(|engine, _| {
        let model = engine.model()?;
        let (sizes, tokens) = (&model.sizes, &model.tokenizer);
        let token = |id: u32| if id == u32::MAX { i32::MAX as usize } else { id as usize };
        Ok(match which {
            0 => sizes.vocab,
            1 => sizes.dim,
            2 => sizes.layers,
            3 => sizes.context,
            4 => sizes.heads,
            5 => sizes.kv_heads,
            6 => sizes.head,
            7 => sizes.ffn,
            8 => token(tokens.bos),
            9 => token(tokens.eos),
            10 => tokens.adds_bos as usize,
            _ => return Err(fail!(Usage, "there is no size {which}")),
        })
    })
}

/// A text that the file carries, such as `tokenizer.chat_template`; the result.
#[no_mangle]
pub extern "C" fn whit_note(key: usize, length: usize) -> i32 {
    call(|engine, result| {
        let key = bytes(key, length)?;
        let note = engine.model()?.notes.iter().find(|(name, _)| name.as_bytes() == key);
        let (_, text) = note.ok_or_else(|| fail!(Usage, "the file has no such text"))?;
        result.extend_from_slice(text.as_bytes());
        Ok(text.len())
    })
}

/// The tokens of a text; the result is a list. Answers how many.
#[no_mangle]
pub extern "C" fn whit_encode(text: usize, length: usize, specials: i32) -> i32 {
    call(|engine, result| {
        let ids = engine.model()?.tokenizer.encode(bytes(text, length)?, specials != 0);
        result.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        Ok(ids.len())
    })
}

/// The bytes of a list of tokens; the result.
#[no_mangle]
pub extern "C" fn whit_decode(ids: usize, count: usize, specials: i32) -> i32 {
    call(|engine, result| {
        *result = engine.model()?.tokenizer.decode(&words(ids, count)?, specials != 0);
        Ok(result.len())
    })
}

/// Add a basis.
#[no_mangle]
pub extern "C" fn whit_basis(at: usize, length: usize) -> i32 {
    call(|engine, _| engine.add_basis(bytes(at, length)?).map(|_| 0))
}

/// Read a compact adapter. Answers its handle.
#[no_mangle]
pub extern "C" fn whit_adapter_read(at: usize, length: usize) -> i32 {
    call(|engine, _| engine.read_adapter(bytes(at, length)?))
}

/// The compact file of a vector adapter; the result. `exact` keeps float32 instead of bfloat16.
#[no_mangle]
pub extern "C" fn whit_adapter_write(adapter: usize, exact: i32) -> i32 {
    call(|engine, result| {
        *result = engine.write_adapter(adapter, exact != 0)?;
        Ok(result.len())
    })
}

/// A vector adapter at zero: kind 1 tiny, 2 xs. Answers its handle.
#[no_mangle]
pub extern "C" fn whit_adapter_vector(
    kind: i32, rank: usize, targets: usize, modules: usize, numbers: usize, groups: usize, seed: u32,
) -> i32 {
    call(|engine, _| {
        let kind = match kind {
            1 => Kind::Tiny,
            2 => Kind::Xs,
            other => return Err(fail!(Usage, "there is no vector adapter of kind {other}")),
        };
        engine.new_vector(kind, rank, indices(targets, modules)?, numbers, groups, seed as u64)
    })
}

/// A LoRA that changes nothing yet; `scale` is alpha / r. Answers its handle.
#[no_mangle]
pub extern "C" fn whit_adapter_lora(rank: usize, scale: f32, targets: usize, modules: usize, seed: u32) -> i32 {
    call(|engine, _| engine.new_lora(rank, scale, indices(targets, modules)?, seed as u64))
}

/// How many numbers an adapter has; the result is one word: where they are, as float32.
#[no_mangle]
pub extern "C" fn whit_adapter_numbers(adapter: usize) -> i32 {
    call(|engine, result| {
        let numbers = &mut engine.adapter(adapter)?.numbers;
        result.extend_from_slice(&(numbers.as_mut_ptr() as u32).to_le_bytes());
        Ok(numbers.len())
    })
}

/// Make changed numbers count.
#[no_mangle]
pub extern "C" fn whit_adapter_refresh(adapter: usize) -> i32 {
    call(|engine, _| {
        let adapter = engine.adapter(adapter)?;
        if adapter.numbers.iter().any(|number| !number.is_finite()) {
            return Err(fail!(Adapter, "the adapter holds NaN or infinite numbers"));
        }
        adapter.refresh();
        Ok(0)
    })
}

/// Forget an adapter.
#[no_mangle]
pub extern "C" fn whit_adapter_free(adapter: usize) -> i32 {
    call(|engine, _| engine.free_adapter(adapter).map(|_| 0))
}
