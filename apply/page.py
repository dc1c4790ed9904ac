"""Results as one page of HTML that needs nothing from anywhere: no script, no font, no picture file."""

import html
from string import Template

import numpy as np

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


def page(title, sections):
    """A whole page; sections: (heading, HTML)s."""
    body = "".join(f"<h2>{text(heading)}</h2>\n{inner}\n" for heading, inner in sections)
    return PAGE.substitute(title=text(title), style=STYLE, body=body)


def text(value):
    """As it is to be read, whatever it holds."""
    return html.escape(str(value))


def table(head, rows, marked=()):
    """Rows of text; marked: numbers of those that stand out."""
    lines = ["<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>"]
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{text(cell)}</td>" for cell in row)
        lines.append(f'<tr class="star">{cells}</tr>' if number in marked else f"<tr>{cells}</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def note(words):
    return f'<p class="note">{text(words)}</p>'


def reply(conversation, label, kind):
    """One reply with what stands before it, shortened; kind: high or low."""
    prompt = conversation[-2]["content"]
    said = conversation[-1]["content"]
    words = f"{label}\n{shortened(prompt)}\n\n{shortened(said)}"
    return f'<div class="reply {kind}">{text(words)}</div>'


def shortened(words):
    return words if len(words) <= SHOWN else words[:SHOWN] + " .."


def mixture_bars(names, W):
    """People's mixtures W (P, K) as stacked bars, one line a person, ordered by likeness."""
    height = 14
    left = 130
    width = 560
    lines = []
    for k in range(W.shape[1]):  # the first line says which colour is which
        x = left + k * width / W.shape[1]
        colour = COLOURS[k % len(COLOURS)]
        lines.append(f'<rect x="{x:.1f}" y="0" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 16:.1f}" y="11">reward {k}</text>')
    for line, person in enumerate(by_likeness(W), start=2):
        y = line * height
        name = shortened(names[person])[:16]
        lines.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{text(name)}</text>')
        x = left
        for k, weight in enumerate(W[person]):
            long = width * float(weight)
            colour = COLOURS[k % len(COLOURS)]
            place = f'x="{x:.1f}" y="{y}" width="{long:.1f}" height="{height - 2}"'
            lines.append(f'<rect {place} fill="{colour}"><title>{weight:.2f}</title></rect>')
            x += long
    total = left + width
    size = f'viewBox="0 0 {total} {height * (len(W) + 2)}" width="{total}" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>' + "\n".join(lines) + "</svg>"


def by_likeness(W):
    """Numbers of people in a chain in which each is followed by the nearest who is left. W (P, K)"""
    W = np.asarray(W, dtype=float)
    left = np.ones(len(W), dtype=bool)
    here = int(W[:, 0].argmax())
    chain = []
    while left.any():
        chain.append(here)
        left[here] = False
        away = np.where(left, ((W - W[here]) ** 2).sum(1), np.inf)
        here = int(away.argmin())
    return chain
