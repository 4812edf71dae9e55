"""What must hold of a pod: Kubernetes' own rules, which a CRD does not apply to templates inside it, and our policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.checks.shapes import Tree

RESOURCES = {"cpu", "memory", "nvidia.com/gpu"}
GPU = "nvidia.com/gpu"
POD_LABELS = {"app": "raydpo"}  # which the network policy selects
SHARED = "/shared"  # where every node sees output_dir under one path
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
STOP = "RAY_JOB_STOP_WAIT_TIME_S"
LEAST_STOP_S = 60  # two steps and a checkpoint of a small model
MARGIN_S = 5  # between the end of Ray's drain and the pod's SIGKILL

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTP", start=1)}
_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
_SECRET_NAME = re.compile(r"(?i)token|secret|passw|credential|(^|_)key($|_)|api_?key|access_key")
_SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/@\s:]+:[^/@\s]+@"
)


@dataclass(frozen=True)
class Role:
    """What a pod is for."""

    ray: bool = True  # it runs `ray start`; otherwise it submits a job
    head: bool = False
    autoscaled: bool = False  # the cluster; its head then speaks to Kubernetes


def amount(quantity: str) -> float:
    """The number that a Kubernetes quantity such as 500m or 64Gi means."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is no quantity")
    return float(found[1]) * _UNITS[found[2]]


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable must not stand in a file: by its name or by its value."""
    return bool(_SECRET_NAME.search(name)) or holds_secret(value)


def holds_secret(text: str) -> bool:
    """Whether a text has something in it that looks like a key."""
    return bool(_SECRET_VALUE.search(text))


def is_pinned(image: str) -> bool:
    """Whether an image is named by its digest: a tag may be moved, and then nodes of one cluster differ."""
    return bool(_DIGEST.fullmatch(image))


def pod_problems(template: Tree, role: Role) -> Iterator[str]:
    """What is wrong with a pod template whose shape is right."""
    spec = template["spec"]
    labels = template.get("metadata", {}).get("labels", {})
    if not POD_LABELS.items() <= labels.items():
        yield "metadata.labels: app: raydpo is missing, by which the network policy knows the pod"
    yield from _volume_problems(spec)
    yield from _security_problems(spec, role)
    names = [container["name"] for container in spec["containers"]]
    if len(set(names)) < len(names):
        yield "spec.containers: two have the same name"
    for index, container in enumerate(spec["containers"]):
        for problem in _container_problems(container, spec):
            yield f"spec.containers[{index}].{problem}"
    if role.ray:
        yield from _ray_problems(spec, role)


def _volume_problems(spec: Tree) -> Iterator[str]:
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    mounts = [mount for container in spec["containers"] for mount in container.get("volumeMounts", [])]
    mounted = {mount["name"] for mount in mounts}
    if len(set(volumes)) < len(volumes):
        yield "spec.volumes: two have the same name"
    for volume in spec.get("volumes", []):
        if len(volume) != 2:
            yield f"spec.volumes: {volume['name']} has to have exactly one source"
    for name in sorted(mounted - set(volumes)):
        yield f"spec.containers: a mount names the volume {name}, which spec.volumes lacks"
    for name in sorted(set(volumes) - mounted):
        yield f"spec.volumes: no container mounts {name}"
    for container in spec["containers"]:
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        if len(set(paths)) < len(paths):
            yield "spec.containers: two mounts have the same mountPath"
        if wrong := [path for path in paths if not path.startswith("/") or ":" in path]:
            yield f"spec.containers: mountPath {wrong[0]} is not absolute"


def _security_problems(spec: Tree, role: Role) -> Iterator[str]:
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser", 0) > 0:
        yield "spec.securityContext: set runAsNonRoot: true and a runAsUser above 0"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "spec.securityContext: set seccompProfile.type: RuntimeDefault"
    if spec.get("restartPolicy") != "Never":
        yield "spec.restartPolicy: set Never; Ray and KubeRay replace pods, and the autoscaler's v2 refuses others"
    needs_account = role.head and role.autoscaled
    if needs_account and spec.get("automountServiceAccountToken") is False:
        yield "spec.automountServiceAccountToken: the autoscaler beside the head needs it to ask for pods"
    if not needs_account and spec.get("automountServiceAccountToken") is not False:
        yield "spec.automountServiceAccountToken: set false; nothing in the pod speaks to Kubernetes"
    if any(amounts.get(GPU) for amounts in _limits(spec)) and not _tolerates_gpu(spec):
        yield f"spec.tolerations: nodes with GPUs usually have the taint {GPU}; tolerate it"


def _limits(spec: Tree) -> list[dict[str, str]]:
    return [container.get("resources", {}).get("limits", {}) for container in spec["containers"]]


def _tolerates_gpu(spec: Tree) -> bool:
    return any(toleration["key"] == GPU for toleration in spec.get("tolerations", []))


def _container_problems(container: Tree, spec: Tree) -> Iterator[str]:
    if not is_pinned(container["image"]):
        yield f"image: {container['image']} is not pinned; name it by its digest, as NAME@sha256:…"
    yield from privilege_problems(container.get("securityContext", {}))
    yield from resource_problems(container.get("resources", {}))
    yield from env_problems(container.get("env", []))


def privilege_problems(context: Tree) -> Iterator[str]:
    """Of the securityContext of a container."""
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "securityContext: set allowPrivilegeEscalation: false, and privileged not at all"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "securityContext: set capabilities: {drop: [ALL]}, and add none"


def resource_problems(resources: Tree) -> Iterator[str]:
    """Of what a container asks for. Ray counts limits and Kubernetes requests, so the two have to be the same."""
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in sorted((requests.keys() | limits.keys()) - RESOURCES):
        yield f"resources: {name} is no resource that is known here: {', '.join(sorted(RESOURCES))}"
    for name in ("cpu", "memory"):
        if name not in requests or name not in limits:
            yield f"resources: set requests and limits of {name}"
    for name in sorted(requests.keys() | limits.keys()):
        asked, most = (amount(each.get(name, "0")) for each in (requests, limits))
        if asked != most:
            yield f"resources: requests.{name} and limits.{name} differ; Ray counts the limit, Kubernetes the request"
        if not most > 0 or (name == GPU and not most.is_integer()):
            yield f"resources: {name} has to be a positive number{' of whole GPUs' if name == GPU else ''}"


def env_problems(env: list[Any]) -> Iterator[str]:
    """Of a container's environment."""
    names = [variable["name"] for variable in env]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"env: {name} is set twice"
    for variable in env:
        name, value = variable["name"], variable.get("value")
        if (value is None) == ("valueFrom" not in variable):
            yield f"env: {name} needs a value or valueFrom, and not both"
        elif value is None and len(variable["valueFrom"]) != 1:
            yield f"env: {name}.valueFrom has to name one source"
        elif value is not None and looks_secret(name, value):
            yield f"env: {name} looks like a secret; take it from one with valueFrom.secretKeyRef"


def _ray_problems(spec: Tree, role: Role) -> Iterator[str]:
    container = spec["containers"][0]  # KubeRay takes the first for Ray's
    if "command" in container or "args" in container:
        yield "spec.containers[0]: KubeRay writes command and args itself; leave them out"
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    if SHARED not in mounts or mounts[SHARED].get("readOnly"):
        yield f"spec.containers[0].volumeMounts: {SHARED} has to be mounted for writing; output_dir is there"
    if not mounts.get("/config", {"readOnly": True}).get("readOnly"):
        yield "spec.containers[0].volumeMounts: mount /config with readOnly: true"
    yield from _patience_problems(spec, _settings(container), role)


def _settings(container: Tree) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}


def _patience_problems(spec: Tree, env: dict[str, str], role: Role) -> Iterator[str]:
    """A pod's SIGTERM is a notice to Ray, which drains the node until its own deadline; then comes SIGKILL."""
    grace = spec.get("terminationGracePeriodSeconds")
    drain = env.get(DRAIN, "")
    if grace is None or not drain.isdigit() or not 0 < int(drain) <= grace - MARGIN_S:
        yield (
            f"spec: {DRAIN}={drain or 'nothing'} and terminationGracePeriodSeconds={grace}: set both, the first above "
            f"0 and {MARGIN_S} s or more below the second, so that a drained node can commit"
        )
    stop = env.get(STOP, "")
    if role.head and (not stop.isdigit() or int(stop) < LEAST_STOP_S or int(stop) > (grace or 0)):
        yield (
            f"spec: {STOP}={stop or 'nothing'} on the head: set {LEAST_STOP_S} s or more, and no more than "
            "terminationGracePeriodSeconds; `ray job stop` kills a training after 3 s otherwise, without a commit"
        )
    if not role.head and STOP in env:
        yield f"spec: {STOP} is read on the head alone; take it away here"
