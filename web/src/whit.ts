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
import type {
  AdapterInfo, Answer, Asked, Calls, Exported, GenerateOptions, Name, Opened, Told, Trained, TrainOptions, TrainProgress,
  Unfinished,
} from "./protocol.js";
import type { Problem, Row } from "./rows.js";
import type { LoggedRequest } from "./store.js";

export type {
  AdapterInfo, Answer, Exported, GenerateOptions, LoggedRequest, Manifest, Opened, Problem, Row, Trained, TrainOptions, TrainProgress,
  Unfinished,
};

/** Something that whit explains. `kind` says what sort of thing went wrong; `cancelled` and `paused` were asked for. */
export class WhitPageError extends Error {
  constructor(readonly kind: ErrorKind | "cancelled" | "paused", message: string) {
    super(message);
    this.name = "WhitPageError";
  }
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

interface Pending {
  resolve(answer: unknown): void;
  reject(error: Error): void;
  progress(progress: unknown): void;
}

/** Load the bundle's base and engine. Rejects with `WhitPageError`. */
export async function load(options: LoadOptions = {}): Promise<Whit> {
  const root = new URL(options.bundle ?? "./", import.meta.url);
  const line = new Line();
  try {
    const opened = await line.call("open", { root: root.href, controlled: !!navigator.serviceWorker?.controller }, ({ done, total }) => options.onProgress?.(done, total)).done;
    return new Whit(line, opened, root);
  } catch (error) {
    line.close();
    throw error;
  }
}

/** A loaded base with its adapters. */
export class Whit {
  private chosen: string | null = null;

  /** @internal made by `load` */
  constructor(private readonly line: Line, readonly opened: Opened, readonly root: URL) {}

  /** What the bundle says of itself. */
  get manifest(): Manifest {
    return this.opened.manifest;
  }

  /** The name of the adapter that answers; null for the bare base. */
  get adapter(): string | null {
    return this.chosen;
  }

  /** All adapters that can be used now. */
  adapters(): Promise<AdapterInfo[]> {
    return this.line.call("adapters", {}).done;
  }

  /** Answer with this adapter from now on: its name, the text form of one, or null for the bare base. */
  async setAdapter(adapter: string | null): Promise<AdapterInfo | null> {
    if (adapter === null) {
      this.chosen = null;
      return null;
    }
    const info = adapter.startsWith("whit1_") ? await this.add("adapter", adapter) : await this.line.call("use", { name: adapter }).done;
    this.chosen = info.name;
    return info;
  }

  /** Keep an adapter here: from a file's bytes, or from a text form. */
  add(name: string, content: Uint8Array | string): Promise<AdapterInfo> {
    const given = typeof content === "string" ? { name, text: content } : { name, content };
    return this.line.call("add", given).done;
  }

  remove(name: string): Promise<null> {
    if (this.chosen === name) this.chosen = null;
    return this.line.call("remove", { name }).done;
  }

  export(name: string): Promise<Exported> {
    return this.line.call("export", { name }).done;
  }

  /** Answer a prompt, or the last of inputs and answers in turn. */
  generate(prompt: string | string[], options: GenerateOptions = {}): Generation {
    const pieces = new Pieces();
    const given = { turns: typeof prompt === "string" ? [prompt] : prompt, options: { adapter: this.chosen, ...options }, both: false };
    const call = this.line.call("generate", given, ({ text }) => pieces.push(text));
    const done = call.done.then((answers) => answers[0] as Answer);
    done.then(() => pieces.end(), (error: Error) => pieces.fail(error));
    return { done, cancel: () => call.stop("cancel"), [Symbol.asyncIterator]: () => pieces.read() };
  }

  /** Answer with the bare base and with the adapter, in one batch. */
  compare(prompt: string, options: GenerateOptions, onText: (which: number, text: string) => void): { done: Promise<Answer[]>; cancel(): void } {
    const call = this.line.call("generate", { turns: [prompt], options: { adapter: this.chosen, ...options }, both: true }, ({ which, text }) => onText(which, text));
    return { done: call.done, cancel: () => call.stop("cancel") };
  }

  /** Rows, and what is wrong with them, from CSV, TSV or JSON Lines, a file, or pairs. Nothing is sent anywhere. */
  readRows(from: string | Blob | [string, string][]): Promise<{ rows: Row[]; problems: Problem[] }> {
    const given = typeof from === "string" ? { text: from } : Array.isArray(from) ? { pairs: from } : { file: from };
    return this.line.call("readRows", given).done;
  }

  /** Teach an adapter from rows, and prove it on rows held out from it. It is kept under `options.name`. */
  train(rows: Row[] | { prompt: string; completion: string }[], options: TrainOptions = {}, onProgress?: (progress: TrainProgress) => void): Training {
    return this.training({ rows: rows.map((row, at) => ({ place: at + 1, ...row })), options, resume: false }, onProgress);
  }

  /** Go on with the training that `unfinished` tells of. */
  resumeTraining(onProgress?: (progress: TrainProgress) => void): Training {
    return this.training({ rows: [], options: {}, resume: true }, onProgress);
  }

  private training(given: Calls["train"]["given"], onProgress?: (progress: TrainProgress) => void): Training {
    const call = this.line.call("train", given, onProgress);
    return { done: call.done, pause: () => call.stop("pause"), cancel: () => call.stop("cancel") };
  }

  /** A training that was paused or cut short; null where there is none, or another tab has it. */
  unfinished(): Promise<Unfinished | null> {
    return this.line.call("unfinished", {}).done;
  }

  /** Forget the unfinished training. */
  discard(): Promise<null> {
    return this.line.call("discard", {}).done;
  }

  /** Requests that the service worker saw, of all visits. */
  requests(): Promise<LoggedRequest[]> {
    return this.line.call("requests", {}).done;
  }

  /** Bytes of memory that the engine has taken. */
  memory(): Promise<number> {
    return this.line.call("memory", {}).done;
  }

  /** End the worker and free its memory. */
  close(): void {
    this.line.close();
  }
}

/** The line to the worker. */
class Line {
  private readonly worker: Worker;
  private readonly pending = new Map<number, Pending>();
  private count = 0;

  constructor() {
    // A worker from a file obeys only the policy that its host sends as a header; one from a blob inherits the page's.
    const source = `import ${JSON.stringify(new URL("./worker.js", import.meta.url).href)};`;
    const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.worker = new Worker(address, { type: "module", name: "whit" });
    this.worker.onmessage = ({ data }: MessageEvent<Told>) => {
      const call = this.pending.get(data.id);
      if (!call) return;
      if ("progress" in data) return call.progress(data.progress);
      this.pending.delete(data.id);
      if ("error" in data) call.reject(new WhitPageError(data.error.kind, data.error.message));
      else call.resolve(data.answer);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.fail(new WhitPageError("engine", `The worker could not start or failed: ${event.message || "reload the page"}.`));
    };
  }

  call<N extends Name>(name: N, given: Calls[N]["given"], progress?: (progress: Calls[N]["progress"]) => void): { done: Promise<Calls[N]["answer"]>; stop(how: "cancel" | "pause"): void } {
    const id = ++this.count;
    const done = new Promise<Calls[N]["answer"]>((resolve, reject) => {
      this.pending.set(id, { resolve: resolve as (answer: unknown) => void, reject, progress: (told) => progress?.(told as Calls[N]["progress"]) });
    });
    const message: Asked = { id, name, given };
    this.worker.postMessage(message);
    return { done, stop: (how) => this.worker.postMessage({ stop: id, how }) };
  }

  private fail(error: Error): void {
    for (const call of this.pending.values()) call.reject(error);
    this.pending.clear();
  }

  close(): void {
    this.worker.terminate();
    this.fail(new WhitPageError("cancelled", "whit was closed."));
  }
}

/** Pieces of text that come before or after they are asked for. */
class Pieces {
  private readonly ready: string[] = [];
  private wake: (() => void) | null = null;
  private over = false;
  private error: Error | null = null;

  push(text: string): void {
    this.ready.push(text);
    this.wake?.();
  }

  end(): void {
    this.over = true;
    this.wake?.();
  }

  fail(error: Error): void {
    this.error = error;
    this.end();
  }

  async *read(): AsyncGenerator<string> {
    for (;;) {
      while (this.ready.length) yield this.ready.shift() as string;
      if (this.error) throw this.error;
      if (this.over) return;
      await new Promise<void>((wake) => (this.wake = wake));
    }
  }
}
