/** The page: loads the bundle, shows the views, keeps the menus in step. */
import { startProve } from "./prove.js";
import { startShare, openLink } from "./share.js";
import { startTeach } from "./teach.js";
import { startTry } from "./try.js";
import { announce, byId, el, explain, size } from "./ui.js";
import { load } from "./whit.js";
const VIEWS = ["try", "teach", "share", "prove"];
function show(view, focus = false) {
    for (const each of VIEWS) {
        const tab = byId(`tab-${each}`);
        const here = each === view;
        tab.setAttribute("aria-selected", String(here));
        tab.tabIndex = here ? 0 : -1;
        byId(`view-${each}`).hidden = !here;
        if (here && focus)
            tab.focus();
    }
    document.dispatchEvent(new CustomEvent("whit:view", { detail: view }));
}
function tabs() {
    VIEWS.forEach((view, at) => {
        const tab = byId(`tab-${view}`);
        tab.addEventListener("click", () => show(view));
        tab.addEventListener("keydown", (event) => {
            const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: VIEWS.length - 1 }[event.key];
            if (next === undefined)
                return;
            event.preventDefault();
            show(VIEWS[(next + VIEWS.length) % VIEWS.length], true);
        });
    });
}
/** Rejects where the service worker cannot be installed: then it is never ready, and nothing else would say so. */
function failing({ installing, active }) {
    return new Promise((_, reject) => {
        const look = () => {
            if (installing?.state === "redundant" && !active)
                reject(new Error("this device could not keep all of the page; it may have too little room"));
        };
        installing?.addEventListener("statechange", look);
        look();
    });
}
async function offline() {
    if (!("serviceWorker" in navigator)) {
        byId("offline").textContent = "needs the network: this browser keeps no pages here (open it on https or localhost)";
        return;
    }
    try {
        const made = await navigator.serviceWorker.register("./sw.js", { scope: "./" });
        await Promise.race([navigator.serviceWorker.ready, failing(made)]);
        byId("offline").textContent = "works offline";
        document.documentElement.dataset["offline"] = "ready";
    }
    catch (error) {
        byId("offline").textContent = `needs the network: ${explain(error)}`;
    }
}
function describe(whit) {
    const { manifest, engine, base, seconds } = whit.opened;
    document.title = `${manifest.title} · whit`;
    byId("title").textContent = manifest.title;
    byId("about").textContent =
        `${manifest.base.name}, ${(manifest.base.parameters / 1e6).toFixed(1)} M parameters, ${size(manifest.base.bytes)} from ${base.from}; ` +
            `ready in ${seconds.toFixed(1)} s (${engine} engine)`;
    if (base.note)
        byId("note").textContent = base.note;
    byId("note").hidden = !base.note;
}
async function start() {
    tabs();
    show("try");
    const bar = byId("loading-bar");
    const kept = offline();
    let whit;
    try {
        whit = await load({
            onProgress: (done, total) => {
                bar.max = total;
                bar.value = done;
                byId("loading-text").textContent = `Loading the model: ${size(done)} of ${size(total)}`;
            },
        });
    }
    catch (error) {
        bar.hidden = true;
        byId("loading-text").textContent = explain(error);
        byId("loading").setAttribute("role", "alert");
        byId("loading").append(el("button", { type: "button", id: "again" }, "Try again"));
        byId("again").addEventListener("click", () => location.reload());
        document.documentElement.dataset["state"] = "failed";
        return;
    }
    describe(whit);
    // Without this a browser may throw the model away when space is short; it may ask the user, so no waiting for it.
    void navigator.storage?.persist?.();
    const listeners = [];
    const shell = {
        whit,
        async refresh() {
            const adapters = await whit.adapters();
            if (whit.adapter && !adapters.some((info) => info.name === whit.adapter))
                await whit.setAdapter(null);
            for (const listener of listeners)
                listener(adapters, whit.adapter);
            return adapters;
        },
        onAdapters(listener) {
            listeners.push(listener);
        },
        async choose(name) {
            await whit.setAdapter(name);
            await shell.refresh();
        },
        show: (view) => show(view, true),
    };
    startTry(shell);
    startTeach(shell);
    startShare(shell);
    startProve(shell);
    const first = whit.manifest.adapters[0]?.name ?? null;
    await whit.setAdapter(first).catch(async (error) => {
        announce(explain(error));
        await whit.setAdapter(null);
    });
    await shell.refresh();
    byId("loading").hidden = true;
    byId("views").hidden = false;
    document.documentElement.dataset["state"] = "ready";
    announce("Ready.");
    await openLink(shell);
    addEventListener("hashchange", () => void openLink(shell));
    await kept;
}
void start();
