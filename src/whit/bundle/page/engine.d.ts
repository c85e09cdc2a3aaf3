/**
 * The engine's WebAssembly module, loaded and spoken to; twin of `whit.engine.runtime`.
 *
 * Promises that an error inside the engine is an `EngineError` with the engine's own words, and that everything it
 * lends is given back. Knows the calls of docs/engine.md; nothing of workers, storage or pages.
 */
export type ErrorKind = "usage" | "model" | "unsupported" | "memory" | "adapter" | "base" | "basis" | "training" | "engine" | "network" | "storage" | "damaged" | "data";
/** Something that whit explains to its user. */
export declare class WhitError extends Error {
    readonly kind: ErrorKind;
    constructor(kind: ErrorKind, message: string);
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
/** Which build of the engine this browser can run: `relaxed` or `simd`. */
export declare function variant(): "relaxed" | "simd";
/** A model and its adapters inside a WebAssembly instance. Handles are small integers. */
export declare class Engine {
    readonly sizes: Sizes;
    private readonly calls;
    private readonly memory;
    private constructor();
    /** Instantiate the module and load a GGUF file into it. */
    static open(wasm: BufferSource, model: Uint8Array): Promise<Engine>;
    /** Bytes that the engine's memory has taken. */
    get memoryBytes(): number;
    private raw;
    private lend;
    private call;
    /** A copy of what the last call left. */
    private result;
    private resultWords;
    /** The float32 in the engine that the word in the result points at; a view, so use it at once. */
    private floats;
    /** The tokens of a text; special tokens in it are recognised unless `specials` is false. */
    encode(text: string, specials?: boolean): Uint32Array;
    addBasis(content: Uint8Array): void;
    /** Read a compact adapter; its handle. */
    readAdapter(content: Uint8Array): number;
    /** The compact file of a vector adapter. */
    writeAdapter(adapter: number): Uint8Array;
    xsAdapter(rank: number, targets: number[]): number;
    loraAdapter(rank: number, alpha: number, targets: number[], seed?: number): number;
    /** A copy of an adapter's numbers. */
    numbers(adapter: number): Float32Array;
    setNumbers(adapter: number, values: Float32Array): void;
    freeAdapter(adapter: number): void;
    /** Begin an answer; its handle. */
    ask(prompt: Uint32Array, options: AskOptions): number;
    /** Move answers one step in one batch; how many go on. */
    advance(answers: number[]): number;
    /** 0 reading, 1 running, 2 ended, 3 at a stop string, 4 as long as it may be. */
    status(answer: number): number;
    /** Text that came since the last call. */
    takeText(answer: number): string;
    tokenCount(answer: number): number;
    /** How many tokens of its prompt were read. */
    progress(answer: number): number;
    freeAnswer(answer: number): void;
    trainer(adapter: number, clip?: number): number;
    /** Add the gradient of rows (or none with `onlyLoss`); each row's loss, summed over its completion's tokens. */
    learn(trainer: number, rows: TokenRow[], onlyLoss?: boolean): Float64Array;
    /** One step of Adam; the gradient's norm. */
    step(trainer: number, rate: number): number;
    /** Copies of Adam's means, and the steps taken. */
    trainerState(trainer: number): {
        mean: Float32Array;
        square: Float32Array;
        steps: number;
    };
    restoreTrainer(trainer: number, state: {
        mean: Float32Array;
        square: Float32Array;
        steps: number;
    }): void;
    freeTrainer(trainer: number): void;
}
