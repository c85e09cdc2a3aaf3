/**
 * Rows from what was dropped, pasted or typed, and what is wrong with them; twin of a part of `whit.data`.
 *
 * Reads CSV, TSV (with a header), JSON and JSON Lines, by the usual names of columns. Promises that a problem names its
 * row. Knows nothing of models, but is told how long a row may be.
 */
import { WhitError } from "./engine.js";
const PROMPTS = ["prompt", "input", "question", "text", "instruction", "message", "ticket", "sentence", "query"];
const COMPLETIONS = ["completion", "output", "answer", "label", "response", "target", "category", "class", "intent"];
export const MOST_ROWS = 2000;
/** Rows of a text, whatever its form. */
export function readRows(text) {
    const clean = text.replace(/^\ufeff/, "");
    if (!clean.trim())
        throw new WhitError("data", "There is nothing in it.");
    const first = clean.trimStart()[0];
    const table = first === "{" || first === "[" ? fromJson(clean, first) : fromTable(clean);
    return checked(table.slice(0, MOST_ROWS), table.length);
}
/** Rows that were typed, with the same checks. */
export function typedRows(pairs) {
    const rows = pairs.map(([prompt, completion], at) => ({ prompt, completion, place: at + 1 }));
    return checked(rows.filter((row) => row.prompt.trim() || row.completion.trim()), rows.length);
}
function fromJson(text, first) {
    const found = [];
    if (first === "[") {
        const all = parse(text, 1);
        if (!Array.isArray(all))
            throw new WhitError("data", "The JSON is no list of rows.");
        all.forEach((item, at) => found.push([item, at + 1]));
    }
    else {
        text.split("\n").forEach((line, at) => {
            if (line.trim())
                found.push([parse(line, at + 1), at + 1]);
        });
    }
    return found.map(([item, place]) => fromRecord(item, place));
}
function parse(text, line) {
    try {
        return JSON.parse(text);
    }
    catch {
        throw new WhitError("data", `Line ${line} is not JSON. Each line is to be one row, such as {"prompt": "…", "completion": "…"}.`);
    }
}
function fromRecord(item, place) {
    if (!item || typeof item !== "object")
        throw new WhitError("data", `Row ${place} is no object with a prompt and a completion.`);
    const record = item;
    const messages = record["messages"];
    if (Array.isArray(messages)) {
        const said = messages.filter((turn) => turn?.["role"] !== "system");
        const [asked, answered] = [said[0], said[1]];
        if (said.length === 2 && asked?.["role"] === "user" && answered?.["role"] === "assistant") {
            return { prompt: String(asked["content"] ?? ""), completion: String(answered["content"] ?? ""), place };
        }
        throw new WhitError("data", `Row ${place}: conversations of more than one question are for whit train, not for this page.`);
    }
    const names = Object.keys(record);
    const [prompt, completion] = columns(names, place);
    return { prompt: plain(record[prompt]), completion: plain(record[completion]), place };
}
function plain(value) {
    return value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
}
function columns(names, place) {
    const lower = names.map((name) => name.trim().toLowerCase());
    const pick = (wanted, not) => names[lower.indexOf(wanted.find((name) => lower.includes(name) && name !== not) ?? "")];
    const completion = pick(COMPLETIONS);
    const prompt = pick(PROMPTS, completion?.toLowerCase());
    if (prompt !== undefined && completion !== undefined)
        return [prompt, completion];
    const data = names.filter((name) => !["id", "group"].includes(name.toLowerCase()));
    if (data.length === 2 && prompt === undefined && completion === undefined)
        return [data[0], data[1]];
    const listed = names.slice(0, 6).map((name) => name.slice(0, 30)).join(", ");
    throw new WhitError("data", `Row ${place}: it is not clear which of the columns (${listed}) is the input and which the answer. Name them prompt and completion.`);
}
function fromTable(text) {
    const line = text.slice(0, text.indexOf("\n") + 1 || text.length);
    const separator = ["\t", ";", ","].map((mark) => [mark, line.split(mark).length]).sort((a, b) => b[1] - a[1])[0];
    if (separator[1] < 2)
        throw new WhitError("data", "There is only one column. Give two: the input and the wanted answer, with a header line such as prompt,completion.");
    const table = cells(text, separator[0]);
    const names = table.shift()?.cells ?? [];
    if (!table.length)
        throw new WhitError("data", "There is a header but no row under it.");
    const [prompt, completion] = columns(names, 1).map((name) => names.indexOf(name));
    return table.map(({ cells: row, line: place }) => {
        if (row.length !== names.length) {
            throw new WhitError("data", `Line ${place} has ${row.length} columns where the header has ${names.length}; put quotation marks around texts that hold the separator.`);
        }
        return { prompt: row[prompt] ?? "", completion: row[completion] ?? "", place };
    });
}
/** RFC 4180: quoted cells may hold separators, line ends and doubled quotes. */
function cells(text, separator) {
    const rows = [];
    let [at, line, start] = [0, 1, 1];
    let row = [];
    const endRow = () => {
        if (row.length > 1 || (row[0] ?? "").trim())
            rows.push({ cells: row, line: start });
        row = [];
        start = line;
    };
    while (at < text.length) {
        let cell = "";
        if (text[at] === '"') {
            const opened = line;
            for (at++;; at++) {
                if (at >= text.length)
                    throw new WhitError("data", `The quotation mark opened in line ${opened} is never closed.`);
                if (text[at] === '"') {
                    if (text[at + 1] !== '"')
                        break;
                    at++;
                }
                else if (text[at] === "\n") {
                    line++;
                }
                cell += text[at];
            }
            at++;
        }
        else {
            const from = at;
            while (at < text.length && text[at] !== separator && text[at] !== "\n")
                at++;
            cell = text.slice(from, at).replace(/\r$/, "");
        }
        row.push(cell);
        if (text[at] === "\r")
            at++;
        if (text[at] === separator) {
            at++;
            if (at === text.length)
                row.push("");
        }
        else if (at >= text.length || text[at] === "\n") {
            at++;
            line++;
            endRow();
        }
        else {
            throw new WhitError("data", `Line ${line}: something stands after a closing quotation mark.`);
        }
    }
    if (row.length)
        endRow();
    return rows;
}
const folded = (text) => text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ").trim();
/** What two rows with one input have in common. */
export const inputKey = folded;
function checked(given, total) {
    const problems = [];
    const told = (kind, serious, places, what) => {
        if (!places.length)
            return;
        const named = places.slice(0, 5).join(", ") + (places.length > 5 ? ", …" : "");
        problems.push({ kind, serious, message: `${what} (${places.length === 1 ? "row" : "rows"} ${named})` });
    };
    const empty = given.filter((row) => !row.prompt.trim() || !row.completion.trim());
    told("empty", false, empty.map((row) => row.place), `${empty.length} left out: without an input or an answer`);
    const seen = new Map();
    const rows = [];
    const [twice, conflicts] = [[], []];
    for (const row of given) {
        if (!row.prompt.trim() || !row.completion.trim())
            continue;
        const key = folded(row.prompt);
        const before = seen.get(key);
        if (!before) {
            seen.set(key, row);
            rows.push({ ...row, completion: row.completion.trim() });
        }
        else
            (folded(before.completion) === folded(row.completion) ? twice : conflicts).push(row.place);
    }
    told("duplicate", false, twice, `${twice.length} left out: they repeat an earlier row`);
    told("conflict", false, conflicts, `${conflicts.length} left out: the same input as an earlier row, but another answer. Decide which is right`);
    if (total > MOST_ROWS) {
        problems.push({ kind: "too many", serious: false, message: `The first ${MOST_ROWS.toLocaleString("en")} of ${total.toLocaleString("en")} rows are used; for more, use whit train on a computer.` });
    }
    if (rows.length < 10) {
        const what = rows.length === 1 ? "There is one usable row" : `There are ${rows.length} usable rows`;
        problems.push({ kind: "few", serious: true, message: `${what}; at least 10 are needed to learn from some and test on others. A few hundred are good.` });
    }
    else if (new Set(rows.map((row) => folded(row.completion))).size === 1) {
        problems.push({ kind: "one answer", serious: true, message: "Every row has the same answer, so there is nothing to learn." });
    }
    else if (rows.length < 100) {
        problems.push({ kind: "few", serious: false, message: `${rows.length} rows are few: the result will probably be “not enough data”. A few hundred are good.` });
    }
    return { rows, problems };
}
