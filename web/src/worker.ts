/**
 * The worker: the engine, its adapters and its training, away from the page, which therefore stays responsive.
 *
 * It is asked by messages (see protocol.ts) and looks at new ones between two steps of whatever it does.
 */

import { WhitError } from "./engine.js";
import { Host } from "./host.js";
import type { Asked, Name, Stop, Told } from "./protocol.js";

interface Scope {
  postMessage(message: Told): void;
  addEventListener(kind: "message", listener: (event: MessageEvent<Asked | Stop>) => void): void;
}

const scope = self as unknown as Scope;
const host = new Host();

scope.addEventListener("message", ({ data }) => {
  if ("stop" in data) {
    host.stops.set(data.stop, data.how);
    return;
  }
  const { id, name, given } = data;
  host
    .answer(id, name as Name, given, (progress) => scope.postMessage({ id, progress }))
    .then((answer) => scope.postMessage({ id, answer }))
    .catch((error: unknown) => {
      const kind = error instanceof WhitError ? error.kind : (error as { stopped?: "cancelled" | "paused" }).stopped ?? "engine";
      scope.postMessage({ id, error: { kind, message: error instanceof Error ? error.message : String(error) } });
    })
    .finally(() => host.stops.delete(id));
});
