"""The main job on a tiny base: train → eval → run → compare → show, by function and by command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, flags

import whit as api
from whit.adapters.adapter import Adapter
from whit.data.rows import read_rows
from whit.errors import AdapterError, DataError, UsageError, WrongBase
from whit.evaluation.card import load_card
from whit.evaluation.proof import null_adapter
from whit.serving.payload import to_payload
from whit.serving.store import open_store
from whit.settings import CompareSettings, RunSettings, ShowSettings
from whit.talk import Talk
from whit.testing import write_rows, write_tiny_base
from whit.verbs import common
from whit.verbs.compare import compare
from whit.verbs.run import run
from whit.verbs.show import show

Trained = Callable[[str], Any]
VERDICTS = {"helped": 0, "no worse": 10, "harmed": 11, "not enough data": 12}


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_proves_on_rows_that_neither_learning_nor_choosing_saw(trained: Trained, rows: Path) -> None:
    result = trained("lora")
    every = {row.id: common.seen_key(row) for row in read_rows(rows)}
    held = [json.loads(line) for line in (result.folder / "held-out.jsonl").read_text().splitlines()]
    lines = [line.split() for line in (result.folder / "seen.txt").read_text().splitlines()]
    seen = {line[0] for line in lines}
    data = result.card.data
    assert data.train + data.validation + data.test == data.rows == len(every) == 120
    assert len(held) == data.test and len(seen) == data.train + data.validation
    assert seen == set(every.values()) - {every[row["id"]] for row in held}
    assert all(re.fullmatch("[0-9a-f]{16}", key) for line in lines for key in line)  # nobody reads a row from it
    assert result.card.result.tuned == sum(row["tuned_score"] for row in held) / len(held)


def test_lora_learns_the_task_and_the_verdict_says_so(trained: Trained) -> None:
    result = trained("lora")
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["verdict"] == "helped" and document["tuned"] > 0.8 > 0.2 > document["base"]
    low, high = document["interval"]
    assert low < document["difference"] <= high and low > 0 and document["p_value"] < 0.01
    assert {"rows", "smallest_detectable", "baselines", "adapter", "contract"} <= document.keys()
    assert set(document["baselines"]) == {"2-shot", "null adapter", "TF-IDF + linear"}
    assert document["baselines"]["null adapter"]["score"] < 0.3  # what it gained is no noise
    assert result.exit_code == 0
    assert "helped" in result.to_text().lower() and str(result.folder) in result.to_text()


def test_the_report_names_the_verdict_and_fetches_nothing(trained: Trained) -> None:
    for kind, said in (("lora", "helped"), ("xs", str(trained("xs").card.verdict))):
        page = (trained(kind).folder / "report.html").read_text("utf-8")
        assert said in page.lower()
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)


def test_the_card_reads_back(trained: Trained, rows: Path) -> None:
    for kind in ("lora", "xs"):
        result = trained(kind)
        card = load_card(result.folder / "card.json")
        assert card == result.card and card.kind == kind
        assert card.base_fingerprint and card.settings["kind"] == kind and card.data.name == rows.name
        assert card.instruction == "card or cash?" and "--instruction 'card or cash?'" in card.command
        assert card.file_bytes == show(ShowSettings(adapter=str(result.folder))).file_bytes > card.payload_bytes
        assert f"--out {result.folder.name}" in card.command
        # A card is published: it names no folder of the rows.
        assert str(rows.parent) not in (result.folder / "card.json").read_text()


def test_the_readme_has_the_hubs_front_matter(trained: Trained) -> None:
    yaml = pytest.importorskip("yaml")
    text = (trained("lora").folder / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "whit" and "adapter" in about["tags"]
    (found,) = about["model-index"]
    metric = found["results"][0]["metrics"][0]
    assert metric["value"] == pytest.approx(trained("lora").card.result.tuned, abs=0.01) or metric["value"] > 1
    assert "helped" in body.lower()


@pytest.mark.parametrize("name", ["a: b", "- x", 'it\'s "q"', "lí\u2028ne", "#hash", "{x}", "*bold* <b>"])
def test_the_front_matter_holds_any_name(trained: Trained, name: str) -> None:
    from dataclasses import replace

    from whit.evaluation.card import model_card

    yaml = pytest.importorskip("yaml")
    text = model_card(replace(trained("lora").card, name=name, instruction=f"--- {name}"))
    about = yaml.safe_load(text.split("---\n", 2)[1])
    assert isinstance(about["model-index"][0]["name"], str) and about["library_name"] == "whit"


def test_where_answers_are_no_closed_set_the_commonest_stands_beside_the_adapter(
    rows: Path, tmp_path: Path, options: Callable[[str], dict[str, Any]]
) -> None:
    result = api.train(rows, out=tmp_path / "out", limit=60, **{**options("xs"), "score": "exact", "shots": ()})
    assert set(result.card.baselines) == {"null adapter", "always the commonest answer"}
    always = result.card.baselines["always the commonest answer"].base
    golds = [json.loads(line)["completion"] for line in (tmp_path / "out" / "held-out.jsonl").open()]
    assert any(always == pytest.approx(golds.count(each) / len(golds)) for each in golds)


def test_test_data_of_its_own_is_held_out_whole(
    rows: Path, tmp_path: Path, options: Callable[[str], dict[str, Any]]
) -> None:
    held = write_rows(tmp_path / "held.jsonl", 16, seed=5)
    # One of its rows is among the others: training must not see it.
    first = json.loads(rows.read_text().splitlines()[0])
    with held.open("a") as file:
        file.write(json.dumps({**first, "id": "leak"}) + "\n")
    result = api.train(rows, test_data=held, out=tmp_path / "out", baselines=False, limit=60, **options("xs"))
    assert result.card.data.test == 17 and result.card.data.train + result.card.data.validation == 59


def test_rows_that_nearly_stand_in_test_data_are_not_learned_from(
    rows: Path, tmp_path: Path, options: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    own = [{**json.loads(line), "who": f"user-{at}"} for at, line in enumerate(rows.read_text().splitlines()[:60])]
    later = [json.loads(line) for line in write_rows(tmp_path / "later.jsonl", 8, seed=5).read_text().splitlines()]
    held = [{**row, "who": "new"} for row in later]
    held += [
        {**own[0], "id": "same", "who": "new"},
        {**later[0], "id": "his", "prompt": "nothing alike", "who": "user-1"},
    ]
    held += [{**row, "id": f"near-{row['id']}", "prompt": row["prompt"] + " !", "who": "new"} for row in own[2:6]]
    data, test = write(tmp_path / "own.jsonl", own), write(tmp_path / "held.jsonl", held)
    given = {**options("xs"), "baselines": False, "shots": (), "out": tmp_path / "out"}
    result = api.train(data, test_data=test, group_column="who", talk=Talk(), **given)
    counts = result.card.data
    assert counts.test == len(held) == 14 and counts.train + counts.validation == 54
    told = "6 of 60 rows are left out of training: 1 stand in, 4 nearly stand in, 1 are of a group of held.jsonl"
    assert told in capsys.readouterr().err
    with pytest.raises(DataError, match="60 of 60 rows are left out"):
        api.train(data, test_data=write(tmp_path / "all.jsonl", own), **given)
    with pytest.raises(DataError, match="no group column 'who'"):
        api.train(data, test_data=write(tmp_path / "later.jsonl", later), group_column="who", **given)


def test_where_nothing_was_learned_the_start_is_kept_and_said(
    rows: Path, tmp_path: Path, options: Callable[[str], dict[str, Any]]
) -> None:
    """Rows whose answers are the base's own: any step away makes it worse, and the vector stays zero."""
    base = str(write_tiny_base(tmp_path / "base", layers=1, hidden=32, ffn=64, tied=False, context=160))
    asked = [json.loads(line)["prompt"] for line in rows.read_text().splitlines()[:60]]
    answers = run(RunSettings(adapter=base, max_tokens=6, dtype="float32"), lines=asked).answers
    assert len(set(answers)) > 10
    pairs = [{"prompt": p, "completion": a or "?"} for p, a in zip(asked, answers, strict=True)]
    settings = {**options("xs"), "base": base, "learning_rate": 30.0, "score": "exact", "max_tokens": 6}
    del settings["instruction"]
    result = api.train(write(tmp_path / "own.jsonl", pairs), out=tmp_path / "out", test=0.3, shots=(2,), **settings)
    assert not result.adapter.vector.any() and result.card.result.difference == 0
    assert "No step of training scored better" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(AdapterError, match="changes nothing: its numbers are all zero"):
        api.run(str(tmp_path / "out"), "hello", dtype="float32")


# --- eval ------------------------------------------------------------------------------------------------------------


def test_eval_answers_with_its_verdict(trained: Trained, tmp_path: Path, base: Path) -> None:
    adapter = trained("lora").folder
    later = write_rows(tmp_path / "later.jsonl", 60, seed=1)
    found = {"later": api.evaluate(adapter, later, dtype="float32")}
    asked = [json.loads(line)["prompt"] for line in later.read_text().splitlines()]
    settings = RunSettings(adapter=str(adapter), bare=True, max_tokens=6, dtype="float32")
    own = run(settings, lines=asked).answers
    theirs = write(
        tmp_path / "own.jsonl",
        [{"prompt": p, "completion": a or "?"} for p, a in zip(asked, own, strict=True)],
    )
    found["own"] = api.evaluate(adapter, theirs, dtype="float32", score="exact", max_tokens=6)
    few = write(tmp_path / "few.jsonl", [{"prompt": p, "completion": "neither"} for p in asked[:5]])
    found["few"] = api.evaluate(adapter, few, dtype="float32", score="exact")
    many = write(
        tmp_path / "many.jsonl", [{"prompt": f"{p} {n}", "completion": "neither"} for p in asked for n in range(7)]
    )
    found["many"] = api.evaluate(adapter, many, dtype="float32", score="exact", max_tokens=2)
    assert {name: str(item.result.verdict) for name, item in found.items()} == {
        "later": "helped", "own": "harmed", "few": "not enough data", "many": "no worse",
    }  # fmt: skip
    for item in found.values():
        assert item.exit_code == VERDICTS[str(item.result.verdict)]
        document = json.loads(json.dumps(item.to_json(), allow_nan=False))
        assert document["verdict"] == str(item.result.verdict) and document["left_out"] == 0
        assert len(document["interval"]) == 2 and document["rows"] == item.result.rows


def test_eval_leaves_out_what_training_saw(trained: Trained, rows: Path, tmp_path: Path) -> None:
    folder = trained("lora").folder
    held = trained("lora").card.data.test
    found = api.evaluate(folder, rows, dtype="float32")
    assert found.result.rows == held and found.left_out == 120 - held
    assert found.result.tuned == trained("lora").card.result.tuned
    assert f"Left out, for training had seen their input: {120 - held} rows." in found.to_text()
    # By the file inside of the folder just as by the folder.
    file = trained("xs").folder / "adapter.whit"
    assert api.evaluate(file, rows, dtype="float32").left_out == 120 - held
    # In other letters and spacing it is still the same input.
    shouted = [
        {"prompt": row["prompt"].upper() + "  ", "completion": row["completion"]}
        for row in map(json.loads, rows.read_text().splitlines())
    ]
    assert api.evaluate(folder, write(tmp_path / "loud.jsonl", shouted), dtype="float32").left_out == 120 - held
    held_ids = {json.loads(line)["id"] for line in (folder / "held-out.jsonl").read_text().splitlines()}
    only_seen = [row for row in map(json.loads, rows.read_text().splitlines()) if row["id"] not in held_ids]
    with pytest.raises(DataError, match=r"training has seen all of it \(\d+\)"):
        api.evaluate(folder, write(tmp_path / "seen.jsonl", only_seen))


def test_eval_tells_of_rows_that_training_nearly_saw(trained: Trained, rows: Path, tmp_path: Path) -> None:
    folder = trained("lora").folder
    held = trained("lora").card.data.test
    own = [json.loads(line) for line in rows.read_text().splitlines()]
    near = write(tmp_path / "near.jsonl", [{**row, "prompt": row["prompt"].title() + " !"} for row in own])
    found = api.evaluate(folder, near, dtype="float32")
    assert (found.result.rows, found.left_out, found.nearly_seen) == (120, 0, 120 - held)
    assert found.to_json()["nearly_seen"] == 120 - held
    assert f"but for case, spacing and punctuation: {120 - held} of the 120 rows." in found.to_text()
    assert api.evaluate(folder, write_rows(tmp_path / "new.jsonl", 20, seed=7), dtype="float32").nearly_seen == 0


def test_eval_writes_a_report_with_the_null_adapter(trained: Trained, tmp_path: Path) -> None:
    later = write_rows(tmp_path / "later.jsonl", 30, seed=2)
    page = tmp_path / "report.html"
    found = api.evaluate(trained("lora").folder, later, dtype="float32", baselines=True, report=page)
    assert found.baselines["null adapter"].base < 0.3
    assert "null adapter" in page.read_text() and str(found.result.verdict) in page.read_text().lower()


# --- run, compare, show ----------------------------------------------------------------------------------------------


def test_run_answers_as_training_learned(trained: Trained, tmp_path: Path) -> None:
    adapter = str(trained("lora").folder)
    later = [json.loads(line) for line in write_rows(tmp_path / "later.jsonl", 20, seed=3).read_text().splitlines()]
    settings = RunSettings(adapter=adapter, dtype="float32", max_tokens=8)
    found = run(settings, lines=[row["prompt"] + "\n" for row in later])
    right = sum(answer == row["completion"] for answer, row in zip(found.answers, later, strict=True))
    assert right > 15
    one = api.run(adapter, later[0]["prompt"], dtype="float32", max_tokens=8)
    assert one.answers == found.answers[:1]
    assert found.to_json()["answers"][0] == {"prompt": later[0]["prompt"], "answer": found.answers[0]}
    bare = run(RunSettings(adapter=adapter, bare=True, dtype="float32", max_tokens=8), lines=[later[0]["prompt"]])
    assert bare.answers != found.answers[:1]
    assert run(settings, lines=[]).answers == ()


def test_run_takes_the_text_form_with_its_base(trained: Trained, base: Path, tmp_path: Path) -> None:
    adapter, asked = trained("xs"), "please block my card"
    text = adapter.adapter.to_text()
    options: dict[str, Any] = {"dtype": "float32", "max_tokens": 8}
    by_folder = api.run(str(adapter.folder), asked, **options)
    by_text = api.run(text, asked, base=str(base), instruction="card or cash?", **options)
    assert by_text.answers == by_folder.answers
    with pytest.raises(AdapterError, match="add --base NAME"):
        api.run(text, asked, **options)
    # The file alone, without its card, is the same.
    shutil.copy(adapter.folder / "adapter.whit", tmp_path / "a.whit")
    alone = api.run(str(tmp_path / "a.whit"), asked, base=str(base), instruction="card or cash?", **options)
    assert alone.answers == by_folder.answers


def test_a_base_alone_may_be_asked(base: Path) -> None:
    found = api.run(str(base), "hello", dtype="float32", max_tokens=4)
    assert len(found.answers) == 1


@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_another_base_is_refused(trained: Trained, tmp_path: Path, rows: Path, kind: str) -> None:
    other = write_tiny_base(
        tmp_path / "other", seed=9, layers=2, hidden=32, heads=2, kv_heads=1, ffn=64, vocab=384, context=160
    )
    with pytest.raises(WrongBase, match="was made for the base"):
        api.run(str(trained(kind).folder), "hello", base=str(other), dtype="float32")
    with pytest.raises(WrongBase, match="was made for the base"):
        api.evaluate(trained(kind).folder, rows, base=str(other), dtype="float32")


def test_an_adapter_that_changes_nothing_is_an_error(trained: Trained, tmp_path: Path, rows: Path, base: Path) -> None:
    from dataclasses import replace

    xs = trained("xs").adapter
    zero = replace(xs, vector=xs.vector * 0)
    text = zero.to_text()
    with pytest.raises(AdapterError, match="changes nothing: its numbers are all zero"):
        api.run(text, "hello", base=str(base), dtype="float32")
    lora = trained("lora").adapter
    flat = replace(lora, lora=replace(lora.lora, B={name: part * 0 for name, part in lora.lora.B.items()}))
    folder = tmp_path / "flat"
    flat.save(folder)
    shutil.copy(trained("lora").folder / "card.json", folder)
    with pytest.raises(AdapterError, match="changes nothing: its numbers are all zero"):
        api.evaluate(folder, rows, dtype="float32")
    # The null adapter of nothing is nothing, and no crash.
    assert not null_adapter(zero).vector.any()


def test_compare_shows_the_held_out_answers(trained: Trained) -> None:
    folder = trained("lora").folder
    found = compare(CompareSettings(adapter=str(folder), rows=3))
    result = trained("lora").card.result
    assert (found.wins, found.losses, found.held_out) == (result.wins, result.losses, result.rows)
    assert len(found.rows) == 3 and all(row["tuned_score"] != row["base_score"] for row in found.rows)
    assert found.to_text().count("wanted") == 3 and found.to_json()["held_out"] == result.rows


@pytest.mark.parametrize("line", ["no json", "[1]", '{"id": "x"}', ""])
def test_compare_refuses_what_is_no_answer(trained: Trained, tmp_path: Path, line: str) -> None:
    (tmp_path / "held-out.jsonl").write_text(line + "\n")
    with pytest.raises(AdapterError, match=r"held-out.jsonl, line 1"):
        compare(CompareSettings(adapter=str(tmp_path)))
    with pytest.raises(AdapterError, match="no held-out answers there"):
        compare(CompareSettings(adapter=str(tmp_path / "nowhere")))


def test_show_tells_sizes_and_text(trained: Trained) -> None:
    xs = show(ShowSettings(adapter=str(trained("xs").folder), qr=True))
    document = json.loads(json.dumps(xs.to_json(), allow_nan=False))
    assert document["kind"] == "xs" and document["numbers"] == 56 and document["payload_bytes"] == 112
    assert document["file_bytes"] == (trained("xs").folder / "adapter.whit").stat().st_size
    assert Adapter.from_text(document["text"]).numbers == 56 and document["card"]["kind"] == "xs"
    assert xs.qr and xs.qr in xs.to_text() and document["text"] in xs.to_text()
    lora = show(ShowSettings(adapter=str(trained("lora").folder)))
    assert lora.text is None and lora.file_bytes > lora.about["payload_bytes"] and "verdict" in lora.to_text()
    with pytest.raises(UsageError, match="no text form"):
        show(ShowSettings(adapter=str(trained("lora").folder), qr=True))


def test_show_reads_a_zip_and_a_store(trained: Trained, tmp_path: Path) -> None:
    folder = trained("lora").folder
    packed = Path(shutil.make_archive(str(tmp_path / "mine"), "zip", folder))
    zipped = show(ShowSettings(adapter=str(packed)))
    assert zipped.file_bytes == packed.stat().st_size and zipped.card is not None
    with open_store(str(tmp_path / "kept.db")) as store:
        store.add("mine", to_payload(Adapter.load(folder)), card={}, by="test")
    stored = show(ShowSettings(adapter=f"{tmp_path / 'kept.db'}#mine"))
    assert stored.about == zipped.about and stored.file_bytes == stored.about["payload_bytes"]


def test_a_card_beside_another_adapter_is_not_believed(trained: Trained, tmp_path: Path) -> None:
    shutil.copy(trained("xs").folder / "adapter.whit", tmp_path)
    card = json.loads((trained("xs").folder / "card.json").read_text())
    card["base_fingerprint"] = "0" * 64
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert show(ShowSettings(adapter=str(tmp_path))).card is None


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_commands_one_after_the_other(
    whit: Commands, rows: Path, tmp_path: Path, options: Callable[[str], dict[str, Any]]
) -> None:
    out = tmp_path / "out"
    made = whit("train", rows, "--out", out, "--shots", "2", "--json", *flags(options("lora")))
    assert made.code == 0, made.stderr
    document = json.loads(made.stdout)  # nothing else is on stdout
    assert document["verdict"] == "helped" and document["adapter"] == str(out)
    for said in ("base ", "rows ", "adapter  lora", "plan ", "time "):
        assert said in made.stderr
    later = write_rows(tmp_path / "later.jsonl", 40, seed=1)
    judged = whit("eval", out, later, "--dtype", "float32")
    assert judged.code == 0 and "helped" in judged.stdout.lower(), judged.stderr
    five = tmp_path / "five.jsonl"
    five.write_text("".join(later.read_text().splitlines(keepends=True)[:4]))
    assert whit("eval", out, five, "--json", "--dtype", "float32").code in (0, 12)
    asked = "".join(json.loads(line)["prompt"] + "\n" for line in later.read_text().splitlines()[:4])
    piped = whit("run", out, "--dtype", "float32", stdin=asked)
    assert piped.code == 0 and len(piped.stdout.splitlines()) == 4
    assert set(piped.stdout.split()) <= {"card", "cash"}
    assert whit("run", out, "-", "--dtype", "float32", stdin=asked).stdout == piped.stdout
    single = whit("run", out, asked.splitlines()[0], "--dtype", "float32")
    assert single.stdout == piped.stdout.splitlines()[0] + "\n"
    assert "held-out rows: the adapter won" in whit("compare", out).stdout
    assert whit("show", out, "--json").code == 0
    chat = whit("chat", out, "--dtype", "float32", "--temperature", "0", stdin=asked.splitlines()[0] + "\n/quit\n")
    assert chat.code == 0 and chat.stdout == single.stdout


@pytest.mark.slow
def test_the_installed_command_is_the_same(trained: Trained) -> None:
    program = Path(sys.executable).with_name("whit")
    if not program.exists():
        pytest.skip("whit is not installed beside this Python")
    found = subprocess.run(
        [program, "show", trained("xs").folder, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout)["kind"] == "xs" and found.stderr == ""
    missing = subprocess.run([program, "show", "nowhere"], capture_output=True, text=True, check=False)
    assert missing.returncode == 5 and missing.stderr.startswith("whit: nowhere: no adapter there")
