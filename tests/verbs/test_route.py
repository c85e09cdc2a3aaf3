"""`whit route`: checking, fitting and reporting, as its user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whit.errors import UsageError
from whit.routing.errors import ConfigError
from whit.routing.ledger import Ledger, Record
from whit.settings import RouteSettings
from whit.verbs.route import route

TIERS = """\
[[tier]]
name = "local"
kind = "whit"
base = "eeny"
[[tier]]
name = "cloud"
kind = "openai"
url = "http://api.example/v1"
model = "m"
input_price = 1
"""


def test_check_says_what_would_happen_and_why(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(TIERS)
    free = route(RouteSettings(words=("check", str(path)), prompt="hello"))
    assert free is not None and free.to_json()["order"] == ["local", "cloud"]
    kept = route(RouteSettings(words=("check", str(path)), prompt="my IBAN is DE89370400440532013000"))
    assert kept is not None and kept.to_json()["order"] == ["local"] and kept.to_json()["found"] == ["iban"]
    assert "DE89" not in kept.to_text() and "over http" in kept.to_text()
    path.write_text(TIERS.replace("api.example", "127.0.0.1:9") + '[route.hard]\nstart = "cloud"\n[gateway]\n'
                    'min_confidence = 0.7\n[[tenant]]\nname = "t"\nbudget = 5.0\n')  # fmt: skip
    hard = route(RouteSettings(words=("check", str(path)), model="hard"))
    assert hard is not None and hard.to_json()["order"] == ["cloud", "local"] and "starts at cloud" in hard.to_text()
    easy = route(RouteSettings(words=("check", str(path))))
    assert easy is not None and "below a confidence of 0.7" in easy.to_text() and "over http" not in easy.to_text()
    assert "may spend 5 a month" in easy.to_text()
    with pytest.raises(ConfigError, match="no tenant"):
        route(RouteSettings(words=("check", str(path)), tenant="nobody"))


def test_the_schema_is_printed_for_editors() -> None:
    found = route(RouteSettings(words=("schema",)))
    assert found is not None and json.loads(found.to_text()) == found.to_json()
    assert set(found.to_json()["properties"]) >= {"tier", "policy", "gateway"}


def test_words_that_cannot_be(tmp_path: Path) -> None:
    for words in (("check",), ("check", "a", "b"), ("tiers.toml", "more")):
        with pytest.raises(UsageError):
            route(RouteSettings(words=words))
    with pytest.raises(ConfigError, match="cannot be read"):
        route(RouteSettings(words=(str(tmp_path / "absent.toml"),)))


def test_beyond_this_machine_it_wants_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text(TIERS)
    with pytest.raises(UsageError, match="token_env"):
        route(RouteSettings(words=(str(path),), host="0.0.0.0"))


def test_fit_writes_its_file_and_its_interval(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{'easy' if at % 2 else 'hard'} {at}", "weak_correct": bool(at % 2), "strong_correct": True}
             for at in range(60)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    found = route(RouteSettings(words=("fit", str(path)), keep_quality=0.9))
    assert found is not None and (tmp_path / "rows.choice.json").is_file()
    plain = found.to_json()
    assert plain["interval"][0] <= plain["quality"] <= plain["interval"][1] and "95 % interval" in found.to_text()
    dear = route(RouteSettings(words=("fit", str(path)), most_strong=0.25))
    assert dear is not None and dear.to_json()["most_strong"] == 0.25 >= dear.choice.strong_share


def test_report_reads_the_ledger_and_writes_a_page(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "l.db"))
    ledger.add(
        Record(1.7e9, "t", "", "", "local", "ok", "", "id", "local", "card", 0, 1, 1, 1, 0.0, 0.5, 0.1, 0.1, None)
    )
    ledger.close()
    found = route(RouteSettings(words=("report", str(tmp_path / "l.db")), html=tmp_path / "r.html"))
    assert found is not None and found.to_json()["free_share"] == 1.0
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")
