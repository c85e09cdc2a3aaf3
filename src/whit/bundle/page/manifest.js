/** What a bundle says of itself (`bundle.json`, written by `whit.bundle.pack`), and how its base is prompted. */
import { WhitError } from "./engine.js";
/** Read `bundle.json` beside `root`. */
export async function readManifest(root) {
    let answer;
    try {
        answer = await fetch(new URL("bundle.json", root));
    }
    catch {
        throw new WhitError("network", "The page's list of files could not be read: you seem to be offline. Open the page once while online.");
    }
    if (!answer.ok)
        throw new WhitError("network", `bundle.json could not be read (${answer.status}); copy the whole folder to the host.`);
    const manifest = (await answer.json());
    if (manifest.bundle !== 1)
        throw new WhitError("damaged", "This bundle is of another version than its page; make it again with whit bundle.");
    return manifest;
}
/** The prompt of inputs and answers in turn, the last being an input. */
export function renderPrompt(form, turns, instruction) {
    const said = form.trims ? turns.map((turn) => turn.trim()) : [...turns];
    let begin = form.first;
    if (instruction && form.takes_instruction) {
        begin = form.instruction_before + (form.trims ? instruction.trim() : instruction) + form.instruction_after;
    }
    else if (instruction) {
        const joined = `${instruction}\n\n${turns[0] ?? ""}`;
        said[0] = form.trims ? joined.trim() : joined;
    }
    return begin + said.map((text, at) => text + (at % 2 ? form.after_answer : form.before_answer)).join("");
}
