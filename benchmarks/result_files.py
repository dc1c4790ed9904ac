"""From a file of results to the published numbers that it answers, by what stands in the file alone.

answers_of(path)    [Answer] of a .json of a train_basis.py, vary_fewshot.py, eval_rb2.py or compare_rivals.py
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import published
from published import LORE, REFERENCE, Number

from lore.common import InputError, require
from lore.fit.evaluation import TESTED
from lore.report.statistics import NORMAL, quantile
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
    error: float  # standard error, in points
    how: str  # splits, and what is special to it
    protocol: str  # paper, published code, or that of RewardBench 2
    reasons: tuple  # why it cannot be compared; () = it can
    planted: bool
    path: Path = Path()
    versions: str = ""


def answers_of(path):
    """[Answer] of a file. InputError: it cannot be read, or answers nothing."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
        script = report["settings"]["script"]
        require(script in READERS, f"written by {script}: nothing of it is in the paper")
        origin = {"path": path, "versions": versions_of(report)}
        answers = [answer._replace(**origin) for answer in READERS[script](report)]
    except InputError:
        raise
    except FOREIGN as error:
        words = f"{type(error).__name__}: {error}"
        raise InputError(f"is no whole file of results of a script here ({words:.200})") from error
    require(answers, "holds no row that the paper has")
    return answers


def refuse(constant):
    raise ValueError(f"it holds {constant}, which is no number")


def versions_of(report):
    """Of the code and of torch; "+" where files differed from the commit."""
    commit = report.get("git_commit") or "unknown"
    return f"commit {commit[:9]}{'+' * commit.endswith('+')}, torch {report['environment']['torch']}"


# ------------------------------------------------------------------------------------------------
# The scripts' files
# ------------------------------------------------------------------------------------------------


def of_sweep(table, form, report):
    """Yield an Answer for each alpha, method and group. form: of the column's name, filled by the report."""
    in_paper = published.TABLES[table]
    column = form.format(**report)
    require(column in in_paper, f"{table}, {column}: the paper has {', '.join(in_paper)}")
    runs = runs_of(report)
    for method, row, ranks in rows_of_methods(report):
        alpha = None if method == REFERENCE else row["alpha"]
        protocol, reasons = runs.compared(table, alpha)
        how = runs.repeats
        if alpha:
            how += f", alpha {alpha:g}"
        if ranks:
            how += f", K of {', '.join(map(str, ranks))}"
        if len(ranks) == 1:
            reasons = (*reasons, f"K = {ranks[0]} alone, not cross-validated")
        for group in TESTED:
            yield runs.answer(Number(table, column, method, group), row, how, protocol, reasons)


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
    runs = runs_of(report)
    for row in report["rows"]:
        if row["shots"] in published.UNSEEN_BY_SHOTS and row["K"] == CURVE_RANK:
            number = Number(published.CURVE, f"{row['shots']} shots", LORE, "unseen")
            yield runs.answer(number, row, f"K = {CURVE_RANK}", *runs.compared(published.CURVE, row["alpha"]))


def of_bench(report):
    """Yield an Answer for each subset of the reference head."""
    runs = runs_of(report)
    for row in report["rows"]:
        for subset in published.BENCH_SCORES if row["reward"] == "reference head" else ():
            if subset in row:
                number = Number(published.BENCH, subset, REFERENCE, "rows")
                yield runs.answer(number, row, "K = 0", *runs.compared(published.BENCH, None), subset)


def of_rivals(report):
    """Yield an Answer for each VPL or PAL row of compare_rivals.py on a data set of the paper."""
    for row in report["rows"]:
        method = RIVALS.get(row["method"])
        kind, _, data_set = row["data_set"].partition(": ")
        table, _, column = data_set.partition(", ")
        of_paper = kind in ("planted", "prepared") and column in published.TABLES.get(table, ())
        if method and of_paper and "reason" not in row:
            # it has no other settings than the paper's
            fixed = published.PROTOCOLS[table][0]
            planted = kind == "planted"
            people = (0, 0) if planted else row["people"]
            encoder = of_encoder(row.get("model"))
            runs = Runs(fixed.settings, {}, row["populations"], people, fixed.tests, planted, encoder)
            for group in TESTED:
                number = Number(table, column, method, group)
                yield runs.answer(number, row, runs.repeats, *runs.compared(table, None))


READERS = {
    "PersonalLLM/train_basis.py": partial(of_sweep, published.PERSONALLLM, "a = {population:g}"),
    "RedditTLDR/train_basis.py": partial(of_sweep, published.TLDR, "{max_train} pairs"),
    "RedditTLDR/vary_fewshot.py": of_curve,
    "PRISM/train_basis.py": partial(of_sweep, published.PRISM, published.HALF),
    "PRISM/eval_rb2.py": of_bench,
    "benchmarks/compare_rivals.py": of_rivals,
}


# ------------------------------------------------------------------------------------------------
# What a run was
# ------------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """The fits of a file."""

    settings: dict
    ids: dict  # group -> {user ids} of all fits
    splits: int
    people: tuple  # seen, unseen of a fit
    tests: float  # pairs that a person is tested on, mean
    planted: bool
    encoder: tuple  # why its embeddings are not the paper's; () = they are

    @property
    def repeats(self):
        return f"{self.splits} split" + "s" * (self.splits > 1)

    def compared(self, table, alpha):
        """(name of the protocol that comes nearest, why the numbers cannot be compared all the same)."""
        if self.planted:
            return "planted", ()
        nearest = min(published.PROTOCOLS[table], key=lambda protocol: len(self.differences(protocol, alpha)))
        return nearest.name, (*self.encoder, *self.differences(nearest, alpha))

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
            words.append(f"{self.repeats}, not {protocol.splits}")
        if self.tests < protocol.tests:
            words.append(f"tested on {self.tests:.0f} pairs each, not {protocol.tests} or more")
        if alpha is not None and alpha != protocol.alpha:
            words.append(f"alpha {alpha:g}, not {protocol.alpha:g}")
        return words

    def answer(self, number, row, how, protocol, reasons, name=None):
        """The Answer of a row; name: of its accuracy, where that is not the group's."""
        name = name or number.group
        low, high = row[f"{name}_interval"]
        correct = 0 <= row[name] <= 1 and low <= row[name] <= high
        require(correct, f"{name} is {row[name]} [{low}, {high}]: no accuracy with its interval")
        users = len(self.ids.get(number.group, ())) or dict(zip(TESTED, self.people)).get(number.group, 0)
        half = quantile(users) if "Student" in row.get("interval", "") else NORMAL  # in standard errors
        error = 100 * (high - low) / 2 / half
        interval = (100 * low, 100 * high)
        return Answer(number, 100 * row[name], interval, error, how, protocol, tuple(reasons), self.planted)


def runs_of(report):
    """The Runs of a sweep, a curve or a benchmark."""
    settings = report["settings"]
    ids = {name: set() for name in TESTED}
    seeds = set()
    people = (0, 0)
    tests = 0.0
    for row in report["rows"]:
        seeds.add(row.get("seed"))
        groups = row.get("of_each_user") or {}
        for name in ids.keys() & groups.keys():
            ids[name].update(groups[name]["user"])
        if row.get("variant") == "" and "unseen" in groups:
            people = tuple(len(groups[name]["user"]) if name in groups else 0 for name in TESTED)
            pairs = groups["unseen"]["pairs"]
            tests = sum(pairs) / len(pairs)
    splits = len(seeds) if settings.get("resplit") is True else 1
    planted = settings.get("synthetic") is True
    return Runs(settings, ids, splits, people, tests, planted, of_encoder(report.get("model")))


def of_encoder(text):
    """Why embeddings are not those of the paper's reward model; () where they are."""
    identity = identity_of(text or "") or {}
    name = identity.get("model", "")
    repository, folder, last = ("", "", "", *Path(name).parts)[-3:]
    in_cache = folder == "snapshots" and repository.endswith(f"--{published.ENCODER}")  # of the Hub
    if last != published.ENCODER and not in_cache:
        return (f"other encoder ({'/'.join(Path(name).parts[-2:]) or 'not said'})",)
    reasons = []
    for setting, expected in (("pooling", "last"), ("head", "score")):
        if identity.get(setting) != expected:
            reasons.append(f"{setting} {identity.get(setting)}, not {expected}")
    return tuple(reasons)
