"""Figures that a reader moves, as plain HTML that works offline and from a file.

The numbers are computed here, by the package, and put into the page; the script in the page, a file
of `scripts/`, only chooses among them, or evaluates a straight line. Every control is an ordinary form
element, so the keyboard works; without scripts the page shows a sentence and the table or image beside
it remains.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D
from torch import Generator

from cgmvae import annealing, costs
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import preset
from cgmvae.figures import COLOURS
from cgmvae.relaxation import gumbel

TEMPERATURES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0)
TIME_SCALES = (250, 500, 1000, 2000, 4000, 8000)
LINES = (COLOURS["concrete"], COLOURS["marginal"], COLOURS["straight_through"],
         COLOURS["score_function"])
_count = itertools.count()


def _page(script: str, title: str, controls: str, body: str, values: dict) -> str:
    """One widget: controls above, body below, and its script, a file of `scripts/`.

    The script sees `root`, the widget; `at`, which finds an element in it; and `v`, the values.
    """
    name = f"cgmvae-{next(_count)}"
    code = (Path(__file__).parent / "scripts" / f"{script}.js").read_text(encoding="utf-8")
    return f"""<section id="{name}" class="cgmvae-widget" aria-label="{title}"
 style="border:1px solid #888;border-radius:6px;padding:.8em;margin:1em 0;background:#fff;color:#111">
<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:center">{controls}</div>
{body}
<noscript>This figure moves where scripts are allowed.</noscript>
<script>(function () {{
const root = document.getElementById({json.dumps(name)}), v = {json.dumps(values, separators=(",", ":"))};
const at = (selector) => root.querySelector(selector);
{code}for (const slider of root.querySelectorAll("input[type=range]")) {{
  const say = () => slider.setAttribute("aria-valuetext", at("output").textContent);
  slider.addEventListener("input", say); say();
}}
}})();</script></section>"""


def simplex_points(log_weights: tuple[float, float, float], tau: float, n: int, seed: int) -> torch.Tensor:
    """Points (n, 2) of Concrete samples on a triangle of side 1, from the same noise for every tau."""
    logits = torch.tensor(log_weights, dtype=torch.float64).expand(n, 3)
    noise = gumbel(logits, Generator().manual_seed(seed))
    y = torch.softmax((logits + noise) / tau, -1)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    return y @ corners


def simplex_cloud(weights: tuple[float, float, float] = (0.2, 0.3, 0.5), n: int = 300,
                  seed: int = 0) -> str:
    """A cloud of Concrete samples over three labels, with a slider for the temperature.

    The noise is the same at every temperature, so that each sample can be followed.
    """
    logs = tuple(math.log(w) for w in weights)
    frames = [[[round(a, 3) for a in p] for p in simplex_points(logs, tau, n, seed).tolist()]
              for tau in TEMPERATURES]
    start = TEMPERATURES.index(0.3)
    controls = f"""<label>Temperature τ = <output>{TEMPERATURES[start]}</output><br>
<input type="range" min="0" max="{len(TEMPERATURES) - 1}" value="{start}" step="1"
 aria-label="temperature"></label>"""
    body = """<svg viewBox="-0.12 -0.98 1.24 1.1" width="100%" style="max-width:430px" role="img"
 aria-label="Samples on the triangle of three labels; at low temperature they sit in the corners">
<path d="M0 0 L1 0 L0.5 -0.866 Z" fill="none" stroke="#555" stroke-width=".006"/>
<g class="dots"></g><g font-size=".06" fill="#111"><text x="-.1" y=".06">y₁</text>
<text x="1.02" y=".06">y₂</text><text x=".47" y="-.9">y₃</text></g></svg>"""
    return _page("simplex_cloud", "Concrete samples against temperature", controls, body,
                 {"frames": frames, "tau": TEMPERATURES, "colour": LINES[0]})


def arrival(name: str, steps: int) -> int | None:
    """The first step at which a schedule is within 0.01 of where it goes; None: not within 50,000 steps."""
    schedule = annealing.SCHEDULES[name]
    there = ((schedule(torch.arange(50_000), steps) - schedule(1e6 * steps, steps)).abs() <= 0.01).nonzero()
    return int(there[0, 0]) if len(there) else None


def schedules() -> str:
    """The annealing schedules, with a slider for the time scale and the step where each arrives."""
    t = torch.linspace(0, 20_000, 81)
    values = {"t": t.tolist(), "scales": TIME_SCALES, "names": list(annealing.SCHEDULES),
              "w": [[[round(w, 4) for w in annealing.SCHEDULES[n](t, s).tolist()]
                     for n in annealing.SCHEDULES] for s in TIME_SCALES],
              "arrives": [[arrival(n, s) for n in annealing.SCHEDULES] for s in TIME_SCALES]}
    start = TIME_SCALES.index(2000)
    controls = f"""<label>Time scale = <output>{TIME_SCALES[start]}</output> steps<br>
<input type="range" min="0" max="{len(TIME_SCALES) - 1}" value="{start}" step="1"
 aria-label="time scale"></label>"""
    dashes = ("", "6 3", "9 3 2 3", "2 3")
    looks = list(zip(annealing.SCHEDULES, itertools.cycle(LINES), itertools.cycle(dashes)))
    rows = "".join(f'<tr><td><svg width="36" height="8" aria-hidden="true"><line x2="36" y1="4" y2="4" '
                   f'stroke="{c}" stroke-width="3" stroke-dasharray="{d}"/></svg></td><td>{n}</td>'
                   f'<td class="arrives"></td></tr>'
                   for n, c, d in looks)
    lines = "".join(f'<polyline fill="none" stroke="{c}" stroke-width="2.5" stroke-dasharray="{d}"/>'
                    for _, c, d in looks)
    body = f"""<svg viewBox="-45 -12 470 262" width="100%" style="max-width:520px" role="img"
 aria-label="Weight against step for each schedule">
<path d="M0 0 V200 H400" fill="none" stroke="#333"/>{lines}
<g font-size="13" fill="#111"><text x="-12" y="204" text-anchor="end">0</text>
<text x="-12" y="8" text-anchor="end">1</text><text x="0" y="220" text-anchor="middle">0</text>
<text x="200" y="220" text-anchor="middle">10,000</text><text x="400" y="220" text-anchor="middle">20,000</text>
<text x="200" y="242" text-anchor="middle">step t</text>
<text transform="translate(-30 100) rotate(-90)" text-anchor="middle">weight w</text></g></svg>
<table style="font-size:.9em"><thead><tr><th></th><th>schedule</th><th>within 0.01 of its last value</th></tr>
</thead><tbody>{rows}</tbody></table>"""
    return _page("schedules", "Annealing schedules", controls, body, values)


def cost_lines() -> dict[str, dict[str, tuple[float, float]]]:
    """Operations an image and step as a + b K, by data set and estimator: two numbers each."""
    lines: dict[str, dict[str, tuple[float, float]]] = {}
    for dataset in ("mnist", "cifar100"):
        lines[dataset] = {}
        for estimator in ("concrete", "marginal"):
            one, two = (costs.count(preset("paper", dataset=dataset, estimator=estimator, K=K)).step for K in (1, 2))
            lines[dataset][estimator] = (2 * one - two, two - one)
    return lines


def cost_calculator() -> str:
    """Operations of a step and the predicted ratio, for a K, a batch and a data set to choose."""
    controls = """<label>Data set <select><option value="mnist">MNIST, 28 × 28</option>
<option value="cifar100">CIFAR-100, 32 × 32 × 3</option></select></label>
<label>K <input class="K" type="number" min="1" max="100000" value="10" style="width:6em"></label>
<label>Batch <input class="B" type="number" min="1" max="100000" value="128" style="width:6em"></label>"""
    body = """<p class="answer" aria-live="polite" style="font-size:1.05em"></p>"""
    return _page("cost_calculator", "Cost of a training step", controls, body, cost_lines())


def bias_and_noise(moving: dict[float, dict[str, tuple[float, float]]], still: dict[str, tuple[float, float]]) -> str:
    """Estimators by standard deviation and bias, with a slider for the temperature.

    Args:
        moving: by temperature and name, (sd, bias) of those that have one, both above 0 or 0 for a bias.
        still: by name, of those that have none.
    """
    every = [*still.values(), *(point for frame in moving.values() for point in frame.values())]
    low, high = (math.log(f(sd for sd, _ in every)) for f in (min, max))
    top = 1.05 * max(bias for _, bias in every)

    def place(sd: float, bias: float) -> list[float]:
        return [round(400 * (math.log(sd) - low) / (high - low), 1), round(200 * (1 - bias / top), 1)]

    def mark(name: str, at: str = "") -> str:
        look = ESTIMATORS[name]
        shape = MarkerStyle(look.marker)
        outlines = shape.get_path().to_polygons(shape.get_transform() + Affine2D().scale(15, -15))
        d = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in outline) + "Z" for outline in outlines)
        return f'<path{at} d="{d}" fill="{look.colour}" stroke="#fff"><title>{name}</title></path>'

    def entry(name: str) -> str:
        return (f'<span style="white-space:nowrap;margin-right:.8em"><svg viewBox="-9 -9 18 18" width="18" aria-hidden="true" '
                f'style="vertical-align:middle">{mark(name)}</svg> {name}</span>')

    def legend(title: str, names: Iterable[str]) -> str:
        return f'<p style="line-height:1.7;margin:.4em 0">{title}: {" ".join(map(entry, names))}</p>'

    taus = sorted(moving)
    names = list(moving[taus[0]])
    fixed = "".join(mark(n, ' transform="translate({} {})"'.format(*place(*p))) for n, p in still.items())
    ticks = "".join(f'<text x="{place(n, 0)[0]}" y="224" text-anchor="middle">{n}</text>'
                    for n in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= math.log(n) <= high)
    start = min(range(len(taus)), key=lambda i: abs(taus[i] - 0.3))
    controls = f"""<label>Temperature τ = <output>{taus[start]}</output><br>
<input type="range" min="0" max="{len(taus) - 1}" value="{start}" step="1" aria-label="temperature"></label>"""
    body = f"""<p style="margin:.8em 0 0">↑ bias (multiples of the exact gradient)</p>
<svg viewBox="-36 -10 448 240" width="100%" style="max-width:520px;display:block" role="img"
 aria-label="Bias against standard deviation of each estimator, at the temperature of the slider">
<path d="M0 -8 V200 H412" fill="none" stroke="#333"/><g>{fixed}</g>
<g class="moving">{"".join(map(mark, names))}</g>
<g font-size="17" fill="#111">{ticks}<text x="-8" y="206" text-anchor="end">0</text>
<text x="-8" y="16" text-anchor="end">{top / 1.05:.1f}</text></g></svg>
<p style="margin:0 0 .8em">→ standard deviation at K passes (multiples of the exact gradient)</p>
{legend("With a temperature", names)}{legend("Without", still)}"""
    return _page("bias_and_noise", "Bias and noise against temperature", controls, body,
                 {"frames": [[place(*moving[tau][n]) for n in names] for tau in taus], "tau": taus})
