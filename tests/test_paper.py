"""benchmarks/paper.py: the numbers, which rows a file answers, and the whole path from upstream files to the page."""

import json
import re
from argparse import Namespace
from itertools import chain

import pytest
import test_personalllm
import test_prism
import test_reddit_tldr
import test_rewardbench2
from conftest import ROOT, assert_one_line_error, call_script, load_script, printed

SCRIPT = ROOT / "benchmarks/paper.py"
PAPER = load_script(SCRIPT)
RIVALS = load_script(ROOT / "benchmarks/compare_rivals.py")
IDENTITY = {"model": "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2", "pooling": "last", "head": "score"}


def test_the_numbers_are_those_that_the_paper_prints():
    numbers = {number[1:]: percent for number, percent in PAPER.published_numbers().items()}
    assert len(numbers) == 77
    assert numbers["a = 0.01", "VPL", "unseen"] == 84.1 and numbers["a = 0.1", "LoRe", "seen"] == 96.0
    assert numbers["100 pairs", "PAL", "unseen"] == 64.9 and numbers["150 pairs", "reference", "seen"] == 56.3
    assert numbers["half of the dialogues", "Bradley-Terry", "unseen"] == 61.0
    assert numbers["5 shots", "LoRe", "unseen"] == 64.7 and numbers["50 shots", "LoRe", "unseen"] == 66.7
    subsets = [numbers[name, "reference", "rows"] for name in test_rewardbench2.BENCH.SUBSETS]
    assert subsets == [69.7, 40.6, 60.1, 94.2, 94.1, 71.7]


def test_every_command_names_a_script_and_its_flags():
    for whole in chain.from_iterable(PAPER.COMMANDS.values()):
        for command in whole[1].split(" && "):
            _, script, *flags = command.split()
            status, out, _ = call_script(ROOT / script, "--help")
            given = {flag for flag in flags if flag.startswith("--")}
            assert status == 0 and given <= {*re.findall(r"--\w+", out)}, command


def report(**changed):
    """What RedditTLDR/train_basis.py leaves behind when it runs as in the paper."""
    settings = {
        "script": "RedditTLDR/train_basis.py", "solver": "adam", "num_iterations": 1000, "learning_rate": 0.5,
        "train_posts": 0.0, "min_comparisons": 50, "drop_smallest": 0, "max_few_shot": 50, "resplit": True,
        "synthetic": False,
    }  # fmt: skip
    settings |= changed.pop("settings", {})
    groups = {}
    for group in ("seen", "unseen"):
        groups[group] = {"user": [f"{group}{i}" for i in range(20)], "pairs": [90] * 20}
    summary = []
    for K, mean in ((0, 0.57), (1, 0.63), (2, 0.66), (5, 0.67)):
        summary.append({"K": K, "alpha": 0.0, "variant": "", "interval": "users"} | around(mean))
    fit = {"K": 1, "alpha": 0.0, "variant": "", "of_each_user": groups}
    content = {
        "settings": settings, "environment": {"torch": "2.13.0"}, "git_commit": "0123456789", "max_train": 150,
        "model": json.dumps(IDENTITY), "rows": [fit | {"seed": seed} for seed in range(20)],
        "summary": summary, "cross_validated": [summary[-1] | {"K": "cross-validated"} | around(0.64)],
    }  # fmt: skip
    return content | changed


def around(mean, half=0.025):
    interval = [mean - half, mean + half]
    return {"seen": mean, "seen_interval": interval, "unseen": mean, "unseen_interval": interval}


def laid_beside(folder, content, name="train_basis.json"):
    """{row of TL;DR: what the printed tables say of it, of each file}, and all that was said."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    status, out, err = call_script(SCRIPT, "--results", folder)
    assert status == 0, err
    rows = {}
    for line in out.splitlines():
        if line.startswith(("100 pairs", "150 pairs")):
            name, _, said = line.partition("  ")
            rows.setdefault(name, []).append(said)
    return rows, out, err


LORE = "150 pairs, LoRe, unseen"


def test_a_row_is_reproduced_where_the_interval_holds_the_published_number(tmp_path):
    rows, out, err = laid_beside(tmp_path, report())
    assert "150 pairs, VPL, unseen" in rows and "100 pairs, LoRe, seen" in rows and not err
    assert "compare_rivals.py" in out  # the command of what was not run
    student = report()
    student["cross_validated"] = [student["summary"][-1] | around(0.70)]
    for row in (*student["summary"], *student["cross_validated"]):
        row["interval"] = "users and prompts, Student's t"  # half of it is 2.093 standard errors
    by_student, _, _ = laid_beside(tmp_path, student)
    for found, name, verdict in (
        (rows, "150 pairs, reference, unseen", ["-0.3", "-0.2", "reproduced"]),  # 57.0 +- 2.5
        (rows, "150 pairs, Bradley-Terry, seen", ["-0.2", "-0.2", "reproduced"]),
        (rows, LORE, ["-2.7", "-2.1", "below"]),  # a std. error is 1.28
        (by_student, LORE, ["+3.3", "+2.8", "above"]),
    ):
        (said,) = found[name]
        assert said.split("]")[1].split()[:3] == verdict


def encoder(**changed):
    return {"model": json.dumps(IDENTITY | changed)}


NAME = IDENTITY["model"]
CACHED = f"/cache/hub/models--{NAME.replace('/', '--')}/snapshots/d4117fbf"
PUBLISHED_CODE = {"min_comparisons": 1, "drop_smallest": 2, "resplit": False}
ONE_RANK = {"summary": report()["summary"][:3], "cross_validated": []}
CHANGES = [  # of the six rows of a file how many are reproduced, and of all of them how many are comparable
    (encoder(model="/x/y/MiniLM", pooling="mean"), "encoder (y/MiniLM)", 0, 0),
    (encoder(pooling="mean"), "comparable: pooling mean, not last", 0, 0),
    (encoder(model=f"/x/{NAME}/tuned"), "v0.2/tuned", 0, 0),
    ({"model": ""}, "other encoder (not said)", 0, 0),
    ({"settings": {"solver": "ridge"}}, "solver ridge, not adam", 0, 0),
    ({"settings": {"train_posts": 0.5}}, "train_posts 0.5, not 0.0", 0, 0),
    ({"settings": {"resplit": False}}, "1 split, not 20", 0, 0),
    ({"settings": {"num_iterations": "1000"}}, "num_iterations 1000, not 1000", 0, 0),
    ({"settings": {"synthetic": "true"}}, "synthetic true, not False", 0, 0),
    ({"rows": report()["rows"][:7]}, "7 splits, not 20", 0, 0),
    (ONE_RANK, "K = 2 alone, not cross-validated", 4, 4),
    (encoder(model=f"/models/{NAME}"), "5 reproduced, 1 below", 5, 6),
    (encoder(model=CACHED), "5 reproduced, 1 below", 5, 6),
    ({"settings": PUBLISHED_CODE}, "; published code, 1 split", 5, 6),
]


@pytest.mark.parametrize("change, words, reproduced, comparable", CHANGES)
def test_what_is_not_as_in_the_paper_is_named_and_not_compared(
    tmp_path, change, words, reproduced, comparable
):
    rows, out, _ = laid_beside(tmp_path, report(**change))
    said = " ".join(chain.from_iterable(rows.values()))
    assert words in out and said.count("reproduced") == reproduced
    assert said.count("not comparable") == 6 - comparable


def test_two_files_of_a_row_are_both_shown_and_planted_ones_stand_apart(tmp_path):
    laid_beside(tmp_path, report())
    laid_beside(tmp_path, report(max_train=100), "train_basis_100.json")
    rows, _, _ = laid_beside(tmp_path, report(settings={"solver": "ridge"}), "sub.json")
    first, second = rows[LORE]
    assert "not comparable" in first and "below" in second
    rows, out, _ = laid_beside(tmp_path / "planted", report(settings={"synthetic": True}))
    assert all("not run" in said for (said,) in rows.values()) and "reproduced" not in out
    assert f"Reddit TL;DR, {LORE}" in out.split("planted accuracy")[1]


def test_vpl_and_pal_are_filled_by_the_rivals_on_the_same_embeddings(tmp_path):
    rows = []
    sets = {"prepared: Reddit TL;DR, 150 pairs": [20, 20], "prepared: PRISM, half of the dialogues": [12, 13]}
    sets |= dict.fromkeys(("planted: PersonalLLM, a = 0.1", "planted: low rank", "arguments, split by pair"))
    for data_set, people in sets.items():
        row = {"data_set": data_set, "populations": 20, "model": json.dumps(IDENTITY), "people": people}
        rows += [row | {"method": name} | around(0.63) for name in ("VPL", "PAL-A", "MRM, last epoch")]
    rows.append({"data_set": "prepared: Reddit TL;DR, 100 pairs", "method": "VPL", "reason": "x"})
    settings = {"settings": {"script": "benchmarks/compare_rivals.py"}, "environment": {"torch": "2.13.0"}}
    found, out, _ = laid_beside(tmp_path, settings | {"rows": rows}, "rivals.json")
    (said,) = found["150 pairs, PAL, unseen"]
    assert "-0.8" in said and "reproduced" in said  # 63.0 for 63.8
    assert "12 seen people, not 643; 13 unseen people, not 643" in out
    assert "rows: 4 reproduced, 4 not comparable, 69 not run" in out
    assert out.count("PersonalLLM, a = 0.1, VPL") == 2 and "MRM" not in out


HEAD = report()["summary"][0]
FOREIGN = "is no whole file of results"
UNUSABLE = [
    ("", FOREIGN),
    ("[1]", FOREIGN),
    ('{"settings": {}}', f"{FOREIGN} of a script here (KeyError: 'script')"),
    (json.dumps(report()).replace("0.57", "NaN"), "NaN, which is no number"),
    (json.dumps(report())[:-40], FOREIGN),
    (report(settings={"script": "OwnData/train_basis.py"}), "OwnData/train_basis.py: nothing of it"),
    (report(max_train=80), "80 pairs: the paper has 100 pairs, 150 pairs"),
    (report(environment=None), FOREIGN),
    (report(rows=[[1]]), FOREIGN),
    (report(summary=[], cross_validated=[]), "holds no row"),
    (report(summary=[HEAD | {"unseen": 1.7, "unseen_interval": [1.6, 1.8]}]), "unseen is 1.7 [1.6, 1.8]"),
    (report(summary=[HEAD | {"seen_interval": [0.6, 0.7]}]), "seen is 0.57 [0.6, 0.7]: no accuracy with its"),
    (report(summary=[HEAD | {"seen": "0.57"}]), FOREIGN),
]


@pytest.mark.parametrize("content, words", UNUSABLE)
def test_a_file_that_cannot_be_used_is_named_in_one_line_and_left_out(tmp_path, content, words):
    rows, _, err = laid_beside(tmp_path, content)
    (line,) = err.strip().splitlines()
    assert line.startswith(f"left out: {tmp_path / 'train_basis.json'} ") and words in line
    assert all("not run" in said for (said,) in rows.values())


def test_mistakes_end_with_one_line(tmp_path):
    assert_one_line_error(call_script(SCRIPT, "--results", tmp_path / "nowhere"), "nowhere", "no such folder")
    assert_one_line_error(call_script(SCRIPT, "--reslts", tmp_path), "--reslts")
    page = tmp_path / "page.html"
    page.write_text("mine")
    done = call_script(SCRIPT, "--results", tmp_path, "--output", page)
    assert_one_line_error(done, "would be lost")


def call(script, *flags):
    printed(ROOT / script, *flags)


def test_the_whole_path_from_upstream_files_to_the_page_on_a_tiny_reward_model(tmp_path, reward_model):
    """The commands of the paper's protocol, with fewer people, splits and steps."""
    model = ("--model", reward_model)
    splits = ("--repeats", 2, "--resplit", "--K_list", 0, 1, 2, 3, "--num_iterations", 4)
    names = ("RedditTLDR", "PRISM", "PersonalLLM")
    data = {name: ("--data", tmp_path / name / "data") for name in names}
    results = {name: ("--results", tmp_path / name / "results") for name in names}

    test_reddit_tldr.put(tmp_path / "RedditTLDR", "batch0.json", test_reddit_tldr.many_rows())
    call("RedditTLDR/prepare.py", "--source", tmp_path / "RedditTLDR", *data["RedditTLDR"], *model)
    few = (*data["RedditTLDR"], *results["RedditTLDR"], "--min_comparisons", 4, "--max_few_shot", 6)
    call("RedditTLDR/train_basis.py", *few, *splits, "--max_train", 150)
    call("RedditTLDR/vary_fewshot.py", *few, "--num_shots", 5, "--trials", 2, "--num_iterations", 4)

    test_prism.upstream(tmp_path / "PRISM")
    call("PRISM/prepare.py", "--source", tmp_path / "PRISM", *data["PRISM"])
    call("PRISM/generate-prism-embeddings.py", *data["PRISM"], *model)
    halves = ("--seen_fraction", 0.5, "--alpha_list", 0)
    call("PRISM/train_basis.py", *data["PRISM"], *results["PRISM"], *splits, *halves)
    bench = test_rewardbench2.bench_file(tmp_path, test_rewardbench2.bench())
    call("PRISM/eval_rb2.py", "--source", bench, *data["PRISM"], *results["PRISM"], *model)

    sides = test_personalllm.upstream(12), test_personalllm.upstream(5, seed=1)
    test_personalllm.write(tmp_path / "PersonalLLM", *sides)
    source = ("--source", tmp_path / "PersonalLLM")
    call("PersonalLLM/prepare.py", *source, *data["PersonalLLM"], *model)
    few = (*test_personalllm.FEW, "--few_shot_prompts", 3, "--dirichlet_list", 0.001)
    call("PersonalLLM/train_basis.py", *data["PersonalLLM"], *results["PersonalLLM"], *splits, *few)

    prepared = RIVALS.data_sets(Namespace(prepared=tmp_path, sets=[]))
    assert len(prepared) == 6 and all(data_set.model for data_set in prepared.values())
    groups, head = prepared["prepared: PRISM, half of the dialogues"].make(1)
    assert groups.sizes == (5, 5) and head.shape == (32, 1)

    folders = [tmp_path / name / "results" for name in data]
    page = tmp_path / "page.html"
    status, out, err = call_script(SCRIPT, "--results", *folders, "--output", page)
    assert status == 0 and not err, err
    said = [f"{people} seen people, not {of}" for people, of in ((3, 20), (5, 643), (6, 1000))]
    said += [f"/{reward_model.name})", "2 splits, not 20", "tested on 5 pairs each, not 990 or more"]
    assert all(words in out for words in said)
    # of 77 not VPL and PAL, nine of ten points of the curve, two populations, one of two columns of TL;DR
    assert out.splitlines()[-2].endswith("rows: 26 not comparable, 51 not run")
    html = page.read_text()
    assert html.count("<svg") == 5 and "reproduced" not in html and "a = 0.001, LoRe, unseen" in html
