"""`whit store`: adapters by name and version, in one file or a PostgreSQL database.

An adapter is read and checked before it is added. Loads neither a base nor a server.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import AdapterError, UsageError
from whit.settings import StoreSettings
from whit.talk import Talk, several, size
from whit.verbs import common

if TYPE_CHECKING:
    from whit.serving.store import Store


@dataclass(frozen=True)
class StoreResult:
    """What was done or found: `about` as plain values, `text` for people."""

    about: dict[str, Any]
    text: str

    def to_json(self) -> dict[str, Any]:
        """`action` and what it found; see docs/json.md."""
        return {"contract": common.CONTRACT, **self.about}

    def to_text(self) -> str:
        """For people."""
        return self.text


def store(settings: StoreSettings, *, talk: Talk | None = None) -> StoreResult:
    """Do one thing with a store. Raises `UsageError`, `AdapterError` or `StorageError`."""
    from whit.serving.store import open_store

    least, most, action = _ACTIONS[settings.action]
    if not least <= len(settings.words) <= most:
        raise UsageError(f"whit store {settings.action} {_USES[settings.action]}".rstrip())
    makes = settings.action in ("add", "import", "token")
    with open_store(settings.store, create=makes) as opened:
        about, text = action(opened, settings)
    return StoreResult({"action": settings.action, **about}, text)


def _who(settings: StoreSettings) -> str:
    if settings.by:
        return settings.by
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _add(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    from whit.adapters import learned
    from whit.serving.names import check_name
    from whit.serving.payload import basis_name, to_payload
    from whit.serving.store import Item, NotFound

    name, where = settings.words
    check_name(name)
    special = common.open_specialist(where)
    card = special.card.to_json() if special.card else dict(special.notes) or None
    payload = to_payload(special.adapter)
    labels = (settings.label,) if settings.label else ()
    items = [Item(name, payload, card, labels)]
    if (basis := learned.find(special.adapter.basis)) is not None:
        try:
            opened.find(basis_name(basis.fingerprint))
        except NotFound:
            items.insert(0, Item(basis_name(basis.fingerprint), basis.to_bytes()))
    version = opened.add_many(items, by=_who(settings))[-1]
    about = {"name": name, "version": version, "kind": special.adapter.kind, "bytes": len(payload)}
    return about, f"{name}@{version}: {special.adapter.kind}, {size(len(payload))}"


def _list(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    prefix = settings.words[0] if settings.words else ""
    found = opened.listing(prefix=prefix, after=settings.after or "", limit=settings.limit)
    adapters = [
        {
            "name": entry.name, "version": entry.version, "versions": entry.versions, "kind": entry.kind,
            "bytes": entry.bytes, "labels": dict(entry.labels), "at": _time(entry.at), "by": entry.by,
        }
        for entry in found
    ]  # fmt: skip
    width = max((len(entry.name) for entry in found), default=0)
    lines = [
        f"{entry.name:<{width}}  @{entry.version}  {entry.kind:<4}  {size(entry.bytes):>9}  {_time(entry.at)}"
        + "".join(f"  {label}=@{version}" for label, version in sorted(entry.labels.items()))
        for entry in found
    ]
    if len(found) == settings.limit:
        lines.append(f"… go on with --after {found[-1].name}")
    return {"adapters": adapters}, "\n".join(lines)


def _show(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    from whit.adapters.learned import LearnedBasis
    from whit.serving.payload import from_payload, kind_of

    held = opened.find(settings.words[0], card=True)
    try:
        if kind_of(held.payload) == "basis":
            basis = LearnedBasis.from_bytes(held.payload)
            described = {"kind": "basis", "numbers": basis.P.size, "rank": basis.rank, "base": basis.base}
        else:
            described = from_payload(held.payload).describe()
    except AdapterError as error:
        raise AdapterError(f"{held.name}@{held.version}: {error}") from error
    labels = opened.labels(held.name)
    versions = [each.version for each in opened.versions(held.name)]
    history = [
        {"at": _time(each.at), "by": each.by, "what": each.what, "version": each.version, "detail": each.detail}
        for each in opened.history(held.name, limit=settings.limit)
    ]
    about = {
        "name": held.name, "version": held.version, "versions": versions, "labels": labels, "bytes": len(held.payload),
        "sha256": held.digest.hex(), "at": _time(held.at), "by": held.by, **described, "card": held.card,
        "history": history,
    }  # fmt: skip
    lines = [f"{held.name}@{held.version}  {described['kind']}, {described['numbers']:,} numbers, by {held.by}"]
    lines.append("versions " + " ".join(f"@{version}" for version in versions))
    if labels:
        lines.append("labels   " + " ".join(f"{label}=@{version}" for label, version in sorted(labels.items())))
    if held.card and held.card.get("result"):
        lines.append(f"verdict  {held.card['result']['sentence']}")
    lines += [
        f"{each['at']}  {each['by']}: {each['what']}"
        + (f" @{each['version']}" if each["version"] else "")
        + (f" {each['detail']}" if each["detail"] else "")
        for each in history
    ]
    return about, "\n".join(lines)


def _label(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    from whit.serving.names import parse_reference

    asked, label = parse_reference(settings.words[0]), settings.words[1]
    if settings.remove:
        opened.label(asked.name, label, None, by=_who(settings))
        return {"name": asked.name, "label": label, "version": None}, f"{asked.name}: {label} taken away"
    version = opened.find(str(asked)).version
    opened.label(asked.name, label, version, by=_who(settings))
    return {"name": asked.name, "label": label, "version": version}, f"{asked.name}: {label} is @{version}"


def _rollback(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    name = settings.words[0]
    version = opened.rollback(name, by=_who(settings), to=settings.to, label=settings.label)
    what = f"{name}@{settings.label}" if settings.label else name
    return {"name": name, "label": settings.label, "version": version}, f"{what} is @{version} now"


def _remove(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    from whit.serving.names import parse_reference

    asked = parse_reference(settings.words[0])
    if asked.label is not None:
        raise UsageError("whit store rm takes a name or a version (alice@3); take a label away with label --remove")
    gone = opened.remove(asked.name, by=_who(settings), version=asked.version)
    return {"name": str(asked), "removed": gone}, f"{asked}: {several(gone, 'version')} deleted"


def _export(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    path = Path(settings.words[0])
    count = opened.export(path)
    bytes_ = path.stat().st_size
    return {"path": str(path), "versions": count, "bytes": bytes_}, f"{count:,} versions, {size(bytes_)}: {path}"


def _import(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    added, there = opened.import_file(settings.words[0], by=_who(settings))
    return {"added": added, "there": there}, f"{added:,} versions added, {there:,} were there already"


def _token(opened: Store, settings: StoreSettings) -> tuple[dict[str, Any], str]:
    from whit.serving.auth import Rights, new_token

    if not settings.words:
        listed = [{"name": name, **rights, "at": _time(at)} for name, rights, at in opened.tokens()]
        lines = [f"{each['name']}  use {' '.join(each['use']) or '-'}  change {' '.join(each['change']) or '-'}"
                 f"  {each['rate'] or 'no'} a minute  {each['at']}" for each in listed]  # fmt: skip
        return {"tokens": listed}, "\n".join(lines)
    name = settings.words[0]
    if settings.remove:
        opened.remove_token(name, by=_who(settings))
        return {"name": name, "token": None}, f"{name}: token taken away"
    rights = Rights(tuple(settings.use), tuple(settings.change), settings.rate)
    secret, digest = new_token()
    opened.add_token(name, digest, rights.to_json(), by=_who(settings))
    return {"name": name, "token": secret, **rights.to_json()}, secret


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


_Action = Callable[["Store", StoreSettings], tuple[dict[str, Any], str]]
_ACTIONS: dict[str, tuple[int, int, _Action]] = {
    "add": (2, 2, _add),
    "list": (0, 1, _list),
    "show": (1, 1, _show),
    "label": (2, 2, _label),
    "rollback": (1, 1, _rollback),
    "rm": (1, 1, _remove),
    "export": (1, 1, _export),
    "import": (1, 1, _import),
    "token": (0, 1, _token),
}
_USES = {
    "add": "NAME ADAPTER: a name (team/alice), and a folder, file or text form",
    "list": "[PREFIX]",
    "show": "NAME[@VERSION]",
    "label": "NAME[@VERSION] LABEL",
    "rollback": "NAME [--to VERSION] [--label LABEL]",
    "rm": "NAME[@VERSION]",
    "export": "FILE",
    "import": "FILE",
    "token": "[NAME] [--use PATTERN] [--change PATTERN] [--rate N] [--remove]",
}
