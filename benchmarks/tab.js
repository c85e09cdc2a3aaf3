// What benchmarks/browser.py runs inside the tab: whit through its own module, wllama through its own.

let whit;
let peer;

// Files cross between the tab and Python as base64.
function pack(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

function unpack(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export async function openWhit() {
  const { load } = await import("/page/whit.js");
  whit = await load();
  return { engine: whit.opened.engine, seconds: whit.opened.seconds };
}

/** Rates as the page shows them: the prompt's tokens until the first token, then tokens until the last. */
export async function askWhit(prompt, most, promptTokens) {
  const { tokens, firstSeconds, seconds } = await whit.generate(prompt, { most, adapter: null }).done;
  return { prefill: promptTokens / firstSeconds, tokens, decode: (tokens - 1) / (seconds - firstSeconds) };
}

export async function openPeer(model, threads) {
  const { Wllama } = await import("/peer/index.js");
  peer = new Wllama({ default: "/peer/wasm/wllama.wasm" }, { suppressNativeLog: true });
  const file = await (await fetch(model)).blob();
  await peer.loadModel([file], { n_threads: threads, n_ctx: 1024, n_batch: 512, n_gpu_layers: 0, n_parallel: 1, warmup: true });
  return { threads: peer.getNumThreads(), multi: peer.isMultithread() };
}

/** Rates as llama.cpp itself counts them, else by the clock as the pieces come. */
export async function askPeer(text, most, promptTokens) {
  const began = performance.now();
  let first = 0;
  let tokens = 0;
  let timings = null;
  const onData = (chunk) => {
    first ||= performance.now();
    tokens += chunk.choices?.[0]?.text ? 1 : 0;
    timings = chunk.timings ?? timings;
  };
  await peer.createCompletion({ prompt: text, max_tokens: most, temperature: 0, stream: true, onData });
  if (timings) return { prefill: timings.prompt_per_second, tokens: timings.predicted_n, decode: timings.predicted_per_second };
  const after = performance.now() - first;
  return { prefill: (1000 * promptTokens) / (first - began), tokens, decode: (1000 * (tokens - 1)) / Math.max(after, 1) };
}

export function memory() {
  return whit.memory();
}

/** Teach as the page does; the outcome, the adapter's file, and which rows it learned from. */
export async function teach(rows) {
  const { split } = await import("/page/training.js");
  const parts = await split(rows.map((row, at) => ({ place: at + 1, ...row })), 0);
  const began = performance.now();
  const { seconds, steps, examples } = await whit.train(rows, { name: "mine" }).done;
  const whole = (performance.now() - began) / 1000;
  const { content } = await whit.export("mine");
  return { seconds, whole, steps, examples, file: pack(content), train: parts.train.map((row) => row.place - 1) };
}

/** Answers of an adapter made elsewhere, one prompt after the other. */
export async function answers(file, prompts, most) {
  await whit.add("theirs", unpack(file));
  const found = [];
  for (const prompt of prompts) {
    found.push((await whit.generate(prompt, { adapter: "theirs", most, instruction: "" }).done).text);
  }
  return found;
}

/** Steps of an xs adapter on batches of rows; seconds and mean loss of each. The engine alone, in this thread. */
export async function steps(batches, rate) {
  const { Engine, variant } = await import("/page/engine.js");
  const about = await (await fetch("/page/bundle.json")).json();
  const bytes = async (name) => new Uint8Array(await (await fetch(`/page/${name}`)).arrayBuffer());
  const engine = await Engine.open(await bytes(about.engine[variant()]), await bytes(about.base.file));
  engine.addBasis(await bytes(about.basis[0].file));
  const adapter = engine.xsAdapter(about.basis[0].rank, Array.from({ length: engine.sizes.layers * 7 }, (_, at) => at));
  const trainer = engine.trainer(adapter);
  const found = [];
  for (const batch of batches) {
    const rows = batch.map(([prompt, completion]) => ({ prompt: Uint32Array.from(prompt), completion: Uint32Array.from(completion) }));
    const began = performance.now();
    const losses = engine.learn(trainer, rows);
    engine.step(trainer, rate);
    const tokens = rows.reduce((sum, row) => sum + row.completion.length, 0);
    found.push([(performance.now() - began) / 1000, losses.reduce((a, b) => a + b, 0) / tokens]);
    await new Promise((done) => setTimeout(done));
  }
  return { found, memory: engine.memoryBytes };
}
