"""Answers through the engine: `whit run --engine wasm`, which needs neither torch nor transformers.

The base is a GGUF file; its chat template runs in whit's sandbox. A vector adapter's basis comes from the cache, where
training or a bundle left it, and only where it is not there is it computed (which needs torch). Knows nothing of the
command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whit.adapters.sparse import SparseSpec
from whit.bases.tokenizers import END_OF_TURN
from whit.data.rows import Turn
from whit.data.templates import Template
from whit.engine.answers import Answer, advance
from whit.engine.runtime import Engine
from whit.errors import AdapterError, BaseError, DataError, WrongBase

_TOGETHER = 8


class Speaker:
    """A base in the engine, with an adapter or bare, that answers prompts."""

    def __init__(self, base: str, adapter: str | None = None) -> None:
        from whit.bases.names import resolve
        from whit.bases.quantize import split_name

        plain, method = split_name(base)
        if method is not None:
            raise BaseError(
                f"{base}: the engine reads GGUF files alone, not bases that bitsandbytes quantises; leave out --engine "
                f"wasm (an adapter of {base} is none of {plain})"
            )
        reference = resolve(base)
        if not reference.present:
            raise BaseError(f"{base} is not on this machine yet; fetch it with: whit pull {base}")
        if reference.path.suffix.lower() != ".gguf":
            raise BaseError(f"{base}: the engine runs GGUF files; leave out --engine wasm for other bases")
        self.name = reference.name
        self.engine = Engine.open(reference.path)
        eos = self.engine.sizes.eos
        bos = self.engine.sizes.bos
        words = [self.engine.decode([token], specials=True) if token is not None else "" for token in (bos, eos)]
        self.template = Template(self.engine.note("tokenizer.chat_template"), bos=words[0], eos=words[1])
        found = (self.engine.encode(token) for token in END_OF_TURN)
        self.ends = sorted({ids[0] for ids in found if len(ids) == 1} | ({eos} if eos is not None else set()))
        self.adapter = -1 if adapter is None else self._open(adapter)

    def _open(self, where: str) -> int:
        from whit.adapters import compact
        from whit.adapters.adapter import FILE_NAME
        from whit.engine.lora import load_lora

        path = Path(where)
        if where.startswith(compact.TEXT_PREFIX):
            content = compact.from_text(where)
        elif path.is_dir() and not (path / FILE_NAME).is_file():
            return load_lora(self.engine, path)
        else:
            file = path / FILE_NAME if path.is_dir() else path
            try:
                content = file.read_bytes()
            except OSError as error:
                raise AdapterError(f"{file}: cannot be read as an adapter ({error.strerror})") from error
        held = compact.unpack(content)
        if isinstance(held.spec, SparseSpec):
            raise AdapterError("the engine runs no sparse adapters; use torch, or export it with whit export --to lora")
        self.engine.add_basis(self._basis(held.base, held.basis, held.spec.rank))
        return self.engine.read_adapter(content)

    def _basis(self, base: str, basis: str, rank: int) -> bytes:
        from whit.bases.cache import cache_folder
        from whit.engine.basis import convert_basis, fingerprint_of, write_basis

        for kept in sorted((cache_folder() / "basis").glob(f"{base}*/basis-*-r{rank}.safetensors")):
            content = convert_basis(kept)
            if fingerprint_of(content).startswith(basis):  # another version of whit may have left another
                return content
        from whit.adapters.basis import basis_of
        from whit.bases import load_base

        loaded = load_base(self.name)
        if not loaded.fingerprint.startswith(base):
            raise WrongBase(f"this adapter was made for the base {base}, but {self.name} is {loaded.fingerprint[:16]}")
        return write_basis(basis_of(loaded, rank))

    def answers(
        self,
        prompts: Sequence[str],
        *,
        instruction: str | None = None,
        most: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """The answer to each prompt. Raises `DataError` for one that leaves no room in the context."""
        room = self.engine.sizes.context
        found: list[str] = []
        for start in range(0, len(prompts), _TOGETHER):
            begun: list[Answer] = []
            try:
                for place, prompt in enumerate(prompts[start : start + _TOGETHER], start):
                    ids = self.engine.encode(self.template.render([Turn("user", prompt)], instruction=instruction))
                    if len(ids) >= room:
                        raise DataError(f"the prompt has {len(ids)} tokens; {self.name} takes {room - 1} at most")
                    begun.append(
                        self.engine.ask(
                            ids,
                            adapter=self.adapter,
                            most=min(most, room - len(ids)),
                            temperature=temperature,
                            top_p=top_p,
                            seed=seed + place,
                            ends=self.ends,
                        )
                    )
                while advance(begun):
                    pass
                found += [answer.take() for answer in begun]
            finally:
                for answer in begun:
                    answer.close()
        return found
