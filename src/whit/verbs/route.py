"""`whit route`: the gateway, and what goes with it: `check`, `fit` and `report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import UsageError
from whit.settings import RouteSettings
from whit.talk import Talk
from whit.verbs import common

if TYPE_CHECKING:
    from whit.routing.choosing import Choice
    from whit.routing.explain import Explanation
    from whit.routing.report import Summary
    from whit.verbs.route_learn import LearnResult


def route(
    settings: RouteSettings, *, talk: Talk | None = None
) -> Explanation | FitResult | LearnResult | Schema | Summary | None:
    """Serve, or what the first word says."""
    talk = talk or Talk(quiet=True)
    common.require_finite(settings)
    first, *rest = settings.words
    verbs: dict[str, Callable[[str, RouteSettings, Talk], Explanation | FitResult | Summary]]
    verbs = {"check": check, "fit": fit, "report": report}
    if first in verbs and not Path(first).is_file():
        if len(rest) != 1:
            raise UsageError(f"whit route {first} takes one file")
        return verbs[first](rest[0], settings, talk)
    if first == "schema" and not rest and not Path(first).is_file():
        return Schema()
    if first == "learn" and not Path(first).is_file():
        from whit.verbs.route_learn import learn

        return learn(rest, settings, talk)
    if rest:
        known = ", ".join([*verbs, "learn", "schema"])
        raise UsageError(f"whit route takes one tiers.toml, or one of {known} first; not {first!r}")
    serve(Path(first), settings, talk)
    return None


def serve(path: Path, settings: RouteSettings, talk: Talk) -> None:
    """Serve tiers.toml until interrupted."""
    import asyncio

    from whit.routing.config import is_loopback, read_config
    from whit.routing.explain import warnings
    from whit.routing.gateway import Gateway
    from whit.routing.server import needs, run

    config = read_config(path)
    needs()
    host, port = settings.host or config.host, config.port if settings.port is None else settings.port
    if not is_loopback(host) and not config.guarded:
        raise UsageError(f"--host {host}: beyond this machine every [[tenant]] needs a token_env")
    for warning in warnings(config):
        talk.say(f"note: {warning}")
    gateway = Gateway(config, hook=_hook(config, talk))
    talk.say(f"http://{host}:{port}/v1 answers by {', '.join(tier.name for tier in config.tiers)}; Ctrl-C ends")
    asyncio.run(run(gateway, say=talk.say, host=host, port=port))


def _hook(config: Any, talk: Talk) -> Any:
    """The detecting adapter as a function, where the config names one."""
    if not config.detection.adapter:
        return None
    from whit.data.rows import Turn
    from whit.routing.config import Tier
    from whit.routing.detection import tagger
    from whit.routing.detection.scanner import read_adapter_answer
    from whit.routing.tiers.local import WhitModel

    named, base = config.detection.adapter, config.detection.adapter_base or ""
    with talk.task(f"Loading {named}"):
        if tagger.card(named) is not None:
            marks = tagger.Tagger.load(named, base, seconds=config.detection.adapter_timeout)
            marks.threshold = config.detection.threshold or marks.threshold
            return marks
        model = WhitModel(Tier("detector", "whit", True, base, adapter=named))

    def look(text: str) -> list[tuple[str, str]]:
        said: list[str] = []

        def heard(piece: str) -> bool:
            said.append(piece)
            return True

        model.generate(
            [Turn("user", text)], adapter=None, max_tokens=512, temperature=0.0, top_p=1.0, seed=0, on_text=heard
        )
        return read_adapter_answer("".join(said), text)

    return look


def check(where: str, settings: RouteSettings, talk: Talk) -> Explanation:
    """What would happen to a request, and why."""
    import json

    from whit.routing.config import read_config
    from whit.routing.explain import explain
    from whit.routing.request import read_request
    from whit.routing.server import needs

    config = read_config(where)
    needs()
    body = {"model": settings.model, "messages": [{"role": "user", "content": settings.prompt}]}
    request = read_request(json.dumps(body).encode())
    return explain(config, request, tenant=settings.tenant, label=settings.label, hook=_hook(config, talk))


@dataclass(frozen=True)
class Schema:
    """What may stand in a tiers.toml, as a JSON Schema for editors."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        import json

        import whit.routing

        path = Path(whit.routing.__file__).with_name("tiers.schema.json")
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found

    def to_text(self) -> str:
        """As an editor reads it."""
        import json

        return json.dumps(self.to_json(), indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class FitResult:
    """What was learned, and where it is."""

    choice: Choice
    out: Path

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        choice, space = self.choice, self.choice.space
        return {
            "contract": common.CONTRACT, "out": str(self.out), "rows": choice.rows, "features": choice.features,
            "base": space.base if space else None, "way": space.kind if space else "logistic",
            "threshold": choice.threshold, "keep_quality": choice.keep_quality,
            "most_strong": choice.most_strong, "quality": choice.quality,
            "interval": list(choice.interval), "strong_share": choice.strong_share, "rivals": dict(choice.rivals),
        }  # fmt: skip

    def to_text(self) -> str:
        """What it keeps, what simple ways would do, and where it is."""
        low, high = self.choice.interval
        asked = self.choice.most_strong is None
        reached = (
            "" if low >= self.choice.keep_quality or not asked else " (the interval reaches below what was asked for)"
        )
        space = self.choice.space
        near = f"the nearest {space.neighbours} rows" if space and space.kind == "knn" else "logistic regression"
        return (
            f"learned over {f'embeddings of {space.base}' if space else 'words'}, by {near}\n"
            f"{self.choice.strong_share:.1%} of {self.choice.rows:,} rows go to the strong tier and keep "
            f"{self.choice.quality:.1%} of its quality, 95 % interval {low:.1%} to {high:.1%}{reached}\n"
            f"{self._rivals()}"
            f'written to {self.out}; name it in tiers.toml: [gateway] choice = "{self.out.name}"'
        )

    def _rivals(self) -> str:
        if not (than := self.choice.rivals):
            return ""
        better = "better than" if than["p_value"] < 0.01 else "no better than"
        return (
            f"right answers: {than['choice']:.1%}; always local {than['always_local']:.1%}, always strong "
            f"{than['always_strong']:.1%}, random at this cost {than['random']:.1%} "
            f"(this is {better} random, p = {than['p_value']:.2g})\n"
            f"the same quality at random costs {than['random_cost']:.1%} of rows, with an oracle "
            f"{than['oracle_cost']:.1%}\n"
        )


def fit(where: str, settings: RouteSettings, talk: Talk) -> FitResult:
    """Learn from rows when the smallest tier is enough."""
    from whit.routing.choosing import fit as learn
    from whit.routing.choosing import read_fit_rows

    path = Path(where)
    prompts, weak, strong = read_fit_rows(path)
    embed = None
    if settings.features == "embeddings":
        from whit.routing.embedding import Embedder

        with talk.task(f"Loading {settings.base}"):
            embed = Embedder.load(settings.base)
    choice = learn(
        prompts, weak, strong, keep_quality=settings.keep_quality, most_strong=settings.most_strong, seed=settings.seed,
        embed=embed,
    )  # fmt: skip
    out = settings.out or path.with_name(f"{path.stem}.choice.json")
    choice.save(out)
    return FitResult(choice, out)


def report(where: str, settings: RouteSettings, talk: Talk) -> Summary:
    """What the ledger says; the page too, where one is asked for."""
    import time

    from whit.files import atomic_write
    from whit.routing.ledger import read_ledger
    from whit.routing.report import page, summarise

    since = time.time() - 86400 * settings.days if settings.days else 0.0
    summary = summarise(read_ledger(where, since))
    if settings.html is not None:
        atomic_write(settings.html, page(summary, "What the tiers did"))
        talk.say(f"wrote {settings.html}")
    return summary
