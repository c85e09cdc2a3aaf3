//! Answers: a prompt in, text out piece by piece, many at once, each with its own adapter and settings.
//!
//! `advance` moves any number of answers one step in one batch: a block of the prompt, or a token. Text
//! that might become a stop string, or is half a character, is held back until that is settled.
//! Knows no chat templates: prompts come as tokens.

use crate::forward::Item;
use crate::sample::Sampler;
use crate::tokenizer::Tokenizer;
use alloc::vec::Vec;

/// Prompt tokens read in one step.
pub const BLOCK: usize = 64;

/// Where an answer stands; the numbers cross to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The prompt is being read.
    Reading = 0,
    /// Tokens are coming.
    Running = 1,
    /// It ended with a token that ends answers.
    Ended = 2,
    /// It ended at a stop string, which is left out of the text.
    Stopped = 3,
    /// It has as many tokens as it may.
    Full = 4,
}

/// One answer in the making.
pub struct Answer {
    /// Its sequence's handle.
    pub sequence: usize,
    /// Where it stands.
    pub status: Status,
    /// The tokens so far, without the one that ended it.
    pub tokens: Vec<u32>,
    prompt: Vec<u32>,
    read: usize,
    most: usize,
    sampler: Sampler,
    ends: Vec<u32>,
    stops: Vec<Vec<u8>>,
    text: Vec<u8>,
    given: usize,
}

impl Answer {
    /// An answer to `prompt` (not empty) of at most `most` tokens. `stops` are byte strings, none empty.
    pub fn new(
        sequence: usize, prompt: Vec<u32>, most: usize, sampler: Sampler, ends: Vec<u32>, stops: Vec<Vec<u8>>,
    ) -> Answer {
        let status = if most == 0 { Status::Full } else { Status::Reading };
        Answer {
            sequence,
            status,
            tokens: Vec::new(),
            prompt,
            read: 0,
            most,
            sampler,
            ends,
            stops,
            text: Vec::new(),
            given: 0,
        }
    }

    /// Whether it goes on.
    pub fn goes_on(&self) -> bool {
        matches!(self.status, Status::Reading | Status::Running)
    }

    /// How many prompt tokens have been read.
    pub fn read(&self) -> usize {
        self.read
    }

    /// What it wants read next.
    pub fn items(&self, out: &mut Vec<Item>) {
        let sequence = self.sequence;
        match self.status {
            Status::Reading => {
                let end = self.prompt.len().min(self.read + BLOCK);
                for at in self.read..end {
                    out.push(Item { sequence, token: self.prompt[at], wanted: at + 1 == self.prompt.len() });
                }
            }
            Status::Running => {
                if let Some(&token) = self.tokens.last() {
                    out.push(Item { sequence, token, wanted: true });
                }
            }
            _ => {}
        }
    }

    /// Take note of what was read. Answers whether a row of logits is due for it.
    pub fn noted(&mut self, count: usize) -> bool {
        if self.status == Status::Reading {
            self.read += count;
            return self.read == self.prompt.len();
        }
        count > 0
    }

    /// Choose the next token.
    pub fn choose(&mut self, logits: &[f32], tokenizer: &Tokenizer) {
        self.status = Status::Running;
        let token = self.sampler.choose(logits);
        if self.ends.contains(&token) {
            self.status = Status::Ended;
            return;
        }
        self.tokens.push(token);
        let before = self.text.len();
        if !tokenizer.is_special(token) {
            self.text.extend_from_slice(tokenizer.bytes(token));
        }
        if let Some(at) = self.first_stop(before) {
            self.text.truncate(at.max(self.given));
            self.status = Status::Stopped;
        } else if self.tokens.len() >= self.most {
            self.status = Status::Full;
        }
    }

    /// The earliest stop string that ends beyond `before`.
    fn first_stop(&self, before: usize) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| {
            let from = before.saturating_sub(stop.len() - 1);
            self.text[from..].windows(stop.len()).position(|part| part == &stop[..]).map(|at| from + at)
        });
        found.min()
    }

    /// Text that is settled and was not given before.
    pub fn take_text(&mut self) -> &[u8] {
        let start = self.given;
        self.given = if self.goes_on() { self.settled().max(start) } else { self.text.len() };
        &self.text[start..self.given]
    }

    fn settled(&self) -> usize {
        let mut end = self.text.len();
        for stop in &self.stops {
            for length in (1..stop.len()).rev() {
                if self.text.ends_with(&stop[..length]) {
                    end = end.min(self.text.len() - length);
                    break;
                }
            }
        }
        // A character of up to four bytes may have begun among the last three.
        for back in 1..=3.min(end) {
            let byte = self.text[end - back];
            let whole = match byte {
                0xC0..=0xDF => 2,
                0xE0..=0xEF => 3,
                0xF0..=0xF7 => 4,
                _ => 0,
            };
            if whole > back {
                return end - back;
            }
            if byte & 0xC0 != 0x80 {
                break;
            }
        }
        end
    }
}
