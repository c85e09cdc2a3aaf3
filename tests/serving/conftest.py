"""A real PostgreSQL server where the machine has one, and a tiny base with adapters of every kind."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that no other test and no user shares; one thread, so that sums have one order."""
    import torch

    folder = tmp_path_factory.mktemp("cache")
    before, threads = os.environ.get("WHIT_CACHE"), torch.get_num_threads()
    os.environ["WHIT_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["WHIT_CACHE"]
    else:
        os.environ["WHIT_CACHE"] = before


class GivenPostgres:
    """A server that runs already, named by WHIT_POSTGRES; its databases are dropped at the end."""

    def __init__(self, address: str) -> None:
        self._address, self._made = address, list[str]()
        with self._connect():
            pass

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(self._address, autocommit=True, connect_timeout=10)

    def address(self) -> str:
        """The address of a fresh database."""
        name = f"whit_test_{uuid4().hex}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        self._made.append(name)
        given = urlsplit(self._address)  # urlunsplit would drop the slashes of an empty host
        return f"{given.scheme}://{given.netloc}/{name}?{given.query}"

    def stop(self) -> None:
        """Drop what was made."""
        with self._connect() as connection:
            for name in self._made:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class Postgres:
    """A server of one's own in a temporary folder, reached through a socket in it."""

    def __init__(self, programs: Path) -> None:
        self.programs, self.folder = programs, Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        self.options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.options |= {"user": user.pw_uid, "group": user.pw_gid}
        self._run("initdb", "-D", f"{self.folder}/data", "-A", "trust", "-U", "whit", "--no-sync")
        self.databases = 0
        self.start()

    def _run(self, program: str, *words: str) -> None:
        subprocess.run([self.programs / program, *words], check=True, timeout=60, **self.options)

    def start(self) -> None:
        log, where = f"{self.folder}/log", f"-k {self.folder} -c listen_addresses= -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-l", log, "-o", where, "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def address(self) -> str:
        """The address of a fresh database."""
        import psycopg

        self.databases += 1
        name = f"store{self.databases}"
        with psycopg.connect(f"postgresql:///postgres?host={self.folder}&user=whit", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return f"postgresql:///{name}?host={self.folder}&user=whit"


@pytest.fixture(scope="session")
def postgres() -> Iterator[GivenPostgres | Postgres]:
    """The server that WHIT_POSTGRES names, as .ci/run starts one; else one of our own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if given := os.environ.get("WHIT_POSTGRES"):
        there = GivenPostgres(given)
        yield there
        there.stop()
        return
    yield from _own_postgres()


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may stop and start."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    yield from _own_postgres()


def _own_postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = found[-1] if found else shutil.which("initdb") or ""
    if not program:
        pytest.skip("PostgreSQL's server programs are not installed")
    try:
        server = Postgres(Path(program).parent)
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Any:
    """The tiny base."""
    from whit.testing import tiny_base

    return tiny_base(tmp_path_factory.mktemp("base") / "tiny", layers=2, context=256)


@pytest.fixture(scope="session")
def make(base: Any) -> Callable[..., Any]:
    """`make("tiny", seed)`: an adapter with random numbers, large enough to change answers."""
    return maker(base)


def maker(base: Any) -> Callable[..., Any]:
    """The same for any base."""
    import torch

    from whit.adapters.adapter import Adapter
    from whit.adapters.basis import basis_of
    from whit.adapters.lora import LoraWeights
    from whit.adapters.targets import all_targets
    from whit.adapters.vector import tiny_spec, xs_spec

    targets = all_targets(name for name, _ in base.model.named_modules())
    indices = [target.index for target in targets]

    def adapter(kind: str = "tiny", seed: int = 0, *, rank: int = 2, scale: float = 1.0) -> Adapter:
        draw = np.random.default_rng(seed)
        if kind == "lora":
            generator = torch.Generator().manual_seed(seed)
            some = targets[seed % 2 :]
            shapes = {each.name: base.model.get_submodule(each.name).weight.shape for each in some}
            A = {name: 0.3 * torch.randn((rank, s[1]), generator=generator) for name, s in shapes.items()}
            B = {name: 0.3 * torch.randn((s[0], rank), generator=generator) for name, s in shapes.items()}
            weights = LoraWeights(rank, 2.0 * rank, A, B, base.fingerprint, base.name)
            return Adapter("lora", base.fingerprint, lora=weights, number_type="float32")
        spec = tiny_spec(indices, 13, rank=rank) if kind == "tiny" else xs_spec(indices[seed % 3 :], rank)
        vector = (scale * draw.normal(size=spec.numbers)).astype(np.float32)
        return Adapter.from_vector(spec, vector, basis_of(base, rank))

    return adapter
