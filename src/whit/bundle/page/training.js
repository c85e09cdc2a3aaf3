/**
 * Teaching an adapter: split, steps of Adam, the best state by rows set aside, and the proof on rows never seen.
 *
 * The same schedule as `whit.training.sft` (a warm-up, then a cosine). Promises that a run which is stopped at any
 * moment goes on from its last saved step to the same result, and that the held-out rows are chosen by their content
 * alone. Knows the engine and the store; nothing of pages.
 */
import { WhitError } from "./engine.js";
import { inputKey } from "./rows.js";
const MARKS = 8;
const SAVE_SECONDS = 3;
/** Rows seen in all, and passes over them, where nothing else is said. */
const ROWS_SEEN = 2400;
/** A fraction of 1 that follows from a row's input alone. */
async function fraction(row, seed) {
    const text = new TextEncoder().encode(`${seed}\n${inputKey(row.prompt)}`);
    const hash = new DataView(await crypto.subtle.digest("SHA-256", text));
    return hash.getUint32(0) / 2 ** 32;
}
/** A fifth to prove with, a tenth to choose by (where there are enough), the rest to learn from. */
export async function split(rows, seed) {
    const placed = await Promise.all(rows.map(async (row) => ({ row, at: await fraction(row, seed) })));
    placed.sort((a, b) => a.at - b.at);
    const count = (share) => Math.max(1, Math.round(rows.length * share));
    const test = count(0.2);
    const validation = rows.length >= 60 ? count(0.1) : 0;
    const side = (from, to) => placed.slice(from, to).map((item) => item.row).sort((a, b) => a.place - b.place);
    return { test: side(0, test), validation: side(test, test + validation), train: side(test + validation) };
}
/** Steps that a run of so many rows takes. */
export function stepsOf(rows, batch, epochs) {
    const passes = epochs ?? Math.max(1, Math.min(12, Math.round(ROWS_SEEN / rows)));
    return Math.max(1, Math.ceil((rows * passes) / batch));
}
/** Numbers in [0, 1) that are the same for a seed (mulberry32). */
function generator(seed) {
    let state = seed >>> 0;
    return () => {
        state = (state + 0x6d2b79f5) >>> 0;
        let value = Math.imul(state ^ (state >>> 15), state | 1);
        value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
        return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
    };
}
/** The order of rows in one pass. */
function order(count, seed, epoch) {
    const random = generator(seed * 1_000_003 + epoch);
    const places = Array.from({ length: count }, (_, at) => at);
    for (let at = count - 1; at > 0; at--) {
        const other = Math.floor(random() * (at + 1));
        [places[at], places[other]] = [places[other], places[at]];
    }
    return places;
}
/** Which rows a step learns from. Passes follow each other without a short batch between them. */
function batchOf(step, count, batch, seed) {
    const chosen = [];
    for (let at = step * batch; at < (step + 1) * batch; at++) {
        chosen.push(order(count, seed, Math.floor(at / count))[at % count]);
    }
    return chosen;
}
/** The share of the peak rate at a step: a tenth of the steps up, then a cosine down. */
export function schedule(step, steps) {
    const warm = Math.max(1, Math.round(steps * 0.1));
    if (step < warm)
        return (step + 1) / warm;
    return 0.5 * (1 + Math.cos((Math.PI * (step - warm)) / Math.max(1, steps - warm)));
}
/** Make the adapter that a run tunes; its handle. */
export function begin(engine, teach, options) {
    const targets = Array.from({ length: engine.sizes.layers * 7 }, (_, at) => at);
    const rank = options.rank ?? teach.rank;
    return teach.kind === "xs"
        ? engine.xsAdapter(rank, targets)
        : engine.loraAdapter(rank, teach.alpha ?? 2 * rank, targets, options.seed ?? 0);
}
/** Run (or go on with) a training; afterwards the adapter holds its best state. Answers the split it used. */
export async function train(run, adapter, around) {
    const { engine } = around;
    const seed = run.options.seed ?? 0;
    const parts = await split(run.rows, seed);
    const instruction = run.options.instruction ?? "";
    const [tokens, held] = [parts.train, parts.validation].map((rows) => rows.map((row) => around.encode(row, instruction)));
    const tested = parts.test.map((row) => around.encode(row, instruction));
    const places = [...parts.train, ...parts.validation, ...parts.test].map((row) => row.place);
    const beyond = [...tokens, ...held, ...tested].flatMap(({ prompt, completion }, at) => (prompt.length + completion.length > engine.sizes.context ? [places[at]] : []));
    if (beyond.length) {
        throw new WhitError("data", `With the instruction, ${beyond.length} rows are longer than the ${engine.sizes.context} tokens that the model takes (${beyond.slice(0, 5).join(", ")}${beyond.length > 5 ? ", …" : ""}). Shorten the instruction, or leave these rows out.`);
    }
    const batch = Math.min(run.options.batch ?? run.teach.batch, tokens.length);
    const rate = run.options.rate ?? run.teach.rate;
    run.steps = stepsOf(tokens.length, batch, run.options.epochs);
    const trainer = engine.trainer(adapter);
    const scratch = engine.trainer(adapter);
    try {
        if (run.numbers && run.mean && run.square) {
            engine.setNumbers(adapter, run.numbers);
            engine.restoreTrainer(trainer, { mean: run.mean, square: run.square, steps: run.step });
        }
        const keep = async () => {
            Object.assign(run, { numbers: engine.numbers(adapter), saved: Date.now() });
            const { mean, square } = engine.trainerState(trainer);
            Object.assign(run, { mean, square });
            await around.save(run);
        };
        let stopped = null;
        const lossOf = async (rows) => {
            let [sum, count] = [0, 0];
            for (let at = 0; at < rows.length; at += 8) {
                const some = rows.slice(at, at + 8);
                sum += engine.learn(scratch, some, true).reduce((a, b) => a + b, 0);
                count += some.reduce((a, row) => a + row.completion.length, 0);
                // A stop waits for the end of this: what is saved is then the whole of a step.
                await around.breathe().catch((error) => (stopped ??= error));
            }
            return sum / count;
        };
        const began = performance.now() - run.seconds * 1000;
        const stepsHere = run.step;
        const startHere = performance.now();
        const every = Math.max(1, Math.ceil(run.steps / MARKS));
        let lastSaved = performance.now();
        if (!run.step && !run.curve.length)
            await keep();
        while (run.step < run.steps) {
            const rows = batchOf(run.step, tokens.length, batch, seed).map((at) => tokens[at]);
            const count = rows.reduce((sum, row) => sum + row.completion.length, 0);
            const loss = engine.learn(trainer, rows).reduce((a, b) => a + b, 0) / count;
            if (!Number.isFinite(loss))
                throw new WhitError("training", `The loss became ${loss} at step ${run.step + 1}. Look at the rows for very long or odd texts.`);
            engine.step(trainer, rate * schedule(run.step, run.steps));
            run.step++;
            run.since.push(loss);
            run.seconds = (performance.now() - began) / 1000;
            if (run.step % every === 0 || run.step === run.steps) {
                const mean = run.since.reduce((a, b) => a + b, 0) / run.since.length;
                const chosen = held.length ? await lossOf(held) : null;
                run.curve.push([run.step, mean, chosen]);
                run.since = [];
                if (chosen === null || chosen <= run.bestLoss) {
                    run.bestLoss = chosen ?? Infinity;
                    run.best = engine.numbers(adapter);
                }
                lastSaved = -Infinity;
            }
            const each = (performance.now() - startHere) / (run.step - stepsHere) / 1000;
            around.tell({
                stage: "learning", step: run.step, steps: run.steps, loss, curve: run.curve, seconds: run.seconds,
                secondsLeft: each * (run.steps - run.step),
            });
            if (performance.now() - lastSaved > SAVE_SECONDS * 1000) {
                await keep();
                lastSaved = performance.now();
            }
            await around.breathe().catch((error) => (stopped ??= error));
            if (stopped) {
                await keep();
                throw stopped;
            }
        }
        if (run.best)
            engine.setNumbers(adapter, run.best);
        return parts;
    }
    finally {
        engine.freeTrainer(trainer);
        engine.freeTrainer(scratch);
    }
}
