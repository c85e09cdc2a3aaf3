/**
 * Rows from what was dropped, pasted or typed, and what is wrong with them; twin of a part of `whit.data`.
 *
 * Reads CSV, TSV (with a header), JSON and JSON Lines, by the usual names of columns. Promises that a problem names its
 * row. Knows nothing of models, but is told how long a row may be.
 */
export interface Row {
    prompt: string;
    completion: string;
    /** Where it stood: its line or number, from 1. */
    place: number;
}
export interface Problem {
    kind: "empty" | "duplicate" | "conflict" | "too long" | "too many" | "few" | "one answer";
    /** Whether training is refused, or only told. */
    serious: boolean;
    message: string;
}
export interface Read {
    rows: Row[];
    problems: Problem[];
}
export declare const MOST_ROWS = 2000;
/** Rows of a text, whatever its form. */
export declare function readRows(text: string): Read;
/** Rows that were typed, with the same checks. */
export declare function typedRows(pairs: [string, string][]): Read;
declare const folded: (text: string) => string;
/** What two rows with one input have in common. */
export declare const inputKey: typeof folded;
export {};
