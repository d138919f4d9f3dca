"""Seconds a step: the package, plain PyTorch and Pyro, side by side on the same cores.

    python benchmarks/bench.py            # or `make bench`

Each implementation lives in a process of its own, pinned to the same cores, so that no one's memory
settings help another. They take turns, one timed step each, for as many rounds as asked; a ratio is
taken within a round and its median and quartiles are reported. Prints the tables and saves
results/benchmarks/DEVICE.json and three figures.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from cgmvae import benchmark_figures, data, devices, figures, records, training
from cgmvae.costs import count
from cgmvae.datasets import DATASETS
from cgmvae.disk import write_text
from cgmvae.experiment import Experiment, preset
from cgmvae.run import machine

CELLS = [("mnist", "concrete", 10), ("cifar100", "concrete", 20),
         ("mnist", "marginal", 10), ("cifar100", "marginal", 20)]
KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
BOUNDS = {"float32": {"concrete": 0.58, "marginal": 0.58}, "bf16": {"concrete": 0.25, "marginal": 0.22}}
"""What share of plain PyTorch's step a step is meant to take at most."""
WIDE_SLACK = 0.02
"""How far the ratio of a Concrete step at K = 1,000 to one at K = 10 may lie above the counted one."""
CREWS = 4
"""How many pairs of processes that ratio is taken from."""
BATCH = 128


def random_splits(e: Experiment, device: torch.device) -> data.Splits:
    """Random pixels of the right shape: a step's time does not depend on what is in the images."""
    channels, height, width = e.image_shape
    values = torch.randint(256, (4 * e.batch_size, height, width, channels), dtype=torch.uint8)
    pixels = data.Pixels(values.to(device), e.binarisation)
    return data.Splits(pixels, pixels, pixels, torch.zeros(4), torch.zeros(4))


def ours(e: Experiment, device: torch.device, precision: str):
    """The whole step as a run takes it: gather, scale, binarise, ELBO, gradients, Adam, terms."""
    trainer = training.Trainer(e, random_splits(e, device), device, precision=precision)

    def step() -> None:
        trainer.position.zero_()
        trainer.advance()
    return step


def plain(e: Experiment, device: torch.device):
    """Plain PyTorch: the model, and its step on a batch of images."""
    from plain import PlainGMVAE, plain_concrete, plain_marginal

    model = PlainGMVAE(e.image_shape, e.K, e.z_dim).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(x: torch.Tensor) -> None:
        optimiser.zero_grad()
        if e.estimator == "marginal":
            loss = plain_marginal(model, x, torch.randn(e.K, len(x), e.z_dim, device=device))
        else:
            uniform = torch.rand(len(x), e.K, device=device).clamp(1e-6, 1 - 1e-6)
            loss = plain_concrete(model, x, torch.randn(len(x), e.z_dim, device=device), uniform)
        loss.backward()
        optimiser.step()
    return model, step


def pyro(e: Experiment, device: torch.device):
    """The same networks in Pyro: the model, and its step on a batch of images."""
    from pyro_peer import PyroGMVAE, svi

    torch.set_default_device(device)
    model = PyroGMVAE(e.image_shape, e.K, e.z_dim)
    return model, svi(model, e.estimator).step


PEERS = {"plain": plain, "pyro": pyro}


def step_of(name: str, e: Experiment, device: torch.device):
    """The step to time. A peer's batch is ready in float32, which is a little less than ours has to do."""
    kind, _, precision = name.partition(" ")
    if kind == "ours":
        return ours(e, device, precision)
    x = torch.rand(e.batch_size, *e.image_shape, device=device).round()
    _, step = PEERS[kind](e, device)
    return lambda: step(x)


def pin(cores: set[int]) -> None:
    """Keep this process to its cores, with a thread for each."""
    with contextlib.suppress(AttributeError):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    sys.path.insert(0, str(Path(__file__).parent))


def worker(pipe, name: str, e: Experiment, device_name: str, cores: set[int]) -> None:
    """Build one implementation, then time it whenever asked.

    Asked for a number of steps, it answers (seconds a step, peak bytes); asked for a "profile", what
    `profile` returns.
    """
    pin(cores)
    device = torch.device(device_name)
    try:
        step = step_of(name, e, device)
        timer = Timer("step()", globals={"step": step}, num_threads=len(cores))
        step()
        pipe.send("ready")
        while asked := pipe.recv():
            if asked == "profile":
                pipe.send(profile(step, device))
            else:
                pipe.send((timed_on_device(step) if device.type == "cuda"
                           else timer.timeit(asked).median, peak_memory(device)))
    except Exception as error:  # the parent decides what a failure means
        pipe.send(f"{type(error).__name__}: {error}")


def timed_on_device(step) -> float:
    """Seconds of a step by device events, the mean over 20 that follow one another."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    step()
    start.record()
    for _ in range(20):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / 20


class Operators(TorchDispatchMode):
    """Adds up the seconds of each torch operator while it is active, those of the backward pass included.

    torch's profiler would do, but on a CPU its own use of memory slows the operators with large buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = collections.Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = operator(*args, **(kwargs or {}))
        self.seconds[operator._schema.name] += time.perf_counter() - start
        return result


def profile(step, device: torch.device, steps: int = 20) -> dict[str, float]:
    """Seconds of a step by torch operator: on a GPU of its kernels, each without the operators that it calls."""
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            for _ in range(steps):
                step()
        return {row.key: row.self_device_time_total / 1e6 / steps for row in seen.key_averages()}
    step()
    with Operators() as timed:
        for _ in range(steps):
            step()
    return {name: seconds / steps for name, seconds in timed.seconds.items()}


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: of the process on a CPU, of torch's tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Bench:
    """Has implementations work in turns, each in a process of its own on the same cores."""

    def __init__(self, device: str, cores: int) -> None:
        self.device, self.cores = device, set(range(cores))
        with contextlib.suppress(AttributeError):
            self.cores = set(sorted(os.sched_getaffinity(0))[-cores:])
        # Processes are forked from a server that has torch imported but has computed nothing.
        self.spawn = multiprocessing.get_context("forkserver")
        # The first step of an optimiser would import torch._dynamo, for seconds, in each of them.
        self.spawn.set_forkserver_preload(["torch.utils.benchmark", "torch._dynamo", "pyro", "cgmvae.figures"])

    def crew(self, work, jobs: dict[str, tuple[str, Experiment]]) -> dict[str, tuple]:
        """Start `work` for each job; the pipe and the process of those that are ready, by name."""
        crew = {}
        for name, (implementation, e) in jobs.items():
            here, there = self.spawn.Pipe()
            process = self.spawn.Process(target=work, daemon=True,
                                         args=(there, implementation, e, self.device, self.cores))
            process.start()
            if (answer := here.recv()) == "ready":
                crew[name] = (here, process)
            else:
                print(f"  {name} on {e.id}: {answer}", file=sys.stderr)
                process.join()
        return crew

    def times(self, jobs: dict[str, tuple[str, Experiment]], rounds: int,
              budget: float, steps: int = 1, profiles: bool = False) -> dict[str, dict]:
        """Seconds of each round by name, and the peak memory; stops early past `budget` seconds.

        Args:
            jobs: the implementation and the experiment to time under each name.
            steps: how many follow one another in a turn.
            profiles: whether to take a profile of each as well, when all rounds are done.
        """
        crew = self.crew(worker, jobs)
        seconds: dict[str, list[float]] = {name: [] for name in crew}
        peak: dict[str, int] = {}
        start = time.perf_counter()
        for _ in range(rounds):
            for name, (pipe, _process) in crew.items():
                pipe.send(steps)
                answer = pipe.recv()
                if isinstance(answer, str):
                    raise RuntimeError(f"{name}: {answer}")
                seconds[name].append(answer[0])
                peak[name] = answer[1]
            if time.perf_counter() - start > budget and all(len(s) >= 3 for s in seconds.values()):
                break
        timed = {name: {"seconds": s, "peak_bytes": peak[name]} for name, s in seconds.items()}
        for name, (pipe, process) in crew.items():
            if profiles:
                pipe.send("profile")
                timed[name]["profile"] = pipe.recv()
            pipe.send(False)
            process.join()
        return timed


def gemm_rate(precision: str, device: str, cores: set[int]) -> float:
    """Measured operations a second of a large matrix product: the limit that the floor is taken at."""
    with contextlib.suppress(AttributeError):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    size = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=len(cores))
    return 2 * size**3 / timer.blocked_autorange(min_run_time=2).median


def growth(narrow: dict[str, float], wide: dict[str, float], most: int = 8) -> dict[str, float]:
    """The operators whose seconds a step grew most from the one profile to the other, and by how much."""
    grown = {name: s - narrow.get(name, 0.0) for name, s in wide.items()}
    return dict(sorted(grown.items(), key=lambda item: -item[1])[:most])


def ratio(mine: list[float], theirs: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile of the ratio within each round."""
    return statistics.quantiles([m / t for m, t in zip(mine, theirs, strict=True)], n=4)


def precisions_of(device: torch.device) -> list[str]:
    """Those that the device has in hardware."""
    return ["float32", *(["tf32"] if device.type == "cuda" else []),
            *(["bf16"] if devices.fast_bf16(device) else [])]


def environment(device: torch.device, threads: int) -> dict:
    """The machine; of a CPU also its vector instructions, which its name does not tell."""
    instructions = "" if device.type != "cpu" else " ".join(
        [torch.backends.cpu.get_cpu_capability(), *sorted(devices.bf16_instructions())])
    return {**machine(device), "threads": threads, "instructions": instructions}


def run(args: argparse.Namespace, folder: Path) -> Path:
    """Take all measurements; what there is so far is in DEVICE.part."""
    device = devices.find_device(args.device)
    bench = Bench(device.type, args.cores)
    cores, precisions = bench.cores, precisions_of(device)
    implementations = ["plain", "pyro", *(f"ours {p}" for p in precisions)]
    out = {"environment": environment(device, len(cores)), "batch_size": BATCH,
           "decoder_units": preset("paper").decoder_units,
           "budget_seconds": args.budget,
           "gemm": {p: gemm_rate(p, device.type, cores) for p in precisions},
           "cells": [], "wide": [], "sweep": []}
    path = path_of(out, folder)
    for dataset, estimator, K in CELLS:
        e = preset("paper", dataset=dataset, estimator=estimator, K=K, batch_size=BATCH)
        timed = bench.times({name: (name, e) for name in implementations}, args.rounds, budget=600, profiles=True)
        cell = {"dataset": dataset, "estimator": estimator, "K": K,
                "operations": count(e).step * BATCH, "times": timed}
        out["cells"].append(cell)
        save(out, path)
        print_cell(cell, out["gemm"])
    for dataset in ("mnist", "cifar100"):
        out["wide"].append(growth_with_K(bench, dataset, args.rounds))
        save(out, path)
    for estimator in ("concrete", "marginal"):
        active = ["plain", "pyro", f"ours {precisions[-1] if device.type == 'cuda' else 'float32'}"]
        for K in KS:
            e = preset("paper", dataset=args.dataset, estimator=estimator, K=K, batch_size=BATCH)
            timed = bench.times({name: (name, e) for name in active}, args.rounds, budget=args.budget)
            out["sweep"].append({"dataset": args.dataset, "estimator": estimator, "K": K,
                                 "operations": count(e).step * BATCH, "times": timed})
            save(out, path)
            line = "  ".join(f"{n} {1000 * statistics.median(t['seconds']):9.1f} ms "
                             f"{t['peak_bytes'] / 2**30:5.2f} GiB" for n, t in timed.items())
            print(f"{args.dataset} {estimator} K={K}: {line}", flush=True)
            # Past the budget an implementation is not asked for larger K.
            active = [n for n in active if n in timed
                      and statistics.median(timed[n]["seconds"]) < args.budget / 4]
            if not active:
                break
    save(out, path, done=True)
    figures.style()
    benchmark_figures.step_time_against_K([out]).savefig(path.with_suffix(".steps.png"))
    benchmark_figures.share_of_limit([out]).savefig(path.with_suffix(".share.png"))
    if device.type == "cpu":  # a GPU's profile has the names of kernels
        benchmark_figures.step_by_kind([out]).savefig(path.with_suffix(".kinds.png"))
    return path


def growth_with_K(bench: Bench, dataset: str, rounds: int) -> dict:
    """A Concrete step at K = 1,000 beside one at K = 10: seconds, the counted ratio, and the operators that grew.

    Several crews share the rounds: where a process's memory happens to lie is worth some percent of a step for as
    long as it lives, and this ratio is near 1. Several steps a turn, for the same reason.
    """
    es = {K: preset("paper", dataset=dataset, estimator="concrete", K=K, batch_size=BATCH) for K in (10, 1000)}
    timed: dict[str, dict] = {}
    profiles: dict[str, dict[str, float]] = {f"K={K}": collections.Counter() for K in es}
    for _ in range(CREWS):
        crew = bench.times({f"K={K}": ("ours float32", e) for K, e in es.items()}, max(3, rounds // CREWS),
                           budget=600, steps=5, profiles=True)
        for name, t in crew.items():
            profiles[name].update({operator: s / CREWS for operator, s in t.pop("profile").items()})
            so_far = timed.setdefault(name, {"seconds": [], "peak_bytes": 0})
            so_far["seconds"] += t["seconds"]
            so_far["peak_bytes"] = max(so_far["peak_bytes"], t["peak_bytes"])
    grown = growth(*profiles.values())
    counted = count(es[1000]).step / count(es[10]).step
    low, middle, high = ratio(timed["K=1000"]["seconds"], timed["K=10"]["seconds"])
    verdict = "ok" if middle <= counted + WIDE_SLACK else f"over {counted + WIDE_SLACK:.3f}"
    print(f"\n{dataset} concrete, K = 1,000 over K = 10: {middle:.3f} [{low:.3f}, {high:.3f}] {verdict};"
          f" operations {counted:.3f}; what grew, in ms a step:\n  "
          + ", ".join(f"{name} {1000 * s:.2f}" for name, s in grown.items()), flush=True)
    return {"dataset": dataset, "counted": counted, "times": timed, "grown": grown}


def print_cell(cell: dict, gemm: dict[str, float]) -> None:
    """One cell: medians, ratios with quartiles, share of the counted floor."""
    times = {name: t["seconds"] for name, t in cell["times"].items()}
    print(f"\n{cell['dataset']} {cell['estimator']} K={cell['K']}: "
          f"{cell['operations'] / 1e9:.1f} GFLOP a step")
    for name, seconds in times.items():
        precision = name.partition(" ")[2] or "float32"
        floor = cell["operations"] / gemm[precision]
        text = f"  {name:13} {1000 * statistics.median(seconds):8.1f} ms, " \
               f"{floor / statistics.median(seconds):4.0%} of the {precision} GEMM rate"
        for peer in ("plain", "pyro"):
            if name.startswith("ours") and peer in times:
                low, middle, high = ratio(seconds, times[peer])
                text += f";  {middle:.2f} [{low:.2f}, {high:.2f}] of {peer}"
                bound = BOUNDS.get(precision, {}).get(cell["estimator"])
                if peer == "plain" and bound is not None:
                    # At the rate of a large matrix product: a step of just these operations can hardly be faster.
                    least = floor / statistics.median(times[peer])
                    text += (" ok" if middle <= bound else f" over {bound}") + f" (the floor: {least:.2f})"
        print(text, flush=True)


def path_of(out: dict, folder: Path, kind: str = "") -> Path:
    """The file of the device that `out` is of."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", benchmark_figures.device(out)).strip("-").lower()
    return folder / f"{name}{kind}.json"


def save(out: dict, path: Path, done: bool = False) -> None:
    """Write what there is so far beside `path`, as .part; when all is done, as `path`: chapter 5 reads whole ones."""
    part = path.with_suffix(".part")
    write_text(part, json.dumps(out, indent=1) + "\n")
    if done:
        os.replace(part, path)


def main() -> None:
    """Parse, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores that all share (1)")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each")
    parser.add_argument("--dataset", default="mnist", choices=DATASETS, help="of the sweep over K")
    parser.add_argument("--budget", type=float, default=30.0,
                        help="seconds: a K stops there, and who needs a quarter of it for a step is "
                             "not asked for a larger K")
    parser.add_argument("--out", type=Path, help="folder (results/benchmarks)")
    args = parser.parse_args()
    print(f"\nsaved in {run(args, args.out or records.results_folder() / 'benchmarks')}")


if __name__ == "__main__":
    main()
