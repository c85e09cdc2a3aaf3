/** QR codes: drawing one of a text, and reading one from a clean picture. Byte mode; see qrtables.ts for the sizes. */

import { alignment, blocks, formatBits, masked, path } from "./qrtables.js";

/** Characters that fit the largest code. */
export const MOST = 2953;

type Grid = boolean[][];

const EXP = new Uint8Array(512);
const LOG = new Uint8Array(256);
for (let at = 0, value = 1; at < 255; at++) {
  EXP[at] = EXP[at + 255] = value;
  LOG[value] = at;
  value = (value << 1) ^ (value >= 128 ? 0x11d : 0);
}

function times(a: number, b: number): number {
  return a && b ? (EXP[(LOG[a] as number) + (LOG[b] as number)] as number) : 0;
}

/** Reed-Solomon: the remainder of data by the generator of that degree. */
function correct(data: Uint8Array, degree: number): Uint8Array {
  const generator = new Uint8Array(degree);
  generator[degree - 1] = 1;
  for (let at = 0, root = 1; at < degree; at++, root = times(root, 2)) {
    for (let j = 0; j < degree; j++) generator[j] = times(generator[j] as number, root) ^ (generator[j + 1] ?? 0);
  }
  const rest = new Uint8Array(degree);
  for (const byte of data) {
    const factor = byte ^ (rest[0] as number);
    rest.copyWithin(0, 1);
    rest[degree - 1] = 0;
    for (let j = 0; j < degree; j++) rest[j] = (rest[j] as number) ^ times(generator[j] as number, factor);
  }
  return rest;
}

/** The smallest code of a text at the lowest level of correction; true is dark. Null where it does not fit one. */
export function encode(text: string, wanted?: number): Grid | null {
  const bytes = new TextEncoder().encode(text);
  let version = 0;
  let capacity = 0;
  do {
    if (++version > 40) return null;
    capacity = blocks(version, 0).data.reduce((a, b) => a + b, 0);
  } while (bytes.length + (version < 10 ? 2 : 3) > capacity);
  const bits: number[] = [];
  const put = (value: number, count: number) => {
    for (let bit = count - 1; bit >= 0; bit--) bits.push((value >>> bit) & 1);
  };
  put(4, 4);
  put(bytes.length, version < 10 ? 8 : 16);
  for (const byte of bytes) put(byte, 8);
  put(0, Math.min(4, capacity * 8 - bits.length));
  while (bits.length % 8) bits.push(0);
  const data = new Uint8Array(capacity);
  bits.forEach((bit, at) => (data[at >> 3] = (data[at >> 3] as number) | (bit << (7 - (at & 7)))));
  for (let at = bits.length / 8, pad = 0xec; at < capacity; at++, pad ^= 0xec ^ 0x11) data[at] = pad;
  const words = interleave(data, version);
  if (wanted !== undefined) return draw(words, version, wanted);
  const drawn = Array.from({ length: 8 }, (_, mask) => draw(words, version, mask));
  return drawn.reduce((best, each) => (penalty(each) < penalty(best) ? each : best));
}

function interleave(data: Uint8Array, version: number): number[] {
  const { data: sizes, correction } = blocks(version, 0);
  let from = 0;
  const parts = sizes.map((count) => data.subarray(from, (from += count)));
  const checks = parts.map((part) => correct(part, correction));
  const words: number[] = [];
  for (let at = 0; at < Math.max(...sizes); at++) for (const part of parts) if (at < part.length) words.push(part[at] as number);
  for (let at = 0; at < correction; at++) for (const check of checks) words.push(check[at] as number);
  return words;
}

function draw(words: number[], version: number, mask: number): Grid {
  const size = version * 4 + 17;
  const grid: Grid = Array.from({ length: size }, () => new Array<boolean>(size).fill(false));
  const set = (x: number, y: number, dark: boolean) => {
    if (x >= 0 && y >= 0 && x < size && y < size) (grid[y] as boolean[])[x] = dark;
  };
  for (let at = 0; at < size; at++) {
    set(6, at, at % 2 === 0);
    set(at, 6, at % 2 === 0);
  }
  const square = (x: number, y: number, reach: number, light: number[]) => {
    for (let dy = -reach; dy <= reach; dy++) for (let dx = -reach; dx <= reach; dx++) set(x + dx, y + dy, !light.includes(Math.max(Math.abs(dx), Math.abs(dy))));
  };
  const marks = alignment(version);
  for (const x of marks) for (const y of marks) {
    if (!((x === 6 && y === 6) || (x === 6 && y === size - 7) || (x === size - 7 && y === 6))) square(x, y, 2, [1]);
  }
  for (const [x, y] of [[3, 3], [size - 4, 3], [3, size - 4]] as const) square(x, y, 4, [2, 4]);
  const format = formatBits(0, mask);
  const bit = (value: number, at: number) => ((value >>> at) & 1) === 1;
  for (let at = 0; at < 15; at++) {
    const [x, y] = formatPlace(at);
    set(x, y, bit(format, at));
    if (at < 8) set(size - 1 - at, 8, bit(format, at));
    else set(8, size - 15 + at, bit(format, at));
  }
  set(8, size - 8, true);
  if (version >= 7) {
    let rest = version;
    for (let count = 0; count < 12; count++) rest = (rest << 1) ^ ((rest >>> 11) * 0x1f25);
    const bits = (version << 12) | rest;
    for (let at = 0; at < 18; at++) {
      const [far, near] = [size - 11 + (at % 3), Math.floor(at / 3)];
      set(far, near, bit(bits, at));
      set(near, far, bit(bits, at));
    }
  }
  let at = 0;
  for (const [x, y] of path(version)) {
    const dark = at < words.length * 8 && bit(words[at >> 3] as number, 7 - (at & 7));
    set(x, y, dark !== masked(mask, x, y));
    at++;
  }
  return grid;
}

/** Where bit `at` of the first copy of the format stands. */
function formatPlace(at: number): [number, number] {
  if (at < 6) return [8, at];
  if (at < 8) return [8, at + 1];
  if (at === 8) return [7, 8];
  return [14 - at, 8];
}

/** How hard a code would be to read: runs, squares, false finders, imbalance. */
function penalty(grid: Grid): number {
  const size = grid.length;
  let sum = 0;
  let dark = 0;
  const lines = [...grid, ...grid.map((_, x) => grid.map((row) => row[x] as boolean))];
  for (const line of lines) {
    let run = 0;
    line.forEach((cell, at) => {
      run = at && cell === line[at - 1] ? run + 1 : 1;
      if (run === 5) sum += 3;
      else if (run > 5) sum++;
    });
    const text = line.map(Number).join("");
    for (const mark of ["10111010000", "00001011101"]) for (let at = text.indexOf(mark); at >= 0; at = text.indexOf(mark, at + 1)) sum += 40;
  }
  for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) {
    const cell = grid[y]?.[x];
    if (cell) dark++;
    if (x && y && cell === grid[y]?.[x - 1] && cell === grid[y - 1]?.[x] && cell === grid[y - 1]?.[x - 1]) sum += 3;
  }
  return sum + 10 * Math.floor(Math.abs((dark / size ** 2) * 20 - 10));
}

/** The text of the code in a clean, upright picture (not a photograph); null where there is none. */
export function decode(pixels: { data: Uint8ClampedArray; width: number; height: number }): string | null {
  const { data, width, height } = pixels;
  const dark = (x: number, y: number) => {
    const at = 4 * (y * width + x);
    return (data[at + 3] as number) > 127 && (data[at] as number) + (data[at + 1] as number) + (data[at + 2] as number) < 384;
  };
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    if (!dark(x, y)) continue;
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
  }
  // The finder in the corner begins with a run of seven dark modules.
  let run = 0;
  while (left + run <= right && dark(left + run, top)) run++;
  const size = Math.round(((right - left + 1) / run) * 7);
  const version = (size - 17) / 4;
  if (!Number.isInteger(version) || version < 1 || version > 40) return null;
  const module = (right - left + 1) / size;
  const read = (x: number, y: number) => dark(Math.floor(left + (x + 0.5) * module), Math.floor(top + (y + 0.5) * ((bottom - top + 1) / size)));
  let format = 0;
  for (let at = 0; at < 15; at++) if (read(...formatPlace(at))) format |= 1 << at;
  for (let level = 0; level < 4; level++) for (let mask = 0; mask < 8; mask++) {
    if (formatBits(level, mask) === format) return unpack(version, level, mask, read);
  }
  return null;
}

function unpack(version: number, level: number, mask: number, read: (x: number, y: number) => boolean): string | null {
  const words: number[] = [];
  let at = 0;
  for (const [x, y] of path(version)) {
    if (at % 8 === 0) words.push(0);
    if (read(x, y) !== masked(mask, x, y)) words[at >> 3] = (words[at >> 3] as number) | (128 >> (at & 7));
    at++;
  }
  const sizes = blocks(version, level).data;
  const parts = sizes.map((): number[] => []);
  let from = 0;
  for (let place = 0; place < Math.max(...sizes); place++) parts.forEach((part, which) => {
    if (place < (sizes[which] as number)) part.push(words[from++] ?? 0);
  });
  const data = parts.flat();
  const bits = (start: number, count: number) => {
    let value = 0;
    for (let bit = start; bit < start + count; bit++) value = (value << 1) | (((data[bit >> 3] ?? 0) >> (7 - (bit & 7))) & 1);
    return value;
  };
  if (bits(0, 4) !== 4) return null;
  const wide = version < 10 ? 8 : 16;
  const length = bits(4, wide);
  if (length > data.length) return null;
  const bytes = Uint8Array.from({ length }, (_, place) => bits(4 + wide + 8 * place, 8));
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

