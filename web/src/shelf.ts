/**
 * The adapters that can be used: those of the bundle and those made or opened here. Puts them into the engine when wanted.
 *
 * Promises that an adapter of another base is refused with that reason. Knows files and fingerprints; nothing of training.
 */

import { fromText, readHead, toText } from "./compact.js";
import { digest } from "./download.js";
import { WhitError, type Engine } from "./engine.js";
import { CONFIG, readLora, WEIGHTS, type Lora } from "./lora.js";
import type { Manifest } from "./manifest.js";
import type { AdapterInfo, Exported } from "./protocol.js";
import type { SavedAdapter, Store } from "./store.js";
import { readZip, writeZip } from "./zip.js";

const FILE = "adapter.whit";

interface Shelved {
  info: AdapterInfo;
  files: Record<string, Uint8Array> | null;
  handle: number | null;
}

/** Fetch a file of the bundle (the service worker has it) and check it against the manifest. */
export async function bundled(root: URL, manifest: Manifest, name: string): Promise<Uint8Array> {
  let answer: Response;
  try {
    answer = await fetch(new URL(name, root));
  } catch {
    throw new WhitError("network", `${name} could not be fetched: you seem to be offline.`);
  }
  if (!answer.ok) throw new WhitError("network", `${name} could not be fetched (${answer.status}).`);
  const content = new Uint8Array(await answer.arrayBuffer());
  if ((await digest(content)) !== manifest.files[name]?.sha256) {
    throw new WhitError("damaged", `${name} is not the file that the page lists: the page was renewed meanwhile, or a copy is damaged. Reload; if that does not help, use “Forget everything” and load the page again.`);
  }
  return content;
}

export class Shelf {
  private readonly held = new Map<string, Shelved>();
  private readonly ranks = new Set<number>();

  constructor(
    private readonly root: URL, private readonly manifest: Manifest, private readonly engine: Engine, private readonly store: Store,
  ) {}

  /** Learn what there is. */
  async fill(): Promise<void> {
    for (const entry of this.manifest.adapters) {
      const { name, kind, numbers, instruction, verdict, sentence, most } = entry;
      this.held.set(name, { info: { name, kind, numbers, instruction, verdict, sentence, most, from: "bundle", kept: true }, files: null, handle: null });
    }
    await this.look();
  }

  /** Look again what other tabs have kept. */
  async look(): Promise<void> {
    const saved = new Set<string>();
    for (const kept of await this.store.all<SavedAdapter>("adapters")) {
      if (!this.manifest.base.fingerprint.startsWith(kept.base.slice(0, 16))) continue;
      saved.add(kept.name);
      if (!this.held.has(kept.name)) this.held.set(kept.name, { info: infoOf(kept, true), files: kept.files, handle: null });
    }
    for (const [name, item] of this.held) {
      if (item.info.kept && item.info.from === "here" && !saved.has(name)) this.held.delete(name);
    }
  }

  list(): AdapterInfo[] {
    return [...this.held.values()].map((item) => item.info);
  }

  info(name: string): AdapterInfo {
    return this.item(name).info;
  }

  private item(name: string): Shelved {
    const item = this.held.get(name);
    if (!item) throw new WhitError("adapter", `There is no adapter “${name}” here.`);
    return item;
  }

  private async files(name: string): Promise<Record<string, Uint8Array>> {
    const item = this.item(name);
    if (!item.files) {
      const entry = this.manifest.adapters.find((each) => each.name === name);
      const files: Record<string, Uint8Array> = {};
      for (const file of entry?.files ?? []) files[file.split("/").pop() ?? ""] = await bundled(this.root, this.manifest, file);
      item.files = files;
    }
    return item.files;
  }

  /** The adapter's handle in the engine. */
  async handle(name: string): Promise<number> {
    const item = this.item(name);
    if (item.handle === null) item.handle = await this.put(await this.files(name));
    return item.handle;
  }

  /** Make sure that the engine has the basis of a rank. */
  async basis(rank: number): Promise<void> {
    if (this.ranks.has(rank)) return;
    const entry = this.manifest.basis.find((each) => each.rank === rank);
    if (!entry) {
      throw new WhitError("basis", `This adapter needs a basis of rank ${rank}, which this page does not carry; bundle it with whit bundle.`);
    }
    this.engine.addBasis(await bundled(this.root, this.manifest, entry.file));
    this.ranks.add(rank);
  }

  private async put(files: Record<string, Uint8Array>): Promise<number> {
    const compact = files[FILE];
    if (compact) {
      const head = readHead(compact);
      this.fits(head.base);
      await this.basis(head.rank);
      return this.engine.readAdapter(compact);
    }
    return putLora(this.engine, this.lora(files));
  }

  private lora(files: Record<string, Uint8Array>): Lora {
    const lora = readLora(files, this.engine.sizes);
    if (lora.base) this.fits(lora.base);
    return lora;
  }

  private fits(base: string): void {
    const own = this.manifest.base;
    if (!own.fingerprint.startsWith(base.slice(0, 16))) {
      throw new WhitError("base", `This adapter was made for another base (${base.slice(0, 16)}) than this page's ${own.name} (${own.fingerprint.slice(0, 16)}).`);
    }
  }

  /** Add an adapter from a file (compact or a zip of a LoRA's folder) or a text form, and keep it. */
  async add(name: string, content: Uint8Array | undefined, text: string | undefined): Promise<AdapterInfo> {
    let files: Record<string, Uint8Array>;
    if (text !== undefined) files = { [FILE]: fromText(text) };
    else if (content && content[0] === 0x50 && content[1] === 0x4b) files = await readZip(content);
    else files = { [FILE]: content ?? new Uint8Array() };
    const handle = await this.put(files);
    const compact = files[FILE];
    const head = compact ? readHead(compact) : null;
    const told = cardOf(files["card.json"]);
    const lora = head ? null : this.lora(files);
    return this.keep(
      {
        name, kind: head?.kind ?? "lora", numbers: head?.numbers ?? lora?.numbers.length ?? 0, base: head?.base ?? this.manifest.base.fingerprint,
        files: head ? { [FILE]: compact as Uint8Array } : { [CONFIG]: files[CONFIG] as Uint8Array, [WEIGHTS]: files[WEIGHTS] as Uint8Array },
        ...told, made: Date.now(),
      },
      handle,
    );
  }

  /** Keep an adapter under a name that is free. Where there is no room for it, it lasts as long as the tab, and says so. */
  async keep(given: SavedAdapter, handle: number): Promise<AdapterInfo> {
    await this.look(); // another tab may have taken the name
    const stem = given.name.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 50) || "adapter";
    let name = stem;
    for (let count = 2; this.held.has(name); count++) name = `${stem}-${count}`;
    const kept = { ...given, name };
    const stored = await this.store.put("adapters", name, kept).then(() => true, () => false);
    const info = infoOf(kept, stored);
    this.held.set(name, { info, files: kept.files, handle });
    return info;
  }

  async remove(name: string): Promise<void> {
    const item = this.item(name);
    if (item.info.from === "bundle") throw new WhitError("usage", "This adapter belongs to the page itself.");
    if (item.handle !== null) this.engine.freeAdapter(item.handle);
    this.held.delete(name);
    await this.store.delete("adapters", name);
  }

  /** The adapter as a file that `whit` reads: compact, or for a LoRA a zip of its folder. */
  async export(name: string): Promise<Exported> {
    const files = await this.files(name);
    const compact = files[FILE];
    if (compact) return { file: `${name}.whit`, content: compact, text: toText(compact) };
    const inside = Object.fromEntries(Object.entries(files).map(([file, content]) => [`${name}/${file}`, content]));
    return { file: `${name}.zip`, content: writeZip(inside), text: null };
  }
}

/** Put a LoRA into the engine; its handle. */
export function putLora(engine: Engine, lora: Lora): number {
  const handle = engine.loraAdapter(lora.rank, lora.alpha, lora.targets);
  engine.setNumbers(handle, lora.numbers);
  return handle;
}

function infoOf(kept: SavedAdapter, stored: boolean): AdapterInfo {
  const { name, kind, numbers, instruction, verdict, sentence } = kept;
  return { name, kind, numbers, instruction, verdict, sentence, most: null, from: "here", kept: stored };
}

/** What a card beside a LoRA says. It may come from anyone: only texts are taken, and shown as text. */
function cardOf(card: Uint8Array | undefined): { instruction: string; verdict: string; sentence: string } {
  const told = { instruction: "", verdict: "", sentence: "" };
  if (!card || card.length > 4_000_000) return told;
  try {
    const plain = JSON.parse(new TextDecoder().decode(card)) as Record<string, unknown>;
    const result = plain["result"] as Record<string, unknown> | null;
    for (const [key, value] of [["instruction", plain["instruction"]], ["verdict", plain["verdict"]], ["sentence", result?.["sentence"]]] as const) {
      if (typeof value === "string") told[key] = value.slice(0, 4000);
    }
  } catch {
    // an adapter without what is known of it
  }
  return told;
}
