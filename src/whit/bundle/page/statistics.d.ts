/**
 * Was it better, and how sure is that? Twin of `whit.evaluation.statistics` and `verdict` for right-or-wrong answers.
 *
 * Exact McNemar test and Tango's score interval of the paired difference (Tango 1998, Stat. Med. 17:891); the verdict's
 * rule is that of docs/proof.md. Knows nothing of models.
 */
export type Verdict = "helped" | "no worse" | "harmed" | "not enough data";
export interface Comparison {
    verdict: Verdict;
    rows: number;
    base: number;
    tuned: number;
    difference: number;
    interval: [number, number];
    pValue: number;
    wins: number;
    losses: number;
    ties: number;
    sentence: string;
}
/** Exact two-sided McNemar test. */
export declare function mcnemar(wins: number, losses: number): number;
/** Tango's interval of (wins - losses) / rows. */
export declare function tangoInterval(wins: number, losses: number, rows: number): [number, number];
/** Compare right-or-wrong answers row by row. */
export declare function compare(base: boolean[], tuned: boolean[]): Comparison;
/** Whether answers are a closed set, so that case and punctuation at the ends are forgiven (as `whit` does). */
export declare function isClosedSet(answers: string[]): boolean;
/** Whether an answer is right. JSON is compared by content; a label without case and punctuation; the rest exactly. */
export declare function isRight(answer: string, gold: string, closed: boolean): boolean;
