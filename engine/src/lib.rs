//! Runs and tunes small Llama models from GGUF files, each row of a batch with its own adapter.
//!
//! ```text
//!   abi        what a host calls (WebAssembly exports; the browser and Python use the same)
//!   ├── generate, train       tokens out; adapters in
//!   │   └── forward, backward the model's equations
//!   │       └── model, cache, adapter
//!   │           └── product, matrix, quant, vector, simd
//!   ├── tokenizer  (pieces, merges, letters)
//!   └── gguf, bytes, math, error
//! ```
//!
//! `core` and `alloc` only; no crate, no thread, no clock, no file, no network. What a file or a host
//! says never makes it panic. Knows neither Python nor a browser.

#![cfg_attr(target_arch = "wasm32", no_std)]

extern crate alloc;

pub mod adapter;
pub mod attention;
pub mod backward;
pub mod basis;
pub mod bytes;
pub mod checksum;
pub mod compact;
pub mod engine;
pub mod error;
pub mod forward;
pub mod generate;
pub mod gguf;
pub mod letters;
pub mod math;
pub mod matrix;
pub mod merges;
pub mod model;
pub mod philox;
pub mod pieces;
pub mod product;
pub mod quant;
pub mod sample;
pub mod simd;
pub mod tokenizer;
pub mod train;
pub mod vector;

#[cfg(target_arch = "wasm32")]
mod heap;
#[cfg(target_arch = "wasm32")]
pub mod abi;
#[cfg(target_arch = "wasm32")]
pub mod abi_work;
