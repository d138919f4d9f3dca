"""The recorded step, as far as a machine without a GPU can test it, and on a GPU where there is one."""

import contextlib

import helpers
import pytest
import torch

import cgmvae
from cgmvae import ExperimentError, checkpoints, graphs, training
from cgmvae.estimators import ESTIMATORS


class FakeGraph:
    """Stands for torch.cuda.CUDAGraph: recording runs nothing that counts, replaying runs a step."""

    made: list = []

    def __init__(self):
        self.generators, self.trainer = [], None
        FakeGraph.made.append(self)

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        self.trainer.step()


@pytest.fixture
def fake_cuda(monkeypatch):
    """torch.cuda's recording calls, on the CPU. A recording is undone, as on a GPU it runs nothing."""
    FakeGraph.made = []

    @contextlib.contextmanager
    def recording(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"  # another thread may be copying a checkpoint from the device
        graph.state = {k: v.clone() for k, v in checkpoints.tensors(graph.trainer).items()}
        yield
        checkpoints.restore(graph.trainer, graph.state)

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass

    for name, value in {"CUDAGraph": FakeGraph, "graph": recording, "Stream": Stream,
                        "current_stream": Stream,
                        "stream": lambda s: contextlib.nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, value)


def recorded(trainer):
    """The trainer with its step recorded, as Trainer.__init__ does it on CUDA."""
    make = torch.cuda.CUDAGraph

    def with_trainer():
        graph = make()
        graph.trainer = trainer
        return graph
    torch.cuda.CUDAGraph = with_trainer
    try:
        trainer.advance = graphs.record_graph(trainer)
    finally:
        torch.cuda.CUDAGraph = make
    return trainer


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_recording_leaves_no_trace_in_the_run(fake_cuda, estimator):
    """Warm-up steps move weights, Adam, noise and counters; all of it must be put back."""
    plain = helpers.trainer(helpers.small(estimator=estimator))
    graphed = recorded(helpers.trainer(helpers.small(estimator=estimator)))
    for run in (plain, graphed):
        for _ in run.run():
            pass
    a, b = checkpoints.tensors(plain), checkpoints.tensors(graphed)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert plain.progress["best_loss"] == graphed.progress["best_loss"]


def test_recording_registers_the_noise_so_that_replays_do_not_repeat_it(fake_cuda):
    trainer = recorded(helpers.trainer(helpers.small()))
    assert FakeGraph.made[0].generators == [trainer.noise]


def test_a_recording_after_a_resume_keeps_what_was_loaded(fake_cuda, tmp_path):
    path = tmp_path / "run.safetensors"
    first = helpers.trainer(helpers.small(), checkpoint=path)
    steps = first.run()
    for _ in range(4):
        next(steps)
    first.save()
    first.writer.wait()
    second = recorded(helpers.trainer(helpers.small(), checkpoint=path))
    assert second.resumed
    a, b = checkpoints.tensors(first), checkpoints.tensors(second)
    assert all(torch.equal(a[name], b[name]) for name in a)


def state(trainer):
    return {k: v.clone() for k, v in checkpoints.tensors(trainer).items()}


def fails_to_record(patch):
    @contextlib.contextmanager
    def recording(graph, **_):
        yield
        raise RuntimeError("operation not permitted when stream is capturing.\nmore lines")
    patch.setattr(torch.cuda, "graph", recording)
    return "operation not permitted when stream is capturing"


def replays_nothing(patch):
    patch.setattr(FakeGraph, "replay", lambda graph: None)
    return "position is 0 after the first replay and 1 after a step"


def replays_other_noise(patch):
    def replay(graph):
        graph.trainer.noise.manual_seed(1)
        graph.trainer.step()
    patch.setattr(FakeGraph, "replay", replay)
    return "of the first replay differs from that of a step by"


def replays_other_gradients(patch):
    def replay(graph):
        graph.trainer.step()
        for p in graph.trainer.model.parameters():
            graph.trainer.optimiser.state[p]["exp_avg"].mul_(0.9)
    patch.setattr(FakeGraph, "replay", replay)
    return "the gradient of the first replay differs from that of a step by"


def replays_no_number(patch):
    def replay(graph):
        graph.trainer.step()
        graph.trainer.terms.mul_(float("nan"))
    patch.setattr(FakeGraph, "replay", replay)
    return "the loss of the first replay differs from that of a step by nan"


FAILURES = (fails_to_record, replays_nothing, replays_other_noise, replays_other_gradients, replays_no_number)


@pytest.fixture
def graph_is_auto(fake_cuda, monkeypatch):
    """Trainers find that `auto` is `graph`, as on CUDA, and a fake graph finds its trainer."""
    monkeypatch.setattr(training, "find_compilation", lambda name, device: "graph")
    record = graphs.record_graph

    def with_trainer(trainer):
        monkeypatch.setattr(FakeGraph, "trainer", trainer, raising=False)
        return record(trainer)
    monkeypatch.setattr(FakeGraph, "__init__", lambda self: setattr(self, "generators", []))
    monkeypatch.setattr(graphs, "record_graph", with_trainer)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_step_whose_replay_cannot_be_trusted_runs_without(failure, graph_is_auto, monkeypatch):
    reason = failure(monkeypatch)
    with pytest.warns(UserWarning) as warned:
        run = helpers.trainer(helpers.small())
    told, = [str(w.message) for w in warned]
    assert told.startswith("The step runs without a CUDA graph") and reason in told and "\n" not in told
    assert run.compile == "none" and run.advance == run.step
    monkeypatch.setattr(training, "find_compilation", lambda name, device: "none")
    plain = state(helpers.trainer(helpers.small()))
    assert all(torch.equal(plain[name], value) for name, value in state(run).items())


@pytest.mark.parametrize("failure", FAILURES)
def test_a_graph_that_was_asked_for_is_refused_then(failure, graph_is_auto, monkeypatch):
    reason = failure(monkeypatch)
    with pytest.raises(ExperimentError) as error:
        helpers.trainer(helpers.small(), compile="graph")
    message = str(error.value)
    assert message.startswith("compile must be 'auto' or 'none' here (") and reason in message
    assert message.endswith("it is 'graph'.")


def test_a_good_replay_is_taken_without_a_word(graph_is_auto, recwarn):
    run = helpers.trainer(helpers.small())
    assert run.compile == "graph" and run.advance.__func__ is FakeGraph.replay and not recwarn.list


def test_the_record_says_that_the_step_ran_without(graph_is_auto, monkeypatch, tmp_path):
    fails_to_record(monkeypatch)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        record = cgmvae.run(helpers.small(), device="cpu", results=tmp_path)
    assert record["environment"]["compile"] == "none" and record["progress"]["epochs"] == 3


def test_no_line_of_a_step_waits_for_the_device():
    """A step on `meta` tensors has no values: whatever asked for one (item, bool, nonzero) fails."""
    trainer = helpers.trainer(helpers.small())
    e, meta = trainer.experiment, torch.device("meta")
    trainer.model.to(meta)
    trainer.noise = None  # meta has no generators
    trainer.splits = type(trainer.splits)(
        *(type(trainer.splits.train)(p.values.to(meta), p.binarisation)
          for p in (trainer.splits.train, trainer.splits.validation, trainer.splits.test)),
        trainer.splits.test_groups, trainer.splits.test_labels)
    for name in ("order", "position", "t", "terms"):
        setattr(trainer, name, getattr(trainer, name).to(meta))
    trainer.optimiser = torch.optim.SGD(trainer.model.parameters(), e.learning_rate)
    trainer.step()
    assert trainer.terms.is_meta


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("estimator", ["concrete", "marginal"])
def test_on_a_gpu_the_recorded_step_gives_the_unrecorded_ones_numbers(estimator):
    from cgmvae import data

    e, device = helpers.small(estimator=estimator), torch.device("cuda")
    splits = data.split(e, data.load(e.dataset), device)
    runs = {c: training.Trainer(e, splits, device, precision="float32", compile=c)
            for c in ("none", "graph")}
    for run in runs.values():
        for _ in run.run():
            pass
    a, b = (run.progress["curves"] for run in runs.values())
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)
        assert x["validation_loss"] == pytest.approx(y["validation_loss"], rel=1e-4)
