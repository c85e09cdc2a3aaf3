/** The view “Share”: an adapter as a file, a text, a link or a QR code; and one opened from any of these. */

import { encode, decode, MOST } from "./qr.js";
import { announce, byId, download, el, explain, fillMenu, NOT_KEPT, say, size, title, type Shell } from "./ui.js";
import type { AdapterInfo, Exported } from "./whit.js";

const MOST_FILE = 64 << 20;
const MODULE = 8; // pixels of a QR code's module in a saved picture
const QUIET = 4; // modules of white around it

export function startShare(shell: Shell): void {
  const { whit } = shell;
  const menu = byId<HTMLSelectElement>("share-adapter");
  let all: AdapterInfo[] = [];
  let shown: Exported | null = null;

  const refresh = async () => {
    const info = all.find((each) => each.name === menu.value);
    for (const id of ["share-copy", "share-link", "share-remove", "share-text-box", "share-qr-box"]) byId(id).hidden = true;
    byId<HTMLButtonElement>("share-download").disabled = !info;
    byId("share-about").textContent = info ? info.sentence || `${title(info)}.` : "There is no adapter yet. Teach one, or open one below.";
    shown = null;
    if (!info) return;
    byId("share-remove").hidden = info.from === "bundle";
    try {
      shown = await whit.export(info.name);
    } catch (error) {
      say("share-status", explain(error), true);
      return;
    }
    byId("share-about").textContent += ` The file has ${size(shown.content.length)}${shown.text ? "" : "; whit reads it as it is, PEFT once it is unzipped"}.`;
    const text = shown.text;
    if (text === null) return;
    byId("share-copy").hidden = byId("share-link").hidden = byId("share-text-box").hidden = false;
    byId<HTMLTextAreaElement>("share-text").value = text;
    const code = text.length <= MOST ? encode(text) : null;
    byId("share-qr-box").hidden = !code;
    if (code) byId("share-qr").replaceChildren(draw(code, info.name));
  };
  shell.onAdapters((adapters, chosen) => {
    all = adapters;
    fillMenu(menu, adapters, menu.value && adapters.some((each) => each.name === menu.value) ? menu.value : chosen, null);
  });
  menu.addEventListener("change", () => {
    say("share-status", "");
    void refresh();
  });
  document.addEventListener("whit:view", (event) => {
    if ((event as CustomEvent<string>).detail !== "share") return;
    if (whit.adapter) menu.value = whit.adapter;
    void refresh();
  });

  byId("share-download").addEventListener("click", () => shown && download(shown.file, shown.content));
  const copy = async (text: string, what: string) => {
    try {
      await navigator.clipboard.writeText(text);
      say("share-status", `${what} copied.`);
    } catch {
      byId<HTMLTextAreaElement>("share-text").value = text;
      byId<HTMLTextAreaElement>("share-text").select();
      say("share-status", "The browser did not allow copying; it is selected below, copy it from there.");
    }
  };
  byId("share-copy").addEventListener("click", () => shown?.text && void copy(shown.text, "The text form is"));
  byId("share-link").addEventListener("click", () => {
    if (!shown?.text) return;
    const name = encodeURIComponent(menu.value);
    // What follows the # is never sent to any server.
    void copy(`${location.origin}${location.pathname}#adapter=${shown.text}&name=${name}`, "The link is");
  });
  byId("share-remove").addEventListener("click", async () => {
    const name = menu.value;
    await whit.remove(name);
    await shell.refresh();
    await refresh();
    say("share-status", `“${name}” is deleted from this device.`);
  });
  byId("share-qr-save").addEventListener("click", () => {
    const canvas = byId("share-qr").querySelector("canvas");
    canvas?.toBlob(async (blob) => blob && download(`${menu.value}.png`, new Uint8Array(await blob.arrayBuffer())));
  });

  const open = async (work: () => Promise<AdapterInfo>) => {
    say("share-open-status", "Opening …");
    try {
      const info = await work();
      await shell.choose(info.name);
      menu.value = info.name;
      await refresh();
      say("share-open-status", `“${info.name}” is here now and answers in “Try”.${info.kept ? "" : ` ${NOT_KEPT}`}`);
    } catch (error) {
      say("share-open-status", explain(error), true);
    }
  };
  const file = byId<HTMLInputElement>("share-file");
  file.addEventListener("change", () => {
    const chosen = file.files?.[0];
    if (!chosen) return;
    void open(async () => {
      const stem = chosen.name.replace(/\.[^.]*$/, "");
      if (chosen.type.startsWith("image/")) return whit.add(stem, adapterIn(await readPicture(chosen)).text);
      if (chosen.size > MOST_FILE) throw new Error(`The file has ${size(chosen.size)}; no adapter is that large.`);
      return whit.add(stem, new Uint8Array(await chosen.arrayBuffer()));
    });
    file.value = "";
  });
  byId("share-open").addEventListener("click", () => {
    const given = adapterIn(byId<HTMLTextAreaElement>("share-paste").value);
    void open(() => whit.add(given.name, given.text));
  });
}

/** The text form in a text, which may be a link that holds one. */
function adapterIn(text: string): { text: string; name: string } {
  const given = text.trim();
  const at = given.indexOf("#");
  const held = new URLSearchParams(at >= 0 ? given.slice(at + 1) : "");
  return { text: held.get("adapter") ?? given, name: held.get("name")?.slice(0, 50) || "opened" };
}

/** Open an adapter that the address's fragment holds. */
export async function openLink(shell: Shell): Promise<void> {
  if (!location.hash.includes("adapter=")) return;
  const given = adapterIn(location.hash);
  history.replaceState(null, "", location.pathname + location.search);
  try {
    const info = await shell.whit.add(given.name, given.text);
    await shell.choose(info.name);
    say("try-status", `Opened “${info.name}” from the link.`);
    announce(`Opened ${info.name} from the link.`);
  } catch (error) {
    say("try-status", `The link's adapter could not be opened. ${explain(error)}`, true);
  }
}

function draw(code: boolean[][], name: string): HTMLCanvasElement {
  const side = (code.length + 2 * QUIET) * MODULE;
  const canvas = el("canvas", { width: String(side), height: String(side), role: "img", "aria-label": `QR code of ${name}` });
  const brush = canvas.getContext("2d");
  if (!brush) return canvas;
  brush.fillStyle = "#fff";
  brush.fillRect(0, 0, side, side);
  brush.fillStyle = "#000";
  code.forEach((row, y) => row.forEach((dark, x) => {
    if (dark) brush.fillRect((x + QUIET) * MODULE, (y + QUIET) * MODULE, MODULE, MODULE);
  }));
  return canvas;
}

interface Detector {
  detect(image: ImageBitmap): Promise<{ rawValue: string }[]>;
}

/** The text of a QR code in a picture: by the browser's own reader where it has one, else if it is a clean one. */
async function readPicture(file: Blob): Promise<string> {
  const image = await createImageBitmap(file).catch(() => null);
  if (!image || image.width * image.height > 40e6) throw new Error("The picture cannot be read.");
  const canvas = el("canvas", { width: String(image.width), height: String(image.height) });
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  brush?.drawImage(image, 0, 0);
  const text = brush ? decode(brush.getImageData(0, 0, image.width, image.height)) : null;
  if (text !== null) return text;
  const made = (globalThis as { BarcodeDetector?: new (options: { formats: string[] }) => Detector }).BarcodeDetector;
  const seen = made ? await new made({ formats: ["qr_code"] }).detect(image).catch(() => []) : [];
  if (seen[0]) return seen[0].rawValue;
  throw new Error("No QR code was found. A saved picture of one can be read everywhere; photographs only where the browser has a reader of its own.");
}
