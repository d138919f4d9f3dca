"""What a run sets where it starts, and what no device may be asked for."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CPU, small, trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

import cgmvae
from cgmvae import checkpoints, data, devices, evaluation, files
from cgmvae.estimators import ESTIMATORS

MODULES = sorted(p.stem for p in Path(cgmvae.__file__).parent.glob("*.py") if p.stem != "__init__")


def python(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


# Importing


def test_the_package_imports_where_python_has_no_posix_modules():
    python("import sys, importlib, torch, matplotlib, sklearn, scipy, pandas, psutil\n"  # may have them
           "for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios', 'tty', 'pty', 'syslog'):\n"
           "    sys.modules[name] = None\n"  # importing it then raises ImportError
           f"for name in {MODULES}:\n"
           "    importlib.import_module('cgmvae.' + name)\n")


def test_importing_changes_nothing_in_the_process():
    state = ("def state():\n"
             "    tiny = torch.full((1,), 1e-30) * 1e-10\n"
             "    return (bool(tiny), torch.get_num_threads(), torch.get_float32_matmul_precision(),\n"
             "            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,\n"
             "            torch.get_rng_state().tolist(), signal.getsignal(signal.SIGINT),\n"
             "            torch.get_default_dtype(), dict(os.environ), os.getcwd())\n")
    python(f"import importlib, os, signal, torch, matplotlib\n{state}"
           "before = state()\n"
           f"for name in {MODULES}:\n"
           "    importlib.import_module('cgmvae.' + name)\n"
           "assert before[0] and state() == before, (before, state())\n")


# No float64 on a device: Apple's has none


class NoFloat64(TorchDispatchMode):
    """Takes every tensor for one of a device without float64, but what `.cpu()` gave and what was
    made of that alone; `.cpu()` is `self.copy` meanwhile."""

    def __init__(self):
        super().__init__()
        self.on_cpu = WeakTensorKeyDictionary()

    def copy(self, tensor):
        copied = tensor.detach().clone()
        self.on_cpu[copied] = True
        return copied

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        here = bool(given) and all(t in self.on_cpu for t in given)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                if here:
                    self.on_cpu[tensor] = True
                elif tensor.dtype == torch.float64:
                    raise TypeError(f"{function} made float64 on the device")
        return result


@pytest.fixture
def no_float64(monkeypatch):
    mode = NoFloat64()
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: mode.copy(tensor))
    with mode:
        yield mode


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_run_makes_no_float64_on_the_device(estimator, no_float64, tmp_path):
    """Training, validation, a checkpoint, going on from it, evaluation, weights to a file and back."""
    e, path = small(estimator=estimator), tmp_path / "run.safetensors"
    first = trainer(e, checkpoint=path)
    run = first.run()
    for _ in range(8):
        next(run)
    first.save()
    first.writer.wait()
    second = trainer(e, checkpoint=path)
    assert second.resumed
    for _ in second.run():
        pass
    assert evaluation.evaluate(second.model, second.splits, e)["iw_samples"] == 2
    evaluation.assign(second.model, second.splits.test)
    checkpoints.save_weights(second.model, e, tmp_path / "weights", half=True)
    checkpoints.load_weights(tmp_path / "weights")


def test_the_guard_above_sees_a_float64(no_float64, monkeypatch):
    """Without `.cpu()` in between, each of the package's `.double()` is caught."""
    run = trainer(small())
    assert no_float64.copy(torch.ones(2)).double().sum() == 2
    with pytest.raises(TypeError, match="float64 on the device"):
        torch.zeros(2, dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)
    for widens in (lambda: evaluation.validate(run.model, run.splits.validation, run.experiment),
                   lambda: evaluation.evaluate(run.model, run.splits, run.experiment),
                   run._end_epoch):
        with pytest.raises(TypeError, match="float64 on the device"):
            widens()


# What is set where a run starts


def test_the_two_families_of_settings_agree_after_ours():
    """Whatever stood there: torch's newer settings can be read, and so can the older."""
    code = ("import torch\nfrom cgmvae import devices\n"
            "new = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)\n"
            "for before in (None, 'tf32', 'ieee'):\n"
            "    for precision, name in (('tf32', 'tf32'), ('float32', 'float32'), ('bf16', 'float32')):\n"
            "        if before:\n"
            "            torch.backends.cuda.matmul.fp32_precision = before\n"
            "            torch.backends.cudnn.conv.fp32_precision = before\n"
            "        devices.set_precision(precision)\n"
            "        tf32 = name == 'tf32'\n"
            "        assert torch.backends.cuda.matmul.allow_tf32 == tf32\n"
            "        assert torch.backends.cudnn.allow_tf32 == tf32\n"
            "        assert torch.get_float32_matmul_precision() == ('high' if tf32 else 'highest')\n"
            "        assert [p.fp32_precision == 'tf32' for p in new] == [tf32] * 3\n"
            "        with torch.backends.cudnn.flags(): pass\n")
    python(code)


@pytest.fixture
def four_threads(monkeypatch):
    """torch offers four threads; what they would take is `seconds`, by their number."""
    now, seconds = {"threads": 4}, {1: 1.0, 2: 0.6, 3: 0.4, 4: 0.3}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "_threads", {"offered": 0, "chosen": 0})
    monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.update(threads=n))
    monkeypatch.setattr(devices, "_seconds_of_a_product", lambda: seconds[now["threads"]])

    def idle(*cores):
        monkeypatch.setattr(devices.psutil, "cpu_percent",
                            lambda interval, percpu: [100.0 - 100 * core for core in cores])
    idle(1, 1, 1, 1)
    now |= {"idle": idle, "seconds": seconds}
    return now


def test_an_idle_machine_gives_all_threads_and_a_busy_one_fewer(four_threads):
    assert devices.choose_threads() == 4
    four_threads["idle"](0.9, 0.9, 0.2, 0.1)
    assert devices.choose_threads() == 2
    four_threads["idle"](0, 0.3, 0, 0.2)
    assert devices.choose_threads() == 1
    four_threads["idle"](1, 1, 1, 1)  # it is idle again
    assert devices.choose_threads() == 4 == torch.get_num_threads()


def test_threads_that_wait_for_each_other_are_not_taken(four_threads):
    four_threads["seconds"][4] = 6.0
    assert devices.choose_threads() == 1
    four_threads["seconds"][4] = 0.95  # not worth a core
    assert devices.choose_threads() == 1


def test_the_environment_and_the_caller_win(four_threads, monkeypatch):
    torch.set_num_threads(2)
    assert devices.choose_threads() == 2  # of an idle machine's 4
    four_threads["idle"](0, 0, 0, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert devices.choose_threads() == 2
    devices.keep_threads(1)
    assert torch.get_num_threads() == 2


def test_a_run_that_goes_on_keeps_its_threads(four_threads, tmp_path):
    path = tmp_path / "run.safetensors"
    four_threads["idle"](1, 0.9, 0.1, 0)
    first = trainer(small(), checkpoint=path)
    first.save()
    first.writer.wait()
    four_threads["idle"](1, 1, 1, 1)
    assert trainer(small(), checkpoint=path).resumed and torch.get_num_threads() == 2
    assert not trainer(small()).resumed and torch.get_num_threads() == 4


def test_a_run_from_a_larger_machine_takes_the_threads_that_are_offered(four_threads):
    devices.choose_threads()
    devices.keep_threads(64)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("instructions", [set(), {"amx_bf16"}])
def test_bf16_is_fast_on_a_processor_that_multiplies_it(instructions, monkeypatch):
    monkeypatch.setattr(devices, "bf16_instructions", lambda: instructions)
    assert devices.fast_bf16(CPU) == bool(instructions)


def test_a_trainer_chooses(four_threads):
    four_threads["idle"](0, 0, 0, 0)
    trainer(small())
    assert torch.get_num_threads() == 1


# Memory


@pytest.mark.parametrize("estimator", ["concrete", "marginal"])
@pytest.mark.parametrize("message, asked", [
    ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB.", "2.50 GiB"),
    ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 640 bytes.",
     "640 bytes"),
    ("MPS backend out of memory (MPS allocated: 8 GB). Tried to allocate 256 bytes on private pool.",
     "256 bytes")])
def test_memory_that_runs_out_in_a_step_is_one_sentence(estimator, message, asked, monkeypatch):
    run = trainer(small(estimator=estimator))

    def full():
        raise (torch.OutOfMemoryError if "CUDA" in message else RuntimeError)(message)
    run.advance = full
    monkeypatch.setattr(devices, "free_memory", lambda device: 3 * 2**20)
    with pytest.raises(devices.OutOfMemory) as error:
        list(run.run())
    text = str(error.value)
    assert text.startswith(f"Memory ran out on cpu: {asked} was asked for and 3 MiB is free; lower "
                           "batch_size (10)") and "\n" not in text
    assert ("or K (10)" in text) == (estimator == "marginal")


def test_torchs_own_sentence_is_understood():
    with pytest.raises(devices.OutOfMemory, match=f"cpu: {2**52} bytes was asked for"):
        with devices.memory_told(small(), CPU):
            torch.empty(2**50)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shape|size") as error:
        with devices.memory_told(small(), CPU):
            torch.ones(2) @ torch.ones(3)
    assert not isinstance(error.value, devices.OutOfMemory)


def test_the_shell_says_it_in_a_line(monkeypatch, capsys, tmp_path):
    main = importlib.import_module("cgmvae.__main__").main
    monkeypatch.setattr(cgmvae.training.Trainer, "step", lambda self: torch.empty(2**50))
    assert main(["train", "--preset", "quick", "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"cgmvae: Memory ran out on cpu: .* lower batch_size \(32\)\.\n", err)


def test_pickled_data_is_refused_without_advice_to_load_it():
    for sentence in ("This file contains pickled (object) data. If you trust the file you can load it "
                     "unsafely using the `allow_pickle=` keyword argument or `pickle.load()`.",
                     "Object arrays cannot be loaded when allow_pickle=False"):
        reason = files.reason(ValueError(sentence))
        assert "never read" in reason and "allow_pickle" not in reason and "unsafely" not in reason


def test_what_an_estimator_draws_for_each_label_counts_in_the_memory(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda _: 2**34)
    most = {name: devices.largest_K(cgmvae.Experiment(estimator=name), CPU) for name in ESTIMATORS}
    assert most["rao_blackwell"] < most["leave_one_out_4"] < most["leave_one_out_2"] < most["score_function"]
    assert most["marginal"] < most["sum_and_sample"] == most["score_function"], "two passes are not one for each label"
    assert most["sparse_marginal"] == most["sum_and_sample"], "nor are four"
