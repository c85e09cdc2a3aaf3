/**
 * LoRA adapters as PEFT folders: reading and writing the two files, to and from the engine's order of numbers.
 *
 * The engine keeps for each module A (r × in) and then Bᵀ (r × out). Promises that a folder written here is one that
 * `whit` and PEFT read, that equal numbers are equal files, and that every length is checked before it is used.
 */
import { WhitError } from "./engine.js";
export const CONFIG = "adapter_config.json";
export const WEIGHTS = "adapter_model.safetensors";
const PREFIX = "base_model.model.model.layers.";
const PROJECTIONS = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
];
const BASE_NOTE = "whit_base_fingerprint";
/** [out, in] of a module. */
export function shapeOf(module, sizes) {
    const q = sizes.heads * sizes.head;
    const kv = sizes.kvHeads * sizes.head;
    const shapes = [
        [q, sizes.dim], [kv, sizes.dim], [kv, sizes.dim], [sizes.dim, q], [sizes.ffn, sizes.dim], [sizes.ffn, sizes.dim],
        [sizes.dim, sizes.ffn],
    ];
    return shapes[module % 7];
}
function damaged(why) {
    return new WhitError("adapter", `This LoRA cannot be used: ${why}.`);
}
/** Read a folder's two files for a model of these sizes. */
export function readLora(files, sizes) {
    const [config, weights] = [files[CONFIG], files[WEIGHTS]];
    if (!config || !weights)
        throw damaged(`it needs ${CONFIG} and ${WEIGHTS}`);
    const settings = parse(config);
    const rank = settings["r"];
    const alpha = settings["lora_alpha"] ?? rank;
    if (settings["peft_type"] !== "LORA" || typeof rank !== "number" || typeof alpha !== "number" || !(rank >= 1 && rank <= 256)) {
        throw damaged(`${CONFIG} describes no plain LoRA`);
    }
    for (const key of ["use_dora", "use_rslora", "fan_in_fan_out"]) {
        if (settings[key])
            throw damaged(`${key} is not supported`);
    }
    const { head, start } = header(weights);
    const found = new Map();
    for (const [key, entry] of Object.entries(head)) {
        if (key === "__metadata__")
            continue;
        const parts = /^(\d+)\.(.+)\.lora_([AB])\.weight$/.exec(key.startsWith(PREFIX) ? key.slice(PREFIX.length) : "");
        const place = PROJECTIONS.indexOf(parts?.[2] ?? "");
        const module = Number(parts?.[1]) * 7 + place;
        if (!parts || place < 0 || module >= sizes.layers * 7)
            throw damaged(`its tensor ${key.slice(0, 80)} is none of this model`);
        const [out, wide] = shapeOf(module, sizes);
        const side = parts[3];
        const [rows, columns] = side === "A" ? [rank, wide] : [out, rank];
        const values = tensor(weights, start, entry, rows, columns, key);
        const pair = found.get(module) ?? {};
        pair[side] = values;
        found.set(module, pair);
    }
    const targets = [...found.keys()].sort((a, b) => a - b);
    if (!targets.length)
        throw damaged("there is no tensor in it");
    const numbers = new Float32Array(targets.reduce((sum, module) => sum + rank * sumOf(shapeOf(module, sizes)), 0));
    let at = 0;
    for (const module of targets) {
        const [out, wide] = shapeOf(module, sizes);
        const { A, B } = found.get(module) ?? {};
        if (!A || !B)
            throw damaged("a module has one matrix of two");
        numbers.set(A, at);
        numbers.set(transposed(B, out, rank), at + rank * wide);
        at += rank * (wide + out);
    }
    const about = (head["__metadata__"] ?? {});
    return { rank, alpha, targets, numbers, base: String(about[BASE_NOTE] ?? "") };
}
/** The two files of a PEFT folder. */
export function writeLora(lora, sizes, baseName) {
    const tensors = [];
    const modules = [];
    let at = 0;
    for (const module of lora.targets) {
        const [out, wide] = shapeOf(module, sizes);
        const name = `${Math.floor(module / 7)}.${PROJECTIONS[module % 7]}`;
        modules.push(`model.layers.${name}`);
        tensors.push([`${PREFIX}${name}.lora_A.weight`, [lora.rank, wide], lora.numbers.slice(at, at + lora.rank * wide)]);
        at += lora.rank * wide;
        const B = transposed(lora.numbers.subarray(at, at + lora.rank * out), lora.rank, out);
        tensors.push([`${PREFIX}${name}.lora_B.weight`, [out, lora.rank], B]);
        at += lora.rank * out;
    }
    tensors.sort((a, b) => (a[0] < b[0] ? -1 : 1));
    const head = { __metadata__: { format: "pt", [BASE_NOTE]: lora.base } };
    let offset = 0;
    for (const [name, shape, values] of tensors) {
        head[name] = { dtype: "F32", shape, data_offsets: [offset, offset + values.byteLength] };
        offset += values.byteLength;
    }
    let text = JSON.stringify(head);
    text += " ".repeat((8 - (text.length % 8)) % 8);
    const weights = new Uint8Array(8 + text.length + offset);
    new DataView(weights.buffer).setBigUint64(0, BigInt(text.length), true);
    weights.set(new TextEncoder().encode(text), 8);
    let place = 8 + text.length;
    for (const [, , values] of tensors) {
        weights.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), place);
        place += values.byteLength;
    }
    const config = {
        peft_type: "LORA", task_type: "CAUSAL_LM", base_model_name_or_path: baseName, r: lora.rank, lora_alpha: lora.alpha,
        lora_dropout: 0.0, target_modules: modules.sort(), bias: "none", inference_mode: true,
    };
    return { [CONFIG]: new TextEncoder().encode(JSON.stringify(config, null, 2) + "\n"), [WEIGHTS]: weights };
}
function header(content) {
    if (content.length < 8)
        throw damaged(`${WEIGHTS} is truncated`);
    const length = new DataView(content.buffer, content.byteOffset).getBigUint64(0, true);
    if (length > BigInt(content.length - 8))
        throw damaged(`${WEIGHTS} is truncated`);
    const start = 8 + Number(length);
    return { head: parse(content.subarray(8, start)), start };
}
function parse(content) {
    try {
        const value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
        if (value && typeof value === "object" && !Array.isArray(value))
            return value;
    }
    catch {
        // told below
    }
    throw damaged("its description is not JSON");
}
function tensor(content, start, entry, rows, columns, key) {
    const width = entry?.dtype === "F32" ? 4 : entry?.dtype === "BF16" || entry?.dtype === "F16" ? 2 : 0;
    const [from, to] = Array.isArray(entry?.data_offsets) ? entry.data_offsets : [NaN, NaN];
    const fits = entry?.shape?.length === 2 && entry.shape[0] === rows && entry.shape[1] === columns;
    if (!width || !fits || !Number.isInteger(from) || from < 0 || to - from !== rows * columns * width || start + to > content.length) {
        throw damaged(`its tensor ${key.slice(0, 80)} has another type or shape than this model needs, or is truncated`);
    }
    const bytes = content.slice(start + from, start + to);
    const values = width === 4 ? new Float32Array(bytes.buffer) : widened(new Uint16Array(bytes.buffer), entry.dtype);
    if (!values.every(Number.isFinite))
        throw damaged(`its tensor ${key.slice(0, 80)} holds NaN or infinite numbers`);
    return values;
}
function widened(halves, dtype) {
    if (dtype === "BF16")
        return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
    return Float32Array.from(halves, (half) => {
        const [sign, exponent, mantissa] = [half >> 15 ? -1 : 1, (half >> 10) & 31, half & 1023];
        if (exponent === 31)
            return mantissa ? NaN : sign * Infinity;
        return exponent ? sign * 2 ** (exponent - 15) * (1 + mantissa / 1024) : sign * 2 ** -24 * mantissa;
    });
}
/** (rows, columns) -> (columns, rows). */
function transposed(values, rows, columns) {
    const turned = new Float32Array(values.length);
    for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++)
            turned[column * rows + row] = values[row * columns + column];
    }
    return turned;
}
function sumOf([a, b]) {
    return a + b;
}
