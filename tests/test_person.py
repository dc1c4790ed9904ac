"""apply/person.py: one person from Python, the same as from the scripts."""

import json
import re
import sys
import textwrap

import pytest
import texts
import torch
from conftest import ROOT
from person import Person, opened
from test_apply import applied, by_score

from lore.common import InputError
from lore.fit.basis import load_basis

ROWS = [{**row, "user_id": "J\u00fcrgen: 1"} for row in texts.comparisons(users=1, prompts=6, seed=3)]


@pytest.fixture(scope="module")
def loaded(basis):
    """(Basis, Encoder)."""
    return opened(basis)


@pytest.mark.parametrize("deviations", [False, True])
def test_a_person_is_what_adapt_makes_of_the_same_rows(request, deviations, rows, tmp_path):
    path = request.getfixturevalue("with_deviations" if deviations else "basis")
    pairs = [*ROWS, ROWS[0], ROWS[1] | {"split": "test"}]
    adapted, saved = tmp_path / "adapted.safetensors", tmp_path / "saved.safetensors"
    source = texts.write(tmp_path / "rows.jsonl.gz", pairs)
    applied("adapt", path, source, adapted)
    known = opened(path)
    person = Person(*known, user_id=ROWS[0]["user_id"])
    said = person.fit(pairs)
    person.save(saved)
    for name, value in load_basis(adapted)._asdict().items():
        stored = getattr(load_basis(saved), name)
        same = torch.equal(stored, value) if isinstance(value, torch.Tensor) else stored == value
        assert same, name
    assert texts.report(adapted.with_suffix(".json"))["rows"] == [json.loads(json.dumps(said))]
    user, somebody = person.user_id, known[0].unseen_ids[0]
    expected = by_score(saved, rows, tmp_path / "scored.jsonl")
    everybody = {user: person, None: Person(*known), somebody: Person(*known, int(somebody))}
    for name, each in everybody.items():
        rewards = each.rewards("the cat?", [row["response"] for row in texts.read(rows)])
        assert rewards == pytest.approx(expected[name], abs=1e-4)
    person.fit(ROWS[:2])  # in place of the pairs before
    assert person.basis.pairs[user] == 2
    again = Person(load_basis(saved), person.encoder, user)
    assert again.fit(ROWS[:1])["pairs"] == 6  # beside those in the file


def test_choices_and_accuracies_follow_from_the_rewards(loaded):
    person = Person(*loaded)
    replies = ["the cat sat", "nothing", "she said hello", "the dog lay beside it"]
    before = person.rewards("the cat?", replies)
    pairs = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in ROWS]
    person.fit(pairs)
    rewards = person.rewards("the cat?", replies)
    assert rewards == person.rewards([{"role": "user", "content": "the cat?"}], replies) != before
    best_first = sorted(replies, key=lambda reply: -rewards[replies.index(reply)])
    assert person.rank("the cat?", replies) == best_first
    odds = torch.tensor(rewards[0] - rewards[1])
    assert person.prefer("the cat?", *replies[:2]) == pytest.approx(odds.sigmoid().item(), abs=1e-5)
    assert person.prefer("the cat?", "sat", "sat") == 0.5 and person.rank("the cat?", ["sat"]) == ["sat"]
    found = person.evaluate(pairs)
    for name, who in (("", person), ("population_", Person(*loaded))):
        sides = [who.rewards(pair["prompt"], [pair["chosen"], pair["rejected"]]) for pair in pairs]
        margins = torch.tensor(sides) @ torch.tensor([1.0, -1.0])
        assert found[f"{name}accuracy"] == (margins > 0).double().mean()
        loss = torch.log1p((-margins).exp()).mean().item()
        assert found[f"{name}log_loss"] == pytest.approx(loss, abs=1e-5)
    assert found["pairs"] == 6


PAIR = {"prompt": "a?", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda person: person.fit([]), "no pair"),
        (lambda person: person.fit(iter([("a?", "b", "c")])), "pair 0 is a tuple, no dict"),
        (lambda person: person.fit([PAIR, {"prompt": "a?"}]), "pair 1: no chosen"),
        (lambda person: person.fit([PAIR | {"user_id": "you"}]), "pair 0: user_id is you, and this is me"),
        (lambda person: person.fit([PAIR | {"split": "test"}]), "none is left to fit"),
        (lambda person: Person(person.basis, person.encoder, 0).fit([PAIR]), "pair 0: the basis has a user 0 already"),
        (lambda person: person.fit([PAIR | {"tools": ["x"]}]), "tools would not be read"),
        (lambda person: person.evaluate([]), "no pair"),
        (lambda person: person.prefer("a?", "b", None), r"candidates\[1\] is nothing"),
        (lambda person: person.prefer("a?", "b", "the cat " * 1000), "for the reply alone"),
        (lambda person: person.save("me.safetensors"), "call fit first"),
        (lambda person: Person(person.basis, person.encoder, " "), "says nothing"),
        (lambda person: opened("nowhere.safetensors"), "missing"),
        (lambda person: opened("nowhere.safetensors", max_length=3), "max_length: no setting"),
    ],
)  # fmt: skip
def test_what_the_scripts_refuse_is_refused(loaded, act, words):
    with pytest.raises(InputError, match=words):
        act(Person(*loaded))


def test_a_file_of_others_is_not_replaced(basis, loaded, tmp_path):
    person = Person(*loaded)
    person.fit([ROWS[0] | {"user_id": None}])
    with pytest.raises(InputError, match="would be lost"):
        person.save(basis)
    with pytest.raises(InputError, match="give it such a name"):
        person.save(tmp_path / "me.json")
    person.save(tmp_path / "me.safetensors")
    person.save(tmp_path / "me.safetensors")
    assert load_basis(tmp_path / "me.safetensors").unseen_ids[-1] == "me"


def test_the_lines_of_the_page_run_as_printed(basis, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/apply.md").read_text()
    (lines,) = re.findall(r"\n\n((?:    .*\n)*    person = Person\((?:.*\n    )*.*person\.save.*\n)", page)
    assert len(lines.splitlines()) <= 8
    (tmp_path / "basis.safetensors").write_bytes(basis.read_bytes())
    monkeypatch.chdir(tmp_path)
    # of the repository nothing but its top on the path, nothing of apply/ imported yet
    elsewhere = [folder for folder in sys.path if not folder.startswith(str(ROOT))]
    monkeypatch.setattr(sys, "path", [str(ROOT), *elsewhere])
    for module in (ROOT / "apply").glob("*.py"):
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
    monkeypatch.delitem(sys.modules, "apply", raising=False)  # benchmarks/ has a module of this name
    exec(textwrap.dedent(lines), {})
    assert "0." in capsys.readouterr().out
    assert load_basis(tmp_path / "me.safetensors").unseen_ids[-1] == "me"
