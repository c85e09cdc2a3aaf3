/** What a bundle says of itself (`bundle.json`, written by `whit.bundle.pack`), and how its base is prompted. */

import { WhitError } from "./engine.js";

/** What stands between turns; see `whit.bundle.prompts`. */
export interface PromptForm {
  first: string;
  before_answer: string;
  after_answer: string;
  instruction_before: string;
  instruction_after: string;
  takes_instruction: boolean;
  trims: boolean;
}

export interface BaseEntry {
  name: string;
  file: string;
  bytes: number;
  sha256: string;
  fingerprint: string;
  licence: string;
  parameters: number;
  context: number;
  stops: number[];
  stop: number;
  prompt: PromptForm;
}

export interface AdapterEntry {
  name: string;
  kind: string;
  numbers: number;
  files: string[];
  instruction: string;
  verdict: string;
  sentence: string;
  most: number | null;
}

export interface Teach {
  kind: "lora" | "xs";
  rank: number;
  alpha?: number;
  rate: number;
  batch: number;
}

export interface Manifest {
  bundle: number;
  whit: string;
  title: string;
  base: BaseEntry;
  engine: { simd: string; relaxed: string };
  basis: { rank: number; file: string; fingerprint: string }[];
  adapters: AdapterEntry[];
  teach: Teach;
  files: Record<string, { bytes: number; sha256: string }>;
}

/** Read `bundle.json` beside `root`. */
export async function readManifest(root: URL): Promise<Manifest> {
  let answer: Response;
  try {
    answer = await fetch(new URL("bundle.json", root));
  } catch {
    throw new WhitError("network", "The page's list of files could not be read: you seem to be offline. Open the page once while online.");
  }
  if (!answer.ok) throw new WhitError("network", `bundle.json could not be read (${answer.status}); copy the whole folder to the host.`);
  const manifest = (await answer.json()) as Manifest;
  if (manifest.bundle !== 1) throw new WhitError("damaged", "This bundle is of another version than its page; make it again with whit bundle.");
  return manifest;
}

/** The prompt of inputs and answers in turn, the last being an input. */
export function renderPrompt(form: PromptForm, turns: string[], instruction: string): string {
  const said = form.trims ? turns.map((turn) => turn.trim()) : [...turns];
  let begin = form.first;
  if (instruction && form.takes_instruction) {
    begin = form.instruction_before + (form.trims ? instruction.trim() : instruction) + form.instruction_after;
  } else if (instruction) {
    const joined = `${instruction}\n\n${turns[0] ?? ""}`;
    said[0] = form.trims ? joined.trim() : joined;
  }
  return begin + said.map((text, at) => text + (at % 2 ? form.after_answer : form.before_answer)).join("");
}
