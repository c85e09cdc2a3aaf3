"""tiers.toml: what is read, and that every mistake names its line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from whit.routing import config as config_module
from whit.routing.config import Config, read_config
from whit.routing.errors import ConfigError
from whit.routing.tables import Table

GOOD = """\
[[tier]]
name = "local"
kind = "whit"
base = "smollm2"
adapters = { legal = "legal-adapter" }

[[tier]]
name = "strong"
kind = "openai"
url = "https://api.example.com/v1/"
model = "big"
key_env = "STRONG_KEY"
input_price = 3
output_price = 15

[policy.default]
tiers = ["local", "strong"]
[policy.secret]
tiers = ["local"]
[label.secret]
policy = "secret"
[route.legal]
adapter = "legal"
start = "local"
[[tenant]]
name = "acme"
token_env = "ACME_TOKEN"
budget = 5.0
[gateway]
host = "0.0.0.0"
"""
KEYS = {"STRONG_KEY": "sk-" + "verysecret", "ACME_TOKEN": "0123456789abcdef"}


def read(folder: Path, text: str, environment: dict[str, str] | None = None) -> Config:
    path = folder / "tiers.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, KEYS if environment is None else environment)


def test_a_whole_file(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    assert [tier.name for tier in config.tiers] == ["local", "strong"] and config.inside == {"local"}
    strong = config.tier("strong")
    assert strong.url == "https://api.example.com/v1" and strong.cost(1_000_000, 1_000_000) == 18
    assert config.policies["secret"].tiers == {"local"} and config.tenants[0].budget == 5
    assert "verysecret" not in repr(config) and "0123456789abcdef" not in repr(config)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('base = "smollm2"', 'bse = "smollm2"', 4, "did you mean base?"),
        ("input_price = 3", "input_price = -3", 12, "at least 0"),
        ("input_price = 3", "input_price = nan", 12, "finite"),
        ('name = "strong"', 'name = "local"', 8, "another tier's"),
        ("STRONG_KEY", "OTHER_KEY", 11, "OTHER_KEY, which is not set"),
        ("ACME_TOKEN", "OTHER", 26, "not set"),
        ('kind = "openai"', 'kind = "opnai"', 9, "one of whit, openai, anthropic"),
        ("https://api.example.com/v1/", "file:///etc/passwd", 10, "must be http"),
        ("https://api.example.com/v1/", "https://me:pw@api.example.com", 10, "neither a name, a password"),
        ('tiers = ["local"]', 'tiers = ["locl"]', 18, "did you mean local?"),
        ('policy = "secret"', 'policy = "scret"', 20, "one of"),
        ('adapter = "legal"', 'adapter = "legl"', 22, "did you mean legal?"),
        ('start = "local"', 'start = "none"', 23, "one of"),
        ('start = "local"', 'must_match = "["', 23, "no regular expression"),
        ("budget = 5.0", "budget = -1", 27, "at least 0"),
        ('model = "big"', "model = 5", 11, "must be a text"),
        ('token_env = "ACME_TOKEN"', "", 30, "needs a token_env"),
        ("[gateway]", "[gatway]", 28, "did you mean gateway?"),
        ("[gateway]", "[gateway", 28, "not TOML"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert says in str(error.value)
    assert abs(error.value.line - line) <= 1 and "verysecret" not in str(error.value)


def test_masks_need_tiers_that_may_have_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does nothing without masked_tiers"):
        read(tmp_path, GOOD + '[policy.m]\ntiers = ["local"]\nmask = ["card"]\n')
    with pytest.raises(ConfigError, match="not among its tiers"):
        read(tmp_path, GOOD + '[policy.m]\ntiers = ["local"]\nmask = ["card"]\nmasked_tiers = ["strong"]\n')


def test_no_tier_at_all_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \[\[tier\]\]"):
        read(tmp_path, "")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "absent.toml")


def test_without_tenants_it_stays_on_this_machine(tmp_path: Path) -> None:
    one = '[[tier]]\nname = "l"\nkind = "whit"\nbase = "eeny"\n'
    assert read(tmp_path, one).tenants[0].name == "anyone"
    with pytest.raises(ConfigError, match="token_env"):
        read(tmp_path, one + '[gateway]\nhost = "192.168.0.2"\n')


def test_a_ledger_is_a_file_or_an_address_without_a_password(tmp_path: Path) -> None:
    one = '[[tier]]\nname = "l"\nkind = "whit"\nbase = "eeny"\n[gateway]\n'
    address = "postgresql://me:hunter2@db.example/whit"
    assert read(tmp_path, one).ledger == str(tmp_path / "route.db") and read(tmp_path, one + 'ledger = ""').ledger == ""
    assert read(tmp_path, one + 'ledger = "postgresql://me@db/x"').ledger == "postgresql://me@db/x"
    named = read(tmp_path, one + 'ledger_env = "LEDGER"', {"LEDGER": address})
    assert named.ledger == address and "hunter2" not in repr(named)
    for line, environment, says in (
        (f'ledger = "{address}"', {}, "ledger_env"),
        ('ledger = "postgresql://me@db/x?password=hunter2"', {}, "must not hold a password"),
        ('ledger = "mysql://db"', {}, "postgresql://"),
        ('ledger_env = "LEDGER"', {}, "LEDGER, which is not set"),
        ('ledger_env = "LEDGER"', {"LEDGER": "x:hunter2"}, "no postgresql"),
        ('ledger_env = "LEDGER"\nledger = "x.db"', {"LEDGER": address}, "both there"),
    ):
        with pytest.raises(ConfigError, match=says) as told:
            read(tmp_path, one + line, environment)
        assert "hunter2" not in str(told.value) and told.value.line >= 5


SCHEMA = Path(config_module.__file__).with_name("tiers.schema.json")


def test_the_schema_has_every_key_that_is_read_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, set[str]] = {}
    done = Table.done

    def remember(table: Table) -> None:
        place = ".".join(
            [*map(str, table.where[:1]), *(table._values[key] for key in ("kind",) if key in table._values)]
        )
        asked.setdefault(place, set()).update(table._asked)
        done(table)

    monkeypatch.setattr(Table, "done", remember)
    read(tmp_path, GOOD.replace("[gateway]", '[detectors]\nphone_regions = ["US"]\n[gateway]'))
    schema = json.loads(SCHEMA.read_text("utf-8"))
    parts = schema["properties"]
    local, remote = parts["tier"]["items"]["oneOf"]
    known = {
        "": set(parts), "tier.whit": set(local["properties"]), "tier.openai": set(remote["properties"]),
        "detectors": set(parts["detectors"]["properties"]), "gateway": set(parts["gateway"]["properties"]),
        "tenant": set(parts["tenant"]["items"]["properties"]),
        **{name: set(parts[name]["additionalProperties"]["properties"]) for name in ("policy", "label", "route")},
    }  # fmt: skip
    assert asked == known


def test_the_schema_takes_what_is_right_and_not_what_is_wrong() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    assert check.is_valid(tomllib.loads(GOOD))
    page = (Path(__file__).parents[2] / "docs" / "routing.md").read_text("utf-8")
    assert check.is_valid(tomllib.loads(page.partition("```toml\n")[2].partition("```")[0]))
    for old, new in (("base =", "bse ="), ("input_price = 3", "input_price = -3"), ('"openai"', '"opnai"'),
                     ("https://api.example.com", "file:///etc"), ("budget = 5.0", 'period = "week"')):  # fmt: skip
        assert old in GOOD and not check.is_valid(tomllib.loads(GOOD.replace(old, new)))


def test_the_example_of_the_page_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "routing.md").read_text("utf-8")
    (tmp_path / "terms.txt").write_text("Nachtigall\n")
    keys = {"CHEAP_KEY": "k" * 20, "STRONG_KEY": "k" * 20, "SUPPORT_TOKEN": "t" * 20}
    found = read(tmp_path, page.partition("```toml\n")[2].partition("```")[0], keys)
    assert [tier.name for tier in found.tiers] == ["local", "cheap", "strong"] and found.detection.terms
