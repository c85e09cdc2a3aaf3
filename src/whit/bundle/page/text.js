/** The text of a file that someone dropped: its encoding found as `whit.data` finds it, and no text refused with the reason. */
import { WhitError } from "./engine.js";
const MOST_BYTES = 256 << 20;
const MARKS = [
    [[0xff, 0xfe], "utf-16le"],
    [[0xfe, 0xff], "utf-16be"],
];
const NO_ROWS = [
    [[0x1f, 0x8b], "compressed with gzip; unpack it first"],
    [[0x50, 0x4b, 3, 4], "a spreadsheet or a zip file; save it as CSV first"],
    [[0xd0, 0xcf, 0x11, 0xe0], "an old spreadsheet or document; save it as CSV first"],
    [[0x25, 0x50, 0x44, 0x46], "a PDF; rows are read from CSV and JSON Lines"],
    [[0x50, 0x41, 0x52, 0x31], "Parquet; save it as CSV or JSON Lines first"],
];
/** All of a file's text. Rejects with `WhitError` where it is none, or larger than a page should read. */
export async function readText(file) {
    if (file.size > MOST_BYTES) {
        throw new WhitError("data", `The file has ${Math.round(file.size / 1e6).toLocaleString("en")} MB; this page reads up to ${MOST_BYTES >> 20} MB. Give a part of it, or use whit train on a computer.`);
    }
    let content;
    try {
        content = new Uint8Array(await file.arrayBuffer());
    }
    catch {
        throw new WhitError("data", "The file cannot be read. Was it moved or changed since it was chosen, or is it a folder?");
    }
    const begins = (mark) => mark.every((byte, at) => content[at] === byte);
    const refused = NO_ROWS.find(([mark]) => begins(mark));
    if (refused)
        throw new WhitError("data", `The file is ${refused[1]}.`);
    const encoding = MARKS.find(([mark]) => begins(mark))?.[1] ?? "utf-8";
    if (encoding === "utf-8" && content.subarray(0, 1 << 16).includes(0))
        throw new WhitError("data", "The file is no text; rows are read from CSV and JSON Lines.");
    try {
        return new TextDecoder(encoding, { fatal: true }).decode(content);
    }
    catch {
        const line = encoding === "utf-8" ? `; the first letter that is none stands in line ${badLine(content)}` : "";
        throw new WhitError("data", `The file's text is not ${encoding.toUpperCase()}${line}. Save it as UTF-8 (spreadsheets offer “CSV UTF-8”).`);
    }
}
/** The line of the first byte that is not UTF-8: all before it decodes, so the bounds close in on it. */
function badLine(content) {
    let [low, high] = [0, content.length];
    while (high - low > 1) {
        const middle = (low + high) >> 1;
        try {
            // With `stream` a character that is cut at the end is no error.
            new TextDecoder("utf-8", { fatal: true }).decode(content.subarray(0, middle), { stream: true });
            low = middle;
        }
        catch {
            high = middle;
        }
    }
    let line = 1;
    for (let at = 0; at < low; at++)
        if (content[at] === 10)
            line++;
    return line;
}
