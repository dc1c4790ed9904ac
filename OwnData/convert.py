"""Your own people, before step 1: from another layout to comparisons, which prepare.py and adapt.py read.

    python OwnData/convert.py --from arena --source lmsys/mt_bench_human_judgments:human --output rows.jsonl

    arena        two replies and a winner: conversation_a, conversation_b (or prompt, response_a, response_b),
                 winner (a, b, model_a, left, tie ..), judge or user_id; turn
    ratings      user_id, prompt, response, score; or lists, responses and scores: all pairs of a person's
                 replies to a prompt that differ by --gap
    rankings     user_id, prompt, responses and ranks (of each, 1 the best) or order (their numbers, best
                 first); or one response and its rank in a row
    wide         prompt, response_a, response_b, and a column of votes for each of --annotators; with one
                 response, of scores
    argilla      records of Argilla 2: a ranking, a label that names the better field, or a rating
    labelstudio  tasks with annotations of a Pairwise tag
    pairs        what prepare.py reads as it is, without the rows that it would refuse

Reads:  --source, a file, a folder or NAME:SPLIT of the Hub, as prepare.py does. --columns gives columns of
        other names those above: user_id=annotator response_a=text1
Writes: --output, JSON lines: user_id, prompt, chosen, rejected, with upstream's ids. What is left out is
        counted, with the reason.
Cost:   seconds. A row at a time is in memory; of scores and ranks all.
"""

import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from annotation_tools import INNER, argilla, labelstudio
from conversions import EMPTY, NAMES, TIE, Grade, arena, pairs, rankings, ratings, wide

from lore.common import InputError, require, require_apart, start
from lore.settings import settings
from lore.text.input_rows import judgement, prompt_key, rows_of
from lore.text.json_text import is_nothing, written_rows

# ------------------------------------------------------------------------------- settings ---
from_ = ""  # the layout: arena, ratings, rankings, wide, argilla, labelstudio, pairs
source = ""  # a file, a folder, or NAME:SPLIT of the Hub
output = ""  # where the comparisons go, a .jsonl file; .gz packed
columns = []  # OURS=THEIRS, where columns have other names: user_id=annotator prompt=question
votes = []  # labels of its own for the winner: a=1 b=2 tie=0
annotators = []  # of wide: the columns that are people
question = ""  # of argilla and labelstudio, where there are several
gap = 0.0  # of ratings: the least difference of two scores that says something; equal ones never do
# -------------------------------------------------------------------------------------------

LAYOUTS = {each.__name__: each for each in (arena, ratings, rankings, wide, argilla, labelstudio, pairs)}
SHOWN = 12  # reasons for which something is left out
SUFFIXES = (".jsonl", ".json", ".ndjson")


class Written:
    """The comparisons as they are written, and what is left out."""

    def __init__(self, write):
        self.write = write
        self.left_out = Counter()  # by the reason
        self.first = {}  # of each reason, where it is first
        self.people = Counter()  # comparisons of each
        self.prompt_ids = {}  # of each prompt, the first that upstream gave it

    def add(self, file_and_line, outcome):
        """A comparison, which is left out where prepare.py would refuse it, or a reason."""
        if isinstance(outcome, str):
            self.left_out[outcome] += 1
            self.first.setdefault(outcome, file_and_line)
            return
        try:
            require(not is_nothing(outcome.get("prompt", "?")), EMPTY)
            judged = judgement(file_and_line, outcome)
        except InputError as error:
            self.add(file_and_line, str(error).removeprefix(file_and_line).lstrip(",: "))
            return
        if "prompt_id" in outcome:
            given = self.prompt_ids.setdefault(prompt_key(judged), judged.prompt_id)
            outcome = outcome | {"prompt_id": given}
        self.write(outcome)
        self.people[judged.user_id] += 1

    def tell(self, args):
        """Prints what there is and what is left out. InputError: nothing is left."""
        counts = self.left_out.most_common()
        reasons = [f"{count} x {reason} (first: {self.first[reason]})" for reason, count in counts[:SHOWN]]
        more = sum(count for _, count in counts[SHOWN:])
        reasons += [f"{more} x for other reasons"] if more else []
        require(self.people, f"{args.source}: nothing is left: {', '.join(reasons) or 'it holds no row'}")
        for name, theirs in args.read_as.items():
            print(f"read as {name}: {theirs}")
        for reason in reasons:
            print(f"left out: {reason}")
        print(f"{self.people.total()} comparisons by {len(self.people)} people are in {args.output}")


def outcomes_of(args):
    """Yield (file and line, outcome) of all rows, and at last the pairs of each group of Grades."""
    grades = {}
    for file_and_line, row in rows_of(args.source, args.columns, NAMES, INNER.get(args.from_)):
        try:
            outcomes = LAYOUTS[args.from_](row, args)
        except InputError as error:
            raise InputError(f"{file_and_line}: {error}") from error
        for outcome in outcomes:
            if isinstance(outcome, Grade):
                grades.setdefault(outcome.group, []).append((file_and_line, outcome))
            else:
                yield file_and_line, outcome
    for group in grades.values():
        if len(group) == 1:
            yield group[0][0], "a score or rank with none beside it"
        for pair in combinations(group, 2):
            (_, worse), (file_and_line, better) = sorted(pair, key=lambda graded: graded[1].value)
            if worse.value == better.value:
                yield file_and_line, TIE
            elif better.value - worse.value < args.gap:
                yield file_and_line, "two scores nearer than --gap"
            else:
                yield file_and_line, better.beside | {"chosen": better.reply, "rejected": worse.reply}


def require_free(path):
    """InputError: no name of JSON lines, something is there."""
    is_ours = Path(path.removesuffix(".gz")).suffix.lower() in SUFFIXES
    require(is_ours, f"--output {path}: where to? a name that ends in {' or '.join(SUFFIXES)}")
    filled = Path(path).exists() and Path(path).stat().st_size > 0
    require(not filled, f"{path} is there already, and would be lost; name another file, or delete it")


def main():
    args = settings(globals())
    args.read_as = {}  # columns that were taken for others, which is printed
    require(args.from_ in LAYOUTS, f"--from {args.from_}: which layout? one of {', '.join(LAYOUTS)}")
    require(args.source, "which file? name it with --source")
    require_free(args.output)
    require_apart([args.output], [args.source])
    with written_rows(args.output) as write:
        written = Written(write)
        for file_and_line, outcome in outcomes_of(args):
            written.add(file_and_line, outcome)
        written.tell(args)


if __name__ == "__main__":
    start(main)
