/**
 * What the page keeps on this device, in IndexedDB: parts of the base, adapters, an unfinished training run, requests.
 *
 * One database a folder of an origin, so that two bundles on one host do not share or erase each other's. Promises that
 * a full disk is a `WhitError` that says so. Knows nothing of what the bytes mean.
 */
import { WhitError } from "./engine.js";
const TABLES = ["parts", "adapters", "runs", "requests"];
/** The database's name: of the folder that the page lies in. */
export function databaseName(root) {
    return `whit ${root.pathname}`;
}
export class Store {
    db;
    name;
    constructor(db, name) {
        this.db = db;
        this.name = name;
    }
    static open(root) {
        const name = databaseName(root);
        return new Promise((resolve, reject) => {
            const asked = indexedDB.open(name, 1);
            asked.onupgradeneeded = () => {
                for (const table of TABLES) {
                    asked.result.createObjectStore(table);
                }
            };
            asked.onsuccess = () => {
                // Another tab that wants to erase everything must not wait for this one.
                asked.result.onversionchange = () => asked.result.close();
                resolve(new Store(asked.result, name));
            };
            asked.onerror = () => reject(failure(asked.error));
            asked.onblocked = () => reject(new WhitError("storage", "Another tab holds the page's storage; close it and reload."));
        });
    }
    run(table, mode, work) {
        return new Promise((resolve, reject) => {
            let transaction;
            try {
                transaction = this.db.transaction(table, mode);
            }
            catch (error) {
                reject(failure(error));
                return;
            }
            let asked;
            try {
                asked = work(transaction.objectStore(table));
            }
            catch (error) {
                reject(failure(error));
                return;
            }
            transaction.oncomplete = () => resolve(asked.result);
            transaction.onerror = () => reject(failure(transaction.error ?? asked.error));
            transaction.onabort = () => reject(failure(transaction.error ?? asked.error));
        });
    }
    get(table, key) {
        return this.run(table, "readonly", (store) => store.get(key));
    }
    async put(table, key, value) {
        await this.run(table, "readwrite", (store) => store.put(value, key));
    }
    async delete(table, key) {
        await this.run(table, "readwrite", (store) => store.delete(key));
    }
    all(table) {
        return this.run(table, "readonly", (store) => store.getAll());
    }
    async keys(table) {
        return (await this.run(table, "readonly", (store) => store.getAllKeys())).map(String);
    }
    /** Note a request. The service worker, which can import nothing, does the same by itself. */
    async log(url, from) {
        const key = `${from} ${url}`;
        const before = await this.get("requests", key);
        const now = Date.now();
        await this.put("requests", key, { url, from, count: (before?.count ?? 0) + 1, first: before?.first ?? now, last: now });
    }
    close() {
        this.db.close();
    }
}
/** Erase the database of a page. */
export function eraseDatabase(root) {
    return new Promise((resolve, reject) => {
        const asked = indexedDB.deleteDatabase(databaseName(root));
        asked.onsuccess = () => resolve();
        asked.onerror = () => reject(failure(asked.error));
    });
}
function failure(error) {
    const name = error instanceof DOMException ? error.name : "";
    if (name === "QuotaExceededError") {
        return new WhitError("storage", "This device has no room left for the page's data. Free some space, or use “Forget everything” on a page you no longer need.");
    }
    return new WhitError("storage", `The page's storage failed (${name || String(error)}). In a private window it may be switched off.`);
}
