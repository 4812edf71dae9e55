"""The manifests of cluster/: they are sound, and every mistake that is seeded into one is found."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cluster import validate
from cluster.checks.commands import entrypoint_problems, run_file_of
from cluster.checks.docker import docker_problems
from cluster.checks.pods import amount
from cluster.checks.policy import kubernetes_problems, pod_templates
from cluster.checks.ray_up import ray_up_problems
from cluster.checks.reading import Manifest, documents, manifests
from cluster.checks.slurm import slurm_problems
from raydpo.config.load import checked_run_file
from raydpo.config.yaml12 import read_yaml
from raydpo.runtime.cluster.preflight import bills
from raydpo.stages.values import RunValues
from tests.manifest_mutants import DOCKERFILES, GONE, MORE, OBJECTS, RAY_UP, SCRIPTS

pytestmark = pytest.mark.unit

CLUSTER = Path(__file__).parents[2] / "cluster"
SCHEMAS = Path(os.environ.get("RAYDPO_DATA", CLUSTER.parents[1] / "shared" / "data")).parent / "cluster" / "schemas"
KUBERAY = [one for path in sorted(CLUSTER.glob("kuberay/*.yaml")) for one in manifests(path.name, path.read_text())]
UP = {path.name: documents(path.read_text())[0] for path in sorted(CLUSTER.glob("ray_up/*.yaml"))}
JOBS = [one for one in KUBERAY if one.kind == "RayJob"]


def at(tree: Any, steps: list[str]) -> Any:
    for step in steps:
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    return tree


def mutated(tree: Any, place: str, value: Any) -> Any:
    """A copy with a field changed: taken away, lengthened (a text says where else the new item stands), or set."""
    before = tree
    tree = copy.deepcopy(tree)
    *steps, last = [step.replace("~", "/") for step in place.split("/")]
    parent = at(tree, steps)
    key: Any = int(last) if isinstance(parent, list) else last
    if value is GONE:
        del parent[key]
    elif isinstance(value, list) and value[:1] == [MORE]:
        [_, more] = value
        parent[key] = [*parent[key], copy.deepcopy(at(tree, more.split("/"))) if isinstance(more, str) else more]
    elif isinstance(value, tuple):
        old, new = value
        assert old in parent[key]
        parent[key] = parent[key].replace(old, new)
    else:
        parent[key] = value
    assert tree != before
    return tree


def assert_found(problems: list[str], words: str) -> None:
    assert any(part in problem for problem in problems for part in words.split("|")), problems


def test_the_manifests_are_sound() -> None:
    assert validate.main() == 0


def test_at_least_eighty_mistakes_are_seeded() -> None:
    seeded = [*OBJECTS, *RAY_UP, *SCRIPTS, *DOCKERFILES]
    assert len({(file, place, str(value)) for file, place, value, _ in seeded}) == len(seeded) >= 80


@pytest.mark.parametrize(("file", "place", "value", "words"), OBJECTS)
def test_a_mistake_in_an_object_is_found(file: str, place: str, value: Any, words: str) -> None:
    name, _, number = file.partition("#")
    index = [i for i, one in enumerate(KUBERAY) if one.file == name][int(number or 0)]
    objects = list(KUBERAY)
    objects[index] = Manifest(name, mutated(KUBERAY[index].tree, place, value))
    assert_found(kubernetes_problems(objects), words)


@pytest.mark.parametrize(("file", "place", "value", "words"), RAY_UP)
def test_a_mistake_in_a_ray_up_file_is_found(file: str, place: str, value: Any, words: str) -> None:
    assert_found(ray_up_problems(mutated(UP[file], place, value)), words)


@pytest.mark.parametrize(("file", "old", "new", "words"), SCRIPTS)
def test_a_mistake_in_a_batch_script_is_found(file: str, old: str, new: str, words: str) -> None:
    text = (CLUSTER / "slurm" / file).read_text()
    assert old in text
    assert_found(slurm_problems(text.replace(old, new)), words)


@pytest.mark.parametrize(("variant", "old", "new", "words"), DOCKERFILES)
def test_a_mistake_in_a_dockerfile_is_found(variant: str, old: str, new: str, words: str) -> None:
    text = (CLUSTER / "docker" / f"{variant}.Dockerfile").read_text()
    ignored = (CLUSTER / "docker" / f"{variant}.Dockerfile.dockerignore").read_text()
    assert old in text
    assert_found(docker_problems(variant, text.replace(old, new), ignored), words)


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "- a\n", "a: [\n", ""])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not YAML|a manifest is a mapping"):
        manifests("file.yaml", text)


@pytest.mark.parametrize(("quantity", "number"), [("500m", 0.5), ("64", 64), ("1Gi", 2**30), ("1.5k", 1500)])
def test_a_quantity_is_what_kubernetes_takes_it_for(quantity: str, number: float) -> None:
    assert amount(quantity) == number


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_jobs_command_is_one_that_raydpo_has(job: Manifest) -> None:
    assert list(entrypoint_problems(job.tree["spec"]["entrypoint"])) == []


@pytest.mark.parametrize("script", ["train", "precompute", "evaluate"])
def test_the_scripts_of_jobs_are_commands_too(script: str) -> None:
    assert list(entrypoint_problems(f"python jobs/{script}.py /config/run.yaml train.objective.beta=0.2")) == []


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_jobs_cluster_has_what_its_stage_asks_for(job: Manifest) -> None:
    command = job.tree["spec"]["entrypoint"]
    [config] = [one.tree["data"] for one in KUBERAY if one.kind == "ConfigMap"]
    run = checked_run_file(read_yaml(config[Path(str(run_file_of(command))).name]), "the run file")
    stage = command.split()[3]
    workers = pod_templates(job.tree)[1:-1]  # between the head, which takes no work, and the pod that submits
    given = [(template["spec"]["containers"][0]["resources"]["limits"], count) for template, count in workers]
    for demands in bills(RunValues(run).processes(), stage).values():
        for resource, kind in (("cpu", "cpus"), ("nvidia.com/gpu", "gpus")):
            has = sum(amount(limits.get(resource, "0")) * count for limits, count in given)
            assert sum(demand.count * getattr(demand, kind) for demand in demands) <= has


def test_the_run_with_evaluations_is_the_run() -> None:
    [config] = [one.tree["data"] for one in KUBERAY if one.kind == "ConfigMap"]
    plain, evaluated = (read_yaml(config[name]) for name in ("run.yaml", "evaluate.yaml"))
    assert {key: value for key, value in evaluated.items() if key not in ("evaluate", "sampler")} == plain


def strict(schema: Any) -> Any:
    """A CRD's schema as the API server applies it when strict: unknown fields refused, defaults filled in."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    fields = result.get("properties")
    if isinstance(fields, dict) and "type" in result:
        if not result.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
        result["required"] = [name for name in result.get("required", []) if "default" not in fields[name]]
    if result.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result


def crd(kind: str) -> Draft202012Validator:
    schema: dict[str, Any] = strict(json.loads((SCHEMAS / f"{kind}.v1.json").read_text()))
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    return Draft202012Validator(schema)


def core(kind: str) -> Draft202012Validator:
    definitions = json.loads((SCHEMAS / "definitions.v1.36.json").read_text())
    [name] = [name for name in definitions["kinds"] if name.endswith(f".{kind}")]
    return Draft202012Validator({"$defs": definitions["$defs"], "$ref": f"#/$defs/{name}"})


def complaints(validator: Draft202012Validator, tree: Any) -> list[str]:
    return [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(tree)]


needs_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason=f"{SCHEMAS} is not there; set RAYDPO_DATA to the folder beside its parent"
)


@needs_schemas
@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_kuberays_own_schema_takes_the_manifests(kind: str) -> None:
    validator = crd(kind)
    objects = [one for one in KUBERAY if one.kind == kind]
    assert objects
    for one in objects:
        assert complaints(validator, one.tree) == []
        assert complaints(validator, mutated(one.tree, "spec/headGroupSpecs", {}))


@needs_schemas
@pytest.mark.parametrize("kind", ["ConfigMap", "Secret", "PersistentVolumeClaim", "NetworkPolicy"])
def test_kubernetes_own_schema_takes_the_manifests(kind: str) -> None:
    validator = core(kind)
    [one] = [one for one in KUBERAY if one.kind == kind]
    assert complaints(validator, one.tree) == []
    assert complaints(validator, one.tree | {"specs": {}})


@needs_schemas
def test_kubernetes_own_schema_takes_the_pods() -> None:
    validator = core("PodTemplateSpec")
    templates = [template for one in KUBERAY if one.kind.startswith("Ray") for template, _ in pod_templates(one.tree)]
    assert len(templates) >= 18
    for template in templates:
        assert complaints(validator, template) == []
        assert complaints(validator, mutated(template, "spec/containers/0/envs", []))
