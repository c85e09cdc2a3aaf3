/** Zip files: written without compression, read with or without (a LoRA is a folder of files). Sizes are bounded. */

import { WhitError } from "./engine.js";

const MOST_FILES = 64;
const MOST_BYTES = 256 << 20;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

export function crc32(content: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of content) crc = (TABLE[(crc ^ byte) & 255] as number) ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** A zip of files by name. Times are left at the format's zero, so that equal files are equal zips. */
export function writeZip(files: Record<string, Uint8Array>): Uint8Array {
  const parts: Uint8Array[] = [];
  const entries: Uint8Array[] = [];
  let offset = 0;
  for (const [path, content] of Object.entries(files)) {
    const name = new TextEncoder().encode(path);
    const common = new DataView(new ArrayBuffer(26));
    common.setUint16(0, 20, true); // version needed
    common.setUint16(2, 0x800, true); // names are UTF-8
    common.setUint16(8, 0x21, true); // 1 January 1980
    common.setUint32(10, crc32(content), true);
    common.setUint32(14, content.length, true);
    common.setUint32(18, content.length, true);
    common.setUint16(22, name.length, true);
    const head = [0x50, 0x4b, 3, 4, ...new Uint8Array(common.buffer)];
    const tail = new Uint8Array(46 + name.length);
    tail.set([0x50, 0x4b, 1, 2, 20, 0, ...new Uint8Array(common.buffer)]);
    new DataView(tail.buffer).setUint32(42, offset, true);
    tail.set(name, 46);
    entries.push(tail);
    parts.push(Uint8Array.from(head), name, content);
    offset += head.length + name.length + content.length;
  }
  const size = entries.reduce((sum, entry) => sum + entry.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, entries.length, true);
  end.setUint16(10, entries.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  const all = new Uint8Array(offset + size + 22);
  let at = 0;
  for (const part of [...parts, ...entries, new Uint8Array(end.buffer)]) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The files of a zip by their last name (folders are looked through). */
export async function readZip(content: Uint8Array): Promise<Record<string, Uint8Array>> {
  const damaged = new WhitError("adapter", "This zip file is damaged or of a kind that is not read here.");
  const view = new DataView(content.buffer, content.byteOffset, content.length);
  let end = content.length - 22;
  while (end >= 0 && end > content.length - 66000 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0 || view.getUint32(end, true) !== 0x06054b50) throw damaged;
  const count = view.getUint16(end + 10, true);
  let at = view.getUint32(end + 16, true);
  if (count > MOST_FILES) throw damaged;
  const files: Record<string, Uint8Array> = {};
  let total = 0;
  try {
    for (let entry = 0; entry < count; entry++) {
      if (view.getUint32(at, true) !== 0x02014b50) throw damaged;
      const method = view.getUint16(at + 10, true);
      const [packed, size] = [view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
      const [nameLength, extra, comment] = [28, 30, 32].map((where) => view.getUint16(at + where, true)) as [number, number, number];
      const name = new TextDecoder().decode(content.subarray(at + 46, at + 46 + nameLength));
      const local = view.getUint32(at + 42, true);
      const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      total += size;
      if (total > MOST_BYTES || start + packed > content.length) throw damaged;
      const raw = content.slice(start, start + packed);
      const last = name.split("/").pop();
      if (last && !last.startsWith("._")) files[last] = method === 0 ? raw : method === 8 ? await inflate(raw, size) : fail(damaged);
      at += 46 + nameLength + extra + comment;
    }
  } catch (error) {
    throw error instanceof WhitError ? error : damaged;
  }
  return files;
}

function fail(error: Error): never {
  throw error;
}

async function inflate(raw: Uint8Array, size: number): Promise<Uint8Array> {
  const stream = new Blob([raw as Uint8Array<ArrayBuffer>]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const out = new Uint8Array(size);
  let at = 0;
  const reader = stream.getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    if (at + piece.value.length > size) throw new WhitError("adapter", "This zip file says less than it holds.");
    out.set(piece.value, at);
    at += piece.value.length;
  }
  return out.slice(0, at);
}
