//! A Llama model: its sizes, its frozen weights, its tokenizer, all from one GGUF file.
//!
//! Promises that after `Model::load` every size agrees with every other, so that the equations need no
//! further checks, and that a file with anything this engine does not know (another architecture, a
//! bias, scaled rotary embeddings) is refused rather than run wrongly. Rows of the query and key
//! matrices are kept in the order of transformers (see `matrix`). Knows nothing of adapters.

use crate::error::{filled, Result};
use crate::fail;
use crate::gguf::{Gguf, Tensor};
use crate::math::pow;
use crate::matrix::Matrix;
use crate::quant::dequantise;
use crate::tokenizer::Tokenizer;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How many matrices of a layer can be adapted: q, k, v, o, gate, up, down.
pub const PROJECTIONS: usize = 7;
const NAMES: [&str; PROJECTIONS] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// The sizes of a model.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub head: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for.
    pub context: usize,
    /// Added to the mean square in RMSNorm.
    pub epsilon: f32,
}

impl Sizes {
    /// (rows, columns) of the projection with this number, 0 to 6.
    pub fn projection(&self, number: usize) -> (usize, usize) {
        let (q, kv) = (self.heads * self.head, self.kv_heads * self.head);
        match number {
            0 => (q, self.dim),
            1 | 2 => (kv, self.dim),
            3 => (self.dim, q),
            4 | 5 => (self.ffn, self.dim),
            _ => (self.dim, self.ffn),
        }
    }
}

/// One decoder layer.
pub struct Layer {
    /// Gains of the norm before attention.
    pub attention_norm: Vec<f32>,
    /// Gains of the norm before the feed-forward layer.
    pub ffn_norm: Vec<f32>,
    /// q, k, v, o, gate, up, down.
    pub projections: [Matrix; PROJECTIONS],
}

/// A model ready to run.
pub struct Model {
    /// The file; matrices lie in it.
    pub file: Vec<u8>,
    /// Its sizes.
    pub sizes: Sizes,
    /// Token embeddings; also the head where `head` is none.
    pub embedding: Matrix,
    /// The output matrix where it is not the embedding's.
    pub head: Option<Matrix>,
    /// Gains of the last norm.
    pub output_norm: Vec<f32>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Rotary frequencies, one for each pair of a head.
    pub frequencies: Vec<f32>,
    /// The vocabulary.
    pub tokenizer: Tokenizer,
    /// String-valued metadata: (key, value).
    pub notes: Vec<(String, String)>,
}

impl Model {
    /// Read a model from the bytes of a GGUF file.
    pub fn load(mut file: Vec<u8>) -> Result<Model> {
        let gguf = Gguf::read(&file)?;
        let sizes = sizes(&gguf)?;
        let tokenizer = Tokenizer::read(&gguf, sizes.vocab)?;
        let notes = gguf.notes();
        let base = gguf.float("llama.rope.freq_base")?.unwrap_or(10000.0);
        if !(base > 1.0) {
            return Err(fail!(Damaged, "a rotary base of {base}"));
        }
        let tensors = gguf.tensors;
        known(&tensors, sizes.layers)?;
        let mut frequencies = filled(sizes.head / 2, 0f32)?;
        for (i, frequency) in frequencies.iter_mut().enumerate() {
            *frequency = pow(base, -2.0 * i as f64 / sizes.head as f64) as f32;
        }
        if let Some(tensor) = tensors.iter().find(|tensor| tensor.name == "rope_freqs.weight") {
            let factors = vector(&file, tensor, sizes.head / 2)?;
            frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
        }
        let output_norm = vector(&file, find(&tensors, "output_norm.weight")?, sizes.dim)?;
        let embedding = matrix(&mut file, &tensors, "token_embd.weight", (sizes.vocab, sizes.dim), None)?;
        let head = match tensors.iter().any(|tensor| tensor.name == "output.weight") {
            true => Some(matrix(&mut file, &tensors, "output.weight", (sizes.vocab, sizes.dim), None)?),
            false => None,
        };
        let mut layers = Vec::new();
        for layer in 0..sizes.layers {
            let norm = |name: &str| vector(&file, find(&tensors, &format!("blk.{layer}.{name}.weight"))?, sizes.dim);
            let (attention_norm, ffn_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
            let mut taken = Vec::new();
            for (number, name) in NAMES.iter().enumerate() {
                let rotary = (number < 2).then_some(sizes.head);
                let name = format!("blk.{layer}.{name}.weight");
                taken.push(matrix(&mut file, &tensors, &name, sizes.projection(number), rotary)?);
            }
            let projections = taken.try_into().map_err(|_| fail!(Damaged, "layer {layer} is not whole"))?;
            layers.push(Layer { attention_norm, ffn_norm, projections });
        }
        Ok(Model { file, sizes, embedding, head, output_norm, layers, frequencies, tokenizer, notes })
    }

    /// The output matrix.
    pub fn output(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// How many matrices can be adapted.
    pub fn modules(&self) -> usize {
        self.sizes.layers * PROJECTIONS
    }
}

impl Gguf<'_> {
    fn notes(&self) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.texts().map(|(key, value)| (text(key), text(value))).collect()
    }
}

fn sizes(gguf: &Gguf) -> Result<Sizes> {
    let architecture = gguf.string("general.architecture")?.unwrap_or(b"");
    if architecture != b"llama" {
        let name = String::from_utf8_lossy(architecture);
        return Err(fail!(Unsupported, "a model of architecture {name:?}; this engine runs llama"));
    }
    let scaling = gguf.string("llama.rope.scaling.type")?.unwrap_or(b"none");
    if scaling != b"none" {
        return Err(fail!(Unsupported, "rotary scaling of type {:?}", String::from_utf8_lossy(scaling)));
    }
    if gguf.integer("llama.expert_count")?.unwrap_or(0) != 0 {
        return Err(fail!(Unsupported, "a mixture of experts"));
    }
    const MOST: usize = 1 << 20;
    let dim = gguf.count("llama.embedding_length", 1, MOST, None)?;
    let heads = gguf.count("llama.attention.head_count", 1, 1 << 12, None)?;
    let kv_heads = gguf.count("llama.attention.head_count_kv", 1, heads, Some(heads))?;
    let head = gguf.count("llama.attention.key_length", 2, 1 << 12, Some((dim / heads).max(2)))?;
    let value = gguf.count("llama.attention.value_length", 2, 1 << 12, Some(head))?;
    let rotary = gguf.count("llama.rope.dimension_count", 2, 1 << 12, Some(head))?;
    if heads % kv_heads != 0 || head % 4 != 0 || value != head || rotary != head {
        return Err(fail!(
            Unsupported,
            "{heads} heads over {kv_heads}, of {head} (values {value}, rotary {rotary}) numbers: whole groups, \
             equal sizes and multiples of 4 are needed"
        ));
    }
    let epsilon = gguf.float("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
    if !(0.0..1.0).contains(&epsilon) {
        return Err(fail!(Damaged, "an epsilon of {epsilon}"));
    }
    let embedding = gguf.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    Ok(Sizes {
        layers: gguf.count("llama.block_count", 1, 1 << 10, None)?,
        dim,
        ffn: gguf.count("llama.feed_forward_length", 1, MOST, None)?,
        heads,
        kv_heads,
        head,
        vocab: embedding.map(|tensor| tensor.rows).unwrap_or(0),
        context: gguf.count("llama.context_length", 1, 1 << 24, None)?,
        epsilon: epsilon as f32,
    })
}

/// Refuse a file with a tensor that this engine would silently leave out.
fn known(tensors: &[Tensor], layers: usize) -> Result<()> {
    for tensor in tensors {
        let name = tensor.name.as_str();
        let inner = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let fine = match inner {
            Some((layer, rest)) => {
                let part = rest.strip_suffix(".weight").unwrap_or("");
                let number = layer.parse::<usize>().unwrap_or(usize::MAX);
                number < layers && (NAMES.contains(&part) || part == "attn_norm" || part == "ffn_norm")
            }
            None => {
                matches!(name, "token_embd.weight" | "output.weight" | "output_norm.weight" | "rope_freqs.weight")
            }
        };
        if !fine {
            return Err(fail!(Unsupported, "tensor {name:?}, which this engine does not know"));
        }
    }
    Ok(())
}

fn find<'a>(tensors: &'a [Tensor], name: &str) -> Result<&'a Tensor> {
    tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| fail!(Damaged, "tensor {name} is missing"))
}

fn vector(file: &[u8], tensor: &Tensor, length: usize) -> Result<Vec<f32>> {
    if tensor.cols * tensor.rows != length {
        return Err(fail!(Damaged, "tensor {} has {} numbers, not {length}", tensor.name, tensor.cols * tensor.rows));
    }
    let mut values = filled(length, 0f32)?;
    dequantise(tensor.kind, &file[tensor.at..tensor.at + tensor.size], &mut values);
    Ok(values)
}

fn matrix(
    file: &mut [u8], tensors: &[Tensor], name: &str, (rows, cols): (usize, usize), rotary: Option<usize>,
) -> Result<Matrix> {
    let tensor = find(tensors, name)?;
    if (tensor.rows, tensor.cols) != (rows, cols) {
        return Err(fail!(Damaged, "tensor {name} is {} by {}, not {rows} by {cols}", tensor.rows, tensor.cols));
    }
    Matrix::take(file, tensor, rotary)
}
