"""What the machine offers: device, arithmetic, compilation, memory, threads.

None of it is part of an Experiment: it changes how fast a run goes, not what the run is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Iterator

import psutil
import torch
import torch.nn.functional as F

from cgmvae.checks import one_of, refuse
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.model import HEAD_UNITS

PRECISIONS = ("auto", "float32", "tf32", "bf16")
COMPILATIONS = ("auto", "graph", "none")
DEVICES = "auto (CUDA, else the CPU), cpu, cuda, mps (Apple's, experimental: only on request)"


class OutOfMemory(RuntimeError):
    """A run does not fit; the message says what was asked, what is free, and what to lower."""


def find_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else the CPU. `mps`, Apple's, is experimental and only on request.

    Raises ExperimentError.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    one_of("device", name, ("auto", *has))
    if name == "auto":
        name = "cuda" if has["cuda"] else "cpu"
    if not has[name]:
        refuse("device", name, "one that this machine has: " + ", ".join(n for n in has if has[n]))
    return torch.device(name)


def find_precision(name: str, device: torch.device) -> str:
    """The arithmetic that `auto` means on the device. Raises ExperimentError."""
    one_of("precision", name, PRECISIONS)
    if name == "tf32" and device.type != "cuda":
        refuse("precision", name, f"'float32' or 'bf16' on {device.type}: only CUDA has tf32")
    return name if name != "auto" else "tf32" if device.type == "cuda" else "float32"


def set_precision(precision: str) -> None:
    """Say to torch how CUDA shall multiply float32 numbers: exactly, or rounded for `tf32`.

    torch has an older and a newer family of settings for this. After one setting of the newer
    family, reading the older raises an error, in torch itself too; both can be read after settings
    of the older. So the older is used, and nothing else in this package says anything of it.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 numbers itself. A CPU that does not is many times slower
    with them than with float32."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(bf16_instructions())


def bf16_instructions() -> set[str]:
    """Those of this machine's processor that multiply bfloat16 numbers: of avx512_bf16 and amx_bf16."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return {"avx512_bf16", "amx_bf16"}.intersection(file.read().split())
    return set()


def find_compilation(name: str, device: torch.device) -> str:
    """What `auto` means on the device. Raises ExperimentError."""
    one_of("compile", name, COMPILATIONS)
    if name == "graph" and device.type != "cuda":
        refuse("compile", name, f"'none' on {device.type}: only CUDA records graphs")
    return name if name != "auto" else "graph" if device.type == "cuda" else "none"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; on a CPU, and on MPS, which shares it, the machine's."""
    return (torch.cuda.mem_get_info(device)[0] if device.type == "cuda"
            else psutil.virtual_memory().available)


def largest_K(experiment: Experiment, device: torch.device) -> int:
    """About how large K can be before a step of the experiment cannot fit."""
    e = experiment
    weights = sum(HEAD_UNITS) + 1 + 2 * e.z_dim  # the three layers whose size is K
    arrays = 12 * ESTIMATORS[e.estimator].noises + (e.z_dim if _all_labels(e) else 0)
    a_label = 4 * (6 * weights + e.batch_size * arrays)  # Adam's two moments, gradient, best, copy
    return max(int(free_memory(device) * 0.8) // a_label, 1)


def _all_labels(experiment: Experiment) -> bool:
    """Whether a step works on every label, however many there are."""
    passes = ESTIMATORS[experiment.estimator].passes
    return passes(2000) > passes(1000)


def check_memory(experiment: Experiment, device: torch.device) -> None:
    """Raise ExperimentError if K is so large that a step cannot fit; says how large K can be."""
    e, largest = experiment, largest_K(experiment, device)
    if e.K > largest:
        refuse("K", e.K, f"at most about {largest} for the estimator {e.estimator!r} in the "
               f"{free_memory(device) / 2**30:.1f} GiB of memory that are free on {device.type}")


@contextlib.contextmanager
def memory_told(experiment: Experiment, device: torch.device) -> Iterator[None]:
    """Turn torch's report that memory ran out into OutOfMemory, one sentence."""
    try:
        yield
    except RuntimeError as error:  # only CUDA has a class of its own for it
        text = str(error)
        if not re.search("out of memory|can't allocate memory|not enough memory", text):
            raise
        asked = re.search(r"tried to allocate (\d+(?:\.\d+)? ?\w+)", text, re.IGNORECASE)
        lower = f"batch_size ({experiment.batch_size})"
        if _all_labels(experiment):
            lower += f", or K ({experiment.K}), as it works on all labels"
        raise OutOfMemory(
            f"Memory ran out on {device.type}: {asked[1] if asked else 'more'} was asked for and "
            f"{free_memory(device) / 2**20:.0f} MiB is free; lower {lower}.") from error


def prepare(device: torch.device, precision: str) -> None:
    """Set the process up for a run on the device; every `Trainer` calls it, importing does not.

    Denormal numbers count as zero: once q(y|x) is certain, what the marginal sends back through the
    other labels is below 1e-38, and a CPU takes four times as long over such numbers. Freed memory
    is kept. Products get their precision. On a CPU the number of threads is chosen.
    """
    torch.set_flush_denormal(True)
    # That holds for this thread and for threads that it starts from now on; those that OpenMP has
    # started already never hear of it. This ends them, and the next product starts them anew.
    _c_library("omp_pause_resource_all", 1)  # 1: omp_pause_soft
    keep_freed_memory()
    set_precision(precision)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    if device.type == "cpu":
        choose_threads()


def keep_freed_memory() -> None:
    """Ask the C library to keep large freed buffers for the next step instead of returning them.

    Otherwise each step gives its activations back to the operating system and pays for fresh,
    zeroed pages in the next: up to a fifth of a CPU step. Only glibc has the setting; elsewhere
    this does nothing.
    """
    _c_library("mallopt", -4, 0)  # M_MMAP_MAX: no buffer of its own mapping
    _c_library("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep up to 2 GiB of free heap


def _c_library(function: str, *arguments: int) -> None:
    """Call a function of the C libraries in this process; nothing happens where there is none."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


_threads = {"offered": 0, "chosen": 0}


def choose_threads() -> int:
    """Set how many threads torch computes with to what is fastest now, and return it.

    Threads wait for each other many times in a step, and spin meanwhile. With another process on
    the core of one of them all wait for that one, and the step takes many times as long as with one
    thread. So there are no more threads than cores that are idle now; if that leaves several, they
    and one thread are timed. Never more than torch offers, or than the caller has set. The
    environment variable OMP_NUM_THREADS wins.

    The number moves results by rounding; a run that goes on from a checkpoint keeps its number.
    """
    now = torch.get_num_threads()
    if now != _threads["chosen"]:
        _threads["offered"] = now
    if "OMP_NUM_THREADS" in os.environ or _threads["offered"] == 1:
        return now
    idle = sum(100 - busy for busy in psutil.cpu_percent(0.1, percpu=True)) / 100
    several = min(_threads["offered"], round(idle))
    chosen = 1
    if several > 1:
        seconds = {1: 0.0, several: 0.0}
        for _ in range(3):  # in turn, so that what else goes on meets both
            for threads in seconds:
                torch.set_num_threads(threads)
                seconds[threads] += _seconds_of_a_product()
        chosen = several if seconds[several] < 0.9 * seconds[1] else 1
    torch.set_num_threads(chosen)
    _threads["chosen"] = chosen
    return chosen


def keep_threads(threads: int) -> None:
    """Compute with as many threads as an earlier part of the run did, if torch offers so many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(threads, _threads["offered"] or torch.get_num_threads()))
        _threads["chosen"] = torch.get_num_threads()


def _seconds_of_a_product() -> float:
    """Mean seconds of a convolution and a product of a step's size, over a while."""
    image, kernel, matrix = torch.ones(32, 20, 14, 14), torch.ones(40, 20, 5, 5), torch.ones(512, 512)
    F.conv2d(image, kernel), matrix @ matrix  # the first of a size is slower
    start, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < 0.03:
        F.conv2d(image, kernel), matrix @ matrix
        done += 1
    return taken / done
