/** What a bundle says of itself (`bundle.json`, written by `whit.bundle.pack`), and how its base is prompted. */
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
    engine: {
        simd: string;
        relaxed: string;
    };
    basis: {
        rank: number;
        file: string;
        fingerprint: string;
    }[];
    adapters: AdapterEntry[];
    teach: Teach;
    files: Record<string, {
        bytes: number;
        sha256: string;
    }>;
}
/** Read `bundle.json` beside `root`. */
export declare function readManifest(root: URL): Promise<Manifest>;
/** The prompt of inputs and answers in turn, the last being an input. */
export declare function renderPrompt(form: PromptForm, turns: string[], instruction: string): string;
