/** The view “Teach”: rows in, problems shown, training with a curve, the result with its interval. */
import { drawCurve } from "./chart.js";
import { announce, byId, clock, el, explain, NOT_KEPT, say } from "./ui.js";
import { WhitPageError } from "./whit.js";
export function startTeach(shell) {
    const { whit } = shell;
    const file = byId("teach-file");
    const drop = byId("teach-drop");
    const trainButton = byId("teach-train");
    const parts = ["setup", "running", "result"];
    let rows = [];
    let running = null;
    let learning = [];
    let toldTenth = -1;
    const showPart = (part) => {
        for (const each of parts)
            byId(`teach-${each}`).hidden = each !== part;
    };
    // Rows --------------------------------------------------------------------------------------------------------
    const found = (read) => {
        rows = read.rows;
        const serious = read.problems.some((problem) => problem.serious);
        trainButton.disabled = serious || !rows.length;
        byId("teach-found").hidden = false;
        byId("teach-count").textContent = `${rows.length.toLocaleString("en")} rows can be used.`;
        byId("teach-problems").replaceChildren(...read.problems.map(({ message, serious: bad }) => el("li", bad ? { class: "serious" } : {}, message)));
        byId("teach-preview").replaceChildren(...rows.slice(0, 5).map((row) => el("tr", {}, el("td", {}, String(row.place)), el("td", {}, row.prompt.slice(0, 300)), el("td", {}, row.completion.slice(0, 300)))));
        say("teach-read-status", "");
        announce(`${rows.length} rows can be used, ${read.problems.length} remarks.`);
    };
    const read = async (from) => {
        say("teach-read-status", "Reading …");
        try {
            found(await whit.readRows(from));
        }
        catch (error) {
            rows = [];
            trainButton.disabled = true;
            byId("teach-found").hidden = true;
            say("teach-read-status", explain(error), true);
        }
    };
    file.addEventListener("change", () => {
        const chosen = file.files?.[0];
        if (chosen)
            void read(chosen);
    });
    for (const kind of ["dragover", "dragleave", "drop"]) {
        drop.addEventListener(kind, (event) => {
            event.preventDefault();
            drop.classList.toggle("over", kind === "dragover");
            const dropped = kind === "drop" ? event.dataTransfer?.files[0] : undefined;
            if (dropped)
                void read(dropped);
        });
    }
    byId("teach-read").addEventListener("click", () => void read(byId("teach-paste").value));
    const typed = byId("teach-typed");
    const addRow = () => {
        const count = typed.children.length + 1;
        const cell = (what) => el("td", {}, el("input", { type: "text", "aria-label": `${what} of row ${count}`, autocomplete: "off" }));
        typed.append(el("tr", {}, cell("Input"), cell("Answer")));
    };
    for (let count = 0; count < 3; count++)
        addRow();
    byId("teach-more").addEventListener("click", () => {
        addRow();
        typed.lastElementChild?.querySelector("input")?.focus();
    });
    byId("teach-use-typed").addEventListener("click", () => {
        const pairs = [...typed.children].map((row) => [...row.querySelectorAll("input")].map((input) => input.value));
        void read(pairs);
    });
    // Training ----------------------------------------------------------------------------------------------------
    const tell = (progress) => {
        const { stage, step, steps, secondsLeft, seconds, loss, curve } = progress;
        byId("teach-stage").textContent = stage === "learning" ? "Learning" : "Testing on rows it never saw";
        byId("teach-bar").value = step / steps;
        const what = stage === "learning" ? "Step" : "Row";
        byId("teach-left").textContent = `${what} ${step} of ${steps}; ${clock(seconds)} gone, about ${clock(secondsLeft)} left`;
        if (stage === "learning") {
            learning.push([step, loss]);
            const every = Math.max(1, Math.round(steps / 100));
            if (step % every && step !== steps)
                return;
            // Smoothed, for single steps jump about.
            const smooth = learning.filter(([at]) => at % every === 0 || at === steps).map(([at]) => {
                const near = learning.filter(([other]) => other <= at && other > at - 8);
                return [at, near.reduce((sum, [, each]) => sum + each, 0) / near.length];
            });
            drawCurve(byId("teach-chart"), smooth, curve.flatMap(([at, , held]) => (held === null ? [] : [[at, held]])), steps);
        }
        const tenth = Math.floor((10 * step) / steps);
        if (tenth !== toldTenth) {
            toldTenth = tenth;
            announce(`${stage === "learning" ? "Learning" : "Testing"}: ${10 * tenth} percent, about ${clock(secondsLeft)} left`);
        }
    };
    const follow = async (training) => {
        running = training;
        learning = [];
        showPart("running");
        byId("teach-resume").hidden = true;
        say("teach-error", "");
        try {
            const trained = await training.done;
            await shell.choose(trained.adapter.name);
            result(trained);
        }
        catch (error) {
            showPart("setup");
            const asked = error instanceof WhitPageError && (error.kind === "cancelled" || error.kind === "paused");
            say("teach-error", asked ? "" : explain(error), !asked);
            await offer(false);
        }
        finally {
            running = null;
        }
    };
    trainButton.addEventListener("click", () => {
        const options = {
            name: byId("teach-name").value.trim() || "my-adapter", instruction: byId("teach-instruction").value.trim(),
        };
        const epochs = Number(byId("teach-epochs").value);
        const rate = Number(byId("teach-rate").value);
        if (epochs > 0)
            options.epochs = epochs;
        if (rate > 0)
            options.rate = rate;
        void follow(whit.train(rows, options, tell));
    });
    byId("teach-pause").addEventListener("click", () => running?.pause());
    byId("teach-cancel").addEventListener("click", () => running?.cancel());
    // A run that was cut short goes on by itself; one that was paused waits to be asked.
    const offer = async (goOn) => {
        const left = await whit.unfinished().catch(() => null);
        byId("teach-resume").hidden = !left;
        if (!left)
            return;
        byId("teach-resume-text").textContent = `The training of “${left.name}” stopped at step ${left.step} of ${left.steps} (${left.rows} rows). It can go on from there.`;
        if (goOn && !left.paused) {
            announce("The training that was cut short goes on.");
            void follow(whit.resumeTraining(tell));
        }
    };
    byId("teach-go-on").addEventListener("click", () => void follow(whit.resumeTraining(tell)));
    byId("teach-discard").addEventListener("click", async () => {
        await whit.discard();
        byId("teach-resume").hidden = true;
    });
    void offer(true);
    // Result ------------------------------------------------------------------------------------------------------
    const result = (trained) => {
        const { result: found, examples } = trained;
        showPart("result");
        const verdict = byId("teach-verdict");
        verdict.textContent = found.verdict;
        verdict.className = `verdict ${found.verdict.replace(/ /g, "-")}`;
        byId("teach-sentence").textContent = found.sentence;
        const bar = (name, value) => el("div", { class: "meter" }, el("span", {}, name), el("meter", { min: "0", max: "1", value: String(value), "aria-label": `${name}: share right` }), el("span", {}, `${(100 * value).toFixed(0)} %`));
        byId("teach-bars").replaceChildren(bar("base", found.base), bar(trained.adapter.name, found.tuned));
        byId("teach-facts").textContent =
            `${trained.train} rows learned from, ${trained.validation} set aside to choose the best state, ${trained.test} held out. ` +
                `${found.wins} won, ${found.losses} lost, ${found.ties} the same (p = ${found.pValue.toPrecision(2)}). ${trained.steps} steps in ${clock(trained.seconds)}.${trained.adapter.kept ? "" : ` ${NOT_KEPT}`}`;
        const differ = (each) => Number(each.baseRight === each.tunedRight);
        byId("teach-examples").replaceChildren(...[...examples].sort((a, b) => differ(a) - differ(b)).slice(0, 50).map((each) => el("tr", {}, el("td", {}, each.prompt), el("td", {}, each.wanted), el("td", { class: each.baseRight ? "right" : "wrong" }, `${each.baseRight ? "✓" : "✗"} ${each.base.slice(0, 200)}`), el("td", { class: each.tunedRight ? "right" : "wrong" }, `${each.tunedRight ? "✓" : "✗"} ${each.tuned.slice(0, 200)}`))));
        announce(found.sentence);
    };
    byId("teach-try").addEventListener("click", () => shell.show("try"));
    byId("teach-share").addEventListener("click", () => shell.show("share"));
    byId("teach-anew").addEventListener("click", () => showPart("setup"));
}
