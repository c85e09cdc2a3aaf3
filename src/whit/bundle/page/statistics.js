/**
 * Was it better, and how sure is that? Twin of `whit.evaluation.statistics` and `verdict` for right-or-wrong answers.
 *
 * Exact McNemar test and Tango's score interval of the paired difference (Tango 1998, Stat. Med. 17:891); the verdict's
 * rule is that of docs/proof.md. Knows nothing of models.
 */
const Z = 1.959963984540054;
const MARGIN = 0.02;
const ALPHA = 0.05;
/** The fewest rows of which every one won could show anything. */
const LEAST_ROWS = 6;
/** Exact two-sided McNemar test. */
export function mcnemar(wins, losses) {
    const n = wins + losses;
    let term = 0; // log of the binomial coefficient
    let below = 0;
    for (let k = 0; k <= Math.min(wins, losses); k++) {
        below += Math.exp(term - n * Math.LN2);
        term += Math.log((n - k) / (k + 1));
    }
    return n ? Math.min(1, 2 * below) : 1;
}
/** Tango's interval of (wins - losses) / rows. */
export function tangoInterval(wins, losses, rows) {
    const score = (delta) => {
        const A = 2 * rows;
        const B = -wins - losses + (2 * rows - wins + losses) * delta;
        const C = -losses * delta * (1 - delta);
        const q21 = (Math.sqrt(Math.max(0, B * B - 4 * A * C)) - B) / (2 * A);
        const variance = rows * (2 * q21 + delta * (1 - delta));
        const distance = wins - losses - rows * delta;
        if (variance <= 0)
            return distance ? Math.sign(distance) * Infinity : 0;
        return distance / Math.sqrt(variance);
    };
    const bisect = (shift, low, high) => {
        while (high - low > 1e-10) {
            const middle = (low + high) / 2;
            if (score(middle) + shift > 0)
                low = middle;
            else
                high = middle;
        }
        return (low + high) / 2;
    };
    const at = (wins - losses) / rows;
    return [losses === rows ? -1 : bisect(-Z, -1, at), wins === rows ? 1 : bisect(Z, at, 1)];
}
/** Compare right-or-wrong answers row by row. */
export function compare(base, tuned) {
    const rows = base.length;
    const wins = tuned.filter((right, at) => right && !base[at]).length;
    const losses = base.filter((right, at) => right && !tuned[at]).length;
    const share = (answers) => (rows ? answers.filter(Boolean).length / rows : 0);
    const interval = rows ? tangoInterval(wins, losses, rows) : [-1, 1];
    const pValue = mcnemar(wins, losses);
    let verdict = interval[0] > -MARGIN ? "no worse" : "not enough data";
    if (interval[0] > 0 && pValue < ALPHA)
        verdict = "helped";
    else if (interval[1] < 0 && pValue < ALPHA)
        verdict = "harmed";
    if (rows < LEAST_ROWS)
        verdict = "not enough data";
    const result = {
        verdict, rows, base: share(base), tuned: share(tuned), difference: rows ? (wins - losses) / rows : 0, interval, pValue,
        wins, losses, ties: rows - wins - losses,
    };
    return { ...result, sentence: sentence(result) };
}
const points = (value, sign = false) => `${sign && value > 0 ? "+" : ""}${(100 * value).toFixed(1)}`.replace(/^-0\.0$/, "0.0").replace("-", "−");
function sentence(result) {
    const { base, tuned, rows, interval, difference } = result;
    const span = `95 % interval ${points(interval[0], true)} to ${points(interval[1], true)} points`;
    const figures = `${points(base)} → ${points(tuned)} right of 100, on ${rows} held-out rows (${span})`;
    switch (result.verdict) {
        case "helped": return `Helped: the adapter is better than the base by ${points(difference)} points, ${figures}.`;
        case "harmed": return `Harmed: the adapter is worse than the base by ${points(-difference)} points, ${figures}.`;
        case "no worse": return `No worse: the adapter is not shown to be better than the base, but a loss of 2 points or more is excluded, ${figures}.`;
        default: return `Not enough data to tell the adapter from the base, ${figures}. More rows would tell.`;
    }
}
const EDGES = /^["'`“”‘’«».,;:!?()[\]{}<>*#_~…–—\-\s]+|["'`“”‘’«».,;:!?()[\]{}<>*#_~…–—\-\s]+$/g;
/** Whether answers are a closed set, so that case and punctuation at the ends are forgiven (as `whit` does). */
export function isClosedSet(answers) {
    const distinct = new Set(answers.map((answer) => answer.normalize("NFKC").toLowerCase().trim()));
    return answers.length >= 3 * distinct.size && answers.every((answer) => answer.length <= 80 && !answer.includes("\n") && !/^[{[]/.test(answer));
}
/** Whether an answer is right. JSON is compared by content; a label without case and punctuation; the rest exactly. */
export function isRight(answer, gold, closed) {
    const [given, wanted] = [answer.trim(), gold.trim()];
    if (given === wanted)
        return true;
    if (closed) {
        const normal = (text) => {
            const folded = text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ").trim();
            return folded.replace(EDGES, "") || folded;
        };
        return normal(given) === normal(wanted);
    }
    if (!/^[{[]/.test(wanted))
        return false;
    try {
        return sorted(JSON.parse(given)) === sorted(JSON.parse(wanted));
    }
    catch {
        return false;
    }
}
function sorted(value) {
    return JSON.stringify(value, (_, part) => part && typeof part === "object" && !Array.isArray(part)
        ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
        : part);
}
