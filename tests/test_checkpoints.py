"""Files of runs: of another run, of something else, cut short; and how they are written."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import small, trainer
from safetensors.torch import save_file

import cgmvae
from cgmvae import checkpoints, disk, training
from cgmvae.__main__ import main
from cgmvae.checkpoints import CheckpointError, load_weights, save_weights
from cgmvae.disk import DiskError
from cgmvae.experiment import NEUTRAL
from cgmvae.model import GMVAE
from cgmvae.records import Paths
from cgmvae.run import fit


@pytest.fixture
def no_training(monkeypatch):
    def forbidden(*_):
        pytest.fail("a step was taken from a checkpoint that is none")
    monkeypatch.setattr(training.Trainer, "step", forbidden)


def saved(experiment, path):
    """A run's checkpoint as it is before the first step."""
    run = trainer(experiment, checkpoint=path)
    run.save()
    run.writer.wait()
    return run


def place_of_checkpoint(results, experiment):
    path = Paths(results, experiment).checkpoint
    path.parent.mkdir(parents=True)
    return path


def refused(results, experiment) -> str:
    """The message that both the function and the shell give, which must be one line."""
    path = Paths(results, experiment).checkpoint
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as error:
        cgmvae.run(experiment, results=results)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert "Move it away" in message  # how to mend it
    assert path.read_bytes() == before
    return message


def test_everything_a_run_depends_on_comes_back(tmp_path):
    """Each tensor, each random state and the progress: none may be left as a new trainer has it."""
    path = tmp_path / "run.safetensors"
    run, fresh = trainer(small(), checkpoint=path), trainer(small())
    for progress in run.run():
        if progress["step"] == 8:
            break
    run.save()
    run.writer.wait()
    back = trainer(small(), checkpoint=path)
    ours, theirs, new = (checkpoints.tensors(t) for t in (run, back, fresh))
    changed = set()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
        changed |= {name.split(".")[0]} if not torch.equal(value, new[name]) else set()
    assert changed == {"model", "best", "adam", "order", "position", "t", "terms", "random"}
    progress = {k: v for k, v in run.progress.items() if k != "now"}
    assert progress | {"seconds": back.progress["seconds"]} == back.progress
    assert progress["seconds"]["training"] == back.progress["seconds"]["training"] > 0


def test_a_checkpoint_of_another_experiment(tmp_path, no_training):
    mine, other = small(seed=1), small(seed=1, K=4, tau=0.5)
    saved(other, place_of_checkpoint(tmp_path, mine))
    message = refused(tmp_path, mine)
    assert "another run" in message
    assert "K is 4 there and 10 here" in message and "tau is 0.5 there and 0.3 here" in message
    assert "seed" not in message


def test_a_checkpoint_of_another_precision(tmp_path, no_training):
    path = tmp_path / "run.safetensors"
    saved(small(), path)
    with pytest.raises(CheckpointError, match="precision is 'float32' there and 'bf16' here"):
        trainer(small(), checkpoint=path, precision="bf16")


def test_a_checkpoint_of_another_device(tmp_path, no_training):
    path = tmp_path / "run.safetensors"
    saved(small(), path)
    state, header = checkpoints.read(path, checkpoints.RUN)
    save_file(state, path, metadata=header | {"device": "cuda"})
    with pytest.raises(CheckpointError, match="device is 'cuda' there and 'cpu' here"):
        trainer(small(), checkpoint=path)


def test_a_checkpoint_from_before_a_field_was_there_is_gone_on_with(tmp_path):
    path, e = tmp_path / "run.safetensors", small(initialisation="torch")
    saved(e, path)
    state, header = checkpoints.read(path, checkpoints.RUN)
    older = {k: v for k, v in e.as_dict().items() if k not in NEUTRAL}
    save_file(state, path, metadata=header | {"experiment": json.dumps(older)})
    assert trainer(e, checkpoint=path).resumed


class Harmful:
    """Unpickling one of these makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (__import__("os").mkdir, (str(self.folder),))


@pytest.mark.parametrize("writer", ("pickle", "torch"))
def test_a_pickle_is_refused_and_never_run(tmp_path, no_training, writer):
    trap, e = tmp_path / "trap", small()
    path = place_of_checkpoint(tmp_path, e)
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Harmful(trap)))
    else:
        torch.save({"model": Harmful(trap)}, path)
    assert "is not a checkpoint" in refused(tmp_path, e)
    with pytest.raises(CheckpointError):
        load_weights(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Harmful(trap)))
    assert trap.exists()  # it would have shown


@pytest.mark.parametrize("content", (b"", b"not a checkpoint", b"\xff" * 4096, b"{}"))
def test_a_file_of_something_else(tmp_path, no_training, content):
    path = place_of_checkpoint(tmp_path, small())
    path.write_bytes(content)
    assert "is not a checkpoint" in refused(tmp_path, small())


@pytest.mark.parametrize("keep", (100, 0.5, 0.999))
def test_a_checkpoint_cut_short(tmp_path, no_training, keep):
    path = place_of_checkpoint(tmp_path, small())
    saved(small(), path)
    content = path.read_bytes()
    path.write_bytes(content[:keep if keep > 1 else int(len(content) * keep)])
    assert "is not a checkpoint" in refused(tmp_path, small())


def test_a_safetensors_file_of_something_else(tmp_path, no_training):
    path = place_of_checkpoint(tmp_path, small())
    save_file({"a": torch.zeros(3)}, path)
    assert "is not a 'cgmvae checkpoint 1' file" in refused(tmp_path, small())


def test_a_finished_model_is_no_checkpoint_and_a_checkpoint_no_model(tmp_path, no_training):
    path = place_of_checkpoint(tmp_path, small())
    save_weights(GMVAE(small()), small(), path)
    assert "is not a 'cgmvae checkpoint 1' file" in refused(tmp_path, small())
    saved(small(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="is not a 'cgmvae weights 1' file"):
        load_weights(tmp_path / "run")


def test_a_checkpoint_that_lacks_a_part(tmp_path, no_training):
    path = place_of_checkpoint(tmp_path, small())
    saved(small(), path)
    state, header = checkpoints.read(path, checkpoints.RUN)
    del state["adam.exp_avg.p_z_layer.bias"]
    save_file(state, path, metadata=header)
    assert "lacks a part" in refused(tmp_path, small())


def test_the_shell_refuses_in_one_line(tmp_path, no_training, capsys):
    e = cgmvae.preset("quick")
    place_of_checkpoint(tmp_path, e).write_bytes(b"not a checkpoint")
    assert main(["train", "--preset", "quick", "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cgmvae: ") and err.count("\n") == 1
    assert "is not a checkpoint" in err


# Writing

def half_then_fail(tensors, path, metadata):
    path.write_bytes(b"half a file")
    raise OSError("no space left on device")


def test_a_failed_write_leaves_the_old_file_and_is_told(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    run = saved(small(), path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", half_then_fail)
        run.save()
        with pytest.raises(OSError, match="no space left"):
            run.writer.wait()
    assert path.read_bytes() == before
    assert trainer(small(), checkpoint=path).resumed


def test_the_next_save_tells_of_a_failed_write(tmp_path, monkeypatch):
    run = saved(small(), tmp_path / "run.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", half_then_fail)
        run.save()
        assert run.writer.pending.exception()
    with pytest.raises(DiskError, match="no space left"):
        run.save()


def test_a_failed_write_during_training_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_file", half_then_fail)
    with pytest.raises(OSError, match="no space left"):
        fit(trainer(small(), checkpoint=tmp_path / "run"))


def told_once(error: OSError, path) -> None:
    text = str(error)
    assert text.startswith(f"{path} could not be written (") and "\n" not in text
    assert re.search(r"it takes about [\d,]{5,} bytes, and [\d,]+ bytes are free in ", text)


def test_what_was_written_of_a_file_is_removed(tmp_path, monkeypatch):
    """Half a file would take the place that is lacking."""
    monkeypatch.setattr(checkpoints, "save_file", half_then_fail)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(total=9_000, used=7_766, free=1_234))
    with pytest.raises(DiskError) as error:
        save_weights(GMVAE(small()), small(), tmp_path / "weights")
    told_once(error.value, tmp_path / "weights")
    assert f"and 1,234 bytes are free in {tmp_path}." in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written(tmp_path, monkeypatch):
    def full(path, text, **how):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(DiskError, match="No space left on device") as error:
            cgmvae.run(small(), results=tmp_path)
    path = Paths(tmp_path, small()).record
    assert str(error.value).startswith(f"{path} could not be written (")
    assert list(path.parent.iterdir()) == [] and Paths(tmp_path, small()).checkpoint.exists()
    with monkeypatch.context() as patch:  # nothing is trained again
        patch.setattr(training.Trainer, "step", lambda self: pytest.fail("a step was taken"))
        assert cgmvae.run(small(), results=tmp_path)["progress"]["epochs"] == 3


def test_a_full_disk_ends_a_run_in_a_line_and_a_larger_one_goes_on(tmp_path, capsys):
    """A file system for one checkpoint and no second beside it, as long as root may mount one."""
    results, e = tmp_path / "results", cgmvae.preset("quick", train_limit=100, epochs=2)
    saved(e, tmp_path / "size")
    size = (tmp_path / "size").stat().st_size
    place = Paths(results, e).checkpoint.parent
    place.mkdir(parents=True)

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", place],
                              capture_output=True, check=False).returncode
    if sys.platform != "linux" or not shutil.which("mount") or mount("-o", f"size={3 * size // 2}"):
        pytest.skip("no small file system can be made here")
    try:
        argv = ["train", "--preset", "quick", "--train_limit", "100", "--epochs", "2",
                "--results", str(results)]
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("cgmvae: ") and err.count("\n") == 1
        assert f"{Paths(results, e).checkpoint} could not be written" in err and "No space left" in err
        assert [p.name for p in place.iterdir()] == [f"{e.id}.safetensors"]
        assert mount("-o", f"remount,size={4 * size}") == 0
        assert main(argv) == 0
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_write_is_whole_before_it_has_its_name(tmp_path, monkeypatch):
    path, renamed = tmp_path / "run.safetensors", []
    replace = disk.os.replace

    def watched(source, target):
        state, _ = checkpoints.read(source, checkpoints.RUN)
        renamed.append((source.parent, target, len(state), path.exists()))
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", watched)
    run = saved(small(), path)
    assert renamed == [(tmp_path, path, len(checkpoints.tensors(run)), False)]
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path):
    """Training goes on while the file is written."""
    path = tmp_path / "run.safetensors"
    run = trainer(small(), checkpoint=path)
    before = {k: v.clone() for k, v in checkpoints.tensors(run).items()}
    run.save()
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(1)
    run.progress["step"] = 99
    run.writer.wait()
    state, header = checkpoints.read(path, checkpoints.RUN)
    assert all(torch.equal(state[k], v) for k, v in before.items())
    assert '"step": 0' in header["progress"]


def test_weights_come_back_with_their_experiment(tmp_path):
    e = small(K=4, likelihood="gaussian", dataset="cifar100-sample")
    model = GMVAE(e)
    sizes = []
    for half in (False, True):
        path = tmp_path / f"{half}.safetensors"
        save_weights(model, e, path, half=half)
        back, experiment = load_weights(path)
        assert experiment == e and not back.training
        for name, value in model.state_dict().items():
            expected = value.half().float() if half else value
            assert torch.equal(back.state_dict()[name], expected), name
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_weights_of_another_model_are_refused(tmp_path):
    save_weights(GMVAE(small(K=4)), small(K=5), tmp_path / "weights")
    with pytest.raises(CheckpointError, match="weights does not hold the weights of its own experiment. Move") as error:
        load_weights(tmp_path / "weights")
    assert "\n" not in str(error.value)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.safetensors is not there"):
        load_weights(tmp_path / "nowhere.safetensors")
