/** What the page and its worker say to each other, and the shapes that `whit.js` shows. */
import type { ErrorKind } from "./engine.js";
import type { AdapterEntry, Manifest } from "./manifest.js";
import type { Problem, Row } from "./rows.js";
import type { Comparison } from "./statistics.js";
import type { LoggedRequest } from "./store.js";
/** How an answer is made. */
export interface GenerateOptions {
    /** An adapter's name; null for the bare base. By default the one that `setAdapter` chose. */
    adapter?: string | null;
    /** What the base is told first; by default what the adapter was taught with. */
    instruction?: string;
    /** Longest answer in tokens (default 256). */
    most?: number;
    /** 0 (the default) takes the likeliest token. */
    temperature?: number;
    topP?: number;
    minP?: number;
    seed?: number;
    stops?: string[];
}
export interface Answer {
    text: string;
    tokens: number;
    /** Why it ended. */
    reason: "end" | "stop" | "length" | "cancelled";
    /** Seconds until the first token, and for all of it. */
    firstSeconds: number;
    seconds: number;
}
/** How an adapter is taught. What is left out is chosen by the bundle. */
export interface TrainOptions {
    name?: string;
    instruction?: string;
    epochs?: number;
    rate?: number;
    batch?: number;
    rank?: number;
    seed?: number;
}
export interface TrainProgress {
    stage: "learning" | "testing";
    step: number;
    steps: number;
    /** Mean loss of the step's completion tokens, in nats. */
    loss: number;
    /** [step, training loss, loss on rows set aside for choosing (null where there are none)] */
    curve: [number, number, number | null][];
    secondsLeft: number;
    seconds: number;
}
export interface Example {
    prompt: string;
    wanted: string;
    base: string;
    tuned: string;
    baseRight: boolean;
    tunedRight: boolean;
}
export interface Trained {
    adapter: AdapterInfo;
    result: Comparison;
    examples: Example[];
    seconds: number;
    steps: number;
    train: number;
    validation: number;
    test: number;
}
/** An adapter that can be used now. */
export interface AdapterInfo extends Pick<AdapterEntry, "name" | "kind" | "numbers" | "instruction" | "verdict" | "sentence"> {
    /** Whether it came with the bundle or was made or opened here. */
    from: "bundle" | "here";
    /** Whether it will be there next time; false where this device had no room for it. */
    kept: boolean;
    most: number | null;
}
export interface Exported {
    /** The file to download. */
    file: string;
    content: Uint8Array;
    /** The text form; null for a LoRA. */
    text: string | null;
}
export interface Opened {
    manifest: Manifest;
    adapters: AdapterInfo[];
    engine: "relaxed" | "simd";
    base: {
        from: "this device" | "network";
        kept: boolean;
        note: string;
    };
    context: number;
    seconds: number;
}
/** A training run that did not come to its end. */
export interface Unfinished {
    name: string;
    step: number;
    steps: number;
    rows: number;
    paused: boolean;
    when: number;
}
/** What the worker is asked; each has one answer, some tell of progress before it. */
export interface Calls {
    open: {
        given: {
            root: string;
            controlled: boolean;
        };
        answer: Opened;
        progress: {
            done: number;
            total: number;
        };
    };
    generate: {
        given: {
            turns: string[];
            options: GenerateOptions;
            both: boolean;
        };
        answer: Answer[];
        progress: {
            which: number;
            text: string;
        };
    };
    readRows: {
        given: {
            text?: string;
            file?: Blob;
            pairs?: [string, string][];
        };
        answer: {
            rows: Row[];
            problems: Problem[];
        };
        progress: never;
    };
    train: {
        given: {
            rows: Row[];
            options: TrainOptions;
            resume: boolean;
        };
        answer: Trained;
        progress: TrainProgress;
    };
    unfinished: {
        given: Record<string, never>;
        answer: Unfinished | null;
        progress: never;
    };
    discard: {
        given: Record<string, never>;
        answer: null;
        progress: never;
    };
    adapters: {
        given: Record<string, never>;
        answer: AdapterInfo[];
        progress: never;
    };
    use: {
        given: {
            name: string;
        };
        answer: AdapterInfo;
        progress: never;
    };
    add: {
        given: {
            name: string;
            content?: Uint8Array;
            text?: string;
        };
        answer: AdapterInfo;
        progress: never;
    };
    remove: {
        given: {
            name: string;
        };
        answer: null;
        progress: never;
    };
    export: {
        given: {
            name: string;
        };
        answer: Exported;
        progress: never;
    };
    requests: {
        given: Record<string, never>;
        answer: LoggedRequest[];
        progress: never;
    };
    memory: {
        given: Record<string, never>;
        answer: number;
        progress: never;
    };
}
export type Name = keyof Calls;
export interface Asked {
    id: number;
    name: Name;
    given: unknown;
}
/** `cancel` stops a call; `pause` stops training so that it can go on later. */
export interface Stop {
    stop: number;
    how: "cancel" | "pause";
}
export type Told = {
    id: number;
    progress: unknown;
} | {
    id: number;
    answer: unknown;
} | {
    id: number;
    error: {
        kind: ErrorKind | "cancelled" | "paused";
        message: string;
    };
};
