/**
 * whit in a page: load a bundle, generate, train, switch adapters. Everything happens on this device.
 *
 *     import { load } from "./whit.js";
 *     const whit = await load();
 *     await whit.setAdapter("tickets");
 *     for await (const piece of whit.generate("my card was stolen")) show(piece);
 *
 * See docs/browser.md. This module imports only types: it starts the worker and speaks with it.
 */
import type { ErrorKind } from "./engine.js";
import type { Manifest } from "./manifest.js";
import type { AdapterInfo, Answer, Calls, Exported, GenerateOptions, Name, Opened, Trained, TrainOptions, TrainProgress, Unfinished } from "./protocol.js";
import type { Problem, Row } from "./rows.js";
import type { LoggedRequest } from "./store.js";
export type { AdapterInfo, Answer, Exported, GenerateOptions, LoggedRequest, Manifest, Opened, Problem, Row, Trained, TrainOptions, TrainProgress, Unfinished, };
/** Something that whit explains. `kind` says what sort of thing went wrong; `cancelled` and `paused` were asked for. */
export declare class WhitPageError extends Error {
    readonly kind: ErrorKind | "cancelled" | "paused";
    constructor(kind: ErrorKind | "cancelled" | "paused", message: string);
}
export interface LoadOptions {
    /** The folder of the bundle; by default the one that this module lies in. */
    bundle?: string | URL;
    /** Told while the base is fetched, in bytes. */
    onProgress?: (done: number, total: number) => void;
}
/** An answer in the making: iterate over its pieces, or await `done`. */
export interface Generation extends AsyncIterable<string> {
    readonly done: Promise<Answer>;
    cancel(): void;
}
/** A training under way. */
export interface Training {
    readonly done: Promise<Trained>;
    /** Stop and keep its state; `resumeTraining` goes on from it, also after a reload. */
    pause(): void;
    /** Stop and forget it. */
    cancel(): void;
}
/** Load the bundle's base and engine. Rejects with `WhitPageError`. */
export declare function load(options?: LoadOptions): Promise<Whit>;
/** A loaded base with its adapters. */
export declare class Whit {
    private readonly line;
    readonly opened: Opened;
    readonly root: URL;
    private chosen;
    /** @internal made by `load` */
    constructor(line: Line, opened: Opened, root: URL);
    /** What the bundle says of itself. */
    get manifest(): Manifest;
    /** The name of the adapter that answers; null for the bare base. */
    get adapter(): string | null;
    /** All adapters that can be used now. */
    adapters(): Promise<AdapterInfo[]>;
    /** Answer with this adapter from now on: its name, the text form of one, or null for the bare base. */
    setAdapter(adapter: string | null): Promise<AdapterInfo | null>;
    /** Keep an adapter here: from a file's bytes, or from a text form. */
    add(name: string, content: Uint8Array | string): Promise<AdapterInfo>;
    remove(name: string): Promise<null>;
    export(name: string): Promise<Exported>;
    /** Answer a prompt, or the last of inputs and answers in turn. */
    generate(prompt: string | string[], options?: GenerateOptions): Generation;
    /** Answer with the bare base and with the adapter, in one batch. */
    compare(prompt: string, options: GenerateOptions, onText: (which: number, text: string) => void): {
        done: Promise<Answer[]>;
        cancel(): void;
    };
    /** Rows, and what is wrong with them, from CSV, TSV or JSON Lines, a file, or pairs. Nothing is sent anywhere. */
    readRows(from: string | Blob | [string, string][]): Promise<{
        rows: Row[];
        problems: Problem[];
    }>;
    /** Teach an adapter from rows, and prove it on rows held out from it. It is kept under `options.name`. */
    train(rows: Row[] | {
        prompt: string;
        completion: string;
    }[], options?: TrainOptions, onProgress?: (progress: TrainProgress) => void): Training;
    /** Go on with the training that `unfinished` tells of. */
    resumeTraining(onProgress?: (progress: TrainProgress) => void): Training;
    private training;
    /** A training that was paused or cut short; null where there is none, or another tab has it. */
    unfinished(): Promise<Unfinished | null>;
    /** Forget the unfinished training. */
    discard(): Promise<null>;
    /** Requests that the service worker saw, of all visits. */
    requests(): Promise<LoggedRequest[]>;
    /** Bytes of memory that the engine has taken. */
    memory(): Promise<number>;
    /** End the worker and free its memory. */
    close(): void;
}
/** The line to the worker. */
declare class Line {
    private readonly worker;
    private readonly pending;
    private count;
    constructor();
    call<N extends Name>(name: N, given: Calls[N]["given"], progress?: (progress: Calls[N]["progress"]) => void): {
        done: Promise<Calls[N]["answer"]>;
        stop(how: "cancel" | "pause"): void;
    };
    private fail;
    close(): void;
}
