//! Files that lie: whatever bytes come, the engine answers with an error or runs; it never panics.
//!
//! Built on a small whole file, then changed at random: cut, bytes and length fields overwritten with
//! extreme values, runs repeated. `WHIT_FUZZ=100000` tries that many instead of the default.

use whit_engine::engine::{Engine, Request};
use whit_engine::philox::Dice;
use whit_engine::sample::Sampler;

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn key(out: &mut Vec<u8>, name: &str, kind: u32, value: &[u8]) {
    string(out, name);
    out.extend(kind.to_le_bytes());
    out.extend(value);
}

fn list(items: &[&str]) -> Vec<u8> {
    let mut out = 8u32.to_le_bytes().to_vec();
    out.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| string(&mut out, item));
    out
}

/// (number type, columns, bytes of a row)
fn model(kind: u32, dim: usize, row: impl Fn(usize) -> usize) -> Vec<u8> {
    let tokens = ["a", "b", "c", "ab", "abc", "Ġ", "<|end|>", "d"];
    let mut keys = Vec::new();
    let text = |value: &str| {
        let mut out = Vec::new();
        string(&mut out, value);
        out
    };
    let number = |value: usize| (value as u32).to_le_bytes().to_vec();
    key(&mut keys, "general.architecture", 8, &text("llama"));
    key(&mut keys, "llama.context_length", 4, &number(32));
    key(&mut keys, "llama.embedding_length", 4, &number(dim));
    key(&mut keys, "llama.block_count", 4, &number(1));
    key(&mut keys, "llama.feed_forward_length", 4, &number(dim));
    key(&mut keys, "llama.attention.head_count", 4, &number(4));
    key(&mut keys, "llama.attention.head_count_kv", 4, &number(2));
    key(&mut keys, "llama.rope.freq_base", 6, &10000f32.to_le_bytes());
    key(&mut keys, "tokenizer.ggml.model", 8, &text("gpt2"));
    key(&mut keys, "tokenizer.ggml.pre", 8, &text("smollm"));
    key(&mut keys, "tokenizer.ggml.tokens", 9, &list(&tokens));
    key(&mut keys, "tokenizer.ggml.merges", 9, &list(&["a b", "ab c"]));
    key(&mut keys, "tokenizer.ggml.eos_token_id", 4, &number(6));
    let shapes = [
        ("token_embd", tokens.len()),
        ("blk.0.attn_q", dim),
        ("blk.0.attn_k", dim / 2),
        ("blk.0.attn_v", dim / 2),
        ("blk.0.attn_output", dim),
        ("blk.0.ffn_gate", dim),
        ("blk.0.ffn_up", dim),
        ("blk.0.ffn_down", dim),
        ("output_norm", 0),
        ("blk.0.attn_norm", 0),
        ("blk.0.ffn_norm", 0),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((shapes.len() as u64).to_le_bytes());
    out.extend(13u64.to_le_bytes());
    out.extend(keys);
    let mut offset = 0usize;
    for (name, rows) in shapes {
        string(&mut out, &format!("{name}.weight"));
        out.extend(if rows == 0 { 1u32 } else { 2 }.to_le_bytes());
        out.extend((dim as u64).to_le_bytes());
        if rows > 0 {
            out.extend((rows as u64).to_le_bytes());
        }
        out.extend(if rows == 0 { 0u32 } else { kind }.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += if rows == 0 { 4 * dim } else { rows * row(dim) }.next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32) + offset, 0x11);
    out
}

fn run(file: Vec<u8>) -> bool {
    let mut engine = Engine::default();
    if engine.load(file).is_err() {
        return false;
    }
    let Ok(model) = engine.model() else { return false };
    if model.sizes.vocab > 1 << 16 || model.sizes.context > 1 << 16 {
        return true;
    }
    let mut prompt = model.tokenizer.encode(b"abc dab\xff<|end|>", true);
    prompt.push(0);
    let sampler = Sampler::new(1.0, 0.9, 0.01, 1);
    let request = Request { adapter: None, most: 3, sampler, ends: vec![], stops: vec![b"zz".to_vec()] };
    if let Ok(answer) = engine.ask(prompt, request) {
        for _ in 0..4 {
            let _ = engine.advance(&[answer]);
        }
    }
    true
}

fn change(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut file = whole.to_vec();
    let head = 1400.min(file.len());
    let mut pick = |most: usize| (dice.roll() * most as f64) as usize;
    for _ in 0..1 + pick(3) {
        let anywhere = pick(4) == 0;
        let at = pick(if anywhere { file.len() } else { head.min(file.len()) });
        let end = file.len();
        match pick(6) {
            0 => file.truncate(at.max(8)),
            1 => file[at.min(end - 1)] = pick(256) as u8,
            2 => file[at.min(end - 1)] ^= 1 << pick(8),
            3 => {
                let value = [0, 1, u64::MAX, 1 << 63, 1 << 32, u32::MAX as u64, 1 << 40][pick(7)];
                let width = 4 + 4 * pick(2);
                for (to, byte) in file.iter_mut().skip(at).zip(&value.to_le_bytes()[..width]) {
                    *to = *byte;
                }
            }
            4 => {
                let part = file[at..(at + 1 + pick(64)).min(end)].to_vec();
                let to = pick(head.min(end));
                file.splice(to..to, part);
            }
            _ => {
                file.drain(at..(at + 1 + pick(16)).min(end));
            }
        }
        if file.is_empty() {
            file.push(0);
        }
    }
    file
}

#[test]
fn no_file_makes_the_engine_panic() {
    let rounds = std::env::var("WHIT_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(6000);
    let bases = [
        model(8, 32, |dim| dim / 32 * 34),
        model(3, 64, |dim| dim / 32 * 20),
        model(0, 16, |dim| dim * 4),
        model(34, 256, |dim| dim / 256 * 54),
        model(14, 256, |dim| dim / 256 * 210),
    ];
    let mut dice = Dice::new(42);
    let mut fine = 0;
    for whole in &bases {
        assert!(run(whole.clone()), "the unchanged file must load");
    }
    for round in 0..rounds {
        fine += run(change(&bases[round % bases.len()], &mut dice)) as usize;
    }
    // Changes to weights leave a file that loads: if none did, the test would be testing the magic only.
    assert!(fine > rounds / 50 && fine < rounds, "{fine} of {rounds} loaded");
}

#[test]
fn every_truncation_is_an_error() {
    let whole = model(8, 32, |dim| dim / 32 * 34);
    for length in 0..whole.len() {
        assert!(!run(whole[..length].to_vec()) || whole.len() - length < 32, "{length}");
    }
}
