"""Sparse adapters: their places and files round trip, and the layer computes what the changed matrix would."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whit.adapters.adapter import Adapter
from whit.adapters.compact import NUMBER_TYPES, pack, round_to, unpack
from whit.adapters.interop.check import logits
from whit.adapters.interop.plain_lora import as_lora
from whit.adapters.sparse import MAX_MODULES, MAX_PLACES, SparseSpec, decode, encode, most_bytes
from whit.adapters.targets import all_targets
from whit.adapters.tunable import BoundSparse, bind, tune_sparse
from whit.bases import Base
from whit.errors import AdapterError, DamagedAdapter, UsageError, WrongBase

BASE = "0123456789abcdef"


@st.composite
def specs(draw: st.DrawFn) -> SparseSpec:
    """Any sparse spec: few or many places, near each other or far, in small matrices or huge ones."""
    stride = draw(st.integers(1, 1 << 12) | st.integers(1, (1 << 32) - 1))
    most = draw(st.sampled_from([min(300, MAX_MODULES * stride - 1), MAX_MODULES * stride - 1]))
    places = draw(st.sets(st.integers(0, most), min_size=1, max_size=60))
    return SparseSpec(stride, tuple(sorted(places)))


@settings(max_examples=300, deadline=None)
@given(specs())
@example(SparseSpec(1, (0,)))
@example(SparseSpec((1 << 32) - 1, (MAX_MODULES * ((1 << 32) - 1) - 1,)))
@example(SparseSpec(4096, tuple(range(2000))))
def test_places_round_trip_in_few_bits(spec: SparseSpec) -> None:
    k, content = encode(spec.places)
    assert decode(content, spec.numbers, k) == spec.places
    assert len(content) <= most_bytes(spec.numbers)
    # Elias-Fano: two bits above the logarithm of the mean gap, and the rounding to whole bytes of two parts.
    gap = (spec.places[-1] + 1) / spec.numbers
    assert len(content) <= spec.numbers * (2 + max(0.0, np.log2(gap))) / 8 + 3
    for target in spec.targets:
        part, positions = spec.within(target)
        assert [target * spec.stride + int(at) for at in positions] == list(spec.places[part])


@settings(max_examples=150, deadline=None)
@given(specs(), st.sampled_from(list(NUMBER_TYPES)), st.integers(0, 2**32 - 1))
def test_the_file_round_trips(spec: SparseSpec, number_type: str, seed: int) -> None:
    vector = np.random.default_rng(seed).normal(size=spec.numbers).astype(np.float32)
    content = pack(spec, vector, number_type=number_type, base=BASE, basis="", layers=255)
    held = unpack(content)
    assert (held.spec, held.number_type, held.base, held.basis, held.layers) == (spec, number_type, BASE, "", 255)
    assert held.vector.tobytes() == round_to(vector, number_type).tobytes()
    adapter = Adapter.from_bytes(content)
    assert adapter.to_bytes() == content and Adapter.from_text(adapter.to_text()).sparse == spec
    assert adapter.payload_bytes == len(content) - 34 - 4


def _some() -> bytes:
    spec = SparseSpec(1000, (3, 17, 999, 1000, 5400, 20999))
    return pack(spec, np.ones(6, np.float32), number_type="bfloat16", base=BASE, basis="", layers=3)


def test_every_corrupted_byte_and_length_is_refused() -> None:
    content = _some()
    for place in range(len(content)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= change
            with pytest.raises(DamagedAdapter):
                unpack(bytes(damaged))
    for length in range(len(content)):
        with pytest.raises(DamagedAdapter):
            unpack(content[:length])
    with pytest.raises(DamagedAdapter):
        unpack(content + b"\0")


def _forged(change: int, at: int, size: str) -> bytes:
    """The file with a field overwritten and its checksum made right."""
    forged = bytearray(_some()[:-4])
    struct.pack_into(size, forged, at, change)
    return bytes(forged) + struct.pack("<I", zlib.crc32(bytes(forged)))


@pytest.mark.parametrize(
    ("change", "at", "size"),
    [
        (MAX_PLACES + 1, 14, "<I"),  # more places than any has
        (0, 14, "<I"),
        (0, 26, "<I"),  # a stride of nothing
        (100, 26, "<I"),  # a stride that puts the places in modules that the base does not have
        (1 << 31, 30, "<I"),  # more bytes of places than there are
        (1, 8, "<B"),  # a field that means nothing here
        (1, 10, "<H"),
        (45, 7, "<B"),
        (3, 7, "<B"),  # another k than whit would take
        (1, 9, "<B"),  # fewer layers than it moves
    ],
)
def test_what_whit_would_not_write_is_refused(change: int, at: int, size: str) -> None:
    with pytest.raises(DamagedAdapter):
        unpack(_forged(change, at, size))


def test_specs_that_cannot_be() -> None:
    for stride, places in ((0, (1,)), (10, ()), (10, (3, 3)), (10, (4, 3)), (10, (-1,)), (10, (MAX_MODULES * 10,))):
        with pytest.raises(UsageError):
            SparseSpec(stride, places)


# --- in a model ------------------------------------------------------------------------------------------------------


def _spec(base: Base, numbers: int = 20, seed: int = 0) -> SparseSpec:
    targets = all_targets(name for name, _ in base.model.named_modules())
    sizes = [base.model.get_submodule(target.name).weight.numel() for target in targets]
    draw, stride = np.random.default_rng(seed), max(sizes)
    chosen = draw.integers(len(targets), size=numbers)
    places = {targets[at].index * stride + int(draw.integers(sizes[at])) for at in chosen}
    return SparseSpec(stride, tuple(sorted(places)))


def _adapter(base: Base, spec: SparseSpec, seed: int = 0) -> Adapter:
    vector = np.random.default_rng(seed).normal(size=spec.numbers).astype(np.float32)
    return Adapter.from_sparse(spec, vector, base)


def _by_hand(base: Base, adapter: Adapter, ids: torch.Tensor) -> torch.Tensor:
    """Logits with the numbers added to the weights themselves, which are put back."""
    assert adapter.sparse is not None and adapter.vector is not None
    before = {name: part.clone() for name, part in base.model.state_dict().items()}
    names = {target.index: target.name for target in all_targets(name for name, _ in base.model.named_modules())}
    with torch.no_grad():
        for place, value in zip(adapter.sparse.places, adapter.vector, strict=True):
            module, position = divmod(place, adapter.sparse.stride)
            base.model.get_submodule(names[module]).weight.view(-1)[position] += float(value)
        found = logits(base.model, ids)
        base.model.load_state_dict(before)
    return found


def test_it_computes_what_the_changed_weights_would(base: Base, ids: torch.Tensor) -> None:
    adapter = _adapter(base, _spec(base))
    bare, wanted = logits(base.model, ids), _by_hand(base, adapter, ids)
    bound = bind(base, adapter)
    try:
        assert isinstance(bound, BoundSparse) and torch.equal(logits(base.model, ids), bare)
        with bound.active():
            torch.testing.assert_close(logits(base.model, ids), wanted, rtol=1e-4, atol=1e-4)
        assert float((wanted - bare).abs().max()) > 1e-2
        assert bound.export().to_bytes() == adapter.to_bytes()
    finally:
        bound.detach()


def test_rows_of_a_batch_bring_their_own_numbers_and_take_their_own_gradients(base: Base, ids: torch.Tensor) -> None:
    spec = _spec(base)
    bound = tune_sparse(base, spec)
    each = torch.randn(len(ids), spec.numbers, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    try:
        with bound.rows(each):
            together = base.model(input_ids=ids, use_cache=False).logits
        (gradients,) = torch.autograd.grad(together.square().sum(), each)
        for row in range(len(ids)):
            with torch.no_grad():
                bound.v.copy_(each[row])
            with bound.active():
                alone = base.model(input_ids=ids[row : row + 1], use_cache=False).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
            (gradient,) = torch.autograd.grad(alone.square().sum(), bound.v)
            torch.testing.assert_close(gradients[row], gradient, rtol=1e-3, atol=1e-3)
        with pytest.raises(AdapterError, match="2 adapters were set for a batch of 4"), bound.rows(each[:2]):
            base.model(input_ids=ids)
    finally:
        bound.detach()


def test_as_a_lora_it_is_the_same(base: Base, ids: torch.Tensor) -> None:
    spec = _spec(base, 60)
    width = base.model.config.hidden_size
    row = SparseSpec(spec.stride, tuple(range(3, 9)))  # one row, six columns: rank one, either way round
    column = SparseSpec(spec.stride, tuple(width * at for at in range(6)))
    for chosen, rank in ((spec, None), (row, 1), (column, 1)):
        adapter = _adapter(base, chosen)
        weights = as_lora(adapter, base)
        assert rank is None or weights.rank == rank
        wanted = _by_hand(base, adapter, ids)
        bound = bind(base, Adapter(kind="lora", base=base.fingerprint, lora=weights))
        try:
            with bound.active():
                torch.testing.assert_close(logits(base.model, ids), wanted, rtol=1e-4, atol=1e-4)
        finally:
            bound.detach()


def test_a_server_takes_it_as_the_lora_that_it_is(base: Base) -> None:
    from whit.serving.payload import kind_of, to_payload
    from whit.serving.pool import Pool

    pool = Pool(base)
    adapter = _adapter(base, _spec(base, 30))
    payload = to_payload(adapter)
    served = pool.ready(payload)
    assert kind_of(payload) == "sparse" and served.A is not None and served.B is not None and served.R is None
    assert adapter.sparse is not None and adapter.vector is not None
    names = {target.index: target.name for target in all_targets(name for name, _ in base.model.named_modules())}
    for index in adapter.sparse.targets:
        part, positions = adapter.sparse.within(index)
        update = (served.B[names[index]] @ served.A[names[index]]).flatten()
        wanted = torch.zeros_like(update)
        wanted[torch.from_numpy(positions)] = torch.from_numpy(adapter.vector[part])
        torch.testing.assert_close(update, wanted)
    assert served.rank <= 30 and len(served.A) == len(adapter.sparse.targets)
    with pytest.raises(UsageError, match="up to 256 numbers"):
        pool.ready(to_payload(_adapter(base, _spec(base, 400))))


def test_another_base_is_refused(base: Base, tmp_path: Path) -> None:
    adapter = _adapter(base, _spec(base))
    path = adapter.save(tmp_path)
    again = Adapter.load(path)
    assert again == adapter or again.to_bytes() == adapter.to_bytes()
    other = bytearray(adapter.to_bytes()[:-4])
    other[18] ^= 1
    forged = Adapter.from_bytes(bytes(other) + struct.pack("<I", zlib.crc32(bytes(other))))
    with pytest.raises(WrongBase):
        bind(base, forged)
    # The right fingerprint does not make up for a weight that is not there.
    stride = adapter.sparse.stride if adapter.sparse else 0
    small = min(
        (target for target in all_targets(name for name, _ in base.model.named_modules())),
        key=lambda target: base.model.get_submodule(target.name).weight.numel(),
    )
    beyond = SparseSpec(stride, (small.index * stride + stride - 1,))
    with pytest.raises(AdapterError, match="another base"):
        bind(base, Adapter.from_sparse(beyond, np.ones(1, np.float32), base))
    with pytest.raises(AdapterError, match="another base"):
        as_lora(Adapter.from_sparse(beyond, np.ones(1, np.float32), base), base)


def test_two_adapters_at_once_are_refused(base: Base) -> None:
    spec = _spec(base)
    bound = tune_sparse(base, spec)
    try:
        with pytest.raises(AdapterError, match=r"already adapted|is adapted"):
            tune_sparse(base, spec)
    finally:
        bound.detach()
