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
/** Something that whit explains. `kind` says what sort of thing went wrong; `cancelled` and `paused` were asked for. */
export class WhitPageError extends Error {
    kind;
    constructor(kind, message) {
        super(message);
        this.kind = kind;
        this.name = "WhitPageError";
    }
}
/** Load the bundle's base and engine. Rejects with `WhitPageError`. */
export async function load(options = {}) {
    const root = new URL(options.bundle ?? "./", import.meta.url);
    const line = new Line();
    try {
        const opened = await line.call("open", { root: root.href, controlled: !!navigator.serviceWorker?.controller }, ({ done, total }) => options.onProgress?.(done, total)).done;
        return new Whit(line, opened, root);
    }
    catch (error) {
        line.close();
        throw error;
    }
}
/** A loaded base with its adapters. */
export class Whit {
    line;
    opened;
    root;
    chosen = null;
    /** @internal made by `load` */
    constructor(line, opened, root) {
        this.line = line;
        this.opened = opened;
        this.root = root;
    }
    /** What the bundle says of itself. */
    get manifest() {
        return this.opened.manifest;
    }
    /** The name of the adapter that answers; null for the bare base. */
    get adapter() {
        return this.chosen;
    }
    /** All adapters that can be used now. */
    adapters() {
        return this.line.call("adapters", {}).done;
    }
    /** Answer with this adapter from now on: its name, the text form of one, or null for the bare base. */
    async setAdapter(adapter) {
        if (adapter === null) {
            this.chosen = null;
            return null;
        }
        const info = adapter.startsWith("whit1_") ? await this.add("adapter", adapter) : await this.line.call("use", { name: adapter }).done;
        this.chosen = info.name;
        return info;
    }
    /** Keep an adapter here: from a file's bytes, or from a text form. */
    add(name, content) {
        const given = typeof content === "string" ? { name, text: content } : { name, content };
        return this.line.call("add", given).done;
    }
    remove(name) {
        if (this.chosen === name)
            this.chosen = null;
        return this.line.call("remove", { name }).done;
    }
    export(name) {
        return this.line.call("export", { name }).done;
    }
    /** Answer a prompt, or the last of inputs and answers in turn. */
    generate(prompt, options = {}) {
        const pieces = new Pieces();
        const given = { turns: typeof prompt === "string" ? [prompt] : prompt, options: { adapter: this.chosen, ...options }, both: false };
        const call = this.line.call("generate", given, ({ text }) => pieces.push(text));
        const done = call.done.then((answers) => answers[0]);
        done.then(() => pieces.end(), (error) => pieces.fail(error));
        return { done, cancel: () => call.stop("cancel"), [Symbol.asyncIterator]: () => pieces.read() };
    }
    /** Answer with the bare base and with the adapter, in one batch. */
    compare(prompt, options, onText) {
        const call = this.line.call("generate", { turns: [prompt], options: { adapter: this.chosen, ...options }, both: true }, ({ which, text }) => onText(which, text));
        return { done: call.done, cancel: () => call.stop("cancel") };
    }
    /** Rows, and what is wrong with them, from CSV, TSV or JSON Lines, a file, or pairs. Nothing is sent anywhere. */
    readRows(from) {
        const given = typeof from === "string" ? { text: from } : Array.isArray(from) ? { pairs: from } : { file: from };
        return this.line.call("readRows", given).done;
    }
    /** Teach an adapter from rows, and prove it on rows held out from it. It is kept under `options.name`. */
    train(rows, options = {}, onProgress) {
        return this.training({ rows: rows.map((row, at) => ({ place: at + 1, ...row })), options, resume: false }, onProgress);
    }
    /** Go on with the training that `unfinished` tells of. */
    resumeTraining(onProgress) {
        return this.training({ rows: [], options: {}, resume: true }, onProgress);
    }
    training(given, onProgress) {
        const call = this.line.call("train", given, onProgress);
        return { done: call.done, pause: () => call.stop("pause"), cancel: () => call.stop("cancel") };
    }
    /** A training that was paused or cut short; null where there is none, or another tab has it. */
    unfinished() {
        return this.line.call("unfinished", {}).done;
    }
    /** Forget the unfinished training. */
    discard() {
        return this.line.call("discard", {}).done;
    }
    /** Requests that the service worker saw, of all visits. */
    requests() {
        return this.line.call("requests", {}).done;
    }
    /** Bytes of memory that the engine has taken. */
    memory() {
        return this.line.call("memory", {}).done;
    }
    /** End the worker and free its memory. */
    close() {
        this.line.close();
    }
}
/** The line to the worker. */
class Line {
    worker;
    pending = new Map();
    count = 0;
    constructor() {
        // A worker from a file obeys only the policy that its host sends as a header; one from a blob inherits the page's.
        const source = `import ${JSON.stringify(new URL("./worker.js", import.meta.url).href)};`;
        const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
        this.worker = new Worker(address, { type: "module", name: "whit" });
        this.worker.onmessage = ({ data }) => {
            const call = this.pending.get(data.id);
            if (!call)
                return;
            if ("progress" in data)
                return call.progress(data.progress);
            this.pending.delete(data.id);
            if ("error" in data)
                call.reject(new WhitPageError(data.error.kind, data.error.message));
            else
                call.resolve(data.answer);
        };
        this.worker.onerror = (event) => {
            event.preventDefault();
            this.fail(new WhitPageError("engine", `The worker could not start or failed: ${event.message || "reload the page"}.`));
        };
    }
    call(name, given, progress) {
        const id = ++this.count;
        const done = new Promise((resolve, reject) => {
            this.pending.set(id, { resolve: resolve, reject, progress: (told) => progress?.(told) });
        });
        const message = { id, name, given };
        this.worker.postMessage(message);
        return { done, stop: (how) => this.worker.postMessage({ stop: id, how }) };
    }
    fail(error) {
        for (const call of this.pending.values())
            call.reject(error);
        this.pending.clear();
    }
    close() {
        this.worker.terminate();
        this.fail(new WhitPageError("cancelled", "whit was closed."));
    }
}
/** Pieces of text that come before or after they are asked for. */
class Pieces {
    ready = [];
    wake = null;
    over = false;
    error = null;
    push(text) {
        this.ready.push(text);
        this.wake?.();
    }
    end() {
        this.over = true;
        this.wake?.();
    }
    fail(error) {
        this.error = error;
        this.end();
    }
    async *read() {
        for (;;) {
            while (this.ready.length)
                yield this.ready.shift();
            if (this.error)
                throw this.error;
            if (this.over)
                return;
            await new Promise((wake) => (this.wake = wake));
        }
    }
}
