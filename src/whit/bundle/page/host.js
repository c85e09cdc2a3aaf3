/**
 * What the worker does: opens the bundle, answers, trains, keeps. One host holds one model.
 *
 * Promises that everything it computes stays on this device: it fetches files of the bundle, and sends nothing.
 */
import { obtain } from "./download.js";
import { Engine, variant, WhitError } from "./engine.js";
import { writeLora } from "./lora.js";
import { readManifest, renderPrompt } from "./manifest.js";
import { readRows, typedRows } from "./rows.js";
import { bundled, Shelf } from "./shelf.js";
import { compare, isClosedSet, isRight } from "./statistics.js";
import { Store } from "./store.js";
import { readText } from "./text.js";
import { begin, train } from "./training.js";
const RUN = "current";
const SLICE = 12; // milliseconds of work between two looks at the messages
const TOGETHER = 8; // held-out answers made in one batch
class Stopped extends Error {
    stopped;
    constructor(stopped) {
        super(stopped);
        this.stopped = stopped;
    }
}
export class Host {
    stops = new Map();
    root;
    manifest;
    engine;
    store;
    shelf;
    channel = new MessageChannel();
    waiting = [];
    constructor() {
        this.channel.port1.onmessage = () => this.waiting.shift()?.();
    }
    /** Answer one call. */
    async answer(id, name, given, tell) {
        if (name === "open")
            return this.open(given, tell);
        if (!this.engine && name !== "readRows")
            throw new WhitError("usage", "The model is not loaded yet.");
        switch (name) {
            case "generate": return this.generate(id, given, tell);
            case "readRows": return this.readRows(given);
            case "train": return this.locked(() => this.train(id, given, tell));
            case "unfinished": return this.unfinished();
            case "discard": return this.store.delete("runs", RUN);
            case "adapters": return this.shelf.look().then(() => this.shelf.list());
            case "use": return this.use(given.name);
            case "add": {
                const { name: called, content, text } = given;
                return this.shelf.add(called, content, text);
            }
            case "remove": return this.shelf.remove(given.name);
            case "export": return this.shelf.export(given.name);
            case "requests": return this.requests();
            case "memory": return this.engine.memoryBytes;
        }
    }
    /** Let messages in; throws where this call was told to stop. */
    async breathe(id) {
        await new Promise((done) => {
            this.waiting.push(done);
            this.channel.port2.postMessage(null);
        });
        const how = this.stops.get(id);
        if (how)
            throw new Stopped(how === "pause" ? "paused" : "cancelled");
    }
    async open({ root, controlled }, tell) {
        const began = performance.now();
        this.root = new URL(root);
        this.manifest = await readManifest(this.root);
        this.store = await Store.open(this.root);
        const { base } = this.manifest;
        const kind = variant();
        const [wasm, model] = await Promise.all([
            bundled(this.root, this.manifest, this.manifest.engine[kind]),
            obtain(this.store, { url: new URL(base.file, this.root), bytes: base.bytes, sha256: base.sha256 }, (done, total) => tell({ done, total })),
        ]);
        this.engine = await Engine.open(wasm, model.content);
        this.shelf = new Shelf(this.root, this.manifest, this.engine, this.store);
        await this.shelf.fill();
        if (!controlled) {
            // No service worker saw these: the worker notes them itself.
            for (const { name } of performance.getEntriesByType("resource"))
                await this.store.log(name, "network").catch(() => undefined);
        }
        return {
            manifest: this.manifest, adapters: this.shelf.list(), engine: kind, context: this.engine.sizes.context,
            base: { from: model.from, kept: model.kept, note: model.note }, seconds: (performance.now() - began) / 1000,
        };
    }
    async use(name) {
        await this.shelf.handle(name);
        return this.shelf.info(name);
    }
    async readRows(given) {
        const found = given.pairs ? typedRows(given.pairs) : readRows(given.file ? await readText(given.file) : given.text ?? "");
        if (!this.engine)
            return found;
        // How long rows are can be told only with the model's own tokens.
        const room = this.engine.sizes.context - 64;
        const long = found.rows.filter((row) => row.prompt.length + row.completion.length > room && this.lengthOf(row) > room);
        if (!long.length)
            return found;
        const beyond = new Set(long);
        const named = long.slice(0, 5).map((row) => row.place).join(", ");
        const message = `${long.length} left out: longer than the ${room} tokens that ${this.manifest.base.name} can learn from (rows ${named}${long.length > 5 ? ", …" : ""})`;
        return { rows: found.rows.filter((row) => !beyond.has(row)), problems: [...found.problems, { kind: "too long", serious: false, message }] };
    }
    lengthOf(row) {
        return this.engine.encode(row.prompt).length + this.engine.encode(row.completion).length;
    }
    // Answers -----------------------------------------------------------------------------------------------------
    prompt(turns, instruction) {
        return this.engine.encode(renderPrompt(this.manifest.base.prompt, turns, instruction));
    }
    async generate(id, given, tell) {
        const { turns, options, both } = given;
        const name = options.adapter ?? null;
        const handle = name === null ? -1 : await this.shelf.handle(name);
        const info = name === null ? null : this.shelf.info(name);
        const ids = this.prompt(turns, options.instruction ?? info?.instruction ?? "");
        const { context } = this.engine.sizes;
        if (ids.length >= context) {
            throw new WhitError("usage", `That is ${ids.length} tokens long; ${this.manifest.base.name} takes ${context - 1} at most. Shorten it.`);
        }
        return this.answers(id, ids, both ? [-1, handle] : [handle], options, tell);
    }
    async answers(id, ids, adapters, options, tell) {
        const { engine } = this;
        const began = performance.now();
        const most = Math.min(options.most ?? 256, engine.sizes.context - ids.length);
        const ends = this.manifest.base.stops;
        const handles = adapters.map((adapter) => engine.ask(ids, { ...options, adapter, most, ends }));
        const found = handles.map(() => ({ text: "", tokens: 0, reason: "length", firstSeconds: 0, seconds: 0 }));
        const take = () => handles.forEach((handle, which) => {
            const answer = found[which];
            const text = engine.takeText(handle);
            answer.tokens = engine.tokenCount(handle);
            answer.text += text;
            if (text)
                tell({ which, text });
        });
        try {
            for (let going = handles.length, first = true; going;) {
                const until = performance.now() + SLICE;
                // The first token is shown at once, later ones as often as a screen can.
                while (going && (first ? engine.tokenCount(handles[0]) === 0 : performance.now() < until)) {
                    going = engine.advance(handles.filter((handle) => engine.status(handle) < 2));
                    if (first && performance.now() > until)
                        break;
                }
                if (first && engine.tokenCount(handles[0])) {
                    first = false;
                    for (const answer of found)
                        answer.firstSeconds = (performance.now() - began) / 1000;
                }
                take();
                await this.breathe(id);
            }
            handles.forEach((handle, which) => {
                found[which].reason = { 2: "end", 3: "stop" }[engine.status(handle)] ?? "length";
            });
        }
        catch (error) {
            if (!(error instanceof Stopped))
                throw error;
            for (const answer of found)
                answer.reason = "cancelled";
        }
        finally {
            for (const handle of handles)
                engine.freeAnswer(handle);
        }
        for (const answer of found)
            answer.seconds = (performance.now() - began) / 1000;
        return found;
    }
    // Teaching ----------------------------------------------------------------------------------------------------
    /** Only one tab trains at a time: they would take each other's saved run. */
    async locked(work) {
        if (!navigator.locks)
            return work();
        return navigator.locks.request(`${this.store.name} training`, { ifAvailable: true }, (lock) => {
            if (!lock)
                throw new WhitError("usage", "Another tab of this page is training; wait for it or close it.");
            return work();
        });
    }
    async unfinished() {
        const run = await this.store.get("runs", RUN);
        if (!run || run.base !== this.manifest.base.fingerprint)
            return null;
        if (navigator.locks) {
            const held = (await navigator.locks.query()).held ?? [];
            if (held.some((lock) => lock.name === `${this.store.name} training`))
                return null;
        }
        return { name: run.name, step: run.step, steps: run.steps, rows: run.rows.length, paused: run.paused, when: run.saved };
    }
    fresh(rows, options) {
        return {
            id: crypto.randomUUID(), base: this.manifest.base.fingerprint, name: options.name || "my-adapter", rows, options,
            teach: this.manifest.teach, step: 0, steps: 0, seconds: 0, numbers: null, mean: null, square: null, best: null,
            bestLoss: Infinity, since: [], curve: [], paused: false, saved: Date.now(),
        };
    }
    encode(row, instruction) {
        const completion = this.engine.encode(row.completion);
        const ended = new Uint32Array(completion.length + 1);
        ended.set(completion);
        ended[completion.length] = this.manifest.base.stop;
        return { prompt: this.prompt([row.prompt], instruction), completion: ended };
    }
    async train(id, given, tell) {
        const { engine } = this;
        const run = given.resume ? await this.store.get("runs", RUN) : this.fresh(given.rows, given.options);
        if (!run)
            throw new WhitError("usage", "There is no unfinished training here.");
        if (run.rows.length < 3)
            throw new WhitError("data", "There are too few rows to learn from some and test on others.");
        run.paused = false;
        if (run.teach.kind === "xs")
            await this.shelf.basis(run.options.rank ?? run.teach.rank);
        const adapter = begin(engine, run.teach, run.options);
        let done = false;
        try {
            const parts = await train(run, adapter, {
                engine,
                encode: (row, instruction) => this.encode(row, instruction),
                // A device without room trains all the same; it only cannot resume.
                save: (kept) => this.store.put("runs", RUN, kept).catch(() => undefined),
                tell,
                breathe: () => this.breathe(id),
            });
            const trained = await this.prove(id, run, adapter, parts, tell);
            done = true;
            await this.store.delete("runs", RUN);
            return trained;
        }
        catch (error) {
            if (error instanceof Stopped) {
                if (error.stopped === "paused")
                    await this.store.put("runs", RUN, { ...run, paused: true });
                else
                    await this.store.delete("runs", RUN);
            }
            throw error;
        }
        finally {
            if (!done)
                engine.freeAdapter(adapter);
        }
    }
    /** Answer the held-out rows with the bare base and with the adapter, compare, and keep the adapter. */
    async prove(id, run, adapter, parts, tell) {
        const { engine } = this;
        const instruction = run.options.instruction ?? "";
        const closed = isClosedSet(parts.train.map((row) => row.completion));
        const longest = Math.max(...parts.train.map((row) => engine.encode(row.completion).length));
        const examples = [];
        const began = performance.now();
        const kept = this.adapterFiles(run, adapter);
        for (let at = 0; at < parts.test.length; at += TOGETHER) {
            const rows = parts.test.slice(at, at + TOGETHER);
            const handles = rows.flatMap((row) => {
                const ids = this.prompt([row.prompt], instruction);
                const most = Math.min(longest + 8, engine.sizes.context - ids.length);
                return [-1, adapter].map((who) => engine.ask(ids, { adapter: who, most, ends: this.manifest.base.stops }));
            });
            const texts = handles.map(() => "");
            try {
                for (let going = 1; going;) {
                    going = engine.advance(handles.filter((handle) => engine.status(handle) < 2));
                    await this.breathe(id);
                }
                handles.forEach((handle, which) => (texts[which] = engine.takeText(handle)));
            }
            finally {
                for (const handle of handles)
                    engine.freeAnswer(handle);
            }
            rows.forEach((row, which) => {
                const [base, tuned] = [(texts[2 * which] ?? "").trim(), (texts[2 * which + 1] ?? "").trim()];
                examples.push({
                    prompt: row.prompt, wanted: row.completion, base, tuned,
                    baseRight: isRight(base, row.completion, closed), tunedRight: isRight(tuned, row.completion, closed),
                });
            });
            const left = ((performance.now() - began) / 1000 / examples.length) * (parts.test.length - examples.length);
            const progress = {
                stage: "testing", step: examples.length, steps: parts.test.length, loss: NaN, curve: run.curve, secondsLeft: left, seconds: run.seconds,
            };
            tell(progress);
        }
        const result = compare(examples.map((each) => each.baseRight), examples.map((each) => each.tunedRight));
        const info = await this.shelf.keep({
            name: run.name, kind: run.teach.kind, numbers: engine.numbers(adapter).length, base: this.manifest.base.fingerprint,
            files: kept, instruction, verdict: result.verdict, sentence: result.sentence, made: Date.now(),
        }, adapter);
        return {
            adapter: info, result, examples, seconds: run.seconds, steps: run.step, train: parts.train.length,
            validation: parts.validation.length, test: parts.test.length,
        };
    }
    /** The adapter as it will be kept; what is proved is what is kept, rounded to its number type. */
    adapterFiles(run, adapter) {
        const { engine, manifest } = this;
        if (run.teach.kind === "lora") {
            const rank = run.options.rank ?? run.teach.rank;
            const targets = Array.from({ length: engine.sizes.layers * 7 }, (_, at) => at);
            const lora = { rank, alpha: run.teach.alpha ?? 2 * rank, targets, numbers: engine.numbers(adapter), base: manifest.base.fingerprint };
            return writeLora(lora, engine.sizes, manifest.base.name);
        }
        const compact = engine.writeAdapter(adapter);
        const rounded = engine.readAdapter(compact);
        engine.setNumbers(adapter, engine.numbers(rounded));
        engine.freeAdapter(rounded);
        return { "adapter.whit": compact };
    }
    // The panel ---------------------------------------------------------------------------------------------------
    /** Every request that was seen, of all visits. */
    requests() {
        return this.store.all("requests");
    }
}
