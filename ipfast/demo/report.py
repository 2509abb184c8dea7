"""What a demo found: a table for the terminal, and a page that needs nothing beside itself."""

from __future__ import annotations

import base64
import io
import math
import platform
import textwrap
from collections.abc import Iterator
from html import escape

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave

import ipfast

from .compare import TRIMMED, Comparison, Outcome

GALLERY = 48
LIGHT = {"ink": "#1f2430", "faint": "#8a90a0", "right": "#4878b8", "wrong": "#d9662b"}
DARK = {"ink": "#e4e6ec", "faint": "#7d8494", "right": "#78a6e0", "wrong": "#f08a52"}

READING = f"""A low score marks a sample that hurts. AUC: the chance that a wrong label
scores below a right one (1 is perfect, 0.5 is chance). Accuracy: on the test
set, when the model is trained again without the lowest {TRIMMED:.0%} of the scores.
A method earns its place on data like these where it beats the controls."""

CLEAN = """ip needs a hold-out with clean labels: it asks which samples lower the loss on
the hold-out, so wrong labels there make wrong training labels look helpful
(last line). Without a trusted hold-out, use self_tracin."""


def table_of(comparison: Comparison) -> Iterator[str]:
    """The table and how to read it, in lines of at most 79 characters."""
    problem = comparison.problem
    yield problem.title
    yield ""
    yield f"{'':<27}{'noise':>7}{'wrong in':>12}{'test accuracy':>18}{'seconds':>15}"
    yield f"{'scored by':<27}{'AUC':>7}{f'lowest {TRIMMED:.0%}':>12}{'after trimming':>18}{'score':>8}{'train':>7}"
    yield "─" * 79
    yield f"{'(nothing trimmed)':<27}{'':>7}{'':>12}{comparison.accuracy:>10.1%}{'':>16}{comparison.train_seconds:>7.2f}"
    for outcome in comparison.outcomes:
        yield (
            f"{_name(outcome):<27}{outcome.auc:>7.3f}{outcome.found:>12.1%}{outcome.accuracy:>10.1%}"
            f"{f'({_points(comparison, outcome)})':>8}{outcome.score_seconds:>8.3f}{outcome.train_seconds:>7.2f}"
        )
    yield "─" * 79
    yield from textwrap.wrap(f"Before that: {_stages(comparison)}", 79)
    yield ""
    yield from READING.splitlines()
    yield _error(comparison)
    yield ""
    yield from CLEAN.splitlines()


def _name(outcome: Outcome) -> str:
    suffix = "" if outcome.row.kind == "method" else f" ({outcome.row.kind})"
    return outcome.row.name + suffix


def _points(comparison: Comparison, outcome: Outcome) -> str:
    """By how many percentage points trimming changed the accuracy."""
    return f"{100 * (outcome.accuracy - comparison.accuracy):+.1f}".replace("-", "−")


def _stages(comparison: Comparison) -> str:
    seconds = comparison.problem.seconds
    return ", ".join(f"{stage} {spent:.{2 if spent < 1 else 0}f} s" for stage, spent in seconds.items())


def _error(comparison: Comparison) -> str:
    """How far an accuracy is from that on endless test data."""
    count = len(comparison.problem.test[1])
    points = 100 * math.sqrt(comparison.accuracy * (1 - comparison.accuracy) / count)
    return f"The standard error of an accuracy on these {count:,} test samples is {points:.1f} points."


def page_of(comparison: Comparison, seed: int) -> str:
    """The whole page: HTML with its styles and pictures inside."""
    problem = comparison.problem
    methods = [outcome for outcome in comparison.outcomes if outcome.row.kind == "method"]
    first = methods[0]
    shown = first.lowest[:GALLERY]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>ipfast demo: {escape(problem.title)}</title>
<style>{_style()}</style>
</head>
<body>
<main>
<header>
<p class="kind">ipfast demo</p>
<h1>{escape(problem.title)}</h1>
<p>{escape(problem.description)}</p>
<p>{escape(problem.model)}</p>
</header>
<section>
<h2>Which score finds the wrong labels?</h2>
<div class="scroll">
{_table(comparison)}
</div>
<p class="note">{escape(READING)} {_error(comparison)}
Seconds: to score all {len(problem.given):,} samples, and to train again. Before that: {escape(_stages(comparison))}.</p>
<p class="note"><strong>Why the hold-out must be clean.</strong> ip asks which training samples lower the loss on the hold-out.
With wrong labels there, wrong training labels look helpful: the last line of the table is ip against the same hold-out under
labels as noisy as the training set's. Without a trusted hold-out, use self_tracin.</p>
</section>
<section>
<h2>Scores of wrong and right labels</h2>
<p>The lowest and the highest 0.5% are drawn at the edges. Note the logarithmic scale.</p>
<div class="figures">
{"".join(_histogram(comparison, outcome) for outcome in methods)}
</div>
</section>
<section>
<h2>The {len(shown)} lowest scores by {escape(first.row.name)}</h2>
<p>{int(problem.wrong[shown].sum())} of these {len(shown)} labels are wrong. Lowest first; “model” is what the model says that
was trained on the given labels, “true” the right label.</p>
<ol class="gallery">
{"".join(_card(comparison, int(index)) for index in shown)}
</ol>
</section>
<section>
<h2>The same on your data</h2>
<pre><code>import ipfast

scores = ipfast.score(model, (features, labels), (clean_features, clean_labels))
keep = ipfast.curate.trim(scores, {TRIMMED})      # indices to train on again</code></pre>
</section>
<footer>ipfast {escape(ipfast.__version__)}, torch {escape(torch.__version__)}, Python {platform.python_version()},
{torch.get_num_threads()} threads, seed {seed}</footer>
</main>
</body>
</html>
"""


def _table(comparison: Comparison) -> str:
    rows = "".join(
        f'<tr class="{outcome.row.kind}"><th scope="row">{escape(outcome.row.name)}'
        f"{'' if outcome.row.kind == 'method' else f' <em>{outcome.row.kind}</em>'}"
        f"<small>{escape(outcome.row.about)}</small></th>"
        f"<td>{outcome.auc:.3f}</td><td>{outcome.found:.1%}</td>"
        f"<td>{outcome.accuracy:.1%} <small>{_points(comparison, outcome)}</small></td>"
        f"<td>{outcome.score_seconds:.3f}</td><td>{outcome.train_seconds:.2f}</td></tr>\n"
        for outcome in comparison.outcomes
    )
    return f"""<table>
<thead><tr><th scope="col">scored by</th><th scope="col">AUC</th><th scope="col">wrong in lowest {TRIMMED:.0%}</th>
<th scope="col">test accuracy after trimming</th><th scope="col">score, s</th><th scope="col">train, s</th></tr></thead>
<tbody><tr class="before"><th scope="row">nothing trimmed</th><td></td><td></td><td>{comparison.accuracy:.1%}</td><td></td>
<td>{comparison.train_seconds:.2f}</td></tr>
{rows}</tbody>
</table>"""


def _histogram(comparison: Comparison, outcome: Outcome) -> str:
    light, dark = (_data_uri(_drawn(comparison, outcome, colors), "svg+xml") for colors in (LIGHT, DARK))
    about = f"Histogram of the scores by {outcome.row.name}: wrong labels lie to the left of right ones."
    return (
        f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" width="460" height="300" alt="{escape(about)}"></picture></figure>\n'
    )


def _drawn(comparison: Comparison, outcome: Outcome, colors: dict[str, str]) -> bytes:
    """An SVG on a transparent ground; words become paths, so it needs no font."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "ipfast", "font.size": 11}):
        figure = Figure(figsize=(4.6, 3.0))
        draw_histogram(figure.add_axes((0.14, 0.165, 0.84, 0.735)), comparison, outcome, colors)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def draw_histogram(axes: Axes, comparison: Comparison, outcome: Outcome, colors: dict[str, str]) -> None:
    """How many right and wrong labels have which score; the outermost 0.5 % at each end are drawn at the edge."""
    wrong = comparison.problem.wrong
    low, high = np.quantile(outcome.scores, [0.005, 0.995])
    edges = np.linspace(low, high, 41)
    values = np.clip(outcome.scores, low, high)
    for part, name in ((values[~wrong], "right"), (values[wrong], "wrong")):
        counts = np.histogram(part, edges)[0]
        axes.stairs(counts, edges, fill=True, color=colors[name], alpha=0.35)
        axes.stairs(counts, edges, color=colors[name], linewidth=1.4, label=f"{name} labels")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.axvline(outcome.scores[outcome.lowest[-1]], color=colors["faint"], linewidth=1, linestyle="--")
    axes.set_title(outcome.row.name, color=colors["ink"], fontsize=12, loc="left")
    axes.set_xlabel(f"score (dashed: lowest {TRIMMED:.0%} end here)", color=colors["ink"])
    axes.set_ylabel("samples", color=colors["ink"])
    axes.tick_params(which="both", colors=colors["faint"], labelcolor=colors["ink"], labelsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colors["faint"])
    axes.legend(frameon=False, labelcolor=colors["ink"], fontsize=10)


def _card(comparison: Comparison, index: int) -> str:
    problem = comparison.problem
    names = problem.class_names
    given, true, model = names[problem.given[index]], names[problem.true[index]], names[comparison.predicted[index]]
    wrong = problem.wrong[index]
    picture = _data_uri(_png(problem.images[index]), "png")
    return (
        f'<li class="{"wrong" if wrong else "right"}">'
        f'<img src="{picture}" alt="training image {index}, labelled {escape(given)}">'
        f"<dl><dt>given</dt><dd>{escape(given)}</dd><dt>model</dt><dd>{escape(model)}</dd><dt>true</dt><dd>{escape(true)}</dd></dl>"
        f"<p>{'✗ wrong label' if wrong else '✓ right label'}</p></li>\n"
    )


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2), format="png")
    return buffer.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _style() -> str:
    def variables(colors: dict[str, str]) -> str:
        return " ".join(f"--{name}: {value};" for name, value in colors.items())

    return f"""
:root {{ color-scheme: light dark; {variables(LIGHT)} --ground: #ffffff; --panel: #f4f5f8; --line: #dcdfe6; --soft: #5b6270; }}
@media (prefers-color-scheme: dark) {{
:root {{ {variables(DARK)} --ground: #15181e; --panel: #1e222a; --line: #343a46; --soft: #a5abb8; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
main {{ max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }}
h1 {{ margin: 0 0 .75rem; font-size: 1.9rem; line-height: 1.2; }}
h2 {{ margin: 2.25rem 0 .75rem; font-size: 1.25rem; }}
header p, .note, section > p {{ max-width: 46rem; }}
.kind {{ margin: 0; color: var(--soft); font-size: .9rem; }}
.note, footer {{ color: var(--soft); font-size: .9rem; }}
.note strong {{ color: var(--ink); }}
.scroll {{ overflow-x: auto; }}
table {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .45rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }}
th:first-child {{ padding-left: 0; text-align: left; }}
thead th:nth-child(n+5) {{ white-space: nowrap; }}
thead th {{ color: var(--soft); font-size: .85rem; font-weight: 500; vertical-align: bottom; }}
tbody th {{ font-weight: 600; }}
tbody th small {{ display: block; color: var(--soft); font-weight: 400; }}
td small {{ color: var(--soft); white-space: nowrap; }}
em {{ padding: 0 .4rem; border: 1px solid var(--line); border-radius: .6rem; color: var(--soft);
font: 400 .75rem system-ui, sans-serif; }}
.before th, .control th, .misuse th {{ font-weight: 400; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }}
figure {{ margin: 0; }}
figure img {{ width: 100%; height: auto; max-width: 30rem; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(6.8rem, 1fr)); gap: .75rem; margin: 0; padding: 0;
list-style: none; }}
.gallery li {{ padding: .6rem; border-top: 3px solid var(--right); border-radius: .4rem; background: var(--panel); }}
.gallery li.wrong {{ border-top-color: var(--wrong); }}
.gallery img {{ display: block; width: 100%; aspect-ratio: 1; border-radius: .25rem; image-rendering: pixelated; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; margin: .4rem 0 .2rem; font-size: .85rem;
line-height: 1.35; }}
dt {{ color: var(--soft); }}
dd {{ margin: 0; text-align: right; overflow-wrap: anywhere; }}
.gallery p {{ margin: 0; font-size: .8rem; color: var(--right); }}
.gallery .wrong p {{ color: var(--wrong); }}
pre {{ margin: 0; padding: .9rem 1rem; overflow-x: auto; border-radius: .4rem; background: var(--panel); font-size: .85rem; }}
footer {{ margin-top: 2.5rem; padding-top: .75rem; border-top: 1px solid var(--line); }}
@media (max-width: 40rem) {{
main {{ padding: 1.25rem .9rem 2rem; }}
h1 {{ font-size: 1.5rem; }}
tbody th small {{ display: none; }}
th, td {{ padding: .4rem .35rem; font-size: .85rem; }}
thead th {{ font-size: .75rem; }}
.gallery {{ grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)); gap: .5rem; }}
}}
"""
