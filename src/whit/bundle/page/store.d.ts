/**
 * What the page keeps on this device, in IndexedDB: parts of the base, adapters, an unfinished training run, requests.
 *
 * One database a folder of an origin, so that two bundles on one host do not share or erase each other's. Promises that
 * a full disk is a `WhitError` that says so. Knows nothing of what the bytes mean.
 */
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
declare const TABLES: readonly ["parts", "adapters", "runs", "requests"];
type Table = (typeof TABLES)[number];
/** The database's name: of the folder that the page lies in. */
export declare function databaseName(root: URL): string;
export declare class Store {
    private readonly db;
    readonly name: string;
    private constructor();
    static open(root: URL): Promise<Store>;
    private run;
    get<T>(table: Table, key: string): Promise<T | undefined>;
    put(table: Table, key: string, value: unknown): Promise<void>;
    delete(table: Table, key: string | IDBKeyRange): Promise<void>;
    all<T>(table: Table): Promise<T[]>;
    keys(table: Table): Promise<string[]>;
    /** Note a request. The service worker, which can import nothing, does the same by itself. */
    log(url: string, from: LoggedRequest["from"]): Promise<void>;
    close(): void;
}
/** Erase the database of a page. */
export declare function eraseDatabase(root: URL): Promise<void>;
export {};
