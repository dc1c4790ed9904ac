"""What the scripts of every data set do alike, on planted people: the table, fresh splits, what is missing."""

import pytest
from conftest import ROOT, assert_one_line_error, call_script, printed
from texts import report

PLANTED = {  # people whose rewards a rank of five finds
    "RedditTLDR": ("--planted_pairs", 100, "--num_iterations", 100),
    "PRISM": ("--planted_users", 120, "--num_iterations", 300, "--alpha_list", 0, "--no-mark_best"),
    "PersonalLLM": (
        "--dirichlet_list", 0.001, 0.1, "--num_seen", 60, "--num_unseen", 40, "--num_iterations", 120,
        "--planted_prompts", 300, "--planted_tests", 60, "--no-mark_best",
    ),
}  # fmt: skip
SMALL = {
    "RedditTLDR": ("--planted_workers", 8, "--planted_pairs", 40, "--min_comparisons", 4, "--max_few_shot", 6),
    "PRISM": ("--planted_users", 20),
    "PersonalLLM": (
        "--dirichlet_list", 0.01, "--num_seen", 6, "--num_unseen", 4, "--train_prompts", 8,
        "--planted_prompts", 50, "--planted_tests", 7,
    ),
    "CommunityAlignment": ("--planted_people", 12, "--planted_conversations", 8, "--min_choices", 2),
}  # fmt: skip


def started(name, script, folder, *flags):
    """What a script prints of planted people."""
    return printed(ROOT / name / f"{script}.py", "--synthetic", "--results", folder, *flags)


@pytest.mark.parametrize("name", PLANTED)
def test_rank_pays_where_planted_people_differ(name, tmp_path):
    flags = (*PLANTED[name], "--planted_features", 16, "--K_list", 0, 1, 5)
    out = started(name, "train_basis", tmp_path, *flags)
    gains = []
    for file in sorted(tmp_path.glob("*.json")):
        rows = {row["K"]: row["unseen"] for row in report(file)["rows"]}
        assert rows[0] < rows[1] < rows[5]
        gains.append(rows[5] - rows[1])
    assert gains[0] > 0.05 and gains == sorted(gains, reverse=True)  # Dirichlet(0.001): nobody mixes
    assert (" * " in out) == ("--no-mark_best" not in flags)
    assert "tested items on which others were trained: " in out
    if name != "PersonalLLM":  # where nobody knows the people's rewards
        assert rows[5] < rows["best"] and abs(rows["best"] - 0.9) < 0.02
        assert sum(line.startswith("best possible") for line in out.splitlines()) == 2  # two tables


@pytest.mark.parametrize("name", SMALL)
def test_ridge_baselines_and_fresh_splits(name, tmp_path):
    flags = (*SMALL[name], "--solver", "ridge", "--K_list")
    more = ("--baselines", "--repeats", 2, "--resplit", "--alpha_list", 3)
    out = started(name, "train_basis", tmp_path, *flags, 0, 1, 2, *more)
    assert "alpha_list = [3.0] is not used" in out and "ridge, seed 1: held-out loss" in out
    assert "± std over splits [95 % interval" in out
    (file,) = tmp_path.glob("train_basis_synthetic*.json")
    saved = report(file)
    variants = {(row["K"], row["variant"]) for row in saved["summary"]}
    assert {(1, ""), (2, "shuffled labels"), ("alone", "each user alone")} <= variants
    first, second = (row["of_each_user"]["seen"] for row in saved["rows"] if row["K"] == 0)
    assert first["log_loss"] != second["log_loss"]  # by the same head, of other people
    out = started(name, "vary_fewshot", tmp_path, *flags, 1, 2, "--num_shots", 1, 2, "--trials", 2)
    assert "ridge, seed 0: held-out loss" in out and "over Bradley-Terry, unseen" in out
    (file,) = tmp_path.glob("vary_fewshot_synthetic*.json")
    assert [(row["K"], row["shots"]) for row in report(file)["rows"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert file.with_suffix(".png").exists()


@pytest.mark.parametrize("script", ["train_basis", "vary_fewshot"])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_to_be_prepared_is_named(name, script, tmp_path):
    done = call_script(ROOT / name / f"{script}.py", "--data", tmp_path)
    assert_one_line_error(done, " is missing; make it with: ", f"python {name}/prepare.py")
