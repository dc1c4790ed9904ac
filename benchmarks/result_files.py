"""From a file of results to the published numbers that it answers, by what stands in the file alone.

answers_of(path)    [Answer] of a .json of a train_basis.py, vary_fewshot.py, eval_rb2.py or compare_rivals.py
"""

import json
from pathlib import Path
from typing import NamedTuple

import published
from published import LORE, REFERENCE, Number

from lore.common import require, told_as
from lore.fit.evaluation import TESTED
from lore.splits import identity_of

# what a file raises that is no JSON, or holds something else than its script writes
FOREIGN = (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
CURVE_RANK = 5  # of the published few-shot curve
PEOPLE_OFF = 0.01  # share by which their number may differ: PRISM's is 1,287, which no half divides
RIVALS = {"VPL": "VPL", "PAL-A": "PAL"}  # as compare_rivals.py calls them


class Answer(NamedTuple):
    """What a file has for a published number."""

    number: Number
    percent: float
    interval: tuple  # low, high; 95 %
    how: str  # protocol (paper, published code, that of RewardBench 2), splits, what is special to it
    reasons: tuple  # why it cannot be compared; () = it can
    planted: bool
    origin: str = ""  # file, commit and torch


def answers_of(path):
    """[Answer] of a file. InputError: it cannot be read, or answers nothing."""
    with told_as("is no whole file of results of a script here", *FOREIGN):
        report = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
        script = report["settings"]["script"]
        require(script in READERS, f"written by {script}: nothing of it is in the paper")
        commit = report.get("git_commit") or "unknown"
        commit = commit[:9] + "+" * commit.endswith("+")  # "+": files differed from it
        origin = f"commit {commit}, torch {report['environment']['torch']}"
        answers = [answer._replace(origin=origin) for answer in READERS[script](report)]
    require(answers, "holds no row that the paper has")
    return answers


def refuse(constant):
    raise ValueError(f"it holds {constant}, which is no number")


# ------------------------------------------------------------------------------------------------
# The scripts' files
# ------------------------------------------------------------------------------------------------


def of_sweep(report):
    """Yield an Answer for each alpha, method and group."""
    script = report["settings"]["script"]
    table, column = published.PRISM, published.HALF
    if script == "PersonalLLM/train_basis.py":
        table, column = published.PERSONALLLM, f"a = {report['population']:g}"
    elif script == "RedditTLDR/train_basis.py":
        table, column = published.TLDR, f"{report['max_train']} pairs"
    in_paper = published.TABLES[table]
    require(column in in_paper, f"{table}, {column}: the paper has {', '.join(in_paper)}")
    runs = Runs.of(report)
    for method, row, ranks in rows_of_methods(report):
        alpha = None if method == REFERENCE else row["alpha"]
        how = f"alpha {alpha:g}" if alpha else ""
        how += f", K of {', '.join(map(str, ranks))}" if ranks else ""
        alone = (f"K = {ranks[0]} alone, not cross-validated",) if len(ranks) == 1 else ()
        for group in TESTED:
            yield runs.answer(Number(table, column, method, group), row, alpha, how, alone)


def rows_of_methods(report):
    """Yield (method, row of the summary, the ranks that LoRe could choose from)."""
    ranked = {}  # alpha -> {rank above 1: row}
    for row in report["summary"]:
        K = row["K"]
        if row["variant"] == "" and K in (0, 1):
            yield (REFERENCE, published.BRADLEY_TERRY)[K], row, ()
        elif row["variant"] == "" and isinstance(K, int):
            ranked.setdefault(row["alpha"], {})[K] = row
    for row in report["cross_validated"]:
        if len(ranked.get(row["alpha"], ())) > 1:
            yield LORE, row, [*ranked[row["alpha"]]]
    for rows in ranked.values():
        if len(rows) == 1:
            yield LORE, *rows.values(), [*rows]


def of_curve(report):
    """Yield an Answer for each number of shots that the paper has."""
    runs = Runs.of(report)
    for row in report["rows"]:
        if row["shots"] in published.UNSEEN_BY_SHOTS and row["K"] == CURVE_RANK:
            number = Number(published.CURVE, f"{row['shots']} shots", LORE, "unseen")
            yield runs.answer(number, row, row["alpha"], f"K = {CURVE_RANK}")


def of_bench(report):
    """Yield an Answer for each subset of the reference head."""
    runs = Runs.of(report)
    for row in report["rows"]:
        for subset in published.BENCH_SCORES if row["reward"] == "reference head" else ():
            if subset in row:
                number = Number(published.BENCH, subset, REFERENCE, "rows")
                yield runs.answer(number, row, name=subset)


def of_rivals(report):
    """Yield an Answer for each VPL or PAL row of compare_rivals.py on a data set of the paper."""
    for row in report["rows"]:
        method = RIVALS.get(row["method"])
        kind, _, data_set = row["data_set"].partition(": ")
        table, _, column = data_set.partition(", ")
        of_paper = kind in ("planted", "prepared") and column in published.TABLES.get(table, ())
        if method and of_paper and "reason" not in row:
            fixed = published.PROTOCOLS[table][0]  # it has no other settings than the paper's
            people = (0, 0) if kind == "planted" else row["people"]
            encoder = of_encoder(row.get("model"))
            facts = (row["populations"], people, fixed.tests, kind == "planted", encoder)
            for group in TESTED:
                yield Runs(fixed.settings, *facts).answer(Number(table, column, method, group), row)


READERS = {
    "PersonalLLM/train_basis.py": of_sweep,
    "RedditTLDR/train_basis.py": of_sweep,
    "RedditTLDR/vary_fewshot.py": of_curve,
    "PRISM/train_basis.py": of_sweep,
    "PRISM/eval_rb2.py": of_bench,
    "benchmarks/compare_rivals.py": of_rivals,
}


# ------------------------------------------------------------------------------------------------
# What a run was
# ------------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """The fits of a file."""

    settings: dict
    splits: int
    people: tuple  # seen, unseen of a fit
    tests: float  # pairs that a person is tested on, mean
    planted: bool
    encoder: tuple  # why its embeddings are not the paper's; () = they are

    @classmethod
    def of(cls, report):
        """Those of a sweep, a curve or a benchmark."""
        settings = report["settings"]
        splits = len({row.get("seed") for row in report["rows"]}) if settings.get("resplit") is True else 1
        people = (0, 0)
        tests = 0.0
        for row in report["rows"]:
            groups = row.get("of_each_user") or {}
            if row.get("variant") == "" and "unseen" in groups:
                people = tuple(len(groups[name]["user"]) if name in groups else 0 for name in TESTED)
                pairs = groups["unseen"]["pairs"]
                tests = sum(pairs) / len(pairs)
        planted = settings.get("synthetic") is True
        return cls(settings, splits, people, tests, planted, of_encoder(report.get("model")))

    def answer(self, number, row, alpha=None, how="", reasons=(), name=None):
        """The Answer of a row; name: of its accuracy, where that is not the group's.

        Its protocol is that which comes nearest; what these fits differ in from it is why they cannot be compared.
        """
        name = name or number.group
        low, high = row[f"{name}_interval"]
        correct = 0 <= row[name] <= 1 and low <= row[name] <= high
        require(correct, f"{name} is {row[name]} [{low}, {high}]: no accuracy with its interval")
        protocols = [] if self.planted else published.PROTOCOLS[number.table]
        differences = {protocol.name: self.differences(protocol, alpha) for protocol in protocols}
        nearest = min(differences, key=lambda name: len(differences[name]), default="planted")
        if not self.planted:
            reasons = (*self.encoder, *differences[nearest], *reasons)
        how = f"{nearest}, {splits_text(self.splits)}, {how}".replace(", ,", ",").removesuffix(", ")
        return Answer(number, 100 * row[name], (100 * low, 100 * high), how, tuple(reasons), self.planted)

    def differences(self, protocol, alpha):
        """How these fits differ from a protocol, each in a few words."""
        words = []
        for name, expected in protocol.settings.items():
            value = self.settings.get(name, "not said")
            if value != expected:
                words.append(f"{name} {value}, not {'empty' if expected == '' else expected}")
        for group, count, expected in zip(TESTED, self.people, protocol.people):
            if expected and abs(count - expected) > PEOPLE_OFF * expected:
                words.append(f"{count} {group} people, not {expected}")
        if self.splits < protocol.splits:
            words.append(f"{splits_text(self.splits)}, not {protocol.splits}")
        if self.tests < protocol.tests:
            words.append(f"tested on {self.tests:.0f} pairs each, not {protocol.tests} or more")
        if alpha is not None and alpha != protocol.alpha:
            words.append(f"alpha {alpha:g}, not {protocol.alpha:g}")
        return words


def splits_text(count):
    return f"{count} split" + "s" * (count > 1)


def of_encoder(text):
    """Why embeddings are not those of the paper's reward model; () where they are."""
    identity = identity_of(text or "") or {}
    name = Path(identity.get("model", ""))
    in_cache = name.match(f"*--{published.ENCODER}/snapshots/*")
    if name.name != published.ENCODER and not in_cache:
        return (f"other encoder ({'/'.join(name.parts[-2:]) or 'not said'})",)
    expected = {"pooling": "last", "head": "score"}
    wrong = [name for name in expected if identity.get(name) != expected[name]]
    return tuple(f"{name} {identity.get(name)}, not {expected[name]}" for name in wrong)
