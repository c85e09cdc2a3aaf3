// The service worker: keeps the page's files (not the base, which is in IndexedDB), answers from them, and notes every
// request. `whit bundle` writes the version and the list of files into the two lines below. It can import nothing.
const VERSION = "dev";
const SHELL = ["./"];

interface Lasting {
  waitUntil(promise: Promise<unknown>): void;
}
interface Asking extends Lasting {
  readonly request: Request;
  respondWith(answer: Promise<Response> | Response): void;
}
interface ServiceScope {
  readonly registration: { readonly scope: string };
  readonly clients: { claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(kind: "install" | "activate", listener: (event: Lasting) => void): void;
  addEventListener(kind: "fetch", listener: (event: Asking) => void): void;
}

const service = self as unknown as ServiceScope;
const folder = new URL(service.registration.scope);
const prefix = `whit ${folder.pathname} `;

service.addEventListener("install", (event) => {
  event.waitUntil((async () => {
    const cache = await caches.open(prefix + VERSION);
    await Promise.all(SHELL.map(async (name) => {
      const url = new URL(name, folder).href;
      const answer = await fetch(url, { cache: "no-cache" });
      if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
      await cache.put(url, answer);
      await note(url, "network");
    }));
    await service.skipWaiting();
  })());
});

service.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith(prefix) && name !== prefix + VERSION) await caches.delete(name);
    }
    await service.clients.claim();
  })());
});

service.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (url.protocol === "blob:" || url.protocol === "data:") return;
  if (url.origin !== folder.origin) {
    // The page's policy forbids this already; here is a second wall.
    event.waitUntil(note(url.href, "blocked"));
    event.respondWith(Response.error());
    return;
  }
  if (event.request.method !== "GET") return;
  const bare = event.request.mode === "navigate" && url.pathname === `${folder.pathname}index.html` ? folder.href : url.origin + url.pathname;
  event.respondWith((async () => {
    const cache = await caches.open(prefix + VERSION);
    const kept = await cache.match(bare);
    event.waitUntil(note(bare, kept ? "this device" : "network"));
    return kept ?? fetch(event.request);
  })());
});

/** Note a request in the page's database, as `Store.log` does. */
function note(url: string, from: string): Promise<void> {
  return new Promise((done) => {
    const asked = indexedDB.open(`whit ${folder.pathname}`, 1);
    asked.onupgradeneeded = () => {
      for (const table of ["parts", "adapters", "runs", "requests"]) asked.result.createObjectStore(table);
    };
    asked.onerror = () => done();
    asked.onsuccess = () => {
      const db = asked.result;
      const end = () => {
        db.close();
        done();
      };
      try {
        const transaction = db.transaction("requests", "readwrite");
        const table = transaction.objectStore("requests");
        const key = `${from} ${url}`;
        const before = table.get(key);
        before.onsuccess = () => {
          const now = Date.now();
          const old = before.result as { count: number; first: number } | undefined;
          table.put({ url, from, count: (old?.count ?? 0) + 1, first: old?.first ?? now, last: now }, key);
        };
        transaction.oncomplete = end;
        transaction.onabort = end;
      } catch {
        end();
      }
    };
  });
}
