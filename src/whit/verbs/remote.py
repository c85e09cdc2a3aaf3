"""`whit train --ray ADDRESS`: rows and settings go to a Ray cluster, the adapter's folder comes back.

What is sent: the rows' file, the settings, and the base where it is a file or folder of this machine; else its name.
What comes back: adapter, card, report and the files beside them, each checked before it is kept. The run stays on the
cluster until its result was fetched, whatever becomes of the machine that sent it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whit.errors import ClusterError, DataError, UsageError
from whit.settings import TrainSettings, as_plain
from whit.talk import Talk, size
from whit.verbs import common, runs
from whit.verbs.folders import require_replaceable
from whit.verbs.train import TrainResult

_JOB = "train"
_CODE = (".bin", ".pt", ".pth", ".pkl", ".py", ".ckpt")  # what a base's folder is never read from


@dataclass(frozen=True)
class Stopped:
    """What `--stop` did."""

    key: str
    there: bool

    def to_json(self) -> dict[str, Any]:
        """The run, and whether there was one."""
        return {"contract": common.CONTRACT, "run": self.key, "stopped": self.there}

    def to_text(self) -> str:
        """The same in words."""
        return f"run {self.key} was ended" if self.there else f"there is no run {self.key} to end"


@dataclass(frozen=True)
class Luggage:
    """What goes to a cluster: files by the names they have there, and the settings that name them so."""

    files: Mapping[str, bytes]
    settings: TrainSettings
    base_sha256: str | None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.files.values()))


def train_remote(settings: TrainSettings, *, talk: Talk | None = None) -> TrainResult | Stopped:
    """Train on the cluster at `settings.ray`, and fetch the adapter's folder.

    Raises `ClusterError`, `Interrupted` (the run goes on there), and what `train` raises.
    """
    talk = talk or Talk(quiet=True)
    common.require_finite(settings)
    settings = common.quantised(settings)
    refuse(settings)
    folder = runs.out_folder(settings)
    split = runs.read_and_split(settings, Talk(quiet=True))  # rows that cannot be used are told before they are sent
    if not settings.stop:
        require_replaceable(folder, settings, runs.command_key(settings, split))
    luggage = pack(settings)
    key = key_of(luggage)

    from whit.cluster.connection import connected
    from whit.cluster.sent import Sent, raise_if_failed

    assert settings.ray is not None
    with connected(settings.ray) as cluster:
        if settings.stop:
            return stop(cluster, key)
        cpus = cluster.threads(settings.threads)
        sent = Sent.open(cluster, key, resume=settings.resume)
        if not sent.found:
            talk.say(f"sending  {size(luggage.size)} to {settings.ray}")
        about = {
            "verb": "whit.verbs.remote:train_here", "out": str(luggage.settings.out),
            "settings": as_plain(luggage.settings), "cpus": cpus, "base_sha256": luggage.base_sha256,
            "files": sent.bring(luggage.files),
        }  # fmt: skip
        sent.submit(_JOB, about)
        talk.say(f"run      {key}; it goes on there if this ends, and --resume attaches to it again")
        answer = sent.follow([_JOB], talk)[_JOB]
        if "error" in answer and answer["error"] != "ClusterError":
            sent.close()  # it would fail the same way again
        raise_if_failed(answer)
        result = receive(sent.files(_JOB), folder, settings)
        sent.close()
    return result


def refuse(settings: TrainSettings) -> None:
    """Raise `UsageError` for what a cluster cannot do for this command."""
    if settings.data is None:
        raise UsageError("Missing argument 'DATA': the rows to learn from")
    if settings.reward or settings.per or settings.kind == "auto":
        raise UsageError("--ray trains on answers, one adapter for all: leave out --reward, --per and --kind auto")
    if settings.processes > 1 or settings.fsdp:
        raise UsageError("--processes is for this machine; on a cluster --threads says how many CPUs a run takes")
    if ":" in settings.score:
        raise UsageError(f"--score {settings.score} is code of this machine, and no code is sent to a cluster")


def pack(settings: TrainSettings, *, read: Callable[[Path], bytes] | None = None) -> Luggage:
    """Read what is to be sent, each file by `read`. Raises `DataError`, `BaseError`, `UsageError`."""
    if settings.device != "cpu":
        raise UsageError(f"--device {settings.device}: on a cluster whit computes on CPUs alone; leave it out")
    from whit.bases.names import resolve
    from whit.bases.quantize import join_name, split_name
    from whit.cluster.parcel import digest_of, read_file

    files: dict[str, bytes] = {}
    read = read or read_file

    def take(path: Path, under: str) -> Path:
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if each.is_file() and each.suffix not in _CODE:
                inside = each.relative_to(path.parent).as_posix()
                files[f"{under}/{inside}"] = read(each)
        if not any(name.startswith(f"{under}/{path.name}") for name in files):
            raise DataError(f"{path}: nothing to send in this folder")
        return Path(under) / path.name

    data = take(settings.data.absolute(), "rows")
    held = take(settings.test_data.absolute(), "held-out") if settings.test_data is not None else None
    plain, method = split_name(settings.base)
    reference, digest, base = resolve(plain), None, plain
    if reference.kind in ("file", "folder"):
        base = f"./{take(reference.path.absolute(), 'base')}"
    elif reference.present and reference.path.is_file():
        digest = digest_of(read(reference.path))
    out = Path("out") / runs.out_folder(settings).resolve().name
    sent = replace(
        settings, data=data, test_data=held, base=join_name(base, method) if method else base, out=out, ray=None,
        resume=False, overwrite=False, stop=False, threads=None,
    )  # fmt: skip
    return Luggage(files, sent, digest)


def key_of(luggage: Luggage, *more: str) -> str:
    """What a run on a cluster is known by: its settings and the content of its files."""
    digest = hashlib.sha256(json.dumps(as_plain(luggage.settings), sort_keys=True).encode())
    for name, content in sorted(luggage.files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    for each in more:
        digest.update(each.encode() + b"\0")
    return digest.hexdigest()[:12]


def stop(cluster: Any, key: str) -> Stopped:
    """End the run of that key."""
    from whit.cluster.sent import Sent

    found = Sent.find(cluster, key)
    if found is not None:
        found.close()
    return Stopped(key, found is not None)


def receive(files: Mapping[str, bytes], folder: Path, settings: TrainSettings) -> TrainResult:
    """Keep what came back, under the base's own name. Raises `ClusterError` where it is no adapter's folder."""
    from whit.adapters.adapter import Adapter
    from whit.cluster.parcel import ADAPTER_FILES, unpack
    from whit.errors import AdapterError
    from whit.evaluation.card import load_card, save_card
    from whit.verbs.prove import command_of

    unpack(files, folder, allowed=ADAPTER_FILES)
    try:
        adapter = Adapter.load(folder)
        card = load_card(folder / common.CARD_NAME)
    except (AdapterError, OSError) as error:
        raise ClusterError(f"what the cluster sent is no adapter with its card ({error})") from error
    runs.remove_other_kind(folder, adapter)
    # There the base had another name, if it was sent.
    own = {"base": settings.base, "threads": settings.threads}
    card = replace(card, base=settings.base, settings={**card.settings, **own}, command=command_of(settings))
    save_card(card, folder / common.CARD_NAME)
    return TrainResult(folder, card, adapter)


# -- in a worker of the cluster


def settings_of(job: Mapping[str, Any], talk: Talk) -> TrainSettings:
    """A job's settings, to be gone on with, with the CPUs that it was given; their base is there, and the right one."""
    from whit.verbs.worker import settings_from

    settings = replace(settings_from(json.dumps(job["settings"])), threads=int(job["cpus"]), resume=True)
    _require_base(settings, job.get("base_sha256"), talk)
    return settings


def _require_base(settings: TrainSettings, sha256: str | None, talk: Talk) -> None:
    """Fetch a base by name where it is not there, and see that it is the file of who sent the job."""
    from whit.bases.names import resolve
    from whit.bases.quantize import split_name
    from whit.cluster.parcel import digest_of

    name, _ = split_name(settings.base)
    reference = resolve(name)
    if not reference.present:
        from whit.bases.pulling import pull

        talk.say(f"{name} is not there yet; fetching it (once)")
        pull(name, progress=common.fetching(talk, name))
    if sha256 is not None and digest_of(reference.path.read_bytes()) != sha256:
        raise ClusterError(f"the base {name} is another file there than here; give the file's path, and it is sent")


def train_here(job: Mapping[str, Any], talk: Talk) -> dict[str, Any]:
    """`whit train`, in a worker."""
    from whit.verbs.train import train

    result = train(settings_of(job, talk), talk=talk)
    return {"verdict": result.card.verdict}
