"""Check every manifest in cluster/: `python -m cluster.validate`. Prints what is wrong, and exits with 1 if there is.

No cluster, cloud or network is asked. A new manifest is found by its place: kuberay/*.yaml, ray_up/*.yaml,
slurm/*.sh, docker/*.Dockerfile.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.checks.docker import docker_problems
from cluster.checks.policy import kubernetes_problems
from cluster.checks.ray_up import ray_up_problems
from cluster.checks.reading import Manifest, documents, manifests
from cluster.checks.slurm import slurm_problems

HERE = Path(__file__).parent


def main() -> int:
    """Print the problems of all manifests; 0 where there are none."""
    problems = [*check_kuberay(), *check_ray_up(), *check_slurm(), *check_docker()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check_kuberay() -> list[str]:
    """Every object in kuberay/, alone and against the others."""
    objects: list[Manifest] = []
    problems = []
    for path in _files("kuberay", "*.yaml"):
        try:
            objects += manifests(f"kuberay/{path.name}", path.read_text(encoding="utf-8"))
        except ValueError as error:
            problems.append(f"kuberay/{path.name}: {error}")
    return [*problems, *kubernetes_problems(objects)]


def check_ray_up() -> list[str]:
    """Every cluster file in ray_up/."""
    problems = []
    for path in _files("ray_up", "*.yaml"):
        try:
            [tree] = documents(path.read_text(encoding="utf-8"))
        except ValueError as error:
            problems.append(f"ray_up/{path.name}: {error}")
            continue
        problems += [f"ray_up/{path.name}: {problem}" for problem in ray_up_problems(tree)]
    return problems


def check_slurm() -> list[str]:
    """Every batch script in slurm/."""
    return [
        f"slurm/{path.name}: {problem}"
        for path in _files("slurm", "*.sh")
        for problem in slurm_problems(path.read_text(encoding="utf-8"))
    ]


def check_docker() -> list[str]:
    """Every Dockerfile in docker/, each with the .dockerignore of its name."""
    problems = []
    for path in _files("docker", "*.Dockerfile"):
        ignored = path.with_name(f"{path.name}.dockerignore").read_text(encoding="utf-8")
        found = docker_problems(path.name.removesuffix(".Dockerfile"), path.read_text(encoding="utf-8"), ignored)
        problems += [f"docker/{path.name}: {problem}" for problem in found]
    return problems


def _files(folder: str, pattern: str) -> list[Path]:
    """The files of one kind; none would be a folder that nobody checks."""
    found = sorted((HERE / folder).glob(pattern))
    if not found:
        raise FileNotFoundError(f"{HERE / folder} holds no {pattern}")
    return found


if __name__ == "__main__":
    sys.exit(main())
