/**
 * The worker: the engine, its adapters and its training, away from the page, which therefore stays responsive.
 *
 * It is asked by messages (see protocol.ts) and looks at new ones between two steps of whatever it does.
 */
import { WhitError } from "./engine.js";
import { Host } from "./host.js";
const scope = self;
const host = new Host();
scope.addEventListener("message", ({ data }) => {
    if ("stop" in data) {
        host.stops.set(data.stop, data.how);
        return;
    }
    const { id, name, given } = data;
    host
        .answer(id, name, given, (progress) => scope.postMessage({ id, progress }))
        .then((answer) => scope.postMessage({ id, answer }))
        .catch((error) => {
        const kind = error instanceof WhitError ? error.kind : error.stopped ?? "engine";
        scope.postMessage({ id, error: { kind, message: error instanceof Error ? error.message : String(error) } });
    })
        .finally(() => host.stops.delete(id));
});
