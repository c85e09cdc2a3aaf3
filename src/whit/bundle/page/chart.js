/** The curve of a training, as SVG: loss on the rows learned from, and on those set aside. */
const SPACE = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, BOTTOM] = [220, 44, 42];
const [NARROWEST, USUAL] = [260, 600];
function node(name, attributes, text = "") {
    const made = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes))
        made.setAttribute(key, String(value));
    made.textContent = text;
    return made;
}
/** Draw points [step, loss] of both curves; `steps` is where the training ends. */
export function drawCurve(place, learning, chosen, steps) {
    // As wide as its place, so that its letters are as large as those around it.
    const width = Math.max(NARROWEST, place.clientWidth || USUAL);
    const all = [...learning, ...chosen].map(([, loss]) => loss).filter(Number.isFinite);
    const top = Math.max(0.1, ...all) * 1.05;
    const x = (step) => LEFT + ((width - LEFT - 8) * step) / Math.max(steps, 1);
    const y = (loss) => 8 + (HEIGHT - BOTTOM - 8) * (1 - loss / top);
    const last = learning.at(-1);
    const drawing = node("svg", {
        viewBox: `0 0 ${width} ${HEIGHT}`, class: "chart", role: "img",
        "aria-label": last ? `Loss after ${last[0]} of ${steps} steps: ${last[1].toFixed(2)}, from ${learning[0]?.[1].toFixed(2)}` : "No step yet",
    });
    for (const part of [0, 0.5, 1]) {
        drawing.append(node("line", { x1: LEFT, x2: width - 8, y1: y(top * part), y2: y(top * part), class: "axis" }));
        drawing.append(node("text", { x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end" }, (top * part).toFixed(2)));
    }
    drawing.append(node("text", { x: width - 8, y: HEIGHT - 26, "text-anchor": "end" }, `${steps} steps`));
    const line = (points) => points.filter(([, loss]) => Number.isFinite(loss)).map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
    if (learning.length)
        drawing.append(node("polyline", { points: line(learning), class: "learning" }));
    if (chosen.length) {
        drawing.append(node("polyline", { points: line(chosen), class: "chosen" }));
        drawing.append(node("text", { x: 8, y: HEIGHT - 8 }, "solid: rows learned from · dashed: rows set aside"));
    }
    place.replaceChildren(drawing);
}
