/** The view “Try”: ask, watch the answer come, switch adapters, base and adapter side by side. */
import { announce, byId, explain, fillMenu, say } from "./ui.js";
export function startTry(shell) {
    const { whit } = shell;
    const menu = byId("try-adapter");
    const both = byId("try-both");
    const prompt = byId("try-prompt");
    const instruction = byId("try-instruction");
    const ask = byId("try-ask");
    const stop = byId("try-stop");
    let running = null;
    let told = {};
    shell.onAdapters((adapters, chosen) => {
        told = Object.fromEntries(adapters.map((info) => [info.name, info.instruction]));
        fillMenu(menu, adapters, chosen, `None: ${whit.manifest.base.name} as it is`);
        refresh();
    });
    const refresh = () => {
        const chosen = whit.adapter;
        both.disabled = chosen === null;
        instruction.value = chosen ? told[chosen] ?? "" : instruction.value;
        byId("try-pair").hidden = !(both.checked && chosen);
        byId("try-name-tuned").textContent = chosen ?? whit.manifest.base.name;
        byId("try-name-base").textContent = `${whit.manifest.base.name} without an adapter`;
    };
    menu.addEventListener("change", async () => {
        const began = performance.now();
        try {
            await whit.setAdapter(menu.value || null);
            say("try-status", `Switched in ${(performance.now() - began).toFixed(0)} ms.`);
        }
        catch (error) {
            say("try-status", explain(error), true);
            menu.value = whit.adapter ?? "";
        }
        refresh();
    });
    both.addEventListener("change", refresh);
    const outputs = { base: byId("try-base"), tuned: byId("try-tuned") };
    const figures = (id, answer) => {
        // A rate over a few hundredths of a second says nothing.
        const took = answer.seconds - answer.firstSeconds;
        const rate = answer.tokens > 1 && took > 0.05 ? (answer.tokens - 1) / took : 0;
        const why = { end: "", stop: "", length: ", as long as it may be", cancelled: ", stopped" }[answer.reason];
        byId(id).textContent = `${answer.tokens} tokens${rate ? `, ${rate.toFixed(0)} a second` : ""}, first after ${answer.firstSeconds.toFixed(2)} s${why}`;
    };
    byId("try-form").addEventListener("submit", async (event) => {
        event.preventDefault();
        if (!prompt.value.trim()) {
            say("try-status", "Type something first.", true);
            prompt.focus();
            return;
        }
        if (running)
            return;
        const pair = both.checked && whit.adapter !== null;
        const options = {
            instruction: instruction.value.trim(), most: Number(byId("try-most").value) || 128,
            temperature: Number(byId("try-temperature").value) || 0, topP: 0.95, seed: Date.now() % 2 ** 31,
        };
        for (const output of Object.values(outputs)) {
            output.textContent = "";
            output.setAttribute("aria-busy", "true");
        }
        byId("try-base-figures").textContent = byId("try-tuned-figures").textContent = "";
        byId("try-answers").hidden = false;
        refresh();
        say("try-status", "");
        ask.disabled = true;
        stop.disabled = false;
        try {
            if (pair) {
                const call = whit.compare(prompt.value, options, (which, text) => outputs[which ? "tuned" : "base"].append(text));
                running = call;
                const [base, tuned] = (await call.done);
                figures("try-base-figures", base);
                figures("try-tuned-figures", tuned);
            }
            else {
                const call = whit.generate(prompt.value, options);
                running = call;
                for await (const piece of call)
                    outputs.tuned.append(piece);
                figures("try-tuned-figures", await call.done);
            }
            announce(`Answer: ${outputs.tuned.textContent ?? ""}`);
        }
        catch (error) {
            say("try-status", explain(error), true);
        }
        finally {
            running = null;
            ask.disabled = false;
            stop.disabled = true;
            for (const output of Object.values(outputs))
                output.setAttribute("aria-busy", "false");
        }
    });
    stop.addEventListener("click", () => running?.cancel());
    // Enter asks, Shift+Enter makes a new line; an unfinished character of an input method is left alone.
    prompt.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            byId("try-form").requestSubmit();
        }
    });
}
