//! Text to tokens and back, with the vocabulary that the model file carries: byte-level BPE.
//!
//! Promises token for token what the `tokenizers` package gives for the same vocabulary. Bytes that are
//! no UTF-8 are read as U+FFFD, as Python's `errors="replace"` does. Knows no chat templates.

use crate::error::{filled, Result};
use crate::fail;
use crate::gguf::Gguf;
use crate::merges::{Map, Merges};
use crate::pieces::{pieces, Cut};
use alloc::string::String;
use alloc::vec::Vec;

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
/// No token.
pub const NONE: u32 = u32::MAX;

/// A vocabulary and its merges.
pub struct Tokenizer {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
    /// Tokens found in text before it is cut, by length, the longest first.
    added: Vec<u32>,
    added_starts: [bool; 256],
    single: [u32; 256],
    merges: Merges,
    cut: Cut,
    /// Begins a text, or `NONE`.
    pub bos: u32,
    /// Ends an answer, or `NONE`.
    pub eos: u32,
    /// Whether the model expects `bos` before a text.
    pub adds_bos: bool,
}

/// The byte that a character of GPT-2's byte alphabet stands for.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        n @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(n as u8),
        n @ 0x100..=0x120 => Some((n - 0x100) as u8),
        n @ 0x121..=0x142 => Some((n - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

fn alphabet_bytes(token: &[u8]) -> Option<Vec<u8>> {
    core::str::from_utf8(token).ok()?.chars().map(byte_of).collect()
}

impl Tokenizer {
    /// Read the vocabulary of a model file. It must have `vocab` tokens, as the embedding has rows.
    pub fn read(gguf: &Gguf, vocab: usize) -> Result<Tokenizer> {
        let model = gguf.string("tokenizer.ggml.model")?.unwrap_or(b"");
        if model != b"gpt2" {
            let name = String::from_utf8_lossy(model);
            return Err(fail!(Unsupported, "a tokenizer of kind {name:?}; this engine reads byte-level BPE (gpt2)"));
        }
        let cut = match gguf.string("tokenizer.ggml.pre")?.unwrap_or(b"gpt-2") {
            b"" | b"default" | b"gpt-2" | b"gpt2" => Cut::Gpt2,
            b"smollm" | b"starcoder" | b"refact" | b"codeshell" | b"command-r" => Cut::Smollm,
            other => return Err(fail!(Unsupported, "a tokenizer that cuts text as {:?}", String::from_utf8_lossy(other))),
        };
        let missing = |what: &str| fail!(Damaged, "tokenizer.ggml.{what} is missing");
        let tokens = gguf.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokens"))?;
        if tokens.len() != vocab || vocab == 0 || vocab > 1 << 22 {
            return Err(fail!(Damaged, "{} tokens for an embedding of {vocab} rows", tokens.len()));
        }
        let kinds = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        let kind = |id: usize| kinds.get(id).copied().unwrap_or(NORMAL);
        let mut this = Tokenizer {
            bytes: Vec::new(),
            ends: Vec::new(),
            special: filled(vocab, false)?,
            added: Vec::new(),
            added_starts: [false; 256],
            single: [NONE; 256],
            merges: Merges::default(),
            cut,
            bos: token_id(gguf, "tokenizer.ggml.bos_token_id", vocab)?,
            eos: token_id(gguf, "tokenizer.ggml.eos_token_id", vocab)?,
            adds_bos: gguf.integer_or_bool("tokenizer.ggml.add_bos_token")?,
        };
        let mut ids = Map::with_room(vocab)?;
        for (id, token) in tokens.iter().enumerate() {
            let whole = matches!(kind(id), CONTROL | USER_DEFINED);
            match if whole { None } else { alphabet_bytes(token) } {
                Some(bytes) => this.bytes.extend_from_slice(&bytes),
                None => this.bytes.extend_from_slice(token),
            }
            this.ends.push(this.bytes.len() as u32);
            this.special[id] = kind(id) == CONTROL;
            if whole && !token.is_empty() {
                this.added.push(id as u32);
                this.added_starts[token[0] as usize] = true;
            }
            ids.insert(token, id as u32);
        }
        this.added.sort_by_key(|&id| core::cmp::Reverse(tokens[id as usize].len()));
        for n in 0..0x144u32 {
            let Some(c) = char::from_u32(n) else { continue };
            if let Some(byte) = byte_of(c) {
                let mut buffer = [0; 4];
                this.single[byte as usize] = ids.get(c.encode_utf8(&mut buffer).as_bytes()).unwrap_or(NONE);
            }
        }
        let merges = gguf.strings("tokenizer.ggml.merges")?.ok_or_else(|| missing("merges"))?;
        this.merges = Merges::read(&merges, &ids)?;
        Ok(this)
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none; there always are some.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of a token; empty for an unknown one.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        if id >= self.ends.len() {
            return &[];
        }
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.bytes[start..self.ends[id] as usize]
    }

    /// Whether a token is a control token, which text for people leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The tokens of `text`. With `specials`, the names of special tokens in it are those tokens;
    /// without, they are plain text.
    pub fn encode(&self, text: &[u8], specials: bool) -> Vec<u32> {
        let text = String::from_utf8_lossy(text);
        let mut out = Vec::new();
        let (mut start, mut at) = (0, 0);
        while specials && at < text.len() {
            match self.added_at(&text.as_bytes()[at..]) {
                Some(id) => {
                    self.plain(&text[start..at], &mut out);
                    out.push(id);
                    at += self.bytes(id).len();
                    start = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        self.plain(&text[start..], &mut out);
        out
    }

    fn added_at(&self, text: &[u8]) -> Option<u32> {
        if !self.added_starts[*text.first()? as usize] {
            return None;
        }
        self.added.iter().copied().find(|&id| text.starts_with(self.bytes(id)))
    }

    fn plain(&self, text: &str, out: &mut Vec<u32>) {
        let mut work = Default::default();
        pieces(text, self.cut, |piece| {
            self.merges.apply(piece.bytes().map(|byte| self.single[byte as usize]).filter(|&id| id != NONE), &mut work, out);
        });
    }

    /// The bytes of a run of tokens; `specials` says whether control tokens are written out.
    pub fn decode(&self, ids: &[u32], specials: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for &id in ids {
            if specials || !self.is_special(id) {
                out.extend_from_slice(self.bytes(id));
            }
        }
        out
    }
}

fn token_id(gguf: &Gguf, key: &str, vocab: usize) -> Result<u32> {
    match gguf.integer(key)? {
        None => Ok(NONE),
        Some(id) if id >= 0 && id < vocab as i128 => Ok(id as u32),
        Some(id) => Err(fail!(Damaged, "{key} is {id}, of {vocab} tokens")),
    }
}

impl Gguf<'_> {
    fn integer_or_bool(&self, key: &str) -> Result<bool> {
        Ok(self.integer(key)?.unwrap_or(0) != 0)
    }
}
