/** What the QR standard (ISO/IEC 18004) lays down of sizes: blocks, corrections, alignment marks. */
/** Levels of correction in the order L, M, Q, H. */
const CORRECTION = [
    "7 10 15 20 26 18 20 24 30 18 20 24 26 30 22 24 28 30 28 28 28 28 30 30 26 28 30 30 30 30 30 30 30 30 30 30 30 30 30 30",
    "10 16 26 18 24 16 18 22 22 26 30 22 22 24 24 28 28 26 26 26 26 28 28 28 28 28 28 28 28 28 28 28 28 28 28 28 28 28 28 28",
    "13 22 18 26 18 24 18 22 20 24 28 26 24 20 30 24 28 28 26 30 28 30 30 30 30 28 30 30 30 30 30 30 30 30 30 30 30 30 30 30",
    "17 28 22 16 22 28 26 26 24 28 24 28 22 24 24 30 28 28 26 28 30 24 30 30 30 30 30 30 30 30 30 30 30 30 30 30 30 30 30 30",
].map((line) => line.split(" ").map(Number));
const BLOCKS = [
    "1 1 1 1 1 2 2 2 2 4 4 4 4 4 6 6 6 6 7 8 8 9 9 10 12 12 12 13 14 15 16 17 18 19 19 20 21 22 24 25",
    "1 1 1 2 2 4 4 4 5 5 5 8 9 9 10 10 11 13 14 16 17 17 18 20 21 23 25 26 28 29 31 33 35 37 38 40 43 45 47 49",
    "1 1 2 2 4 4 6 6 8 8 8 10 12 16 12 17 16 18 21 20 23 23 25 27 29 34 34 35 38 40 43 45 48 51 53 56 59 62 65 68",
    "1 1 2 4 4 4 5 6 8 8 11 11 16 16 18 16 19 21 25 25 25 34 30 32 35 37 40 42 45 48 51 54 57 60 63 66 70 74 77 81",
].map((line) => line.split(" ").map(Number));
/** The two bits that stand for a level. */
export const LEVEL_BITS = [1, 0, 3, 2];
/** Modules that hold data, in bits. */
function dataBits(version) {
    let bits = (16 * version + 128) * version + 64;
    if (version >= 2) {
        const marks = Math.floor(version / 7) + 2;
        bits -= (25 * marks - 10) * marks - 55;
        if (version >= 7)
            bits -= 36;
    }
    return bits;
}
/** How the codewords of a version and level are divided: bytes of data in each block, and of correction. */
export function blocks(version, level) {
    const total = Math.floor(dataBits(version) / 8);
    const correction = CORRECTION[level]?.[version - 1] ?? 0;
    const count = BLOCKS[level]?.[version - 1] ?? 1;
    const short = Math.floor(total / count) - correction;
    const longer = total % count;
    return { data: Array.from({ length: count }, (_, at) => short + (at >= count - longer ? 1 : 0)), correction };
}
/** Where the centres of the alignment marks stand, on both axes. */
export function alignment(version) {
    if (version === 1)
        return [];
    const count = Math.floor(version / 7) + 2;
    const step = version === 32 ? 26 : Math.ceil((version * 4 + 4) / (count * 2 - 2)) * 2;
    const places = [6];
    for (let at = version * 4 + 10; places.length < count; at -= step)
        places.splice(1, 0, at);
    return places;
}
const MASKS = [
    (x, y) => (x + y) % 2 === 0,
    (_, y) => y % 2 === 0,
    (x) => x % 3 === 0,
    (x, y) => (x + y) % 3 === 0,
    (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2 === 0,
    (x, y) => ((x * y) % 2) + ((x * y) % 3) === 0,
    (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2 === 0,
    (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2 === 0,
];
export function masked(mask, x, y) {
    return MASKS[mask](x, y);
}
/** The 15 bits that say level and mask. */
export function formatBits(level, mask) {
    const data = (LEVEL_BITS[level] << 3) | mask;
    let rest = data;
    for (let bit = 0; bit < 10; bit++)
        rest = (rest << 1) ^ ((rest >>> 9) * 0x537);
    return ((data << 10) | rest) ^ 0x5412;
}
/** Modules that are not data, as a grid of the version's size. */
export function reserved(version) {
    const size = version * 4 + 17;
    const grid = Array.from({ length: size }, () => new Array(size).fill(false));
    const block = (x, y, width, height) => {
        for (let row = y; row < y + height; row++)
            for (let column = x; column < x + width; column++)
                grid[row][column] = true;
    };
    block(0, 0, 9, 9);
    block(size - 8, 0, 8, 9);
    block(0, size - 8, 9, 8);
    block(6, 0, 1, size);
    block(0, 6, size, 1);
    if (version >= 7) {
        block(size - 11, 0, 3, 6);
        block(0, size - 11, 6, 3);
    }
    const marks = alignment(version);
    for (const x of marks)
        for (const y of marks) {
            const corner = (x === 6 && y === 6) || (x === 6 && y === size - 7) || (x === size - 7 && y === 6);
            if (!corner)
                block(x - 2, y - 2, 5, 5);
        }
    return grid;
}
/** Data modules in the order in which bits are laid. */
export function* path(version) {
    const size = version * 4 + 17;
    const taken = reserved(version);
    for (let right = size - 1; right >= 1; right -= 2) {
        if (right === 6)
            right = 5;
        const up = ((right + 1) & 2) === 0;
        for (let at = 0; at < size; at++) {
            const y = up ? size - 1 - at : at;
            for (const x of [right, right - 1])
                if (!taken[y]?.[x])
                    yield [x, y];
        }
    }
}
