"""What the machine offers: device, arithmetic, compilation, memory.

None of it is part of an Experiment: it changes how fast a run goes, not what the run is.
"""

from __future__ import annotations

import contextlib
import ctypes

import psutil
import torch

from cgmvae.checks import one_of, refuse
from cgmvae.experiment import Experiment
from cgmvae.objectives import ESTIMATORS

# Once q(y|x) is certain, what the marginal sends back through the other labels is below 1e-38. A CPU
# takes four times as long over such numbers, so they count as zero. Said here, before torch starts
# its threads: later they would not hear of it.
torch.set_flush_denormal(True)

PRECISIONS = ("auto", "float32", "tf32", "bf16")
COMPILATIONS = ("auto", "graph", "none")


def find_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU. Raises ExperimentError."""
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    one_of("device", name, ("auto", *has))
    if name == "auto":
        name = next(n for n in ("cuda", "mps", "cpu") if has[n])
    if not has[name]:
        refuse("device", name, "one that this machine has: " + ", ".join(n for n in has if has[n]))
    return torch.device(name)


def find_precision(name: str, device: torch.device) -> str:
    """The arithmetic that `auto` means on the device. Raises ExperimentError."""
    one_of("precision", name, PRECISIONS)
    if name == "tf32" and device.type != "cuda":
        refuse("precision", name, f"'float32' or 'bf16' on {device.type}: only CUDA has tf32")
    return name if name != "auto" else "tf32" if device.type == "cuda" else "float32"


def find_compilation(name: str, device: torch.device) -> str:
    """What `auto` means on the device. Raises ExperimentError."""
    one_of("compile", name, COMPILATIONS)
    if name == "graph" and device.type != "cuda":
        refuse("compile", name, f"'none' on {device.type}: only CUDA records graphs")
    return name if name != "auto" else "graph" if device.type == "cuda" else "none"


def check_memory(experiment: Experiment, device: torch.device) -> None:
    """Raise ExperimentError if K is so large that a step cannot fit; says how large K can be."""
    e = experiment
    free = (torch.cuda.mem_get_info(device)[0] if device.type == "cuda"
            else psutil.virtual_memory().available)
    weights = 512 + 256 + 1 + 2 * e.z_dim  # the three layers whose size is K
    arrays = e.z_dim + 12 if ESTIMATORS[e.estimator].passes(2) > 1 else 12
    a_label = 4 * (6 * weights + e.batch_size * arrays)  # Adam's two moments, gradient, best, copy
    largest = max(int(free * 0.8) // a_label, 1)
    if e.K > largest:
        refuse("K", e.K, f"at most about {largest} for the estimator {e.estimator!r} in the "
               f"{free / 2**30:.1f} GiB of memory that are free on {device.type}")


def keep_freed_memory() -> None:
    """Ask the C library to keep large freed buffers for the next step instead of returning them.

    Otherwise each step gives its activations back to the operating system and pays for fresh,
    zeroed pages in the next: up to a fifth of a CPU step. Only glibc has the setting; elsewhere
    this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no buffer of its own mapping
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep up to 2 GiB of free heap
