"""Results as one page: tables with intervals, curves, people's mixtures, and the replies behind them.

    python apply/report.py --input OwnData/results/train_basis.json --output PAGE.html
    python apply/report.py --input .. --output PAGE.html --texts COMPARISONS     with the replies themselves

Reads:  --input, a .json of a train_basis.py or vary_fewshot.py; beside it, if they are there, the
        bases, and beside train_basis.json also vary_fewshot.json
        --texts, the file that OwnData/prepare.py was given, and the folder that it wrote to (--prepared)
Writes: --output, one HTML file that needs nothing else: no script, nothing from the network
Cost:   seconds.
"""

import json
import math
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch
from outputs import require_page

from lore.common import require, start, told_as, written_whole
from lore.fit.basis import basis_health, basis_path, load_basis
from lore.fit.evaluation import LORE
from lore.report.pictures import rank_figure, shots_figure, svg_of
from lore.report.text_tables import Table, few_shot_tables, health_table, run_tables
from lore.settings import settings
from lore.splits import identity_of, load_split
from lore.text.input_rows import common_start, hash_of, read_judgements
from page import compared, mixtures, on_demand, page, paragraphs, picture, remark, shown_table, text

# ------------------------------------------------------------------------------- settings ---
input = ""  # results: a .json of train_basis.py or vary_fewshot.py
output = ""  # the page
texts = ""  # the comparisons that OwnData/prepare.py was given; empty = no replies in the page
columns = []  # OURS=THEIRS, as prepare.py was told them
prepared = ""  # the folder that it wrote to; empty = where the results say
replies = 3  # prompts shown of each basis reward: those whose replies it tells apart most
pairs = 2  # shown of each person, of those that were predicted worst
people = 20  # at most, whose pairs are shown
# -------------------------------------------------------------------------------------------

TESTED = ("seen", "unseen")  # groups of people
CURVE = "Accuracy against what is known"
ROUNDING = 1e-5  # of a log-loss
OF_A_FIT = {"K", "alpha", "seed", "variant"}


def read_results(path):
    """(results, their Tables) of a .json. InputError: missing, or not of these scripts."""
    require(path, "which results? name a .json with --input")
    with told_as(f"{path} cannot be read", OSError):
        content = Path(path).read_bytes()
    foreign = f"{path} is no .json of train_basis.py or vary_fewshot.py"
    with told_as(foreign, ValueError, TypeError, KeyError, AttributeError, IndexError):
        results = json.loads(content)
        made_by = results["settings"] | results["environment"]
        if "summary" not in results:
            return results, few_shot_tables(results["rows"])
        require(all(row.keys() >= OF_A_FIT for row in results["rows"]), foreign)
        return results, run_tables(results["summary"], "splits" if made_by.get("resplit") else "seeds")


def in_html(tables):
    return "".join(map(shown_table, tables))


def curve_beside(path, results, not_shown):
    """HTML of the few-shot curve beside the results of a run; empty where there is none of these people."""
    path = path.with_name(path.name.replace("train_basis", "vary_fewshot"))
    file = Path(f"{path}.json")
    if not file.exists():
        return ""
    curve, tables = read_results(file)
    if "summary" in curve:  # these results themselves, under another name
        return ""
    origin = f"{file}, written {written_when(file)}, of {data_of(curve)}"
    if data_of(curve) != data_of(results) or not people_of(curve) <= people_of(results):
        not_shown.append(f"{origin}: a curve of other people than these results")
        return ""
    return picture(svg_of(shots_figure(path))) + in_html(tables) + remark(f"From {origin}.")


def written_when(file):
    return datetime.fromtimestamp(Path(file).stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def data_of(results):
    """The folder of the comparisons, or how people were planted."""
    made_by = results["settings"]
    if not made_by.get("synthetic"):
        return str(Path(made_by.get("data", "")).resolve())
    planted = {name: value for name, value in made_by.items() if name.startswith("planted")}
    return f"people planted by seed {made_by.get('seed')}, {planted}"


def people_of(results):
    """Ids of all people in a run's rows."""
    people = set()
    for row in results["rows"]:
        for group in row.get("of_each_user", {}).values():
            people |= {*group["user"]}
    return people


def bases_of(path, rows, not_shown):
    """{(K, alpha, seed): Basis} of the run that wrote these rows."""
    prefix = Path(path).with_suffix("")
    bases = {}
    for row in rows:
        key = (row["K"], row["alpha"], row["seed"])
        if row["variant"] != LORE or row["K"] in (0, "best") or row["alpha"] is None:
            continue
        file = Path(basis_path(prefix, *key))
        basis = load_basis(file) if file.exists() else None
        if basis is not None and is_of(basis, row):
            bases[key] = basis
        elif basis is not None:
            not_shown.append(f"{file}: a basis of another run")
    return bases


def is_of(basis, row):
    """Whether a basis is that of a row: of the same people, and as right about the unseen ones."""
    groups = row.get("of_each_user", {})
    if any(name not in groups for name in ("train", "unseen")):
        return False
    people = [tuple(groups[name]["user"]) for name in ("train", "unseen")]
    if people != [basis.user_ids, basis.unseen_ids]:
        return False
    loss = np.mean(groups["unseen"]["log_loss"])
    return basis.held_out is None or abs(basis.held_out["personal"] - loss) < ROUNDING


def health_of(bases, V_ref):
    rows = []
    for (K, alpha, seed), basis in bases.items():
        rows.append({"K": K, "alpha": alpha, "seed": seed, **basis_health(basis.V, basis.W, V_ref)})
    return health_table(rows)


def shown_basis(summary, bases):
    """The basis whose people are shown: of the starred rank, else of the highest; None: all have one reward."""
    starred = [row["K"] for row in summary if row.get("best")]
    several = [key for key, basis in bases.items() if basis.V.shape[1] > 1]
    return max(several, key=lambda key: (key[0] in starred, key[0]), default=None)


class Replies:
    """The prepared comparisons with their texts."""

    def __init__(self, args, results):
        folder = Path(args.prepared or results["settings"].get("data", ""))
        self.split = load_split(folder / "comparisons", "python OwnData/prepare.py", needed=["row"])
        judgements = read_judgements(args.texts, args.columns)
        same = hash_of(judgements) == self.split.made_from
        require(same, f"{args.texts} is not the file that {folder} was prepared from")
        self.conversation = {}
        for row, chosen, rejected in self.split.frame[["row", "chosen", "rejected"]].to_numpy():
            self.conversation[chosen] = judgements[row].chosen
            self.conversation[rejected] = judgements[row].rejected

    def extremes(self, basis, count):
        """For each basis reward the prompts whose replies it tells apart most, with the best and the worst of each."""
        columns = basis.of_columns()
        frame = self.split.frame
        prompt = pd.concat([frame.set_index(side)["prompt"] for side in ("chosen", "rejected")])
        prompt = prompt[~prompt.index.duplicated()]  # of each row of the table
        scores = columns.log_odds(self.split.table[prompt.index.to_numpy()], columns.user_ids)  # (rows, K)
        by_prompt = pd.DataFrame(scores.numpy(), prompt.index, columns.user_ids).groupby(prompt)
        apart = by_prompt.max() - by_prompt.min()
        best = by_prompt.idxmax()
        worst = by_prompt.idxmin()
        meaning = "Log-odds: by how much this reward alone would prefer the first reply to the second."
        parts = [remark(meaning)]
        for name in columns.user_ids:
            parts.append(f"<h3>{name}</h3>")
            for key, gap in apart[name].nlargest(count).items():
                pair = self.side_by_side("likes most", best[name][key], "likes least", worst[name][key])
                parts.append(pair)
                parts.append(remark(f"{gap:.2f} log-odds apart: the first in {odds(gap)} of such choices"))
        return "".join(parts)

    def side_by_side(self, high, better, low, worse):
        """Labels and rows of the table of two replies to one prompt."""
        talks = self.conversation[better], self.conversation[worse]
        asked = common_start(*talks) or talks[0][:-1]
        parts = asked, talks[0][len(asked) :], talks[1][len(asked) :]
        prompt, liked, other = ["\n\n".join(map(spoken_by, part)) for part in parts]
        return compared(prompt.removeprefix("user: "), [(high, liked, "high"), (low, other, "low")])

    def worst_pairs(self, basis, people, count):
        """Of each person the pairs that their reward got most wrong, of all that are known of them."""
        parts = [remark("Of all pairs of a person, those that the reward was fitted to included.")]
        by_user = dict([*self.split.frame.groupby("user_id")])
        judges = [user for user in basis.everybody if user in by_user]
        for user in judges[:people]:
            pairs = by_user[user]
            sides = [self.split.table[pairs[side].to_numpy()].float() for side in ("chosen", "rejected")]
            margin = basis.log_odds(sides[0] - sides[1], [user])[:, 0]
            wrong = int((margin <= 0).sum())
            parts.append(f"<h3>{text(f'{user}: {wrong} of {len(pairs)} wrong')}</h3>")
            for number in margin.argsort()[: min(count, wrong)].tolist():
                pair = pairs.iloc[number]
                parts.append(self.side_by_side("they preferred", pair["chosen"], "to this", pair["rejected"]))
                gave = f"{odds(margin[number])} (log-odds {margin[number]:+.2f})"
                parts.append(remark(f"their reward gave this choice {gave}"))
        if len(judges) > people:
            parts.append(remark(f"{len(judges) - people} more people are not shown (--people)."))
        return "".join(parts)


def spoken_by(message):
    """A message with who says it, where that is not plain."""
    who = "" if message["role"] == "assistant" else f"{message['role']}: "
    return who + message["content"]


def odds(margin):
    """A probability as a share, from log-odds."""
    return f"{100 / (1 + math.exp(-float(margin))):.3g} %"


# ------------------------------------------------------------------------------------------------
# In words
# ------------------------------------------------------------------------------------------------


def found_in_words(path, results, encoder):
    """Sentences: on what the run was, and what its best row found."""
    made_by = results["settings"]
    people = {}
    for row in results["rows"]:
        for group, of_group in row.get("of_each_user", {}).items():
            people[group] = len(of_group["user"])
    counted = [f"{people[group]} {group}" for group in TESTED if group in people]
    planted = made_by.get("synthetic")
    data = f"people planted by seed {made_by.get('seed')}" if planted else data_of(results)
    yield f"Data: {data}. People: {', '.join(counted) or 'not said'}. Encoder: {encoder}."
    yield f"Solver {made_by.get('solver', 'not said')}, written {written_when(path)}."
    fits = [row for row in results.get("summary", ()) if row["variant"] == LORE]
    ranks = [row for row in fits if row["K"] not in (0, "best")]
    if not ranks:
        return
    starred = [row for row in ranks if row.get("best")]
    best = starred[0] if starred else max(ranks, key=lambda row: row["unseen"])
    why = "held-out training prompts speak for this rank" if starred else "the best rank on these very pairs"
    name = "One reward for everybody (K = 1)" if best["K"] == 1 else f"K = {best['K']}"
    low, high = [100 * value for value in best["unseen_interval"]]
    said = f"{name} foretells {100 * best['unseen']:.1f} % [{low:.1f}, {high:.1f}] of unseen people's choices"
    yield f"{said} on new prompts; {why}."
    if "unseen_gain" in best:
        mean, low, high = [100 * value for value in best["unseen_gain"]]
        told = "can be told from none" if low > 0 or high < 0 else "cannot be told from none"
        yield f"Over one reward for everybody that is {mean:+.1f} [{low:+.1f}, {high:+.1f}] points, which {told}."


def encoder_in_words(results, bases):
    """What made the embeddings, as results or bases say it."""
    if results["settings"].get("synthetic"):
        return "none, people and vectors are planted"
    for model in (results.get("model"), *(basis.model for basis in bases.values())):
        identity = identity_of(model or "")
        if identity:
            name = str(identity.get("model"))
            name = Path(name).name if Path(name).is_absolute() else name
            how = [str(identity.get(key)) for key in ("pooling", "dtype", "version")]
            return "{}, pooling {}, {}, version {}".format(name, *how)
    return "not said"


def sections_of(args, results, tables):
    """Yield (heading, HTML)."""
    path = Path(args.input).with_suffix("")
    not_shown = []
    is_run = "summary" in results
    bases = bases_of(args.input, results["rows"], not_shown) if is_run else {}
    encoder = encoder_in_words(results, bases)
    yield "What was found", paragraphs(found_in_words(args.input, results, encoder))
    if is_run:
        yield "Accuracy", in_html(tables)
        yield "Accuracy against rank", picture(svg_of(rank_figure(path)))
        curve = curve_beside(path, results, not_shown)
    else:
        curve = picture(svg_of(shots_figure(path))) + in_html(tables)
    if curve:
        yield CURVE, curve
    if is_run:
        yield from sections_of_bases(args, results, bases)
    if not_shown:
        yield "Not shown", "".join(map(remark, not_shown))
    made_by = results["settings"] | results["environment"]
    made_by |= {"git commit": results.get("git_commit")}
    rows = [[name, str(value)] for name, value in made_by.items()]
    yield "Settings and versions", on_demand("show them", shown_table(Table(["setting", "value"], rows)))


def sections_of_bases(args, results, bases):
    """Yield (heading, HTML) of the bases that the run has left beside its results."""
    replies = Replies(args, results) if args.texts else None
    if not bases:
        return
    for (K, _, _), basis in bases.items() if replies else ():
        model = replies.split.model
        words = f"the basis of K = {K} was learned on {basis.model}, not on {model}"
        require(identity_of(basis.model) == identity_of(model), f"{words}, of which the prepared texts are")
    yield "Health of the bases", shown_table(health_of(bases, replies and replies.split.head))
    key = shown_basis(results["summary"], bases)
    if key is not None:
        W = torch.cat([bases[key].W, bases[key].W_unseen]).numpy()
        yield f"People's mixtures, K = {key[0]}, by their strongest reward", mixtures(bases[key].everybody, W)
    if replies:
        key = key or max(bases)
        yield f"Replies, K = {key[0]}", replies.extremes(bases[key], args.replies)
        worst = replies.worst_pairs(bases[key], args.people, args.pairs)
        yield "What each person's reward got most wrong", worst


def main():
    args = settings(globals())
    results, tables = read_results(args.input)
    require_page(args.output, [args.input, args.texts])
    sections = [*sections_of(args, results, tables)]
    title = f"LoRe: {Path(args.input).with_suffix('').name}"
    with written_whole(args.output) as file:
        file.write_text(page(title, sections), encoding="utf-8")
    print(f"the page is {args.output}: {', '.join(heading for heading, _ in sections)}")


if __name__ == "__main__":
    start(main)
