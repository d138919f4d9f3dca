"""What one run is: every choice that can change its result, checked, with a stable id.

The device, the arithmetic's precision and the compilation are not here: they say how a run is
carried out, not what it is, and may move its result by no more than noise (see training.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass
from typing import Any

from cgmvae import presets
from cgmvae.annealing import LEARNING_RATES, SCHEDULES
from cgmvae.binarisation import BINARISATIONS
from cgmvae.checks import NO_NEUTRAL, ExperimentError, check, choice, did_you_mean, one_of, refuse, refuse_unfit
from cgmvae.datasets import DATASETS
from cgmvae.estimators import ESTIMATORS
from cgmvae.model import LIKELIHOODS
from cgmvae.networks import INITIALISATIONS, PADDINGS
from cgmvae.objectives import KL_Y_FORMS, KL_Z_FORMS
from cgmvae.own_images import find_dataset
from cgmvae.views import VIEWS

DEFINITION = 1
"""Part of every id. Raised when the meaning of a field changes, so that records never mix."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Every choice of one run: the paper's where it says what it did, but for `kl_y_form` and `annealing`.

    `None` asks for the default that depends on the other choices; after construction no field
    is None except `train_limit`, `tau_start`, and those that the run does not use (`tau` and `kl_y_form`
    without a relaxation, `annealing_steps` without annealing), so that one run has one id.

    Raises ExperimentError, before any work, for a choice that cannot be run.
    """

    dataset: str = choice("mnist", "the images, or the path of your own: a folder or an .npz", "both", options=DATASETS)
    estimator: str = choice("concrete", "how the ELBO is estimated",
                            "`concrete` (eq. 7, 8) against `marginal` (eq. 6)", options=ESTIMATORS)
    K: int | None = choice(None, "number of clusters; 20 for CIFAR-100, else 10", "10 and 20", least=1)
    z_dim: int = choice(64, "D, the dimension of z", least=1, reason="the code of the blog post that the paper "
                        "cites for the model (Shu, 2016) has 64")
    tau: float | None = choice(None, "temperature of the relaxed y; 0.3, that of ReinMax 1", "0.3", above=0, null=True)
    tau_start: float | None = choice(None, "temperature of `concrete` at the first step, if it is to fall, by the same "
                                     "factor each step, to `tau` at the last of all epochs",
                                     "one temperature", neutral=None, above=0, null=True)
    kl_y_form: str | None = choice(
        None, "the KL(q(y|x)||p(y)) of `concrete`: `relaxed`, the ratio of Concrete densities at "
        "the sample, or `categorical`, the closed form; the other estimators have a discrete y "
        "and always the closed form", "eq. 7 reads `relaxed`; the text can mean either",
        "the closed form without annealing has the better validation ELBO: chapter 7's rule",
        options=KL_Y_FORMS, null=True)
    annealing: str = choice(
        "none", "the weight of KL(q(y|x)||p(y)), 1 throughout with `none`",
        "the text says that it rises, the formula falls; it is in eq. 8, not in eq. 6",
        "as for `kl_y_form`; the paper's own row has the weight that rises, `ramp`", options=SCHEDULES)
    annealing_steps: int | None = choice(
        None, "time scale of the annealing in steps; 2000", "2000, without a unit",
        "t counts steps: in epochs, 200 at most, the weight would not pass 0.1", least=1, null=True)
    beta: float = choice(1.0, "weight of the KL of z in the training loss; 1", "1, as eq. 8 has none",
                         neutral=1.0, above=0)
    kl_z_form: str = choice("sampled", "the KL of z: `sampled`, its integrand at the sample of z, or `closed`, its "
                            "integral over z, which `factored` and `collapsed` train with in either case",
                            "eq. 6 to 8 read `sampled`", options=KL_Z_FORMS, neutral="sampled")
    likelihood: str | None = choice(
        None, "p(x|z): `bernoulli` on binary pixels, `cross_entropy` (its formula on pixels in "
        "[0, 1]), or `gaussian` with one learned scale; MNIST `bernoulli`, CIFAR-100 "
        "`cross_entropy`", "Bernoulli for MNIST; not said for CIFAR-100",
        "the paper's value for CIFAR-100 fits `cross_entropy`, and lies below the highest value that "
        "it can have", options=LIKELIHOODS)
    binarisation: str | None = choice(
        None, "how pixels become 0 or 1: `threshold` at one half, `static` (drawn once), "
        "`dynamic` (drawn anew each time), `none`; `threshold` for `bernoulli`, else `none`",
        "MNIST is binarised; how is not said", options=BINARISATIONS,
        reason="every run sees the same pixels, without noise that no model can predict")
    padding: str = choice("same", "of the 5x5 convolutions: `same` (2 pixels) or `valid` (none)", options=PADDINGS,
                          reason="the image is halved twice and doubled twice, and nothing is cut off at its edge")
    decoder_units: int = choice(0, "width of a hidden layer between z and the decoder's feature map; 0: none",
                                "a single fully connected layer, then two transposed convolutions: `0`", least=0)
    initialisation: str = choice("glorot", "of the weights: Glorot's uniform or He's normal ones with zero biases, or "
                                 "what torch does by itself", options=INITIALISATIONS, neutral="torch",
                                 reason="Glorot's uniform weights and zero biases were what TensorFlow and Keras "
                                 "did by themselves; the paper names no library")
    spread_logits: bool = choice(False, "scale the last layer of q(y|x) before the first step so that over 1,000 "
                                 "images each logit has mean 0 and deviation 1", "no such step", neutral=False)
    views: str = choice("none", "a second view of each image, whose label is to agree with the first's: "
                        "by another `digits`' hand, cut-outs of `photos`, the `same` image, or `none`",
                        "no such views", options=VIEWS, neutral="none")
    agreement: float | None = choice(None, "weight of the two views' agreement in the training loss; 100",
                                     "no such term", neutral=None, above=0, null=True)
    balanced: bool = choice(True, "the labels that views are to agree on are as many of each over a batch",
                            "no such term", neutral=True)
    labelled: int = choice(0, "training images whose class is told, as many of each; 0", "0: unsupervised",
                           neutral=0, least=0)
    batch_size: int = choice(128, "images a step", least=1, reason="a common size; the paper points to none")
    learning_rate: float = choice(1e-3, "of Adam", "0.001", above=0)
    learning_rate_schedule: str = choice("constant", "of the learning rate: `constant`, or `cosine`, up for "
                                         "100 steps, then down to 2% at the last one, whose weights are kept",
                                         "one rate: `constant`", options=LEARNING_RATES, neutral="constant")
    epochs: int = choice(200, "passes over the training images at most", "200", least=1)
    patience: int = choice(10, "epochs without a better validation loss before the run stops; a falling "
                           "learning rate is gone through", "10", least=1)
    validation_fraction: float = choice(
        0.1, "share of the training images held out", above=0, below=1,
        reason="a common share: it leaves 54,000 images of MNIST and 45,000 of CIFAR-100")
    train_limit: int | None = choice(None, "use only so many training images; None: all", "all", null=True)
    iw_samples: int = choice(50, "samples an image in the importance-weighted bound", "no such bound",
                             "a bound on ln p(x), since the value in Table 1 is none", least=1)
    seed: int = choice(0, "of the weights, the split, the order and the noise", "11 runs", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        self._set("dataset", find_dataset(self.dataset))  # a path becomes a name
        kinds = typing.get_type_hints(Experiment)
        for f in dataclasses.fields(self):
            self._set(f.name, check(f, getattr(self, f.name), kinds[f.name]))
        facts, estimator = DATASETS[self.dataset], ESTIMATORS[self.estimator]
        likelihood = self.likelihood or facts.likelihood
        binary = LIKELIHOODS[likelihood].binary
        for name, default in (
                ("K", facts.K), ("tau", estimator.tau), ("kl_y_form", "categorical"), ("likelihood", likelihood),
                ("annealing_steps", 2000), ("binarisation", "threshold" if binary else "none"), ("agreement", 100.0)):
            if getattr(self, name) is None:
                self._set(name, default)
        if binary and self.binarisation == "none":
            refuse("binarisation", "none", "'threshold', 'static' or 'dynamic' with likelihood "
                   f"{likelihood!r}, or likelihood 'cross_entropy' for pixels between 0 and 1")
        if self.binarisation == "static" and self.views != "none":  # a view is made of grey values
            refuse("binarisation", "static", f"'threshold' or 'dynamic' with views {self.views!r}")
        if self.train_limit is not None and not 2 <= self.train_limit <= facts.train:
            refuse("train_limit", self.train_limit, f"None, or a whole number from 2 to the {facts.train} "
                   f"training images of {self.dataset!r}")
        if not 1 <= self.validation_size < self.available:
            refuse("validation_fraction", self.validation_fraction, "a share that leaves at least one of the "
                   f"{self.available} images on each side of the split")
        if self.batch_size > self.train_size:
            refuse("batch_size", self.batch_size, f"at most the {self.train_size} images that {self.dataset!r} "
                   "has for training after the validation split")
        if self.labelled and not (facts.labelled and facts.groups <= self.labelled <= self.train_size):
            refuse("labelled", self.labelled, f"0, or from the {facts.groups} classes to the {self.train_size} "
                   "training images" if facts.groups else f"0, as {self.dataset!r} has no labels")
        if self.labelled and self.K < facts.groups:
            refuse("K", self.K, f"at least the {facts.groups} classes whose names are told (labelled)")
        refuse_unfit(self.posterior, self.estimator, vars(self))
        # A choice that this run does not use must not give it another id.
        unused = {"tau": not estimator.relaxed, "kl_y_form": self.kl_y_form not in estimator.kl_y_forms,
                  "tau_start": self.estimator != "concrete", "annealing_steps": self.annealing == "none",
                  "agreement": self.views == "none"}
        for name in filter(unused.get, unused):
            self._set(name, None)
        self._set("balanced", self.balanced or self.views == "none")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for everybody else

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return DATASETS[self.dataset].images

    @property
    def posterior(self) -> str:
        """The family of q(y, z|x), see `GMVAE`: it follows from the estimator."""
        return ESTIMATORS[self.estimator].posterior

    @property
    def available(self) -> int:
        """Training images before the validation split."""
        return self.train_limit or DATASETS[self.dataset].train

    @property
    def validation_size(self) -> int:
        """Images held out for early stopping."""
        return round(self.available * self.validation_fraction)

    @property
    def train_size(self) -> int:
        """Images that the weights are fitted to."""
        return self.available - self.validation_size

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; the images of the last, partial one wait for the next epoch."""
        return self.train_size // self.batch_size

    @property
    def steps(self) -> int:
        """Training steps of all epochs, if nothing stops the run before."""
        return self.epochs * self.steps_per_epoch

    @property
    def preset(self) -> str:
        """The scale, a name in PRESETS if data, limit, epochs and patience are its, else `custom`."""
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        for name in presets.PRESETS:
            at_scale = {**usual, **presets.scale(name, DATASETS[self.dataset].full)}
            if all(getattr(self, f) == at_scale[f]
                   for f in ("dataset", "train_limit", "epochs", "patience")):
                return name
        return "custom"

    @property
    def id(self) -> str:
        """A name for the run, made of its main choices and a digest of all of them."""
        told = {k: v for k, v in self.as_dict().items() if k not in NEUTRAL or v != NEUTRAL[k]}
        text = json.dumps({"definition": DEFINITION, **told}, sort_keys=True)
        return f"{self.dataset}-{self.estimator}-K{self.K}-s{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """Every field and its value, ready for JSON."""
        return dataclasses.asdict(self)

    def but(self, **changes: Any) -> Experiment:
        """The same experiment with some fields changed, checked again."""
        known_fields(changes)
        return dataclasses.replace(self, **changes)


NEUTRAL = {f.name: value for f in dataclasses.fields(Experiment) if (value := f.metadata["neutral"]) is not NO_NEUTRAL}
"""What every run did before these fields existed."""


def filled_in(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record or checkpoint, with what older ones lack."""
    return {**NEUTRAL, **fields}


def preset(name: str, **choices: Any) -> Experiment:
    """The experiment at a scale of PRESETS, with `choices` on top; None means the preset's.

    `quick` replaces a data set by its embedded sample, where it has one. Raises ExperimentError.
    """
    one_of("preset", name, presets.PRESETS)
    known_fields(choices)
    chosen = {k: v for k, v in choices.items() if v is not None}
    dataset = find_dataset(chosen.pop("dataset", "mnist"))
    return Experiment(**{**presets.scale(name, dataset), **chosen})


def known_fields(choices: dict[str, Any]) -> None:
    """Raise ExperimentError for a name that is not a field of Experiment."""
    fields = [f.name for f in dataclasses.fields(Experiment)]
    if unknown := [name for name in choices if name not in fields]:
        raise ExperimentError(f"{unknown[0]!r} is not a choice of an experiment{did_you_mean(unknown[0], fields)}. "
                              f"The choices are {', '.join(fields)}.")
