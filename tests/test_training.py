"""The loop: what a step does, when it stops, and that stopping it anywhere loses nothing."""

import contextlib
import copy
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import CPU, Toy, comparable, exact_elbo, small, toy_images, trainer
from safetensors import safe_open
from safetensors.torch import load_file

import cgmvae
from cgmvae import checkpoints, data, evaluation, objectives, records, training
from cgmvae.__main__ import main
from cgmvae.evaluation import validate
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.seeds import derived_seed
from cgmvae.run import fit, interrupt_between_steps
from cgmvae.training import NonFiniteLoss


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def outcome(run: training.Trainer) -> dict:
    """Everything that a run ends with but for the clock."""
    progress = {k: v for k, v in run.progress.items() if k not in ("seconds", "now", "curves")}
    return {**progress, "curves": [{k: v for k, v in row.items() if k != "seconds"}
                                   for row in run.progress["curves"]]}


# One step

def temperatures(e, monkeypatch):
    """Those that the steps of a run relax their labels at, and the run."""
    seen = []
    sample = objectives.concrete_sample
    with monkeypatch.context() as patched:
        patched.setattr(objectives, "concrete_sample",
                        lambda logits, tau, noise: seen.append(float(tau)) or sample(logits, tau, noise))
        run = trainer(e)
        for _ in run.run():
            pass
    return seen, run


def test_a_falling_temperature_is_the_steps_own(monkeypatch):
    e = small(tau_start=1.0, tau=0.1, epochs=2)
    seen, run = temperatures(e, monkeypatch)
    assert seen == pytest.approx([10 ** (-t / 10) for t in range(10)], rel=1e-5)
    constant, other = temperatures(e.but(tau_start=None), monkeypatch)
    assert constant == [0.1] * 10 and not same(weights(run.model), weights(other.model))
    level, again = temperatures(e.but(tau_start=0.1), monkeypatch)  # it falls from 0.1 to 0.1
    assert level == pytest.approx([0.1] * 10) and again.progress["curves"][-1]["validation_loss"] == pytest.approx(
        other.progress["curves"][-1]["validation_loss"], rel=1e-4)


def test_a_step_is_adam_on_the_negative_elbo():
    """The first two steps again, with a plain optimiser on a copy of the model."""
    e = small(K=4, learning_rate=3e-3, annealing="ramp")
    run = trainer(e)
    model, start = copy.deepcopy(run.model), weights(run.model)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    noise = torch.Generator().set_state(run.noise.get_state())
    steps = run.run()
    next(steps), next(steps)
    for t in range(2):
        x = run.splits.train.batch(run.order[t], noise)
        loss = -objectives.elbo(ESTIMATORS["concrete"](model, x, e, noise),
                                1 - math.exp(-t / e.annealing_steps)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert float(run.terms[t, 0]) == pytest.approx(loss.item(), rel=1e-6)
    for name, value in run.model.state_dict().items():
        difference = (value - model.state_dict()[name]).norm()
        assert difference < 0.01 * (value - start[name]).norm(), name


def test_the_weight_of_kl_y_follows_the_schedule_over_all_epochs():
    e = small(annealing="linear", annealing_steps=12)
    run, rows = trainer(e), []
    for progress in run.run():
        if len(rows) < progress["step"]:
            rows.append(run.terms[(progress["step"] - 1) % 5].tolist())
    assert len(rows) == 15
    for t, (loss, log_px, kl_z, kl_y) in enumerate(rows):
        assert loss == pytest.approx(-log_px + kl_z + min(1, t / 12) * kl_y, abs=1e-3)
    assert max(abs(row[3]) for row in rows[:5]) > 0.01  # a wrong weight would have shown


def test_an_epoch_visits_each_image_at_most_once_in_a_new_order():
    run, orders = trainer(small(train_limit=61)), []
    for progress in run.run():
        if progress["step"] % 5 == 1:
            orders.append(run.order.flatten().tolist())
    orders = [o for i, o in enumerate(orders) if i == 0 or o != orders[i - 1]]
    assert len(orders) == 3
    for order in orders:
        assert len(set(order)) == 50 and max(order) < 55
    assert len({frozenset(order) for order in orders}) > 1  # the five left out differ


def test_curves_are_means_over_the_epoch():
    run = trainer(small())
    rows = []
    for progress in run.run():
        if progress["step"] == 5 and progress["epoch"] == 0:
            rows = run.terms.double().mean(0).tolist()
    first = run.progress["curves"][0]
    assert [first[k] for k in ("loss", "log_px", "kl_z", "kl_y")] == pytest.approx(rows)
    assert [(r["epoch"], r["step"]) for r in run.progress["curves"]] == [(1, 5), (2, 10), (3, 15)]


# Seeds

def test_same_seed_same_run_and_another_seed_another():
    runs = [trainer(small(seed=s)) for s in (0, 0, 1)]
    assert same(weights(runs[0].model), weights(runs[1].model))
    assert not same(weights(runs[0].model), weights(runs[2].model))
    for run in runs:
        torch.manual_seed(random.randrange(1000))  # the global state plays no part
        fit(run)
    assert outcome(runs[0]) == outcome(runs[1])
    assert same(weights(runs[0].model), weights(runs[1].model))
    assert outcome(runs[0])["curves"] != outcome(runs[2])["curves"]


def test_no_two_uses_of_randomness_share_a_seed(monkeypatch):
    uses = ["importance weights", "noise", "order", "spread", "test", "validation", "weights"]
    asked = []
    for module in (training, evaluation):
        monkeypatch.setattr(module, "derived_seed", lambda seed, use: asked.append(use) or derived_seed(seed, use))
    run = trainer(small(epochs=1, spread_logits=True))
    fit(run)
    evaluation.evaluate(run.model, run.splits, run.experiment)
    assert sorted(asked) == uses
    seeds = [derived_seed(s, use) for s in range(20) for use in uses]
    assert len(set(seeds)) == len(seeds)


def test_a_trainer_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fit(trainer(small(epochs=1)))
    assert torch.equal(torch.rand(3), expected)


# Validation and stopping

def test_early_stopping_looks_at_the_validation_images(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "validate",
                        lambda model, pixels, e: seen.append(pixels) or {"validation_loss": 1.0})
    run = trainer(small(epochs=2))
    fit(run)
    assert [pixels is run.splits.validation for pixels in seen] == [True, True]


def test_the_validation_loss_has_no_beta():
    pixels = data.Pixels((toy_images(50) * 255).to(torch.uint8).permute(0, 2, 3, 1), "threshold")
    one, half = (validate(Toy(), pixels, small(beta=beta))["validation_loss"] for beta in (1.0, 0.5))
    assert one == half


def test_the_validation_information_is_of_all_batches(monkeypatch):
    run = trainer(small(spread_logits=True))
    pixels = run.splits.validation
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", len(pixels) - 2)
    known = evaluation.information(evaluation.assign(run.model, pixels).double())
    found = validate(run.model, pixels, run.experiment)["validation_information"]
    assert found == pytest.approx(known, abs=1e-6)


def test_validation_loss_is_the_negative_elbo():
    """On the toy, where eq. 5 is known: many copies of two images."""
    images = (toy_images(20_000) * 255).to(torch.uint8)
    pixels = data.Pixels(images.permute(0, 2, 3, 1), "threshold")
    exact = exact_elbo(Toy(), toy_images(1)).mean().item()
    for estimator in ESTIMATORS:  # one measure for all of them
        loss = validate(Toy(), pixels, small(estimator=estimator))["validation_loss"]
        assert loss == pytest.approx(-exact, abs=0.06)


def test_validation_loss_does_not_depend_on_the_annealing():
    """With a learning rate that moves nothing, every schedule has the same one, at every epoch."""
    losses, trained = [], []
    for schedule in ("ramp", "printed", "linear", "none"):
        run = trainer(small(annealing=schedule, annealing_steps=3, learning_rate=1e-30, epochs=2))
        with torch.no_grad():
            run.model.q_y_layers[4].bias[0] += 3  # so that KL(q(y|x)||p(y)) counts
        fit(run)
        losses += [row["validation_loss"] for row in run.progress["curves"]]
        trained.append(run.progress["curves"][0]["loss"])
    assert len(set(losses)) == 1
    assert len(set(trained)) == 4


def test_stops_after_patience_and_keeps_the_best_weights(monkeypatch):
    losses, seen = iter([5.0, 4.0, 4.5, 3.0, 3.0, 3.2, 2.9999 + 1e-3, 1.0]), []

    def fake(model, pixels, experiment):
        seen.append(weights(model))
        return {"validation_loss": next(losses)}

    monkeypatch.setattr(evaluation, "validate", fake)
    run = trainer(small(patience=3, epochs=20))
    fit(run)
    assert len(seen) == run.progress["epoch"] == 7  # the fourth was the best; a tie is no better
    assert (run.progress["best_epoch"], run.progress["best_loss"]) == (4, 3.0)
    assert run.progress["stopped"] == "no better validation loss for 3 epochs"
    assert same(weights(run.model), seen[3])
    assert not same(seen[3], seen[6])


def test_stops_after_all_epochs_with_the_best_weights(monkeypatch):
    losses, seen = iter([5.0, 4.0, 4.5]), []
    monkeypatch.setattr(evaluation, "validate", lambda model, *_: (
        seen.append(weights(model)), {"validation_loss": next(losses)})[1])
    run = trainer(small(epochs=3, patience=3))
    fit(run)
    assert run.progress["stopped"] == "all 3 epochs done" and run.progress["step"] == 15
    assert same(weights(run.model), seen[1])


def test_a_falling_learning_rate_is_gone_through_and_its_last_weights_are_kept(monkeypatch):
    losses, seen = iter([3.0, 4.0, 5.0]), []
    monkeypatch.setattr(evaluation, "validate", lambda model, *_: (
        seen.append(weights(model)), {"validation_loss": next(losses)})[1])
    run = trainer(small(epochs=3, patience=1, learning_rate_schedule="cosine"))
    fit(run)
    assert run.progress["stopped"] == "all 3 epochs done"
    assert (run.progress["best_epoch"], run.progress["best_loss"]) == (3, 5.0)
    assert same(weights(run.model), seen[2])


# Non-finite losses

def break_at(monkeypatch, step: int, term: str, value: float) -> list:
    """Make the estimator give `value` for one image's `term` from that call on."""
    calls = []

    def broken(*args):
        terms = objectives.concrete(*args)
        calls.append(1)
        if len(calls) >= step:
            terms[term] = torch.cat([terms[term][:-1], torch.full((1,), value)])
        return terms

    monkeypatch.setitem(ESTIMATORS, "concrete", dataclasses.replace(
        ESTIMATORS["concrete"], terms=broken))
    return calls


@pytest.mark.parametrize(("term", "value"), [
    ("kl_z", math.nan), ("log_px", -math.inf), ("kl_y", math.inf)])
def test_a_non_finite_loss_stops_at_once(monkeypatch, tmp_path, term, value):
    path = tmp_path / "run.safetensors"
    calls = break_at(monkeypatch, 8, term, value)
    run = trainer(small(), checkpoint=path)
    with pytest.raises(NonFiniteLoss) as error:
        fit(run)
    assert len(calls) == 8
    assert str(error.value) == (f"{term} is {value} at step 8, in epoch 2. "
                                f"The last good checkpoint is kept in {path}.")
    good = trainer(small(), checkpoint=path)
    assert good.progress["epoch"] == 1 and good.progress["step"] == 5
    assert all(v.isfinite().all() for v in good.model.state_dict().values())
    monkeypatch.undo()
    fit(good)
    uninterrupted = trainer(small())
    fit(uninterrupted)
    assert outcome(good) == outcome(uninterrupted)


def test_no_good_checkpoint_is_replaced_by_one_that_is_not_finite(tmp_path):
    """Where the device is asked only now and then, a stop may come before the next look."""
    path = tmp_path / "run.safetensors"
    run = trainer(small(), checkpoint=path)
    steps = run.run()
    for _ in range(3):
        next(steps)
    run.writer.wait()
    before = path.read_bytes()
    run.terms[2, 1] = math.nan
    with pytest.raises(NonFiniteLoss, match="at step 3, in epoch 1.* is kept in"):
        run.save()
    run.writer.wait()
    assert path.read_bytes() == before


def test_a_non_finite_validation_loss_stops_too(monkeypatch, tmp_path):
    losses = iter([5.0, math.nan])
    monkeypatch.setattr(evaluation, "validate", lambda *_: {"validation_loss": next(losses)})
    run = trainer(small(), checkpoint=tmp_path / "run.safetensors")
    with pytest.raises(NonFiniteLoss, match="validation loss is nan after epoch 2.* is kept in"):
        fit(run)
    assert trainer(small(), checkpoint=tmp_path / "run.safetensors").progress["epoch"] == 1


def test_a_non_finite_loss_is_one_line_in_the_shell(monkeypatch, tmp_path, capsys):
    break_at(monkeypatch, 2, "kl_z", math.nan)
    assert main(["train", "--dataset", "mnist-sample", "--train_limit", "60", "--batch_size", "10",
                 "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cgmvae: kl_z is nan at step 2") and err.count("\n") == 1
    assert not list((tmp_path / "runs").iterdir())


# Interrupted equals uninterrupted

@pytest.mark.parametrize(("estimator", "stops", "changes"), [
    ("concrete", (0, 3, 5), {"binarisation": "dynamic"}),
    ("marginal", (7,), {"annealing": "linear"}),
    ("concrete", (0, 7), {"views": "digits", "spread_logits": True, "binarisation": "dynamic",
                          "learning_rate_schedule": "cosine"}),
    ("straight_through", (11, 14), {"patience": 1}),
    ("score_function", (1, 10), {"dataset": "cifar100-sample", "likelihood": "gaussian"})])
def test_stopped_after_any_step_and_resumed(tmp_path, estimator, stops, changes):
    e = small(estimator=estimator, K=3, **changes)
    whole = trainer(e)
    fit(whole)
    path = tmp_path / "run.safetensors"
    for stop in stops:
        run = trainer(e, checkpoint=path)
        if stop:
            with contextlib.closing(run.run()) as steps:
                while next(steps)["step"] < stop:
                    pass
        run.save()
        run.writer.wait()
        again = trainer(e, checkpoint=path)
        assert again.resumed and again.progress["step"] == stop
    fit(again)
    assert outcome(again) == outcome(whole)
    assert same(weights(again.model), weights(whole.model))


QUICK = ["train", "--preset", "quick", "--dataset", "mnist-sample", "--train_limit", "200",
         "--epochs", "6", "--batch_size", "20", "--iw_samples", "2"]


def only(folder) -> dict:
    """The one record of a results folder."""
    (path,) = (folder / "runs").glob("*.json")
    return json.loads(path.read_text())


def weights_of(folder) -> dict[str, torch.Tensor]:
    (path,) = (folder / "weights").iterdir()
    return load_file(path)


def epochs_done(folder) -> int:
    """What the checkpoint on disk says; -1 where there is none."""
    for path in (folder / "unfinished").glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError), safe_open(path, "pt") as file:
            return json.loads(file.metadata()["progress"])["epoch"]
    return -1


def test_killed_at_random_moments_it_ends_with_the_same_numbers(tmp_path, capsys):
    """A real `python -m cgmvae train`, interrupted, killed, and gone on with in this process."""
    command = [sys.executable, "-m", "cgmvae", *QUICK, "--results", str(tmp_path / "killed")]
    for stop, epoch in ((signal.SIGINT, 0), (signal.SIGKILL, 2)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)
        deadline = time.monotonic() + 120
        while epochs_done(tmp_path / "killed") < epoch:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        delay = random.uniform(0, 0.1)
        time.sleep(delay)
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
        assert out == "" and not list((tmp_path / "killed" / "runs").iterdir()), delay
        if stop == signal.SIGINT:
            assert process.returncode == 130 and err.count("\n") == 1
            assert "cgmvae: stopped. The last good checkpoint is kept in" in err
        else:
            assert process.returncode == -signal.SIGKILL
    for folder in ("killed", "whole"):
        assert main([*QUICK, "--results", str(tmp_path / folder)]) == 0
    killed, whole = only(tmp_path / "killed"), only(tmp_path / "whole")
    assert comparable(killed) == comparable(whole)
    assert same(weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"))
    assert not list((tmp_path / "killed" / "unfinished").glob("*.safetensors"))


def test_ctrl_c_in_the_middle_of_an_epoch(monkeypatch, tmp_path, capsys):
    choices = ["train", "--dataset", "mnist-sample", "--train_limit", "60", "--batch_size", "10",
               "--epochs", "3", "--iw_samples", "2", "--z_dim", "8"]
    assert main([*choices, "--results", str(tmp_path / "whole")]) == 0
    step = training.Trainer.step

    def interrupted(self):
        if self.progress["step"] == 7:
            os.kill(os.getpid(), signal.SIGINT)
        step(self)

    before = signal.getsignal(signal.SIGINT)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", interrupted)
        assert main([*choices, "--results", str(tmp_path / "stopped")]) == 130
    assert signal.getsignal(signal.SIGINT) == before
    out, err = capsys.readouterr()
    (path,) = (tmp_path / "stopped" / "unfinished").iterdir()
    assert out == "" and err == (f"cgmvae: stopped. The last good checkpoint is kept in {path}. "
                                 "The same command goes on from there.\n")
    saved, header = checkpoints.read(path, checkpoints.RUN)
    assert json.loads(header["progress"])["step"] == 8 and int(saved["position"]) == 3
    assert main([*choices, "--results", str(tmp_path / "stopped")]) == 0
    assert comparable(only(tmp_path / "stopped")) == comparable(only(tmp_path / "whole"))
    assert same(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole"))


@pytest.fixture
def python_handles_ctrl_c():
    """As in a shell; who starts the tests in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait(python_handles_ctrl_c):
    with pytest.raises(KeyboardInterrupt), interrupt_between_steps() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.parametrize("module, where", ((evaluation, "evaluate"), (checkpoints, "save_weights"), (records, "write")))
def test_stopped_between_training_and_the_record(monkeypatch, tmp_path, module, where):
    whole = cgmvae.run(small(), results=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        def stop(*_, **__):
            raise KeyboardInterrupt
        patch.setattr(module, where, stop)
        cgmvae.run(small(), results=tmp_path / "stopped")
    assert not list((tmp_path / "stopped" / "runs").iterdir())
    stopped = cgmvae.run(small(), results=tmp_path / "stopped")
    assert comparable(stopped) == comparable(whole)
    assert stopped["seconds"]["training"] > 0


def test_a_second_process_that_ends_later_leaves_record_and_weights_alone(tmp_path):
    e, paths = small(), records.Paths(tmp_path, small())
    begun = cgmvae.run.__globals__["Begun"](e, CPU, paths)
    late = begun.trainer(CPU)
    fit(late)
    first = cgmvae.run(e, results=tmp_path)
    weights = weights_of(tmp_path)
    with torch.no_grad():
        next(late.model.parameters()).add_(1)  # as another number of threads could make it, only more
    theirs = paths.checkpoint.with_name(f".{paths.checkpoint.name}.{os.getppid()}")  # a process that lives
    dead = paths.checkpoint.with_name(f".{paths.checkpoint.name}.{2 ** 22 + 1}")  # above the largest pid
    theirs.touch(), dead.touch()
    assert begun.finish(late) == first
    assert same(weights, weights_of(tmp_path)) and only(tmp_path) == first
    assert theirs.exists() and not dead.exists() and not paths.checkpoint.exists()


# The bar

def test_quiet_where_there_is_no_terminal(tmp_path, capsys):
    cgmvae.run(small(epochs=1), results=tmp_path)
    assert capsys.readouterr() == ("", "")


def test_the_bar_says_loss_terms_and_images_a_second(capsys):
    fit(trainer(small()), progress_bar=True)
    err = capsys.readouterr().err
    for part in (small().id, "15/15", "loss ", "kl_z ", "kl_y ", "images/s"):
        assert part in err


# Real digits

def pixel_mean_baseline(e: Experiment) -> float:
    """Mean ln p of the test images, in nats, when each pixel is a coin of its own training mean."""
    splits = data.split(e, data.load(e.dataset), CPU)
    train, test = (p.batch(slice(0, len(p))) for p in (splits.train, splits.test))
    p = (train.sum(0) + 0.5) / (len(train) + 1)
    return float((test * p.log() + (1 - test) * (1 - p).log()).sum((1, 2, 3)).mean())


@pytest.mark.parametrize("estimator", ("concrete", "marginal"))
def test_a_quick_run_on_real_digits_beats_the_pixel_means(tmp_path, estimator):
    e = cgmvae.preset("quick", estimator=estimator, K=4, train_limit=1000, epochs=5, batch_size=10,
                      z_dim=8, iw_samples=2)
    baseline = pixel_mean_baseline(e)
    assert -215 < baseline < -200
    record = cgmvae.run(e, results=tmp_path)
    metrics = record["metrics"]
    print(baseline, metrics, record["seconds"])
    assert metrics["test_elbo"] > baseline + 20
    assert metrics["test_iw_bound"] > metrics["test_elbo"]
    losses = [row["validation_loss"] for row in record["progress"]["curves"]]
    assert losses[-1] < losses[0]


