/**
 * What the page keeps on this device, in IndexedDB: parts of the base, adapters, an unfinished training run, requests.
 *
 * One database a folder of an origin, so that two bundles on one host do not share or erase each other's. Promises that
 * a full disk is a `WhitError` that says so. Knows nothing of what the bytes mean.
 */

import { WhitError } from "./engine.js";

/** An adapter that was taught, opened or imported here. */
export interface SavedAdapter {
  name: string;
  kind: string;
  numbers: number;
  base: string;
  /** A compact file, or the files of a LoRA. */
  files: Record<string, Uint8Array>;
  instruction: string;
  verdict: string;
  sentence: string;
  made: number;
}

/** An address that was asked for, from where it was answered, how often, and when first and last. */
export interface LoggedRequest {
  url: string;
  from: "network" | "this device" | "blocked";
  count: number;
  first: number;
  last: number;
}

const TABLES = ["parts", "adapters", "runs", "requests"] as const;
type Table = (typeof TABLES)[number];

/** The database's name: of the folder that the page lies in. */
export function databaseName(root: URL): string {
  return `whit ${root.pathname}`;
}

export class Store {
  private constructor(private readonly db: IDBDatabase, readonly name: string) {}

  static open(root: URL): Promise<Store> {
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

  private run<T>(table: Table, mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      let transaction: IDBTransaction;
      try {
        transaction = this.db.transaction(table, mode);
      } catch (error) {
        reject(failure(error));
        return;
      }
      let asked: IDBRequest<T>;
      try {
        asked = work(transaction.objectStore(table));
      } catch (error) {
        reject(failure(error));
        return;
      }
      transaction.oncomplete = () => resolve(asked.result);
      transaction.onerror = () => reject(failure(transaction.error ?? asked.error));
      transaction.onabort = () => reject(failure(transaction.error ?? asked.error));
    });
  }

  get<T>(table: Table, key: string): Promise<T | undefined> {
    return this.run(table, "readonly", (store) => store.get(key) as IDBRequest<T | undefined>);
  }

  async put(table: Table, key: string, value: unknown): Promise<void> {
    await this.run(table, "readwrite", (store) => store.put(value, key));
  }

  async delete(table: Table, key: string | IDBKeyRange): Promise<void> {
    await this.run(table, "readwrite", (store) => store.delete(key));
  }

  all<T>(table: Table): Promise<T[]> {
    return this.run(table, "readonly", (store) => store.getAll() as IDBRequest<T[]>);
  }

  async keys(table: Table): Promise<string[]> {
    return (await this.run(table, "readonly", (store) => store.getAllKeys())).map(String);
  }

  /** Note a request. The service worker, which can import nothing, does the same by itself. */
  async log(url: string, from: LoggedRequest["from"]): Promise<void> {
    const key = `${from} ${url}`;
    const before = await this.get<LoggedRequest>("requests", key);
    const now = Date.now();
    await this.put("requests", key, { url, from, count: (before?.count ?? 0) + 1, first: before?.first ?? now, last: now });
  }

  close(): void {
    this.db.close();
  }
}

/** Erase the database of a page. */
export function eraseDatabase(root: URL): Promise<void> {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.deleteDatabase(databaseName(root));
    asked.onsuccess = () => resolve();
    asked.onerror = () => reject(failure(asked.error));
  });
}

function failure(error: unknown): WhitError {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "QuotaExceededError") {
    return new WhitError("storage", "This device has no room left for the page's data. Free some space, or use “Forget everything” on a page you no longer need.");
  }
  return new WhitError("storage", `The page's storage failed (${name || String(error)}). In a private window it may be switched off.`);
}
