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
from published import COMMANDS, RIVALS_COMMAND, TABLES, published_numbers
from result_files import answers_of

from lore.common import InputError, behind_links, require, start, written_whole
from lore.report.pictures import empty_figure, svg_of
from lore.report.text_tables import Table, print_table

FOLDERS = ("RedditTLDR/results", "PRISM/results", "PersonalLLM/results", "benchmarks/results")
COLUMNS = ("published", "ours [95 % interval]", "points", "std. errors", "verdict", "from")
NOT_RUN = "not run"
READING = (
    "Accuracy in percent. Reproduced: our interval holds the published number; above, below: it does not;"
    " not comparable: another encoder, split or setting, named below the table."
)
LOOKS = {  # verdict -> colour and mark in the picture
    "reproduced": ("#228833", "o"),
    "above": ("#4477aa", "^"),
    "below": ("#ee6677", "v"),
    "not comparable": ("#999999", "x"),
}


def read_all(folders):
    """([Answer], a line for each file that is left out) of the .json files in some folders, each once."""
    files = {}
    for folder in folders:
        inside = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
        files |= {behind_links(file): file for file in inside}
    answers = []
    left_out = []
    for file in files.values():
        try:
            answers += answers_of(file)
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
        return "reproduced"
    return "above" if published < low else "below"


def source(answer, sources):
    """[1], as the note below a table is numbered that says which run this is of. sources: {note: number}"""
    reasons = f": not comparable: {'; '.join(answer.reasons)}" if answer.reasons else ""
    words = f"{shown_path(answer.path)}, {answer.versions}; {answer.protocol}, {answer.how}{reasons}"
    return sources.setdefault(words, f"[{len(sources) + 1}]")


def notes_of(sources):
    return [f"{number} {words}" for words, number in sources.items()]


def interval_text(answer):
    low, high = answer.interval
    return f"{answer.percent:.1f} [{low:.1f}, {high:.1f}]"


def paper_table(table, numbers, answers):
    """(Table of published, ours, the difference and a word, a row each; its verdicts); what to run below it.

    numbers: {Number: percent} of the table
    """
    rows = []
    verdicts = []
    sources = {}
    for number, percent in numbers.items():
        name = f"{number.column}, {number.method}, {number.group}"
        of_number = [answer for answer in answers if answer.number == number]
        for answer in of_number:
            points = answer.percent - percent
            errors = f"{points / answer.error:+.1f}" if answer.error else "-"  # of standard errors of ours
            verdicts.append(verdict_of(answer, percent))
            ours = [interval_text(answer), f"{points:+.1f}", errors, verdicts[-1], source(answer, sources)]
            rows.append([name, f"{percent:.1f}", *ours])
        if not of_number:
            verdicts.append(NOT_RUN)
            rows.append([name, f"{percent:.1f}", "", "", "", NOT_RUN, ""])
    notes = notes_of(sources)
    if {*verdicts} & {NOT_RUN, "not comparable"}:
        for what, command, cost in COMMANDS[table]:
            notes.append(f"to run, {what}: {command}   ({cost})")
        if table in TABLES:
            what = "VPL and PAL on the same embeddings"
            notes.append(f"to run, {what}: {RIVALS_COMMAND}   (hours unknown)")
    return Table([table, *COLUMNS], rows, notes), verdicts


def planted_table(published, answers):
    """What planted people gave, beside no published number; no row where nobody was planted."""
    rows = []
    sources = {}
    for number in published:
        for answer in answers:
            if answer.number == number:
                rows.append([", ".join(number), interval_text(answer), source(answer, sources)])
    head = ["planted people", "planted accuracy [95 % interval]", "from"]
    return Table(head, rows, ["planted: says nothing about the paper's numbers", *notes_of(sources)])


def counts_text(verdicts):
    """How many rows have each verdict."""
    in_order = [verdict for verdict in (*LOOKS, NOT_RUN) if verdict in verdicts]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in in_order)


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def picture_of(numbers, answers):
    """Published against ours with its interval, on the diagonal where they agree -> SVG; "" where nothing was run.

    numbers: {Number: percent} of one table
    """
    figure = empty_figure((4, 3.8))
    axes = figure.subplots()
    ends = [min(numbers.values()) - 3, max(numbers.values()) + 3]
    axes.plot(ends, ends, color="0.7", linewidth=1)
    axes.set(xlabel="published (%)", ylabel="ours (%)")
    axes.grid(alpha=0.3)
    shown = {}
    for answer in answers:
        if answer.number in numbers:
            percent = numbers[answer.number]
            verdict = verdict_of(answer, percent)
            colour, mark = LOOKS[verdict]
            low, high = answer.interval
            bar = [[answer.percent - low], [high - answer.percent]]
            looks = {"color": colour, "marker": mark, "markersize": 5, "elinewidth": 0.8}
            shown[verdict] = axes.errorbar(percent, answer.percent, bar, linestyle="none", **looks)
    axes.legend(shown.values(), shown, fontsize=8)
    return svg_of(figure) if shown else ""


def arguments():
    parser = flags(__doc__)
    default = [ROOT / folder for folder in FOLDERS if (ROOT / folder).exists()]
    words = "folders or files of results [those of the data sets and the benchmarks]"
    parser.add_argument("--results", type=Path, nargs="+", metavar="FOLDER", default=default, help=words)
    parser.add_argument("--output", default="", help="the page, PAGE.html")
    args = parser.parse_args()
    for folder in args.results:
        require(folder.exists(), f"--results {folder}: no such folder")
    if args.output:
        load_module("apply/outputs.py").require_page(args.output, [])
    return args


def main():
    args = arguments()
    html = load_module("apply/page.py")  # the means of apply/report.py
    published = published_numbers()
    answers, left_out = read_all(args.results)
    real = [answer for answer in answers if not answer.planted]
    sections = []
    every_verdict = []
    for name in dict.fromkeys(number.table for number in published):
        numbers = {number: percent for number, percent in published.items() if number.table == name}
        table, verdicts = paper_table(name, numbers, real)
        every_verdict += verdicts
        print_table(table)
        print()
        picture = picture_of(numbers, real) if args.output else ""
        sections.append((name, (html.picture(picture) if picture else "") + html.shown_table(table)))
    planted = planted_table(published, [answer for answer in answers if answer.planted])
    if planted.rows:
        print_table(planted)
        print()
        sections.append(("Planted people", html.shown_table(planted)))
    if left_out:
        print("\n".join(f"left out: {line}" for line in left_out), file=sys.stderr)
        sections.append(("Left out", "".join(map(html.remark, left_out))))
    counts = counts_text(every_verdict)
    print(f"{len(published)} published numbers; rows: {counts}")
    if args.output:
        sections.insert(0, ("Published against ours", html.remark(f"{counts}. {READING}")))
        page = html.page("LoRe: the paper, row by row", sections)
        with written_whole(args.output) as file:
            file.write_bytes(page.encode(errors="backslashreplace"))  # names may hold what is no text
        print(f"the page is {args.output}")


if __name__ == "__main__":
    start(main)
