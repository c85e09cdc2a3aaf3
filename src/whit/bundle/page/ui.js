/** Small tools of the page: elements, numbers in words, announcements, and what the views share. */
export function byId(id) {
    const found = document.getElementById(id);
    if (!found)
        throw new Error(`the page has no #${id}`);
    return found;
}
/** An element with attributes and children; text is set as text, never as markup. */
export function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
        made.setAttribute(name, value);
    made.append(...children);
    return made;
}
/** Say something to screen readers. */
export function announce(text) {
    byId("announce").textContent = text;
}
/** Show a message under a part of the page; an error is announced at once. */
export function say(id, text, error = false) {
    const place = byId(id);
    place.textContent = text;
    place.classList.toggle("error", error);
    place.setAttribute("role", error ? "alert" : "status");
    place.hidden = !text;
}
export function explain(error) {
    return error instanceof Error ? error.message : String(error);
}
export function size(bytes) {
    if (bytes < 1000)
        return `${bytes} bytes`;
    for (const unit of ["kB", "MB", "GB"]) {
        bytes /= 1000;
        if (bytes < 1000 || unit === "GB")
            return `${bytes.toFixed(1)} ${unit}`;
    }
    return "";
}
export function clock(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60)
        return `${whole} s`;
    return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}
/** What is to be said of an adapter that this device has no room for. */
export const NOT_KEPT = "This device has no room to keep it: download it, or it is gone when this tab is closed.";
/** What a menu says of an adapter. */
export function title(info) {
    const verdict = info.verdict ? ` · ${info.verdict}` : "";
    return `${info.name} (${info.kind}, ${info.numbers.toLocaleString("en")} numbers${verdict}${info.kept ? "" : " · not kept"})`;
}
/** Fill a menu of adapters and keep its choice. */
export function fillMenu(menu, adapters, chosen, bare) {
    const options = adapters.map((info) => el("option", { value: info.name }, title(info)));
    if (bare !== null)
        options.unshift(el("option", { value: "" }, bare));
    menu.replaceChildren(...options);
    menu.value = chosen ?? (bare !== null ? "" : adapters[0]?.name ?? "");
}
/** Hand a file to the user. */
export function download(name, content) {
    const address = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
    const link = el("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
