/** The head of a compact adapter file and its text form; the engine itself reads the numbers (see `whit.adapters.compact`). */
import { WhitError } from "./engine.js";
export const TEXT_PREFIX = "whit1_";
const MOST_BYTES = 34 + 2 + 8192 + 4 * (1 << 22) + 4;
/** What a compact file says of itself. */
export function readHead(content) {
    const letters = String.fromCharCode(...content.subarray(0, 4));
    if (letters !== "whit" || content.length < 38 || content.length > MOST_BYTES) {
        throw new WhitError("adapter", "This is no whit adapter.");
    }
    const view = new DataView(content.buffer, content.byteOffset, content.length);
    const kind = { 1: "tiny", 2: "xs" }[view.getUint8(5)];
    if (view.getUint8(4) !== 1 || !kind)
        throw new WhitError("adapter", "This adapter is of a kind or version that this page does not know.");
    return { kind, rank: view.getUint8(7), numbers: view.getUint32(14, true), base: hex(content, 18), basis: hex(content, 26) };
}
function hex(content, from) {
    return [...content.subarray(from, from + 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
/** The text form: letters, digits, `-` and `_` only. */
export function toText(content) {
    let plain = "";
    for (let at = 0; at < content.length; at += 8192)
        plain += String.fromCharCode(...content.subarray(at, at + 8192));
    return TEXT_PREFIX + btoa(plain).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}
/** The bytes behind a text form; white space around it is no matter. */
export function fromText(text) {
    const given = text.trim();
    const body = given.slice(TEXT_PREFIX.length);
    if (!given.startsWith(TEXT_PREFIX) || !/^[A-Za-z0-9_-]+$/.test(body) || body.length > (MOST_BYTES * 4) / 3 + 4) {
        throw new WhitError("adapter", `This is not the text form of an adapter: it begins with ${TEXT_PREFIX} and has letters, digits, - and _ only.`);
    }
    try {
        const plain = atob(body.replace(/-/g, "+").replace(/_/g, "/"));
        return Uint8Array.from(plain, (letter) => letter.charCodeAt(0));
    }
    catch {
        throw new WhitError("adapter", "The text form is damaged; copy all of it again.");
    }
}
