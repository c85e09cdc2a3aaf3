"""`whit bundle`: a folder for any static host: a page that runs, teaches and shares adapters with the network off."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import UsageError
from whit.settings import BundleSettings
from whit.talk import Talk, size
from whit.verbs import common

if TYPE_CHECKING:
    from whit.bundle.pack import Packed
    from whit.verbs.common import Specialist


@dataclass(frozen=True)
class BundleResult:
    """What was written where, and how large its parts are, in bytes."""

    out: str
    base: str
    adapters: tuple[str, ...]
    files: int
    bytes: int
    base_bytes: int
    engine_bytes: int
    adapter_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit bundle --json`."""
        return {"contract": common.CONTRACT, **vars(self), "adapters": list(self.adapters)}

    def to_text(self) -> str:
        """A few lines to read."""
        held = ", ".join(self.adapters) or "none"
        parts = f"base {size(self.base_bytes)}, both engines {size(self.engine_bytes)}"
        return "\n".join(
            [
                f"{self.out}: {size(self.bytes)} in {self.files} files ({parts}, adapters {size(self.adapter_bytes)})",
                f"base      {self.base}",
                f"adapters  {held}",
                "Put the folder on any static host (https), or look at it now: whit bundle … --open",
            ]
        )


def bundle(settings: BundleSettings, *, talk: Talk | None = None) -> BundleResult:
    """Write the folder, and with `open` serve it until interrupted.

    Raises `UsageError` where adapters have different bases, and what `whit.bundle.pack.pack` raises.
    """
    from whit.bundle.pack import pack

    talk = talk or Talk(quiet=True)
    specials = [common.open_specialist(where) for where in settings.adapters]
    base = common.open_base(_base_name(settings, specials), dtype="auto", threads=None, talk=talk)
    packed = [_packed(where, special) for where, special in zip(settings.adapters, specials, strict=True)]
    with talk.task(f"Writing {settings.out}"):
        made = pack(settings.out, base, packed, title=settings.title or "")

    def under(folder: str) -> int:
        return sum(count for name, count in made.sizes.items() if name.startswith(folder))

    result = BundleResult(
        out=str(settings.out),
        base=base.name,
        adapters=tuple(item.name for item in packed),
        files=len(made.sizes),
        bytes=made.bytes,
        base_bytes=made.sizes[made.base_file],
        engine_bytes=under("engine/"),
        adapter_bytes=under("adapters/"),
    )
    if settings.open:
        _serve(settings, talk)
    return result


def _base_name(settings: BundleSettings, specials: list[Specialist]) -> str:
    if settings.base:
        return settings.base
    if not specials:
        raise UsageError("nothing to bundle: name an adapter, or a base with --base")
    names = [special.base_name(None) for special in specials]
    if len(set(names)) > 1:
        raise UsageError(f"a bundle has one base, but these adapters have {', '.join(sorted(set(names)))}")
    return names[0]


def _packed(where: str, special: Specialist) -> Packed:
    from whit.bundle.pack import Packed, plain_name

    if special.adapter.sparse is not None:
        raise UsageError(f"{where}: the page runs no sparse adapters; bundle what whit export --to lora makes of it")
    folder = special.folder
    path = Path(where)
    name = plain_name(folder.resolve().name if folder else path.stem if special.adapter.spec and path.exists() else "")
    wanted = [common.CARD_NAME] if special.card else []
    if special.adapter.spec is None:
        wanted += ["adapter_config.json", "adapter_model.safetensors"]
    held = {each: ((folder or path) / each).read_bytes() for each in wanted}
    return Packed(name, special.adapter, special.card, held)


def _serve(settings: BundleSettings, talk: Talk) -> None:
    import webbrowser

    from whit.bundle.server import make_server

    try:
        server = make_server(settings.out, settings.port)
    except OSError as error:
        raise UsageError(f"--port {settings.port}: cannot be used ({error.strerror}); leave it out") from error
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    talk.say(f"{address} (Ctrl-C ends)")
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()
