"""The paper's tables, row by row: the published number, ours, and whether it is reproduced.

    python benchmarks/paper.py                                     what lies in the results/ of the data sets
    python benchmarks/paper.py --results FOLDER .. --output page.html        other folders; the same as a page

Reads:  *.json of train_basis.py, vary_fewshot.py, eval_rb2.py and compare_rivals.py, in folders and below them.
        The settings, people and versions in a file say which rows it answers; other files are named and left out.
Writes: --output, one HTML file that needs nothing else
Cost:   a second; nothing is fitted.

reproduced: our 95 % interval holds the published number; above, below: it does not. not comparable: another encoder,
split or setting, which is named below the table. Planted people stand apart. docs/reproduce.md says what to run.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from measure import ROOT, load_module
from published import COMMANDS, RIVALS_COMMAND, TABLES, published_numbers
from result_files import answers_of

from lore.common import InputError, behind_links, require, start, written_whole
from lore.report.pictures import empty_figure, svg_of
from lore.report.text_tables import Table, print_table
from lore.settings import OneLineParser

FOLDERS = ("RedditTLDR/results", "PRISM/results", "PersonalLLM/results", "benchmarks/results")
COLUMNS = ("published", "ours [95 % interval]", "points", "std. errors", "verdict", "from")
VERDICT = 5  # its place in a row
REPRODUCED = "reproduced"
NOT_RUN = "not run"
DECIDED = (REPRODUCED, "above", "below")
READING = (
    "Accuracy in percent. Reproduced: our interval holds the published number; above, below: it does not;"
    " not comparable: another encoder, split or setting, named below the table."
)
LOOKS = {  # verdict -> colour and mark in the picture
    REPRODUCED: ("#228833", "o"),
    "above": ("#4477aa", "^"),
    "below": ("#ee6677", "v"),
    "not comparable": ("#999999", "x"),
}


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


def json_files(folders):
    """The .json files in some folders and below them, each once."""
    files = {}
    for folder in folders:
        inside = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
        files |= {behind_links(file): file for file in inside}
    return [*files.values()]


def read_all(files):
    """({Number: [Answer]}, a line for each file that is left out)."""
    answers = {}
    left_out = []
    for file in files:
        try:
            for answer in answers_of(file):
                answers.setdefault(answer.number, []).append(answer)
        except InputError as error:
            left_out.append(f"{shown_path(file)} {error}")
    return answers, left_out


def shown_path(file):
    """As seen from the top of the repository, where it is in there."""
    file = file.absolute()
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def verdict_of(answer, published):
    low, high = answer.interval
    if answer.reasons:
        return "not comparable"
    if low <= published <= high:
        return REPRODUCED
    return "above" if published < low else "below"


def source(answer, sources):
    """[1], as the note below a table is numbered that says which run this is of."""
    reasons = f": not comparable: {'; '.join(answer.reasons)}" if answer.reasons else ""
    words = f"{shown_path(answer.path)}, {answer.versions}; {answer.protocol}, {answer.how}{reasons}"
    return sources.setdefault(words, f"[{len(sources) + 1}]")


def notes_of(sources):
    return [f"{number} {words}" for words, number in sources.items()]


def paper_table(table, published, answers):
    """Published, ours, the difference and a word, a row each; below it where ours is from, and what to run."""
    rows = []
    verdicts = set()
    sources = {}
    for number, percent in published.items():
        if number.table != table:
            continue
        name = f"{number.column}, {number.method}, {number.group}"
        of_people = [answer for answer in answers.get(number, []) if not answer.planted]
        for answer in of_people:
            verdict = verdict_of(answer, percent)
            verdicts.add(verdict)
            ours = [interval_text(answer), *difference_texts(answer, percent)]
            rows.append([name, f"{percent:.1f}", *ours, verdict, source(answer, sources)])
        if not of_people:
            verdicts.add(NOT_RUN)
            rows.append([name, f"{percent:.1f}", "", "", "", NOT_RUN, ""])
    head = [table, *COLUMNS]
    notes = notes_of(sources)
    if verdicts - {*DECIDED}:
        notes += to_run(table)
    return Table(head, rows, notes)


def interval_text(answer):
    low, high = answer.interval
    return f"{answer.percent:.1f} [{low:.1f}, {high:.1f}]"


def difference_texts(answer, published):
    """Ours over the published number, in points and in standard errors of ours."""
    points = answer.percent - published
    errors = f"{points / answer.error:+.1f}" if answer.error else "-"
    return [f"{points:+.1f}", errors]


def to_run(table):
    lines = [f"to run, {what}: {command}   ({cost})" for what, command, cost in COMMANDS[table]]
    if table in TABLES:
        lines.append(f"to run, VPL and PAL on the same embeddings: {RIVALS_COMMAND}   (hours unknown)")
    return lines


def planted_table(published, answers):
    """What planted people gave, beside no published number; no row where nobody was planted."""
    rows = []
    sources = {}
    for number in published:
        for answer in answers.get(number, []):
            if answer.planted:
                name = f"{number.table}, {number.column}, {number.method}, {number.group}"
                rows.append([name, interval_text(answer), source(answer, sources)])
    head = ["planted people", "planted accuracy [95 % interval]", "from"]
    return Table(head, rows, ["planted: says nothing about the paper's numbers", *notes_of(sources)])


def counts_text(tables):
    """How many rows have each verdict."""
    counts = Counter()
    for table in tables.values():
        counts.update(row[VERDICT] for row in table.rows)
    in_order = [verdict for verdict in (*LOOKS, NOT_RUN) if counts[verdict]]
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in in_order)


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def picture_of(numbers, answers):
    """Published against ours with its interval, on the diagonal where they agree -> SVG; "" where nothing was run.

    numbers: {Number: percent} of one table. Planted people are left out.
    """
    figure = empty_figure((4, 3.8))
    axes = figure.subplots()
    ends = [min(numbers.values()) - 3, max(numbers.values()) + 3]
    axes.plot(ends, ends, color="0.7", linewidth=1)
    axes.set(xlabel="published (%)", ylabel="ours (%)")
    axes.grid(alpha=0.3)
    shown = {}
    for number, percent in numbers.items():
        for answer in answers.get(number, []):
            if not answer.planted:
                verdict = verdict_of(answer, percent)
                colour, mark = LOOKS[verdict]
                low, high = answer.interval
                bar = [[answer.percent - low], [high - answer.percent]]
                looks = {"color": colour, "marker": mark, "markersize": 5, "elinewidth": 0.8}
                shown[verdict] = axes.errorbar(percent, answer.percent, bar, linestyle="none", **looks)
    if not shown:
        return ""
    axes.legend(shown.values(), shown, fontsize=8)
    return svg_of(figure)


def page_of(tables, published, answers, planted, left_out):
    """All of it as HTML, by the means of apply/report.py."""
    html = load_module("apply/page.py")
    sections = [("Published against ours", html.remark(f"{counts_text(tables)}. {READING}"))]
    for name, table in tables.items():
        numbers = {number: percent for number, percent in published.items() if number.table == name}
        picture = picture_of(numbers, answers)
        sections.append((name, (html.picture(picture) if picture else "") + html.shown_table(table)))
    if planted.rows:
        sections.append(("Planted people", html.shown_table(planted)))
    if left_out:
        sections.append(("Left out", "".join(map(html.remark, left_out))))
    return html.page("LoRe: the paper, row by row", sections)


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    default = [ROOT / folder for folder in FOLDERS]
    words = "folders or files of results [those of the data sets and the benchmarks]"
    parser.add_argument("--results", type=Path, nargs="+", metavar="FOLDER", help=words)
    parser.add_argument("--output", default="", help="the page, PAGE.html")
    args = parser.parse_args()
    for folder in args.results or ():
        require(folder.exists(), f"--results {folder}: no such folder")
    if args.output:
        load_module("apply/outputs.py").require_page(args.output, [])
    published = published_numbers()
    answers, left_out = read_all(json_files(args.results or default))
    tables = {}
    for name in dict.fromkeys(number.table for number in published):
        tables[name] = paper_table(name, published, answers)
    planted = planted_table(published, answers)
    for table in tables.values():
        print_table(table)
        print()
    if planted.rows:
        print_table(planted)
        print()
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{len(published)} published numbers; rows: {counts_text(tables)}")
    if args.output:
        with written_whole(args.output) as file:
            page = page_of(tables, published, answers, planted, left_out)
            file.write_bytes(page.encode(errors="backslashreplace"))  # names may hold what is no text
        print(f"the page is {args.output}")


if __name__ == "__main__":
    start(main)
