/**
 * The engine's WebAssembly module, loaded and spoken to; twin of `whit.engine.runtime`.
 *
 * Promises that an error inside the engine is an `EngineError` with the engine's own words, and that everything it
 * lends is given back. Knows the calls of docs/engine.md; nothing of workers, storage or pages.
 */

export type ErrorKind =
  | "usage" | "model" | "unsupported" | "memory" | "adapter" | "base" | "basis" | "training" | "engine" | "network"
  | "storage" | "damaged" | "data";

const KINDS: ErrorKind[] = ["engine", "usage", "model", "unsupported", "memory", "adapter", "base", "basis", "training"];

/** Something that whit explains to its user. */
export class WhitError extends Error {
  constructor(readonly kind: ErrorKind, message: string) {
    super(message);
    this.name = "WhitError";
  }
}

/** What the model file says of itself. */
export interface Sizes {
  vocab: number;
  dim: number;
  layers: number;
  context: number;
  heads: number;
  kvHeads: number;
  head: number;
  ffn: number;
}

export interface AskOptions {
  adapter?: number;
  most?: number;
  temperature?: number;
  topP?: number;
  minP?: number;
  seed?: number;
  ends?: number[];
  stops?: string[];
}

/** A row as tokens: what is given, what is learned. */
export interface TokenRow {
  prompt: Uint32Array;
  completion: Uint32Array;
}

type Call = (...values: number[]) => number;
type Given = number | Uint8Array | Words;

/** A list that is passed as a pointer and how many parts of `size` bytes it has. */
class Words {
  constructor(readonly bytes: Uint8Array, readonly size: number) {}
}

function words(values: ArrayLike<number>): Words {
  return new Words(new Uint8Array(Uint32Array.from(values).buffer), 4);
}

const encoder = new TextEncoder();

// A function that uses relaxed SIMD (i32x4.relaxed_trunc_f32x4_s): valid only where the browser has it.
const RELAXED = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253,
  128, 2, 11,
]);

/** Which build of the engine this browser can run: `relaxed` or `simd`. */
export function variant(): "relaxed" | "simd" {
  return WebAssembly.validate(RELAXED) ? "relaxed" : "simd";
}

/** A model and its adapters inside a WebAssembly instance. Handles are small integers. */
export class Engine {
  readonly sizes: Sizes;
  private readonly calls: Record<string, Call>;
  private readonly memory: WebAssembly.Memory;

  private constructor(instance: WebAssembly.Instance, model: Uint8Array) {
    this.calls = instance.exports as unknown as Record<string, Call>;
    this.memory = instance.exports["memory"] as WebAssembly.Memory;
    if (this.raw("whit_abi") !== 1) throw new WhitError("engine", "The engine is of another version than this page.");
    // The engine keeps this memory: matrices are rearranged in place.
    this.call("whit_load", this.lend(model), model.length);
    const size = (which: number) => this.call("whit_size", which);
    this.sizes = {
      vocab: size(0), dim: size(1), layers: size(2), context: size(3), heads: size(4), kvHeads: size(5), head: size(6),
      ffn: size(7),
    };
  }

  /** Instantiate the module and load a GGUF file into it. */
  static async open(wasm: BufferSource, model: Uint8Array): Promise<Engine> {
    const { instance } = await WebAssembly.instantiate(wasm, {});
    return new Engine(instance, model);
  }

  /** Bytes that the engine's memory has taken. */
  get memoryBytes(): number {
    return this.memory.buffer.byteLength;
  }

  private raw(name: string, ...values: number[]): number {
    const call = this.calls[name];
    if (!call) throw new WhitError("engine", `The engine has no call ${name}.`);
    try {
      return call(...values);
    } catch (error) {
      throw new WhitError("engine", `The engine stopped in ${name}: ${String(error)}. Reload the page.`);
    }
  }

  private lend(content: Uint8Array): number {
    const at = this.raw("whit_alloc", content.length) >>> 0;
    if (!at) throw new WhitError("memory", `There is no memory for ${content.length} bytes more.`);
    new Uint8Array(this.memory.buffer).set(content, at);
    return at;
  }

  private call(name: string, ...given: Given[]): number {
    const plain: number[] = [];
    const lent: [number, number][] = [];
    let answer: number;
    try {
      for (const item of given) {
        if (typeof item === "number") {
          plain.push(item);
          continue;
        }
        const list = item instanceof Words ? item : new Words(item, 1);
        const at = list.bytes.length ? this.lend(list.bytes) : 0;
        if (at) lent.push([at, list.bytes.length]);
        plain.push(at, list.bytes.length / list.size);
      }
      answer = this.raw(name, ...plain);
    } finally {
      for (const [at, length] of lent) this.raw("whit_free", at, length);
    }
    if (answer < 0) {
      throw new WhitError(KINDS[-answer] ?? "engine", new TextDecoder().decode(this.result()) || `Error in ${name}.`);
    }
    return answer;
  }

  /** A copy of what the last call left. */
  private result(): Uint8Array {
    const at = this.raw("whit_result") >>> 0;
    return new Uint8Array(this.memory.buffer).slice(at, at + this.raw("whit_result_len"));
  }

  private resultWords(): Uint32Array {
    return new Uint32Array(this.result().buffer);
  }

  /** The float32 in the engine that the word in the result points at; a view, so use it at once. */
  private floats(count: number): Float32Array {
    return new Float32Array(this.memory.buffer, this.resultWords()[0], count);
  }

  // Text --------------------------------------------------------------------------------------------------------

  /** The tokens of a text; special tokens in it are recognised unless `specials` is false. */
  encode(text: string, specials = true): Uint32Array {
    this.call("whit_encode", encoder.encode(text), specials ? 1 : 0);
    return this.resultWords();
  }

  // Adapters ----------------------------------------------------------------------------------------------------

  addBasis(content: Uint8Array): void {
    this.call("whit_basis", content);
  }

  /** Read a compact adapter; its handle. */
  readAdapter(content: Uint8Array): number {
    return this.call("whit_adapter_read", content);
  }

  /** The compact file of a vector adapter. */
  writeAdapter(adapter: number): Uint8Array {
    this.call("whit_adapter_write", adapter, 0);
    return this.result();
  }

  xsAdapter(rank: number, targets: number[]): number {
    return this.call("whit_adapter_vector", 2, rank, words(targets), targets.length * rank * rank, targets.length, 0);
  }

  loraAdapter(rank: number, alpha: number, targets: number[], seed = 0): number {
    return this.call("whit_adapter_lora", rank, alpha / rank, words(targets), seed);
  }

  /** A copy of an adapter's numbers. */
  numbers(adapter: number): Float32Array {
    return this.floats(this.call("whit_adapter_numbers", adapter)).slice();
  }

  setNumbers(adapter: number, values: Float32Array): void {
    const place = this.floats(this.call("whit_adapter_numbers", adapter));
    if (place.length !== values.length) {
      throw new WhitError("adapter", `The adapter has ${place.length} numbers, not ${values.length}.`);
    }
    place.set(values);
    this.call("whit_adapter_refresh", adapter);
  }

  freeAdapter(adapter: number): void {
    this.call("whit_adapter_free", adapter);
  }

  // Answers -----------------------------------------------------------------------------------------------------

  /** Begin an answer; its handle. */
  ask(prompt: Uint32Array, options: AskOptions): number {
    const stops = (options.stops ?? []).map((stop) => encoder.encode(stop));
    const packed = new Uint8Array(stops.reduce((sum, stop) => sum + 4 + stop.length, 0));
    let at = 0;
    for (const stop of stops) {
      new DataView(packed.buffer).setUint32(at, stop.length, true);
      packed.set(stop, at + 4);
      at += 4 + stop.length;
    }
    return this.call(
      "whit_ask", words(prompt), options.adapter ?? -1, options.most ?? 256, options.temperature ?? 0,
      options.topP ?? 1, options.minP ?? 0, options.seed ?? 0, words(options.ends ?? []), packed,
    );
  }

  /** Move answers one step in one batch; how many go on. */
  advance(answers: number[]): number {
    return this.call("whit_advance", words(answers));
  }

  /** 0 reading, 1 running, 2 ended, 3 at a stop string, 4 as long as it may be. */
  status(answer: number): number {
    return this.call("whit_answer_status", answer);
  }

  /** Text that came since the last call. */
  takeText(answer: number): string {
    this.call("whit_answer_text", answer);
    return new TextDecoder().decode(this.result());
  }

  tokenCount(answer: number): number {
    return this.call("whit_answer_tokens", answer);
  }

  /** How many tokens of its prompt were read. */
  progress(answer: number): number {
    return this.call("whit_answer_progress", answer);
  }

  freeAnswer(answer: number): void {
    this.call("whit_answer_free", answer);
  }

  // Training ----------------------------------------------------------------------------------------------------

  trainer(adapter: number, clip = 1): number {
    return this.call("whit_trainer_new", adapter, 0.9, 0.999, 1e-8, 0, clip);
  }

  /** Add the gradient of rows (or none with `onlyLoss`); each row's loss, summed over its completion's tokens. */
  learn(trainer: number, rows: TokenRow[], onlyLoss = false): Float64Array {
    const tokens = rows.reduce((sum, row) => sum + row.completion.length, 0);
    const heads = new DataView(new ArrayBuffer(12 * rows.length));
    rows.forEach((row, at) => {
      heads.setUint32(12 * at, row.prompt.length + row.completion.length, true);
      heads.setUint32(12 * at + 4, row.prompt.length, true);
      heads.setFloat32(12 * at + 8, onlyLoss ? 0 : 1 / Math.max(tokens, 1), true);
    });
    const flat = words(rows.flatMap((row) => [...row.prompt, ...row.completion]));
    this.call("whit_learn", trainer, new Words(new Uint8Array(heads.buffer), 12), flat, onlyLoss ? 1 : 0);
    return new Float64Array(this.result().buffer);
  }

  /** One step of Adam; the gradient's norm. */
  step(trainer: number, rate: number): number {
    this.call("whit_step", trainer, rate);
    return new Float64Array(this.result().buffer)[0] ?? 0;
  }

  /** Copies of Adam's means, and the steps taken. */
  trainerState(trainer: number): { mean: Float32Array; square: Float32Array; steps: number } {
    const part = (which: number) => this.floats(this.call("whit_trainer_state", trainer, which)).slice();
    return { mean: part(1), square: part(2), steps: this.call("whit_trainer_steps", trainer, -1) };
  }

  restoreTrainer(trainer: number, state: { mean: Float32Array; square: Float32Array; steps: number }): void {
    for (const [which, values] of [[1, state.mean], [2, state.square]] as const) {
      const place = this.floats(this.call("whit_trainer_state", trainer, which));
      if (place.length !== values.length) throw new WhitError("training", "The saved run is of another adapter.");
      place.set(values);
    }
    this.call("whit_trainer_steps", trainer, state.steps);
  }

  freeTrainer(trainer: number): void {
    this.call("whit_trainer_free", trainer);
  }
}
