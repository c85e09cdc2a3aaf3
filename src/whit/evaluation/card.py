"""The card: all that is known of an adapter, as `card.json`, and as a model card for the hub.

A card may come from anyone: reading one runs nothing, its size is bounded, unknown keys are refused,
and every text in it is escaped before it reaches Markdown or YAML. Rows never enter a card; the
labels of a closed set and the task's instruction do. Knows nothing of models or of adapter files.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from whit.errors import AdapterError, DamagedAdapter
from whit.evaluation.verdict import Comparison, points
from whit.files import atomic_write

VERSION = 1
LARGEST = 4_000_000  # bytes; a card with 1,000 labels takes some 50,000

_METRICS = {"label": "accuracy", "exact": "exact_match", "numeric": "accuracy", "json": "exact_match"}
_TASKS = {"label": "text-classification"}


@dataclass(frozen=True)
class Data:
    """What the adapter was trained and tested on, without a row of it."""

    name: str
    sha256: str
    rows: int
    train: int
    validation: int
    test: int
    split_seed: int = 0


@dataclass(frozen=True)
class Cost:
    """What training took; `tokens` are those the training steps saw."""

    seconds: float
    steps: int
    rows_seen: int = 0
    tokens: int = 0
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True)
class Forgetting:
    """Loss on plain text, in nats per token, of the base and of base and adapter."""

    text: str
    tokens: int
    before: float
    after: float


@dataclass(frozen=True)
class Card:
    """What is known of an adapter. `basis` is "" where none is used (`lora`).

    `scorer` is a scorer's state (`restore_scorer`). `result` compares the adapter with the base on the
    held-out rows; each of `baselines`, by name, compares the adapter with that baseline on the same
    rows: the baseline's own score is its `base`. `settings` are the training's, as plain values. `baked`
    says what `whit bake` made it from and what it found; "" where the rows' own answers were learned. `run` is
    what the command is known by, "" where it is not.
    """

    name: str
    kind: str
    numbers: int
    base: str
    base_fingerprint: str
    data: Data
    basis: str = ""
    base_hub_id: str = ""
    base_licence: str = ""
    base_parameters: int = 0
    payload_bytes: int = 0
    file_bytes: int = 0
    instruction: str = ""
    scorer: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    result: Comparison | None = None
    baselines: Mapping[str, Comparison] = field(default_factory=dict)
    forgetting: Forgetting | None = None
    cost: Cost | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    baked: str = ""
    created: str = ""
    run: str = ""

    @property
    def verdict(self) -> str:
        """The verdict, "" where nothing was evaluated yet."""
        return str(self.result.verdict) if self.result else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        plain: dict[str, Any] = {"card": VERSION, "verdict": self.verdict}
        for part in dataclasses.fields(self):
            plain[part.name] = _plain(getattr(self, part.name))
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Card:
        """Raises `DamagedAdapter` where it is no card, `AdapterError` where it is a newer one."""
        if not isinstance(plain, dict) or not isinstance(plain.get("card"), int):
            raise DamagedAdapter("not a card: no version in it; make it again with whit train")
        if plain["card"] > VERSION:
            raise AdapterError(f"the card is of version {plain['card']}, newer than this whit; upgrade whit")
        given = {key: value for key, value in plain.items() if key not in ("card", "verdict")}
        try:
            for name, kind in (("data", Data), ("forgetting", Forgetting), ("cost", Cost)):
                if given.get(name) is not None:
                    given[name] = _record(kind, given[name])
            if given.get("result") is not None:
                given["result"] = Comparison.from_json(given["result"])
            baselines = given.get("baselines", {})
            given["baselines"] = {str(key): Comparison.from_json(value) for key, value in baselines.items()}
            given["seeds"] = tuple(int(seed) for seed in given.get("seeds", ()))
            card: Card = _record(cls, given)
        except DamagedAdapter:
            raise
        except Exception as error:
            raise DamagedAdapter(f"the card is damaged: {error}; make it again with whit train") from error
        return card


def save_card(card: Card, path: str | Path) -> None:
    """Write `card.json`, whole or not at all."""
    text = json.dumps(card.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, text + "\n")


def load_card(path: str | Path) -> Card:
    """Read `card.json`. Raises `DamagedAdapter` that names the file."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise DamagedAdapter(f"{path}: over {LARGEST:,} bytes is no card")
        return Card.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror}); is this an adapter's folder?") from error
    except (ValueError, RecursionError) as error:
        raise DamagedAdapter(f"{path}: not JSON ({error})") from error
    except AdapterError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Comparison):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    # A file's name may hold bytes that are no UTF-8; JSON may not.
    return str(value).encode("utf-8", "replace").decode("utf-8")


_PLAIN_TYPES: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float), Mapping: (dict,)}


def _record(kind: Any, plain: Mapping[str, Any]) -> Any:
    """A dataclass from plain values, with the types of its plain fields checked."""
    hints = get_type_hints(kind)
    unknown = sorted(set(plain) - set(hints))
    if unknown:
        raise DamagedAdapter(f"the card has unknown keys: {', '.join(unknown[:5])}; is it of a newer whit?")
    for name, value in plain.items():
        wanted = _PLAIN_TYPES.get(get_origin(hints[name]) or hints[name])
        if wanted and (isinstance(value, bool) or not isinstance(value, wanted)):
            raise DamagedAdapter(f"the card's {name} is {str(value)[:60]!r}, not {wanted[-1].__name__}")
    missing = [
        part.name
        for part in dataclasses.fields(kind)
        if part.name not in plain
        and part.default is dataclasses.MISSING
        and part.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise DamagedAdapter(f"the card lacks {', '.join(missing)}")
    return kind(**plain)


# --- the hub's form -------------------------------------------------------------------------


def model_card(card: Card) -> str:
    """`README.md` in the hub's form: YAML front matter, then what a reader needs to know."""
    return f"---\n{_front_matter(card)}---\n\n{_body(card)}"


def _front_matter(card: Card) -> str:
    kind = str(card.scorer.get("kind", ""))
    lines = []
    if _repository(card.base_hub_id or card.base):
        lines += [f"base_model: {_yaml(card.base_hub_id or card.base)}", "base_model_relation: adapter"]
    lines.append("library_name: whit")
    if re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", card.base_licence.lower()):
        lines.append(f"license: {_yaml(card.base_licence.lower())}")
    lines.append("pipeline_tag: text-generation")
    lines += ["tags:", *(f"- {_yaml(tag)}" for tag in ("whit", "adapter", card.kind))]
    if card.result:
        metric = _METRICS.get(kind, "score")
        value = _yaml(round(card.result.tuned, 6))
        lines += ["metrics:", f"- {metric}", "model-index:", f"- name: {_yaml(card.name)}", "  results:"]
        lines += ["  - task:", f"      type: {_TASKS.get(kind, 'text-generation')}"]
        lines += ["    dataset:", f"      name: {_yaml(card.data.name)}", f"      type: {_yaml(card.data.name)}"]
        lines += ["      split: test", "    metrics:", f"    - type: {metric}", f"      value: {value}"]
        lines.append(f"      name: {_yaml(f'{metric}, {card.result.rows} held-out rows')}")
    return "\n".join(lines) + "\n"


def _body(card: Card) -> str:
    name = _markdown(card.name)
    share = f" of {card.base_parameters:,}" if card.base_parameters else ""
    held = card.file_bytes or card.payload_bytes
    parts = [
        f"# {name}",
        f"A `{card.kind}` adapter of **{card.numbers:,} numbers**{share} ({held:,} bytes) "
        f"for {_markdown(card.base)}, made with whit.",
    ]
    if card.result:
        parts += [f"**{_markdown(card.result.sentence())}**", _table(card)]
        parts.append(_limits(card.result))
    if card.instruction:
        parts += ["## The instruction it was tuned with", _fenced(card.instruction)]
    if card.baked:
        parts += ["## What was baked", _markdown(card.baked)]
    shown = _clean(card.name) or "adapter"
    shown = shlex.quote(f"./{shown}" if shown.startswith("-") else shown)
    parts += ["## Use", "From the folder that this one is in:"]
    parts.append(_fenced(f'whit run {shown} "your text"\nwhit eval {shown} your-rows.jsonl', "sh"))
    parts += ["## How it was made", _facts(card)]
    if card.command:
        parts.append(_fenced(card.command, "sh"))
    if card.settings:
        settings = json.dumps(_plain(card.settings), indent=2, ensure_ascii=False)
        parts += ["## Settings", _fenced(settings, "json")]
    return "\n\n".join(parts) + "\n"


def _table(card: Card) -> str:
    assert card.result is not None
    result = card.result
    lines = ["| system | score | 95 % interval | keeps the format |", "| --- | --- | --- | --- |"]

    def line(name: str, score: float, interval: tuple[float, float], valid: float) -> str:
        span = f"{points(interval[0])} to {points(interval[1])}"
        return f"| {_markdown(name)} | {points(score)} | {span} | {points(valid)} % |"

    lines.append(line("base", result.base, result.base_interval, result.base_valid))
    for name, other in card.baselines.items():
        lines.append(line(name, other.base, other.base_interval, other.base_valid))
    lines.append(line("this adapter", result.tuned, result.tuned_interval, result.tuned_valid))
    return "\n".join(lines)


def _limits(result: Comparison) -> str:
    text = f"Scored on {result.rows:,} rows that training never saw ({result.method}; p = {result.p_value:.2g})."
    if result.smallest_detectable is not None:
        least = points(result.smallest_detectable)
        text += f" So many rows could have shown a difference of {least} points or more (80 % power)."
    return _markdown(text)


def _facts(card: Card) -> str:
    data = card.data
    facts = [
        ("data", f"{data.name}: {data.rows:,} rows, {data.train:,} to train on, {data.validation:,} to choose by, "
                 f"{data.test:,} held out (split seed {data.split_seed})"),
        ("data, sha256", data.sha256),
        ("base", f"{card.base}, fingerprint {card.base_fingerprint}"),
        ("basis", card.basis),
        ("seeds", ", ".join(map(str, card.seeds))),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
        ("made", card.created),
    ]  # fmt: skip
    if card.cost:
        took = f"{card.cost.seconds:,.0f} s on {card.cost.device}, {card.cost.steps:,} steps"
        facts.append(("training", took))
    if card.forgetting:
        f = card.forgetting
        change = f"{f.before:.3f} → {f.after:.3f} nats per token on {f.tokens:,} tokens of {f.text}"
        facts.append(("loss on plain text", change))
    return "\n".join(f"- {name}: {_markdown(value)}" for name, value in facts if value)


def _repository(name: str) -> bool:
    return re.fullmatch(r"[\w][\w.\-]{0,95}/[\w][\w.\-]{0,95}", name) is not None


def _clean(text: str) -> str:
    """Without control characters and lone surrogates, on one line."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(kept.split())


def _yaml(value: Any) -> str:
    # A JSON scalar is a YAML scalar, and it cannot break out of its line.
    return json.dumps(_clean(value) if isinstance(value, str) else value, ensure_ascii=False)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", _clean(text))


def _fenced(text: str, language: str = "") -> str:
    """A code block that its content cannot end."""
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
