//! The merges of byte-pair encoding, and the hash tables they need.
//!
//! Promises the order of Sennrich et al. (2016): of all neighbours in a word, the pair that was learnt
//! first is merged first, the leftmost of equals. A word of n bytes takes n·log n steps.

use crate::error::{filled, Result};
use crate::fail;
use alloc::collections::BinaryHeap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

const EMPTY: u32 = u32::MAX;

fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash ^ (hash >> 29)
}

/// From bytes to a number; the first of equal keys stays.
pub struct Map<'a> {
    slots: Vec<u32>,
    entries: Vec<(&'a [u8], u32)>,
}

impl<'a> Map<'a> {
    /// A map for up to `count` keys.
    pub fn with_room(count: usize) -> Result<Map<'a>> {
        Ok(Map { slots: filled((2 * count + 1).next_power_of_two(), EMPTY)?, entries: Vec::new() })
    }

    fn slot(&self, key: &[u8]) -> usize {
        let hash = key.iter().fold(0xCBF2_9CE4_8422_2325u64, |h, &b| (h ^ b as u64).wrapping_mul(0x100_0000_01B3));
        let mut at = mix(hash) as usize & (self.slots.len() - 1);
        while self.slots[at] != EMPTY && self.entries[self.slots[at] as usize].0 != key {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    /// Remember a key; no more of them than there was room for.
    pub fn insert(&mut self, key: &'a [u8], value: u32) {
        let at = self.slot(key);
        if self.slots[at] == EMPTY && 2 * self.entries.len() < self.slots.len() {
            self.slots[at] = self.entries.len() as u32;
            self.entries.push((key, value));
        }
    }

    /// The number of a key.
    pub fn get(&self, key: &[u8]) -> Option<u32> {
        let found = self.slots[self.slot(key)];
        (found != EMPTY).then(|| self.entries[found as usize].1)
    }
}

/// A pair of tokens, when it was learnt, and what it becomes.
#[derive(Clone, Copy)]
struct Rule {
    left: u32,
    right: u32,
    rank: u32,
    merged: u32,
}

/// All merges of a vocabulary.
#[derive(Default)]
pub struct Merges {
    slots: Vec<Rule>,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    before: u32,
    after: u32,
}

/// Buffers that words reuse.
#[derive(Default)]
pub struct Work {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

impl Merges {
    /// Read lines such as `Ġ t`, in the order in which they were learnt. Both halves and the whole must
    /// be in the vocabulary.
    pub fn read(lines: &[&[u8]], ids: &Map) -> Result<Merges> {
        let empty = Rule { left: EMPTY, right: EMPTY, rank: 0, merged: 0 };
        let mut this = Merges { slots: filled((2 * lines.len() + 1).next_power_of_two(), empty)? };
        let mut whole = Vec::new();
        for (rank, line) in lines.iter().enumerate() {
            let damaged = || fail!(Damaged, "merge {rank} ({:?}) is not of this vocabulary", String::from_utf8_lossy(line));
            let gap = line.iter().skip(1).position(|&b| b == b' ').ok_or_else(damaged)? + 1;
            let (left, right) = (&line[..gap], &line[gap + 1..]);
            whole.clear();
            whole.extend_from_slice(left);
            whole.extend_from_slice(right);
            let (Some(left), Some(right), Some(merged)) = (ids.get(left), ids.get(right), ids.get(&whole)) else {
                return Err(damaged());
            };
            let at = this.slot(left, right);
            if this.slots[at].left == EMPTY {
                this.slots[at] = Rule { left, right, rank: rank as u32, merged };
            }
        }
        Ok(this)
    }

    fn slot(&self, left: u32, right: u32) -> usize {
        let mut at = mix((left as u64) << 32 | right as u64) as usize & (self.slots.len() - 1);
        while self.slots[at].left != EMPTY && (self.slots[at].left, self.slots[at].right) != (left, right) {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    fn find(&self, left: u32, right: u32) -> Option<Rule> {
        let rule = *self.slots.get(self.slot(left, right))?;
        (rule.left != EMPTY).then_some(rule)
    }

    /// Merge the symbols of one word and append what is left to `out`.
    pub fn apply(&self, word: impl Iterator<Item = u32>, work: &mut Work, out: &mut Vec<u32>) {
        let Work { symbols, queue } = work;
        symbols.clear();
        queue.clear();
        for id in word {
            let at = symbols.len() as u32;
            symbols.push(Symbol { id, before: at.wrapping_sub(1), after: at + 1 });
        }
        let count = symbols.len() as u32;
        for at in 1..count {
            self.offer(symbols, queue, at - 1, at);
        }
        while let Some(Reverse((_, at, merged))) = queue.pop() {
            let symbol = symbols[at as usize];
            if symbol.id == EMPTY || symbol.after >= count {
                continue;
            }
            let next = symbols[symbol.after as usize];
            // An entry is stale once either side has changed.
            if self.find(symbol.id, next.id).map(|rule| rule.merged) != Some(merged) {
                continue;
            }
            symbols[symbol.after as usize].id = EMPTY;
            symbols[at as usize] = Symbol { id: merged, before: symbol.before, after: next.after };
            if next.after < count {
                symbols[next.after as usize].before = at;
                self.offer(symbols, queue, at, next.after);
            }
            if symbol.before < count {
                self.offer(symbols, queue, symbol.before, at);
            }
        }
        out.extend(symbols.iter().map(|symbol| symbol.id).filter(|&id| id != EMPTY));
    }

    fn offer(&self, symbols: &[Symbol], queue: &mut BinaryHeap<Reverse<(u32, u32, u32)>>, left: u32, right: u32) {
        if let Some(rule) = self.find(symbols[left as usize].id, symbols[right as usize].id) {
            queue.push(Reverse((rule.rank, left, rule.merged)));
        }
    }
}
