/**
 * The base, fetched once and kept: in parts, so that a download which stops goes on where it was.
 *
 * Promises that what it gives has the wanted SHA-256: a cached copy that was damaged is thrown away and fetched again, a
 * fetched one that is wrong is an error. Where the device has no room to keep it, it is used without being kept.
 */
import { WhitError } from "./engine.js";
const PART = 4 << 20;
export async function digest(content) {
    if (!globalThis.crypto?.subtle) {
        throw new WhitError("storage", "The browser allows checksums and offline use only on https or on localhost. Open the page that way.");
    }
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
/** The file, from this device where it is whole, else from the network. One tab at a time fetches. */
export async function obtain(store, wanted, progress) {
    const work = () => obtainAlone(store, wanted, progress);
    return navigator.locks ? navigator.locks.request(`${store.name} ${wanted.sha256}`, work) : work();
}
async function obtainAlone(store, wanted, progress) {
    const content = new Uint8Array(wanted.bytes);
    // A page that was renewed with another base must not keep the old one for ever.
    for (const old of await store.keys("parts"))
        if (!old.startsWith(`${wanted.sha256} `))
            await store.delete("parts", old);
    const key = (index) => `${wanted.sha256} ${String(index).padStart(6, "0")}`;
    let have = 0;
    for (let index = 0; have < wanted.bytes; index++) {
        const part = await store.get("parts", key(index));
        const due = Math.min(PART, wanted.bytes - have);
        if (!part || part.length !== due)
            break;
        content.set(part, have);
        have += due;
        progress(have, wanted.bytes);
    }
    let note = "";
    if (have === wanted.bytes) {
        if ((await digest(content)) === wanted.sha256)
            return { content, from: "this device", kept: true, note };
        note = "The copy on this device was damaged; it was fetched again.";
        await drop(store, wanted.sha256);
        have = 0;
    }
    let kept = await roomFor(wanted.bytes - have);
    if (!kept)
        note = "This device has too little room to keep the model; it will be fetched again next time.";
    await receive(wanted, content, have, async (from, to) => {
        progress(to, wanted.bytes);
        if (!kept)
            return;
        try {
            await store.put("parts", key(from / PART), content.slice(from, to));
        }
        catch (error) {
            if (!(error instanceof WhitError))
                throw error;
            kept = false;
            note = error.message;
            await drop(store, wanted.sha256).catch(() => undefined);
        }
    });
    if ((await digest(content)) !== wanted.sha256) {
        await drop(store, wanted.sha256);
        throw new WhitError("damaged", `${name(wanted)} arrived damaged: its checksum is wrong. Reload to fetch it again; if that fails, the host holds another file than the bundle lists.`);
    }
    return { content, from: "network", kept, note };
}
/** Fetch from `start` on, and tell of each part that is whole. */
async function receive(wanted, content, start, whole) {
    let at = start;
    let told = start;
    for (let tries = 0; at < wanted.bytes;) {
        const before = at;
        try {
            const headers = at ? { Range: `bytes=${at}-` } : {};
            const answer = await fetch(wanted.url, { headers, cache: "no-store" });
            if (!answer.ok || !answer.body)
                throw new WhitError("network", `${name(wanted)} could not be fetched (${answer.status}).`);
            // A host that knows no ranges begins anew: what is here already is read past.
            let skip = answer.status === 206 ? 0 : at;
            const reader = answer.body.getReader();
            for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
                const value = piece.value.subarray(Math.min(skip, piece.value.length));
                skip = Math.max(0, skip - piece.value.length);
                if (at + value.length > wanted.bytes)
                    throw new WhitError("damaged", `${name(wanted)} is larger than the bundle says.`);
                content.set(value, at);
                at += value.length;
                while (at - told >= PART || (at === wanted.bytes && told < at)) {
                    const end = Math.min(told + PART, wanted.bytes);
                    await whole(told, end);
                    told = end;
                }
            }
            if (at < wanted.bytes && at === before)
                throw new WhitError("damaged", `${name(wanted)} is shorter than the bundle says.`);
        }
        catch (error) {
            if (error instanceof WhitError && error.kind !== "network")
                throw error;
            tries = at > before ? 0 : tries + 1;
            if (tries >= 3) {
                throw new WhitError("network", `${name(wanted)} could not be fetched: you seem to be offline. ${at ? "What has arrived is kept; r" : "R"}eload when you are online.`);
            }
            await new Promise((done) => setTimeout(done, 300 * 2 ** tries));
        }
    }
}
async function roomFor(bytes) {
    const { quota, usage } = (await navigator.storage?.estimate?.()) ?? {};
    return quota === undefined || quota - (usage ?? 0) > bytes + (1 << 20);
}
/** Throw away what is kept of a file. */
export function drop(store, sha256) {
    return store.delete("parts", IDBKeyRange.bound(`${sha256} `, `${sha256} \uffff`));
}
function name(wanted) {
    return wanted.url.pathname.split("/").pop() ?? "The file";
}
