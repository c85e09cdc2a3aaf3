"""`whit sweep --ray ADDRESS`: every variant a job of one run on the cluster, side by side; the winner proved there.

The run is known by the grid and the files; it stays there until its result was fetched, so that the same command with
`--resume` finds every variant that was done in the meantime.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import ClusterError, WhitError
from whit.settings import SweepSettings, as_plain
from whit.talk import Talk, size
from whit.verbs import common, runs
from whit.verbs.grid import Variant
from whit.verbs.remote import Luggage, Stopped, key_of, pack, receive, stop
from whit.verbs.trial import TRIAL_NAME, Trial

if TYPE_CHECKING:
    from whit.cluster.connection import Cluster
    from whit.cluster.sent import Sent
    from whit.evaluation.card import Card
    from whit.verbs.sweep import Place, SweepResult


def swept(
    settings: SweepSettings, variants: Sequence[Variant], run: Callable[[Place], SweepResult], talk: Talk
) -> SweepResult | Stopped:
    """Connect, hand the sweep a `There`, and end the run once its result is here."""
    from whit.cluster.connection import connected
    from whit.cluster.parcel import read_file
    from whit.cluster.sent import Sent

    once = functools.cache(read_file)  # variants share their rows, and most of them their base
    luggage = {each.name: pack(common.quantised(each.settings), read=once) for each in variants}
    keys = [key_of(each) for each in luggage.values()]
    key = hashlib.sha256(json.dumps([keys, settings.halvings]).encode()).hexdigest()[:12]
    assert settings.ray is not None
    with connected(settings.ray) as cluster:
        if settings.stop:
            return stop(cluster, key)
        sent = Sent.open(cluster, key, resume=settings.resume)
        whole = {name: content for each in luggage.values() for name, content in each.files.items()}
        if not sent.found:
            talk.say(f"sending  {size(sum(map(len, whole.values())))} to {settings.ray}")
        digests = sent.bring(whole)
        talk.say(f"run      {key}; it goes on there if this ends, and --resume attaches to it again")
        result = run(There(settings, cluster, sent, luggage, digests, talk))
        sent.close()
    return result


class There:
    """Variants as jobs of a run on a cluster."""

    def __init__(
        self,
        settings: SweepSettings,
        cluster: Cluster,
        sent: Sent,
        luggage: dict[str, Luggage],
        digests: dict[str, str],
        talk: Talk,
    ) -> None:
        self._settings, self._cluster, self._sent, self._talk = settings, cluster, sent, talk
        self._luggage, self._digests = luggage, digests
        self._jobs: dict[str, str] = {}  # the job that last tried each variant

    def try_all(self, variants: Sequence[Variant], share: float) -> Iterator[tuple[Variant, Trial | WhitError]]:
        """Submit all, and give each as it ends."""
        from whit.cluster.sent import raise_if_failed

        cpus = self._cluster.threads(self._settings.threads, len(variants))
        by_job = {f"{each.slug} {100 * share:.3g}%": each for each in variants}
        for job, variant in by_job.items():
            self._jobs[variant.name] = job
            about = self._about(variant, "whit.verbs.trial:trial_here", f"out/{variant.slug}", cpus)
            self._sent.submit(job, {**about, "share": share})
        for job, answer in self._sent.each(list(by_job), self._talk):
            try:
                raise_if_failed(answer)
                yield by_job[job], Trial.from_json(str(answer.get("trial", "")))
            except WhitError as error:
                yield by_job[job], error

    def prove(self, winner: Variant, trials: Sequence[Trial], remarks: Sequence[str]) -> Card:
        """Prove the winner there, and fetch its folder."""
        from whit.cluster.sent import raise_if_failed

        made = self._sent.files(self._jobs[winner.name])
        digests = self._sent.bring({f"winner/{name}": content for name, content in made.items() if name != TRIAL_NAME})
        folder = runs.out_folder(winner.settings)
        cpus = self._cluster.threads(self._settings.threads)
        about = self._about(winner, "whit.verbs.trial:prove_here", f"out/{folder.resolve().name}", cpus)
        about["files"] |= digests
        about |= {"trials": [trial.to_json() for trial in trials], "remarks": list(remarks)}
        self._sent.submit("proof", about)
        raise_if_failed(self._sent.follow(["proof"], self._talk)["proof"])
        card: Card = receive(self._sent.files("proof"), folder, common.quantised(winner.settings)).card
        return card

    def _about(self, variant: Variant, verb: str, out: str, cpus: int) -> dict[str, Any]:
        luggage = self._luggage[variant.name]
        missing = [name for name in luggage.files if name not in self._digests]
        if missing:
            raise ClusterError(f"{missing[0]}: was not sent; run the sweep again")
        return {
            "verb": verb, "name": variant.name, "out": out, "cpus": cpus, "base_sha256": luggage.base_sha256,
            "settings": as_plain(replace(luggage.settings, out=Path(out))),
            "files": {name: self._digests[name] for name in luggage.files},
        }  # fmt: skip
