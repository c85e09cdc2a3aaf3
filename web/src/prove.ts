/** The view “Prove it”: every request ever made, the policy, what is kept, and a button that forgets it all. */

import { byId, el, explain, say, size, type Shell } from "./ui.js";

export function startProve(shell: Shell): void {
  const { whit } = shell;
  const policy = document.querySelector('meta[http-equiv="Content-Security-Policy"]')?.getAttribute("content") ?? "";
  byId("prove-policy").textContent = policy;

  const online = () => (byId("prove-online").textContent = navigator.onLine ? "online" : "offline");
  addEventListener("online", online);
  addEventListener("offline", online);
  online();

  const refresh = async () => {
    const requests = (await whit.requests()).sort((a, b) => b.last - a.last);
    const elsewhere = requests.filter((each) => new URL(each.url).origin !== location.origin && each.from !== "blocked");
    const network = requests.filter((each) => each.from === "network");
    const last = Math.max(0, ...network.map((each) => each.last));
    byId("prove-sum").textContent =
      `${requests.reduce((sum, each) => sum + each.count, 0)} requests to ${requests.length} addresses; ${elsewhere.length} of them beyond ${location.host}. ` +
      (last ? `The network was last used ${new Date(last).toLocaleString()}.` : "");
    byId("prove-requests").replaceChildren(
      ...requests.map((each) =>
        el("tr", {}, el("td", {}, each.url.replace(whit.root.href, "./")), el("td", {}, each.from), el("td", {}, String(each.count)), el("td", {}, new Date(each.last).toLocaleString()))),
    );
    const { usage, quota } = (await navigator.storage?.estimate?.()) ?? {};
    const persisted = await navigator.storage?.persisted?.();
    const kept = usage === undefined ? "The browser does not say how much is kept." : `${size(usage)} of at most ${size(quota ?? 0)}: the model, the page, and the adapters and training runs made here.`;
    byId("prove-kept").textContent = `${kept} ${persisted ? "The browser has promised to keep it." : "The browser may throw it away when space is short."} The engine has taken ${size(await whit.memory())} of memory.`;
  };
  document.addEventListener("whit:view", (event) => {
    if ((event as CustomEvent<string>).detail === "prove") void refresh().catch((error: unknown) => (byId("prove-sum").textContent = explain(error)));
  });

  byId("prove-test").addEventListener("click", async () => {
    const told = byId("prove-tested");
    // A name that can never exist: were the policy not there, nothing would be reached all the same.
    let refused = "";
    const listen = (event: SecurityPolicyViolationEvent) => (refused = event.effectiveDirective);
    document.addEventListener("securitypolicyviolation", listen);
    try {
      await fetch("https://elsewhere.invalid/");
      told.textContent = "It went through! Do not use this page.";
    } catch {
      await new Promise((done) => setTimeout(done, 50));
      told.textContent = refused ? `Refused by the browser (${refused}).` : "It failed, but not by the policy: is it missing?";
    } finally {
      document.removeEventListener("securitypolicyviolation", listen);
    }
  });

  const forget = byId<HTMLButtonElement>("prove-forget");
  let sure = false;
  forget.addEventListener("click", async () => {
    if (!sure) {
      sure = true;
      forget.textContent = "Really forget everything?";
      say("prove-forget-status", "The model, the page, and all adapters made here will be erased from this device. Press again to do it.");
      setTimeout(() => {
        sure = false;
        forget.textContent = "Forget everything";
      }, 10_000);
      return;
    }
    forget.disabled = true;
    await erase(whit.root, () => whit.close());
    say("prove-forget-status", "Everything is forgotten. Close this tab; loading the page again needs the network.");
    document.documentElement.dataset["state"] = "forgotten";
  });
}

/** Erase all that this page keeps. */
async function erase(root: URL, close: () => void): Promise<void> {
  const { eraseDatabase } = await import("./store.js");
  close();
  const registration = await navigator.serviceWorker?.getRegistration(root.href);
  await registration?.unregister();
  for (const name of await caches.keys()) if (name.startsWith(`whit ${root.pathname} `)) await caches.delete(name);
  await eraseDatabase(root);
}
