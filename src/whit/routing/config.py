"""`tiers.toml`: tiers in order of cost, policies, tenants, detectors; read whole or refused with a line.

Promises that a config which was read names no tier twice, has every key it needs in the environment, no negative
price, and policies that name tiers that exist. Destinations come from here alone. Knows nothing of requests.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from whit.routing.clearance import Policy
from whit.routing.ledger import is_address
from whit.routing.tables import Table, near, read_toml

KINDS = ("whit", "openai", "anthropic")
PERIODS = ("hour", "day", "month", "ever")
DETECTED = ("card", "iban", "national_id", "document", "email", "phone", "ip", "key", "term", "person", "place",
            "health")  # fmt: skip


@dataclass(frozen=True)
class Tier:
    """A place where a request may be answered. Prices are for a million tokens, in the file's currency."""

    name: str
    kind: str
    inside: bool
    model: str
    url: str = ""
    key: str = field(default="", repr=False)
    adapter: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    input_price: float = 0.0
    output_price: float = 0.0
    timeout: float = 60.0
    retries: int = 2
    max_tokens: int = 4096
    concurrency: int = 64

    @property
    def free(self) -> bool:
        """Whether asking costs nothing."""
        return self.input_price == 0 and self.output_price == 0

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost here."""
        return (tokens_in * self.input_price + tokens_out * self.output_price) / 1e6


@dataclass(frozen=True)
class Route:
    """What a client may ask for as `model`: a department or a task."""

    name: str
    policy: str | None = None
    start: str | None = None
    adapter: str | None = None
    min_confidence: float | None = None
    min_least: float | None = None
    must_match: str | None = None
    agree: bool = False


@dataclass(frozen=True)
class Tenant:
    """Who asks: by token, under a policy, within a budget."""

    name: str
    policy: str
    token: str = field(default="", repr=False)
    budget: float | None = None
    period: str = "month"


@dataclass(frozen=True)
class Detection:
    """What is looked for, and how long that may take."""

    kinds: tuple[str, ...] = DETECTED
    terms: tuple[str, ...] = field(default=(), repr=False)
    regions: tuple[str, ...] = ("US", "GB")
    timeout: float = 0.5
    largest: int = 262_144
    adapter: str | None = None
    adapter_base: str | None = None
    adapter_timeout: float = 20.0
    threshold: float | None = None


@dataclass(frozen=True)
class Config:
    """A whole tiers.toml."""

    path: Path
    tiers: tuple[Tier, ...]
    policies: Mapping[str, Policy]
    labels: Mapping[str, str]
    routes: Mapping[str, Route]
    tenants: tuple[Tenant, ...]
    detection: Detection
    host: str = "127.0.0.1"
    port: int = 8080
    deadline: float = 120.0
    largest_body: int = 1_048_576
    largest_answer: int = 8_388_608
    ledger: str = field(default="route.db", repr=False)
    choice: Path | None = None
    choice_timeout: float = 2.0
    min_confidence: float | None = None
    sample: float = 0.0

    def tier(self, name: str) -> Tier:
        """A tier by its name. Raises `KeyError`."""
        return next(tier for tier in self.tiers if tier.name == name)

    @property
    def dearest(self) -> Tier:
        """The tier that costs most."""
        return max(self.tiers, key=lambda tier: tier.cost(1000, 1000))

    @property
    def inside(self) -> frozenset[str]:
        """Names of the tiers that never leave the building."""
        return frozenset(tier.name for tier in self.tiers if tier.inside)

    @property
    def guarded(self) -> bool:
        """Whether every tenant has a token."""
        return all(tenant.token for tenant in self.tenants)


def read_config(path: str | Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read and check a tiers.toml. Raises `ConfigError`."""
    path = Path(path)
    environment = os.environ if environment is None else environment
    top = read_toml(path)
    tiers = _tiers(top, environment)
    names = [tier.name for tier in tiers]
    policies = {name: _policy(name, table, tiers) for name, table in top.named("policy").items()}
    policies.setdefault("default", Policy("default", frozenset(names)))
    labels = {}
    for name, table in top.named("label").items():
        labels[name] = table.need("policy", str, choices=policies)
        table.done()
    routes = {}
    adapters = {each for tier in tiers for each in tier.adapters}
    for name, table in top.named("route").items():
        if (adapter := table.get("adapter", str)) is not None and adapter not in adapters:
            raise table.error(
                "adapter", f"is {adapter!r}, which no tier names in its adapters{near(adapter, adapters)}"
            )
        routes[name] = Route(
            name,
            table.get("policy", str, choices=policies),
            table.get("start", str, choices=names),
            adapter,
            table.get("min_confidence", float, least=0, most=1),
            table.get("min_least", float, least=0, most=1),
            _pattern(table),
            table.get("agree", bool, False) or False,
        )
        table.done()
    tenants = _tenants(top, policies, environment)
    detection = _detection(top.table("detectors"), path.parent)
    gateway = top.table("gateway")
    host = gateway.get("host", str, "127.0.0.1") or "127.0.0.1"
    choice = gateway.get("choice", str)
    found = Config(
        path=path,
        tiers=tiers,
        policies=policies,
        labels=labels,
        routes=routes,
        tenants=tenants,
        detection=detection,
        host=host,
        port=gateway.get("port", int, 8080, least=0, most=65535) or 0,
        deadline=gateway.get("deadline", float, 120.0, least=0.05, most=3600) or 120.0,
        largest_body=gateway.get("largest_body", int, 1_048_576, least=1024, most=1 << 27) or 0,
        largest_answer=gateway.get("largest_answer", int, 8_388_608, least=1024, most=1 << 28) or 0,
        ledger=_ledger(gateway, path.parent, environment),
        choice=path.parent / choice if choice else None,
        choice_timeout=gateway.get("choice_timeout", float, 2.0, least=0.001, most=60) or 2.0,
        min_confidence=gateway.get("min_confidence", float, least=0, most=1),
        sample=gateway.get("sample", float, 0.0, least=0, most=1) or 0.0,
    )
    if not is_loopback(host) and not found.guarded:
        raise gateway.error("host", f"is {host}: beyond this machine every [[tenant]] needs a token_env")
    gateway.done()
    top.done()
    return found


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _pattern(table: Table) -> str | None:
    pattern = table.get("must_match", str)
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise table.error("must_match", f"is no regular expression ({error})") from error
    return pattern


def _ledger(gateway: Table, folder: Path, environment: Mapping[str, str]) -> str:
    """A file's path or a postgresql:// address; the latter's password stands in the environment only."""
    value, named = gateway.get("ledger", str), gateway.get("ledger_env", str)
    if named:
        if value is not None:
            raise gateway.error("ledger_env", "and ledger are both there: which one is it?")
        if not environment.get(named):
            raise gateway.error("ledger_env", f"names the environment variable {named}, which is not set")
        if not is_address(environment[named]):
            raise gateway.error("ledger_env", f"names {named}, whose value is no postgresql:// address")
        return environment[named]
    value = "route.db" if value is None else value
    if is_address(value):
        try:
            if urlsplit(value).password is not None or "password" in urlsplit(value).query:
                raise gateway.error("ledger", "must not hold a password: put the address into a ledger_env")
        except ValueError as error:
            raise gateway.error("ledger", "is not an address") from error
        return value
    if "://" in value:
        raise gateway.error("ledger", "must be a file or a postgresql:// address")
    return str(folder / value) if value else ""


def _tiers(top: Table, environment: Mapping[str, str]) -> tuple[Tier, ...]:
    found: list[Tier] = []
    for table in top.tables("tier"):
        tier = _tier(table, environment)
        if any(each.name == tier.name for each in found):
            raise table.error("name", f"is {tier.name!r}, and so is another tier's")
        found.append(tier)
    if not found:
        raise top.error(None, "has no [[tier]]: write one for each place that may answer, the cheapest first")
    return tuple(found)


def _tier(table: Table, environment: Mapping[str, str]) -> Tier:
    name = table.need("name", str)
    kind = table.need("kind", str, choices=KINDS)
    prices = {key: table.get(key, float, 0.0, least=0) or 0.0 for key in ("input_price", "output_price")}
    limits = {
        "timeout": table.get("timeout", float, 60.0, least=0.01, most=3600) or 60.0,
        "retries": table.get("retries", int, 2, least=0, most=10) or 0,
        "max_tokens": table.get("max_tokens", int, 4096, least=1, most=1_000_000) or 1,
        "concurrency": table.get("concurrency", int, 64, least=1, most=10_000) or 1,
    }
    if kind == "whit":
        adapters = {}
        listed = table.table("adapters")
        for key in list(listed._values):
            adapters[key] = listed.need(key, str)
        tier = Tier(name, kind, True, table.get("base", str) or "", adapter=table.get("adapter", str),
                    adapters=adapters, **prices, **limits)  # type: ignore[arg-type]  # fmt: skip
        table.done()
        if not tier.model and not tier.adapter:
            raise table.error(None, "needs a base or an adapter")
    else:
        url = table.get("url", str) or ("https://api.anthropic.com" if kind == "anthropic" else "")
        key_env = table.get("key_env", str)
        if key_env and not environment.get(key_env):
            raise table.error("key_env", f"names the environment variable {key_env}, which is not set")
        key = environment[key_env] if key_env else ""
        if not key.isascii() or not key.isprintable():
            raise table.error("key_env", "names a variable whose value cannot stand in a header")
        tier = Tier(name, kind, table.get("inside", bool, False) or False, table.need("model", str),
                    url=_url(table, url), key=key, **prices, **limits)  # type: ignore[arg-type]  # fmt: skip
    table.done()
    return tier


def _url(table: Table, url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise table.error("url", "is not an address") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable():
        raise table.error("url", "must be http://… or https://…")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise table.error("url", "must hold neither a name, a password, a query nor a fragment; keys go by key_env")
    return url.rstrip("/")


def _policy(name: str, table: Table, tiers: tuple[Tier, ...]) -> Policy:
    names = [tier.name for tier in tiers]
    allowed = frozenset(table.texts("tiers", names))
    mask = frozenset(table.texts("mask", DETECTED))
    masked = frozenset(table.texts("masked_tiers", names))
    ignore = frozenset(table.texts("ignore", DETECTED))
    if not masked <= allowed:
        raise table.error("masked_tiers", f"names {', '.join(sorted(masked - allowed))}, not among its tiers")
    if mask and not masked:
        raise table.error("mask", "does nothing without masked_tiers: which tiers may have a masked request?")
    table.done()
    return Policy(name, allowed, mask, masked, ignore)


def _tenants(top: Table, policies: Mapping[str, Policy], environment: Mapping[str, str]) -> tuple[Tenant, ...]:
    found: list[Tenant] = []
    for table in top.tables("tenant"):
        name, policy = table.need("name", str), table.get("policy", str, "default", choices=policies) or "default"
        token_env = table.get("token_env", str)
        token = environment.get(token_env, "") if token_env else ""
        if token_env and not token:
            raise table.error("token_env", f"names the environment variable {token_env}, which is not set")
        if token_env and len(token) < 16:
            raise table.error("token_env", f"names {token_env}, whose value is shorter than 16 characters")
        budget = table.get("budget", float, least=0)
        period = table.get("period", str, "month", choices=PERIODS) or "month"
        if any(each.name == name for each in found):
            raise table.error("name", f"is {name!r}, and so is another tenant's")
        if token and any(each.token == token for each in found):
            raise table.error("token_env", "has the same token as another tenant's")
        found.append(Tenant(name, policy, token, budget, period))
        table.done()
    if not found:
        return (Tenant("anyone", "default"),)
    if sum(not tenant.token for tenant in found) > 1:
        raise top.error("tenant", "without a token_env may be there once only: who else would it be?")
    return tuple(found)


def _detection(table: Table, folder: Path) -> Detection:
    terms: tuple[str, ...] = ()
    if named := table.get("terms", str):
        try:
            lines = (folder / named).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise table.error("terms", f"names {named}, which cannot be read") from error
        terms = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    regions = table.texts("phone_regions", default=("US", "GB"))
    for region in regions:
        if len(region) != 2 or not region.isupper():
            raise table.error("phone_regions", f"names {region!r}: countries are two capitals, such as US")
    found = Detection(
        kinds=table.texts("kinds", DETECTED, DETECTED),
        terms=terms,
        regions=regions,
        timeout=table.get("timeout", float, 0.5, least=0.001, most=60) or 0.5,
        largest=table.get("largest", int, 262_144, least=1, most=1 << 26) or 1,
        adapter=table.get("adapter", str),
        adapter_base=table.get("base", str),
        adapter_timeout=table.get("adapter_timeout", float, 20.0, least=0.01, most=600) or 20.0,
        threshold=table.get("threshold", float, least=0.01, most=0.99),
    )
    table.done()
    return found
