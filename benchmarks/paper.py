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

import sys
from pathlib import Path

from measure import ROOT, flags, load_module
from published import COMMANDS, published_numbers
from result_files import answers_of

from lore.common import InputError, behind_links, require, start, written_whole
from lore.report.text_tables import Table, print_table

FOLDERS = ("RedditTLDR/results", "PRISM/results", "PersonalLLM/results", "benchmarks/results")
COLUMNS = ("published", "ours [95 % interval]", "points", "verdict", "from")
NOT_COMPARABLE = "not comparable"
NOT_RUN = "not run"
VERDICTS = ("reproduced", "above", "below", NOT_COMPARABLE, NOT_RUN)
READING = (
    "Accuracy in percent. Reproduced: our interval holds the published number; above, below: it does not;"
    " not comparable: another encoder, split or setting, named below the table."
)


def read_all(folders):
    """([Answer], a line for each file that is left out) of the .json files in some folders, each once."""
    files = {}
    for folder in folders:
        inside = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
        files |= {behind_links(file): file for file in inside}
    answers = []
    left_out = []
    for file in files.values():
        shown = file.absolute()
        shown = str(shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else shown)
        try:
            for answer in answers_of(file):
                answers.append(answer._replace(origin=f"{shown}, {answer.origin}"))
        except InputError as error:
            left_out.append(f"{shown} {error}")
    return answers, left_out


def verdict_of(answer, published):
    low, high = answer.interval
    if answer.reasons:
        return NOT_COMPARABLE
    if low <= published <= high:
        return "reproduced"
    return "above" if published < low else "below"


def texts_of(answer, sources):
    """Ours with its interval, and [1], as the note below a table is numbered that says which run it is of.

    sources: {note: number}
    """
    reasons = f": not comparable: {'; '.join(answer.reasons)}" if answer.reasons else ""
    note = f"{answer.origin}; {answer.how}{reasons}"
    low, high = answer.interval
    number = sources.setdefault(note, f"[{len(sources) + 1}]")
    return f"{answer.percent:.1f} [{low:.1f}, {high:.1f}]", number


def notes_of(sources):
    return [f"{number} {note}" for note, number in sources.items()]


def paper_table(table, numbers, answers):
    """(Table of published, ours, the difference and a word, a row each; its verdicts); what to run below it.

    numbers: {Number: percent} of the table
    """
    rows = []
    sources = {}
    for number, percent in numbers.items():
        name = f"{number.column}, {number.method}, {number.group}"
        of_number = [answer for answer in answers if answer.number == number]
        for answer in of_number:
            ours, origin = texts_of(answer, sources)
            points = f"{answer.percent - percent:+.1f}"
            rows.append([name, f"{percent:.1f}", ours, points, verdict_of(answer, percent), origin])
        if not of_number:
            rows.append([name, f"{percent:.1f}", "", "", NOT_RUN, ""])
    verdicts = [row[4] for row in rows]
    notes = notes_of(sources)
    if {*verdicts} & {NOT_RUN, NOT_COMPARABLE}:
        notes += [f"to run: {command}" for command in COMMANDS[table]]
    return Table([table, *COLUMNS], rows, notes), verdicts


def planted_table(published, answers):
    """What planted people gave, beside no published number; no row where nobody was planted."""
    rows = []
    sources = {}
    for number in published:
        for answer in answers:
            if answer.number == number:
                rows.append([", ".join(number), *texts_of(answer, sources)])
    head = ["planted people", "planted accuracy [95 % interval]", "from"]
    return Table(head, rows, ["planted: says nothing about the paper's numbers", *notes_of(sources)])


def write_page(path, counts, tables, left_out):
    """One HTML file of the Tables."""
    html = load_module("apply/page.py")  # the means of apply/report.py
    sections = [("Published against ours", html.remark(f"{counts}. {READING}"))]
    sections += [(table.head[0], html.shown_table(table)) for table in tables]
    if left_out:
        sections.append(("Left out", "".join(map(html.remark, left_out))))
    page = html.page("LoRe: the paper, row by row", sections)
    with written_whole(path) as file:
        file.write_bytes(page.encode(errors="backslashreplace"))  # names may hold what is no text
    print(f"the page is {path}")


def main():
    parser = flags(__doc__, output="")
    there = [ROOT / folder for folder in FOLDERS if (ROOT / folder).exists()]
    words = "folders or files of results [those of the data sets and the benchmarks]"
    parser.add_argument("--results", type=Path, nargs="+", metavar="FOLDER", default=there, help=words)
    args = parser.parse_args()
    for folder in args.results:
        require(folder.exists(), f"--results {folder}: no such folder")
    if args.output:
        load_module("apply/outputs.py").require_page(args.output, [])
    published = published_numbers()
    answers, left_out = read_all(args.results)
    real = [answer for answer in answers if not answer.planted]
    tables = []
    verdicts = []
    for name in COMMANDS:
        numbers = {number: percent for number, percent in published.items() if number.table == name}
        table, of_table = paper_table(name, numbers, real)
        tables.append(table)
        verdicts += of_table
    planted = planted_table(published, [answer for answer in answers if answer.planted])
    if planted.rows:
        tables.append(planted)
    for table in tables:
        print_table(table)
        print()
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in verdicts]
    counts = f"{len(published)} published numbers; rows: {', '.join(counts)}"
    print(counts)
    if args.output:
        write_page(args.output, counts, tables, left_out)


if __name__ == "__main__":
    start(main)
