"""A base's tokenizer and chat template, from a transformers folder or from GGUF metadata.

Promises that a tokenizer never runs code and never reaches the network, and that special tokens of a
GGUF are known as such. Knows nothing of rows: it turns text into ids and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.bases.configs import MAX_JSON, read_json
from whit.errors import BaseError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TEMPLATE = 1024 * 1024
#: tokens that end a turn in one chat format or another
END_OF_TURN = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "</s>",
    "<eos>",
)
# llama.cpp's token types
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"  # how sentencepiece writes a space

# llama.cpp's names of splits (tokenizer.ggml.pre) -> regular expression (llama.cpp, src/llama-vocab.cpp)
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {
    "llama-bpe": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "deepseek-r1-qwen": _QWEN2_SPLIT,
}
_DIGITS_FIRST = ("smollm", "refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b")
_GPT2 = ("default", "gpt-2", "gpt2", "")


@dataclass(frozen=True)
class Words:
    """A tokenizer with what belongs to it. `template` is Jinja source, or None."""

    tokenizer: Any
    template: str | None
    bos: str
    eos: str


def folder_words(folder: Path) -> Words:
    """From tokenizer.json, tokenizer_config.json and chat_template.jinja. Raises `BaseError`."""
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BaseError(
            f"{folder} has no tokenizer.json. Make one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    if path.stat().st_size > MAX_JSON:
        raise BaseError(f"{path} is larger than {MAX_JSON} bytes, which no tokenizer is.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise BaseError(f"{path} is no tokenizer that can be read ({error}); fetch or copy it again.") from None
    described = folder / "tokenizer_config.json"
    settings = read_json(described) if described.is_file() else {}
    names = {key: _content(settings.get(f"{key}_token")) for key in ("bos", "eos", "pad", "unk")}
    return _words(backend, names, _folder_template(folder, settings))


def gguf_words(metadata: Mapping[str, Any], where: Path) -> Words:
    """From GGUF metadata. Raises `BaseError`."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise BaseError(f"{where} holds no tokenizer; fetch or convert the file again.")
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise BaseError(f"{where}: the tokenizer kind {kind!r} is not supported (gpt2 and llama are).")
    try:
        build = _byte_level if kind == "gpt2" else _sentencepiece
        backend, tokens = build(metadata, tokens, where)
        _add_special(backend, metadata, tokens)
    except BaseError:
        raise
    except Exception as error:  # the library raises a bare Exception, and the metadata may be anything
        raise BaseError(f"{where}: its tokenizer cannot be built ({error}).") from None
    names = {}
    for key, entry in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = metadata.get(f"tokenizer.ggml.{entry}_token_id")
        names[key] = tokens[index] if type(index) is int and 0 <= index < len(tokens) else None
    template = metadata.get("tokenizer.chat_template")
    return _words(backend, names, template if isinstance(template, str) else None)


def stop_ids(words: Words, *configured: Any) -> tuple[int, ...]:
    """Ids that end an answer: the end of text, the ends of a turn, and what a configuration names."""
    found: set[int] = set()
    for value in configured:
        found.update(item for item in (value if isinstance(value, list) else [value]) if type(item) is int)
    # Only special tokens count: Gemma's vocabulary has "</s>" as plain text, of HTML.
    special = {item.content: index for index, item in words.tokenizer.added_tokens_decoder.items() if item.special}
    found.update(special[token] for token in (words.eos, *END_OF_TURN) if token in special)
    return tuple(sorted(found))


def _words(backend: Any, names: Mapping[str, str | None], template: str | None) -> Words:
    from transformers import PreTrainedTokenizerFast

    if template is not None and len(template) > MAX_TEMPLATE:
        raise BaseError(f"the chat template is {len(template)} characters long, which none of a base is.")
    known = {key: token for key, token in names.items() if token and backend.token_to_id(token) is not None}
    pad = known.get("pad") or known.get("eos") or known.get("unk")
    given = {f"{key}_token": token for key, token in (known | ({"pad": pad} if pad else {})).items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **given)
    tokenizer.chat_template = template
    return Words(tokenizer, template, known.get("bos") or "", known.get("eos") or "")


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _folder_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    apart = folder / "chat_template.jinja"
    if apart.is_file():
        if apart.stat().st_size > MAX_TEMPLATE:
            raise BaseError(f"{apart} is larger than {MAX_TEMPLATE} bytes, which no chat template is.")
        return apart.read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several templates by name; "default" is the one for chat
        by_name = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = by_name.get("default")
    return template if isinstance(template, str) else None


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], where: Path) -> tuple[Any, list[str]]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = []
    for merge in metadata.get("tokenizer.ggml.merges") or []:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif name in _DIGITS_FIRST:
        digits = pre_tokenizers.Digits(individual_digits=True)
        steps = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif name in _GPT2:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        raise BaseError(
            f"{where}: the tokenizer splits text by {name!r}, which is not supported; use the model's "
            "transformers folder instead."
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    return backend, tokens


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], where: Path) -> tuple[Any, list[str]]:
    """Sentencepiece's BPE as `tokenizers` has it; merges are recovered from the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
    if gemma:
        # Runs of spaces are stored as such, but are looked up in sentencepiece's spelling.
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise BaseError(f"{where}: its tokenizer has no scores for its {len(tokens)} tokens.")
    # Gemma's scores do not follow its merges; the order in the file does.
    rank = range(len(tokens)) if gemma else [-score for score in scores]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _recover_merges(vocabulary, dict(zip(tokens, rank, strict=True)))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=tokens[unknown] if type(unknown) is int and 0 <= unknown < len(tokens) else None,
        )
    )
    replace = normalizers.Replace(" ", _SPACE)
    prefixed = not gemma and metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefixed else replace
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return backend, tokens


def _recover_merges(vocabulary: Mapping[str, int], rank: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every split of a token into two tokens, best first (transformers' `generate_merges` rule)."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for token in vocabulary:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((rank[token], vocabulary[left], vocabulary[right], (left, right)))
    found.sort(key=lambda item: item[:3])
    return [pair for *_, pair in found]


def _add_special(backend: Any, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list):
        return
    pairs = list(zip(tokens, kinds, strict=False))
    control = [AddedToken(token, normalized=False, special=True) for token, kind in pairs if kind == _CONTROL]
    plain = [AddedToken(token, normalized=False, special=False) for token, kind in pairs if kind == _USER_DEFINED]
    backend.add_special_tokens(control)
    backend.add_tokens(plain)
