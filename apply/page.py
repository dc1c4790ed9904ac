"""Results as one page of HTML that needs nothing from anywhere: no script, no font, no picture file."""

import html
import re
from collections import Counter
from pathlib import Path
from string import Template

import numpy as np

from lore.report.text_tables import STAR, Table

STYLE = Path(__file__).with_name("page.css")  # that of the session too
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head>
<body><h1>$title</h1>
$body
</body></html>
""")
COLOURS = 8  # that the stylesheet has for basis rewards
SHOWN = 400  # characters of a text before "more"
LABEL = 26  # characters of a person's name beside their bar
MARGIN = 200  # left of the bars, for the names
WIDTH = 560  # of a bar
HEIGHT = 14  # of a line
CROWD = 24  # people above whom bars are shown on demand
EXTREMES = 3  # people shown of each basis reward, those who weigh it most
QUANTILES = (5, 25, 50, 75, 95)  # percent


def page(title, sections):
    """A whole page; sections: (heading, HTML)s."""
    body = "".join(f"<h2>{text(heading)}</h2>\n{inner}\n" for heading, inner in sections)
    return PAGE.substitute(title=text(title), style=STYLE.read_text(encoding="utf-8"), body=body)


def text(value):
    """As it is to be read, whatever it holds."""
    return html.escape(str(value))


def shown_table(table):
    """A Table of lore/report/text_tables.py as HTML, its starred rows shaded, its notes below it.

    Each cell says what column it is of, for who has no room for columns.
    """
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in table.head)
    lines = []
    for row in table.rows:
        kind = ' class="star"' if row[0].endswith(STAR) else ""
        cells = [f'<td data-label="{text(name)}">{text(cell)}</td>' for name, cell in zip(table.head, row)]
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>" + "\n".join(lines) + "</tbody>"
    return f'<div class="wide"><table>{body}</table></div>' + "".join(map(remark, table.notes))


def remark(words):
    return f'<p class="note">{text(words)}</p>'


def paragraphs(sentences):
    return "".join(f"<p>{text(sentence)}</p>" for sentence in sentences)


def on_demand(summary, inner):
    """HTML that is there once it is asked for."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def picture(svg):
    """An SVG whose black is the colour of the text, and whose white is that of the page."""
    svg = re.sub(r"#000000\b|\bblack\b", "currentColor", svg)
    svg = re.sub(r"#ffffff\b|\bwhite\b", "var(--paper)", svg)
    return f'<div class="wide">{svg}</div>'


# ------------------------------------------------------------------------------------------------
# Texts
# ------------------------------------------------------------------------------------------------


def compared(asked, replies):
    """A prompt, once, and replies to it side by side; replies: (label, text, kind)s, kind high or low."""
    cards = []
    for label, said, kind in replies:
        cards.append(f'<div class="reply {kind}"><span class="label">{text(label)}</span>{words(said)}</div>')
    prompt = f'<div class="prompt"><span class="label">Prompt</span>{words(asked)}</div>'
    return f'{prompt}<div class="pair">{"".join(cards)}</div>'


def words(said):
    """A text, the rest of a long one behind "more"."""
    if len(said) <= SHOWN:
        return f'<div class="words">{text(said)}</div>'
    begin = said[:SHOWN].rsplit(" ", 1)[0]
    more = on_demand("more", f'<div class="words">{text(said[len(begin) :].strip())}</div>')
    return f'<div class="words">{text(begin)} ..</div>{more}'


# ------------------------------------------------------------------------------------------------
# People's mixtures
# ------------------------------------------------------------------------------------------------


def mixtures(names, W):
    """People's mixtures W (P, K): a bar each; of a crowd how the weights spread, and the extremes first."""
    if len(W) <= CROWD:
        return picture(mixture_bars(names, W))
    rows = []
    extreme = []
    for k, weights in enumerate(W.T):
        rows.append([f"reward {k}", *(f"{value:.2f}" for value in np.percentile(weights, QUANTILES))])
        extreme += np.argsort(-weights, kind="stable")[:EXTREMES].tolist()
    extreme = [*dict.fromkeys(extreme)]
    head = ["", *(f"{percent} %" for percent in QUANTILES)]
    few = mixture_bars([names[person] for person in extreme], W[extreme])
    everybody = on_demand(f"All {len(W)} people", picture(mixture_bars(names, W)))
    spread = shown_table(Table(head, rows, [f"Quantiles of the weights of {len(W)} people."]))
    return f"{spread}<h3>Those who weigh one reward most</h3>{picture(few)}{everybody}"


def colour(k):
    return f'style="fill: var(--reward-{k % COLOURS})"'


def labels(names):
    """Names cut in their middle where they are long, and numbered where two would then look alike."""
    end = LABEL // 2 - 1
    short = [name if len(name) <= LABEL else f"{name[:end]}..{name[-end:]}" for name in names]
    times = Counter(short)
    numbered = enumerate(short, 1)
    return [label if times[label] == 1 else f"{label} ({n})" for n, label in numbered]


def mixture_bars(names, W):
    """People's mixtures W (P, K) as stacked bars, one line a person, ordered by their strongest reward."""
    lines = []
    for k in range(W.shape[1]):  # the first line says which colour is which
        x = MARGIN + k * WIDTH / W.shape[1]
        lines.append(f'<rect x="{x:.1f}" y="0" width="12" height="12" {colour(k)}/>')
        lines.append(f'<text x="{x + 16:.1f}" y="11">reward {k}</text>')
    short = labels(names)
    for line, person in enumerate(np.lexsort((-W.max(axis=1), W.argmax(axis=1))), start=2):
        y = line * HEIGHT
        label = f"{text(short[person])}<title>{text(names[person])}</title>"
        lines.append(f'<text x="{MARGIN - 8}" y="{y + 11}" text-anchor="end">{label}</text>')
        x = MARGIN
        for k, weight in enumerate(W[person]):
            long = WIDTH * float(weight)
            box = f'x="{x:.1f}" y="{y}" width="{long:.1f}" height="{HEIGHT - 2}"'
            lines.append(f"<rect {box} {colour(k)}><title>{weight:.2f}</title></rect>")
            x += long
    width = MARGIN + WIDTH
    height = HEIGHT * (len(W) + 2)
    size = f'class="bars" viewBox="0 0 {width} {height}" width="{width}" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>' + "\n".join(lines) + "</svg>"
