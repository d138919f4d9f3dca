"""Draw the picture that a shared link to the book shows: `python tools/make_card.py`."""

from pathlib import Path

import matplotlib.pyplot as plt

from cgmvae.comparison import PAPER
from cgmvae.figures import COLOURS

CARD = Path(__file__).resolve().parents[1] / "_static" / "card.png"


def main() -> None:
    """1200 x 630 pixels: the title, the claim, and the paper's training times that it is about."""
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    figure.text(0.06, 0.82, "Concrete GMVAE", fontsize=58, weight="bold")
    figure.text(0.06, 0.70, "Clustering with a VAE, in a time that hardly grows", fontsize=27)
    figure.text(0.06, 0.615, "with the number of clusters K. A book that runs.", fontsize=27)
    axis = figure.add_axes((0.28, 0.16, 0.66, 0.37))
    rows = [("CIFAR-100, K = 20", "cifar100"), ("MNIST, K = 10", "mnist")]
    for i, (_, dataset) in enumerate(rows):
        for offset, estimator in ((0.19, "marginal"), (-0.19, "concrete")):
            hours = PAPER[dataset, estimator].hours
            axis.barh(i + offset, hours, 0.36, color=COLOURS[estimator])
            name = {"marginal": "GMVAE", "concrete": "Concrete GMVAE"}[estimator]
            axis.text(hours + 0.5, i + offset, f"{hours:.2f} h  {name}", va="center", fontsize=18)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=20)
    axis.set_xlim(0, 68)
    axis.xaxis.set_visible(False)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.text(0.06, 0.06, "Training times in the paper: Collier & Urdiales, 2019", fontsize=17,
                color="#444444")
    figure.savefig(CARD)


if __name__ == "__main__":
    main()
