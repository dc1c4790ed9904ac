"""Results as one page of HTML that needs nothing from anywhere: no script, no font, no picture file."""

import html
from collections import Counter
from string import Template

import numpy as np

from lore.report.text_tables import STAR

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; } td { border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; } .star { background: #fff6dd; }
.note { color: #666; font-size: .9rem; }
.reply { border-left: 3px solid #bbb; padding-left: .7rem; margin: .6rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; }
.high { border-color: #2a7; } .low { border-color: #c44; }
"""
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head>
<body><h1>$title</h1>
$body
</body></html>
""")
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
SHOWN = 600  # characters of a reply
LABEL = 26  # characters of a person's name beside their bar
MARGIN = 200  # left of the bars, for the names
WIDTH = 560  # of a bar
HEIGHT = 14  # of a line


def page(title, sections):
    """A whole page; sections: (heading, HTML)s."""
    body = "".join(f"<h2>{text(heading)}</h2>\n{inner}\n" for heading, inner in sections)
    return PAGE.substitute(title=text(title), style=STYLE, body=body)


def text(value):
    """As it is to be read, whatever it holds."""
    return html.escape(str(value))


def shown_table(table):
    """A Table of lore/report/text_tables.py as HTML, its starred rows shaded, its notes below it."""
    lines = ["<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in table.head) + "</tr>"]
    for row in table.rows:
        kind = ' class="star"' if row[0].endswith(STAR) else ""
        cells = "".join(f"<td>{text(cell)}</td>" for cell in row)
        lines.append(f"<tr{kind}>{cells}</tr>")
    rows = '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"
    return rows + "".join(map(remark, table.notes))


def remark(words):
    return f'<p class="note">{text(words)}</p>'


def reply(conversation, label, kind):
    """One reply with what stands before it, shortened; kind: high or low."""
    prompt = conversation[-2]["content"]
    said = conversation[-1]["content"]
    words = f"{label}\n{cut(prompt)}\n\n{cut(said)}"
    return f'<div class="reply {kind}">{text(words)}</div>'


def cut(words):
    return words if len(words) <= SHOWN else words[:SHOWN] + " .."


def labels(names):
    """Names cut in their middle where they are long, and numbered where two would then look alike."""
    end = LABEL // 2 - 1
    short = [name if len(name) <= LABEL else f"{name[:end]}..{name[-end:]}" for name in names]
    times = Counter(short)
    numbered = enumerate(short, 1)
    return [label if times[label] == 1 else f"{label} ({n})" for n, label in numbered]


def mixture_bars(names, W):
    """People's mixtures W (P, K) as stacked bars, one line a person, ordered by likeness."""
    lines = []
    for k in range(W.shape[1]):  # the first line says which colour is which
        x = MARGIN + k * WIDTH / W.shape[1]
        colour = COLOURS[k % len(COLOURS)]
        lines.append(f'<rect x="{x:.1f}" y="0" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 16:.1f}" y="11">reward {k}</text>')
    short = labels(names)
    for line, person in enumerate(by_likeness(W), start=2):
        y = line * HEIGHT
        label = f"{text(short[person])}<title>{text(names[person])}</title>"
        lines.append(f'<text x="{MARGIN - 8}" y="{y + 11}" text-anchor="end">{label}</text>')
        x = MARGIN
        for k, weight in enumerate(W[person]):
            long = WIDTH * float(weight)
            colour = COLOURS[k % len(COLOURS)]
            box = f'x="{x:.1f}" y="{y}" width="{long:.1f}" height="{HEIGHT - 2}"'
            lines.append(f'<rect {box} fill="{colour}"><title>{weight:.2f}</title></rect>')
            x += long
    width = MARGIN + WIDTH
    height = HEIGHT * (len(W) + 2)
    size = f'viewBox="0 0 {width} {height}" width="{width}" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>' + "\n".join(lines) + "</svg>"


def by_likeness(W):
    """Numbers of people in a chain in which each is followed by the nearest who is not in it. W (P, K)"""
    W = np.asarray(W, dtype=float)
    waiting = np.ones(len(W), dtype=bool)
    person = int(W[:, 0].argmax())
    chain = []
    while waiting.any():
        chain.append(person)
        waiting[person] = False
        away = np.where(waiting, ((W - W[person]) ** 2).sum(1), np.inf)
        person = int(away.argmin())
    return chain
