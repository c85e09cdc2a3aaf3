"""The page's own sums against Python's: statistics, QR codes, rows, prompts; and that it is built from its sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Site

ROOT = Path(__file__).resolve().parents[2]


def test_statistics_agree(site: Site, visit: Callable[..., Any]) -> None:
    from whit.evaluation.statistics import mcnemar, tango_interval
    from whit.evaluation.verdict import decide

    cases = [(0, 0, 1), (5, 0, 5), (0, 6, 6), (12, 3, 60), (40, 41, 200), (1, 0, 300), (0, 0, 400), (90, 2, 120)]
    page = visit(site.address)
    found = page.evaluate(
        """async (cases) => {
            const { compare, mcnemar, tangoInterval } = await import('./statistics.js');
            return cases.map(([wins, losses, rows]) => {
                const base = Array.from({ length: rows }, (_, at) => at >= wins && at < wins + losses);
                const tuned = Array.from({ length: rows }, (_, at) => at < wins);
                return [mcnemar(wins, losses), tangoInterval(wins, losses, rows), compare(base, tuned).verdict];
            });
        }""",
        cases,
    )
    for (wins, losses, rows), (p_value, interval, verdict) in zip(cases, found, strict=True):
        wanted = tango_interval(wins, losses, rows)
        assert p_value == pytest.approx(mcnemar(wins, losses).p_value, rel=1e-9)
        assert interval == pytest.approx(wanted, abs=1e-8)
        expected = str(decide(wanted, mcnemar(wins, losses).p_value)) if rows >= 6 else "not enough data"
        assert verdict == expected


def syndromes(words: list[int], degree: int) -> list[int]:
    """Of a Reed-Solomon codeword over GF(256) by 0x11D: all zero where it is one."""
    exp, value = [], 1
    for _ in range(255):
        exp.append(value)
        value = (value << 1) ^ (0x11D if value >= 128 else 0)
    log = {power: at for at, power in enumerate(exp)}
    found = []
    for root in range(degree):
        total = 0
        for word in words:
            total = word ^ (exp[(log[total] + root) % 255] if total else 0)
        found.append(total)
    return found


def test_qr_codes_agree_with_segno(site: Site, visit: Callable[..., Any]) -> None:
    import segno

    page = visit(site.address)
    for length in (10, 92, 300, 1100, 2900):
        text = ("whit1_" + "aB3-_x" * 500)[:length]
        mine = page.evaluate("async (text) => (await import('./qr.js')).encode(text, 3)", text)
        code = segno.make(text, error="l", boost_error=False, micro=False, mask=3, mode="byte")
        # segno puts a byte of zeros before the padding, so only what stands before it is the same.
        words = page.evaluate(
            """async (grids) => {
                const { masked, path } = await import('./qrtables.js');
                return grids.map((grid) => {
                    const words = [];
                    let at = 0;
                    for (const [x, y] of path((grid.length - 17) / 4)) {
                        if (at % 8 === 0) words.push(0);
                        if (Boolean(grid[y][x]) !== masked(3, x, y)) words[at >> 3] |= 128 >> (at & 7);
                        at++;
                    }
                    return words;
                });
            }""",
            [mine, [list(row) for row in code.matrix]],
        )
        assert len(words[0]) == len(words[1])
        if length <= 92:  # one block of data
            assert words[0][: length + 2] == words[1][: length + 2]
            degree = {10: 7, 92: 26}[length]
            total = {10: 26, 92: 134}[length]
            assert not any(syndromes(words[0][:total], degree))
            assert not any(syndromes(words[1][:total], degree))  # and the check itself is right
        other = segno.make(text, error="m" if length < 2000 else "l", mode="byte", micro=False)
        read = page.evaluate(
            """async ([text, matrix]) => {
                const { decode, encode } = await import('./qr.js');
                const picture = (grid) => {
                    const [scale, quiet] = [3, 4];
                    const width = (grid.length + 2 * quiet) * scale;
                    const data = new Uint8ClampedArray(4 * width * width).fill(255);
                    for (let y = 0; y < width; y++) for (let x = 0; x < width; x++) {
                        const dark = grid[Math.floor(y / scale) - quiet]?.[Math.floor(x / scale) - quiet];
                        if (dark) data.fill(0, 4 * (y * width + x), 4 * (y * width + x) + 3);
                    }
                    return { data, width, height: width };
                };
                return [decode(picture(encode(text))), decode(picture(matrix))];
            }""",
            [text, [list(row) for row in other.matrix]],
        )
        assert read == [text, text]


def test_rows_are_read_like_python_reads_them(site: Site, visit: Callable[..., Any], tmp_path: Path) -> None:
    from whit.data.rows import read_rows

    texts = {
        "a.csv": 'prompt,completion\n"two\nlines, with ""quotes""",yes\nplain,no\n"semi;colon",yes\n' * 1,
        "b.csv": "id;text;label\r\n1;eins;A\r\n2;zwei, drei;B\r\n",
        "c.jsonl": '{"input": "x", "output": "1"}\n\n{"input": "y", "output": "2", "id": 7}\n',
        "d.jsonl": '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n',
    }
    page = visit(site.address)
    for name, text in texts.items():
        (tmp_path / name).write_text(text, "utf-8", newline="")
        wanted = [(row.prompt, row.completion) for row in read_rows(tmp_path / name)]
        found = page.evaluate("async (text) => (await import('./rows.js')).readRows(text).rows", text)
        assert [(row["prompt"], row["completion"]) for row in found] == wanted, name


def test_prompts_agree(site: Site, visit: Callable[..., Any], eeny: Any) -> None:
    from whit.data.rows import Turn

    turns = ["Hello\n there ", "Hi", "And {{ you }}?"]
    said = [Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(turns)]
    page = visit(site.address)
    for instruction in ("", "Be kind."):
        found = page.evaluate(
            """async ([turns, instruction]) => {
                const { readManifest, renderPrompt } = await import('./manifest.js');
                const manifest = await readManifest(new URL('./', location));
                return renderPrompt(manifest.base.prompt, turns, instruction);
            }""",
            [turns, instruction],
        )
        assert found == eeny.template.render(said, instruction=instruction or None)


def test_the_example_in_the_docs_has_the_types_that_are_shipped(tmp_path: Path) -> None:
    own = ROOT / "web" / "node_modules" / ".bin" / "tsc"
    tsc = str(own) if own.exists() else shutil.which("tsc")
    if not tsc:
        pytest.skip("no TypeScript here: npm ci in web/")
    example = (ROOT / "docs" / "browser.md").read_text("utf-8").split("```js\n")[1].split("```")[0]
    assert len(example.splitlines()) == 5
    (tmp_path / "page").mkdir()
    for path in (ROOT / "src" / "whit" / "bundle" / "page").glob("*.d.ts"):
        shutil.copy(path, tmp_path / "page")
    given = (
        "declare function show(text: string): void;\ndeclare const rows: { prompt: string; completion: string }[];\n"
    )
    (tmp_path / "mine.ts").write_text(given + example + "show(result.sentence);\n", "utf-8")
    flags = ("--noEmit", "--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler")
    done = subprocess.run([tsc, *flags, "--types", "", "mine.ts"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "mine.ts").write_text(given + example.replace("prompt", "promt") + "show(result.sentense);\n", "utf-8")
    assert subprocess.run([tsc, *flags, "--types", "", "mine.ts"], cwd=tmp_path, capture_output=True).returncode


def test_the_page_is_built_from_its_sources() -> None:
    if not (ROOT / "web" / "node_modules").is_dir() and not shutil.which("tsc"):
        pytest.skip("no TypeScript here: npm ci in web/")
    done = subprocess.run([sys.executable, ROOT / "scripts" / "build-page", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
