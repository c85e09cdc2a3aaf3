"""`whit train --per COLUMN`: a vector for each user, from one run, with a verdict for each and for all of them.

Held-out rows are answered three times: by the base, by the shared adapter and by each user's own. Everything goes
into one store: `shared`, and one adapter for each user, whose name there is on the report. With `--learn-basis` the
directions that they all move along lie in the store too, and as `basis.whit` beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import DataError, UsageError
from whit.settings import BY_REWARD, TrainSettings
from whit.talk import Talk, size
from whit.verbs import common
from whit.verbs.needs import require_needs
from whit.verbs.runs import out_folder, read_and_split
from whit.verbs.shrinking import require_teachable
from whit.verbs.train import TrainResult
from whit.verbs.train import train as train_one

if TYPE_CHECKING:
    from whit.data.rows import Row
    from whit.evaluation.scoring import Score
    from whit.evaluation.verdict import Comparison
    from whit.verbs.remote import Stopped

STORE_NAME, REPORT_FILE = "adapters.db", "personal.json"
_RESAMPLES = 2000


@dataclass(frozen=True)
class PersonalResult:
    """What was made: the folder with the store, and the report as plain values."""

    folder: Path
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The report; see docs/json.md."""
        return {"contract": common.CONTRACT, **self.about}

    def to_text(self) -> str:
        """The three systems, their differences, and how many users were helped."""
        about = self.about
        lines = [f"  {name:<9} {100 * about[name]:5.1f}" for name in ("base", "shared", "personal")]
        for key, said in (("shared_over_base", "shared over base"), ("personal_over_shared", "personal over shared")):
            low, high = about[key]["interval"]
            lines.append(f"{said}: {100 * about[key]['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        counts = about["counts"]
        lines.append(
            f"of {len(about['users'])} users, own over shared: {counts['helped']} helped, {counts['harmed']} harmed, "
            f"{counts['undecided']} undecided"
        )
        lines.append(f"adapters: {self.folder / STORE_NAME}")
        return "\n".join(lines)


def command(settings: TrainSettings, *, talk: Talk | None = None) -> TrainResult | PersonalResult | Stopped:
    """`whit train`: for everyone or for each, from answers or by reward, in one size or in the smallest that does."""
    require_needs(settings)
    require_teachable(settings)
    if settings.ray:
        from whit.verbs.remote import train_remote

        return train_remote(settings, talk=talk)
    if settings.stop:
        raise UsageError("--stop ends a run on a cluster: name it with --ray")
    settings = common.quantised(settings)
    _require_plain(settings)
    if settings.kind == "auto":
        from whit.verbs.ladder import train_auto

        return train_auto(settings, talk=talk)
    if settings.reward:
        from whit.verbs.reward import train_reward

        return train_reward(settings, talk=talk)
    if settings.data is None:
        raise UsageError("Missing argument 'DATA': the rows to learn from")
    if settings.optimizer in BY_REWARD:
        raise UsageError(f"--optimizer {settings.optimizer} needs a --reward to follow")
    return train_personal(settings, talk=talk) if settings.per else train_one(settings, talk=talk)


def _require_plain(settings: TrainSettings) -> None:
    """Raise `UsageError` for ways to share or save a step, where steps are not the supervised ones of one adapter."""
    ways = {
        "--processes": settings.processes > 1, "--fsdp": settings.fsdp, "--checkpointing": settings.checkpointing,
    }  # fmt: skip
    others = {
        "--kind auto": settings.kind == "auto", "--reward": settings.reward, "--per": settings.per,
        f"--optimizer {settings.optimizer}": settings.optimizer != "adam",
    }  # fmt: skip
    given, other = ([name for name, there in each.items() if there] for each in (ways, others))
    if given and other:
        raise UsageError(
            f"{' and '.join(given)} cannot be with {' and '.join(other)}: only training on answers with adam, one "
            "adapter for all, can share or save a step so"
        )


def train_personal(settings: TrainSettings, *, talk: Talk | None = None) -> PersonalResult:
    """Train a vector for each value of the column `--per`, and prove what they do."""
    talk = talk or Talk(quiet=True)
    common.require_finite(settings)
    require_needs(settings)
    if settings.kind == "lora" or settings.optimizer != "adam":
        raise UsageError("--per trains tiny or xs adapters with adam")
    if settings.accumulate > 1:
        raise UsageError("--accumulate does not go with --per; to save memory take a smaller --batch")
    if settings.learn_basis and settings.kind == "xs":
        raise UsageError("--learn-basis is for tiny adapters: those of kind xs have no drawn directions to learn")
    column, folder = str(settings.per), out_folder(settings)
    split = read_and_split(settings, talk)

    from whit.evaluation.scoring import require_known

    require_known(settings.score)
    learn, choose, held = (
        [(_user(row, column), row) for row in part] for part in (split.train, split.validation, split.test)
    )
    base = common.open_base(
        settings.base, dtype=settings.dtype, device=settings.device, threads=settings.threads, talk=talk
    )

    from whit.adapters import learned
    from whit.adapters.adapter import Adapter
    from whit.adapters.targets import all_targets, select_targets
    from whit.adapters.tunable import tune_vector
    from whit.adapters.vector import tiny_spec, xs_spec
    from whit.evaluation.proof import Examiner, longest_answer
    from whit.evaluation.scoring import make_scorer
    from whit.training.answering import require_alike
    from whit.training.memory import require_memory
    from whit.training.personal import PersonalPlan
    from whit.training.personal import train_personal as train

    rows = [row for _, row in learn]
    examiner = Examiner(
        base, make_scorer(settings.score, rows), settings.instruction, settings.max_tokens or longest_answer(rows, base)
    )
    every = all_targets(name for name, _ in base.model.named_modules())
    indices = [target.index for target in select_targets(every, settings.targets)]
    rank = settings.rank or 2
    spec = (
        xs_spec(indices, rank)
        if settings.kind == "xs"
        else tiny_spec(indices, settings.numbers or 13, rank=rank, groups=settings.groups)
    )
    if settings.answers_only:
        require_alike(base)
    bound = tune_vector(base, spec, number_type=settings.number_type)
    try:
        began = [0.0]

        def watch(phase: str, step: int, steps: int, loss: float) -> None:
            import time

            began[0] = time.monotonic() if step == 1 else began[0]
            talk.progress(phase, step, steps, time.monotonic() - began[0], f"loss {loss:.3f}")

        epochs = settings.epochs or 3.0
        rate = settings.learning_rate or 1e-2
        # Where directions were learned, the shared vector begins at the mean of the users' that found them, and each
        # user at their own; by measurement (docs/personal.md) nearly all passes are best spent on finding them.
        shared_epochs = epochs / (100 if settings.answers_only else 4) if settings.learn_basis else epochs
        own_epochs = epochs / 60 if settings.answers_only else epochs
        slower = {"basis_rate": 2e-2} if settings.answers_only else {}
        plan = PersonalPlan(
            basis_epochs=epochs if settings.learn_basis else 0.0, shared_epochs=shared_epochs, epochs=own_epochs,
            batch=settings.batch or 4, learning_rate=rate, personal_rate=rate, warmup=settings.warmup,
            seed=settings.seed, answers_only=settings.answers_only, **slower,
        )  # fmt: skip
        encoded = examiner.encode(rows, learn=True)
        needed = require_memory(
            base, encoded, batch=plan.batch, accumulate=1, numbers=spec.numbers * len({user for user, _ in learn}),
            checkpointing=False, ways=("batch", "quantize"),
        )  # fmt: skip
        talk.say(f"memory   up to about {size(needed)} for a step, beside the base")
        found = train(
            base, bound, encoded, [user for user, _ in learn],
            examiner.encode([row for _, row in choose], learn=True), [user for user, _ in choose], plan, watch=watch,
        )  # fmt: skip
        talk.say(f"trained {len(found.users)} users in {found.seconds:.0f} s; shrinkage {found.shrinkage:g}")

        def adapter(vector: Any) -> Adapter:
            return Adapter.from_vector(spec, vector, bound.basis, number_type=settings.number_type)

        shared = adapter(found.shared)
        users = sorted({user for user, _ in (*learn, *held)})
        own = {user: adapter(found.vector(user)) for user in users}
        # What is judged is what is stored: the numbers rounded to their type.
        test = [row for _, row in held]
        scores = [
            _scores(examiner, bound, test, vectors)
            for vectors in (None, [shared.vector] * len(test), [own[user].vector for user, _ in held])
        ]
    finally:
        bound.detach()
    about = _report([user for user, _ in held], scores, found, users)
    names = {user: _name(user) for user in users}
    if found.basis is not None:
        about["basis"] = {"fingerprint": found.basis.fingerprint, "bytes": len(found.basis.to_bytes())}
        found.basis.save(folder / learned.FILE_NAME)
        learned.remember(found.basis, cache=True)
    adapters = {"shared": shared, **{names[user]: own[user] for user in users}}
    _keep(folder, adapters, settings, base.fingerprint, found.basis)
    for each in about["users"]:
        each["adapter"] = names[each["user"]]
    write_report(folder / REPORT_FILE, about)
    return PersonalResult(folder, about)


def _user(row: Row, column: str) -> str:
    value = row.group if column == "group" and row.group is not None else row.extra.get(column)
    if value is None or str(value) == "":
        raise DataError(f"{row.place} has nothing in the column {column!r}, by which --per tells users apart")
    return str(value)


def _scores(examiner: Any, bound: Any, rows: Sequence[Row], vectors: Any) -> list[Score]:
    import numpy as np
    import torch

    from whit.evaluation.decoding import Decoder

    prompts = [item.prompt_ids for item in examiner.encode(rows)]
    if vectors is None:
        decoder = Decoder(examiner.base)
    else:
        decoder = Decoder(examiner.base, bound, vectors=torch.from_numpy(np.stack(vectors)))
    answers = decoder.answers(prompts, most=examiner.max_tokens)
    found: list[Score] = examiner.score([examiner.base.decode(ids) for ids in answers], rows)
    return found


def _report(whose: Sequence[str], scores: Sequence[list[Score]], found: Any, users: Sequence[str]) -> dict[str, Any]:
    from whit.evaluation.verdict import compare

    base, shared, personal = scores
    each = []
    for user in users:
        at = [place for place, name in enumerate(whose) if name == user]
        learned = found.rows[found.users.index(user)] if user in found.users else 0
        line: dict[str, Any] = {"user": user, "rows": learned, "held_out": len(at), "verdict": "not enough data"}
        if at:
            result = compare([shared[place] for place in at], [personal[place] for place in at], resamples=500)
            line |= _difference(result) | {
                "base": _mean([base[place] for place in at]), "shared": result.base, "personal": result.tuned,
                "verdict": str(result.verdict),
            }  # fmt: skip
        each.append(line)
    counts = Counter(line["verdict"] for line in each)
    helped, harmed = counts["helped"], counts["harmed"]
    return {
        "base": _mean(base), "shared": _mean(shared), "personal": _mean(personal), "held_out": len(whose),
        "shared_over_base": _by_user(whose, base, shared), "personal_over_shared": _by_user(whose, shared, personal),
        "counts": {"helped": helped, "harmed": harmed, "undecided": len(each) - helped - harmed},
        "shrinkage": found.shrinkage if found.shrinkage < float("inf") else None, "seconds": found.seconds,
        "steps": found.steps, "users": each,
    }  # fmt: skip


def _difference(result: Comparison) -> dict[str, Any]:
    return {"difference": result.difference, "interval": list(result.interval), "p_value": result.p_value}


def _by_user(whose: Sequence[str], before: Sequence[Score], after: Sequence[Score]) -> dict[str, Any]:
    """Mean difference over rows, with a 95 % interval from drawing whole users: one user's rows are alike."""
    import numpy as np

    places: dict[str, list[float]] = {}
    for user, one, two in zip(whose, before, after, strict=True):
        places.setdefault(user, []).append(two.value - one.value)
    sums = np.array([sum(values) for values in places.values()])
    counts = np.array([len(values) for values in places.values()])
    draw = np.random.default_rng(0).integers(len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[draw].sum(1) / counts[draw].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"difference": float(sums.sum() / counts.sum()), "interval": [float(low), float(high)]}


def _mean(scores: Sequence[Score]) -> float:
    return sum(score.value for score in scores) / len(scores)


def _name(user: str) -> str:
    """A name that a store takes; users that would share one are told apart by a hash."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", user).strip("-")[:60]
    if plain == user:
        return f"user/{plain}"
    return f"user/{plain or 'u'}-{hashlib.sha256(user.encode()).hexdigest()[:8]}"


def _keep(folder: Path, adapters: dict[str, Any], settings: TrainSettings, fingerprint: str, basis: Any) -> None:
    from whit.serving.payload import basis_name, to_payload
    from whit.serving.store import Item, open_store

    card = {"base": settings.base, "base_fingerprint": fingerprint, "instruction": settings.instruction or ""}
    items = [Item(name, to_payload(each), card) for name, each in adapters.items()]
    if basis is not None:
        items.insert(0, Item(basis_name(basis.fingerprint), basis.to_bytes(), card))
    with open_store(folder / STORE_NAME) as store:
        store.add_many(items, by="whit train")


def write_report(path: Path, about: dict[str, Any]) -> None:
    """Keep the report beside the store."""
    from whit.files import atomic_write

    atomic_write(path, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
