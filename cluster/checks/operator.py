"""What KubeRay's operator and Kueue's webhook refuse although the CRD lets it pass. Read off KubeRay 1.7."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cluster.checks.shapes import Tree

LONGEST_CLUSTER_NAME = 53  # services get -serve-svc behind it, and a DNS label has 63 letters
LONGEST_JOB_NAME = LONGEST_CLUSTER_NAME - 6  # its cluster gets six more
QUEUE = "kueue.x-k8s.io/queue-name"
LEAST_RAY_WITH_TOKENS = (2, 52, 0)
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_ALPHA = {
    "networkPolicy": "ship a NetworkPolicy object instead",
    "tlsOptions": "there is no TLS inside the cluster",
    "gcsFaultToleranceOptions": "it needs Redis or an alpha gate; a new cluster and the same command go on as well",
}


def job_problems(tree: Tree) -> Iterator[str]:
    """Of a RayJob whose shape is right."""
    spec = tree["spec"]
    yield from _name_problems(tree["metadata"]["name"], LONGEST_JOB_NAME)
    yield from _ending_problems(spec)
    selector, cluster = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    if bool(selector) == bool(cluster):
        yield "spec: set one of rayClusterSpec and clusterSelector"
    if spec.get("suspend") and (selector or not spec.get("shutdownAfterJobFinishes")):
        yield "spec.suspend: goes with shutdownAfterJobFinishes: true, and not with clusterSelector"
    if spec.get("suspend") and cluster and cluster.get("enableInTreeAutoscaling"):
        yield "spec.suspend: does not go with enableInTreeAutoscaling"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "spec.backoffLimit: InteractiveMode tries nothing again"
    if mode == "SidecarMode" and (selector or "submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "spec.submissionMode: SidecarMode goes with neither clusterSelector nor a submitter of one's own"
    if cluster:
        yield from _cluster_spec_problems(cluster, "spec.rayClusterSpec")
    if QUEUE in tree["metadata"].get("labels", {}):
        yield from _queue_problems(spec)


def cluster_problems(tree: Tree) -> Iterator[str]:
    """Of a RayCluster whose shape is right."""
    yield from _name_problems(tree["metadata"]["name"], LONGEST_CLUSTER_NAME)
    yield from _cluster_spec_problems(tree["spec"], "spec")


def _name_problems(name: str, longest: int) -> Iterator[str]:
    if len(name) > longest:
        yield f"metadata.name: has {len(name)} letters, and the operator takes {longest}"
    if not _DNS_LABEL.fullmatch(name):
        yield "metadata.name: only small letters, digits and -, and a letter first"


def _ending_problems(spec: Tree) -> Iterator[str]:
    """Of retries, deadlines and what is removed when."""
    for field, least in (
        ("backoffLimit", 0),
        ("ttlSecondsAfterFinished", 0),
        ("activeDeadlineSeconds", 1),
        ("preRunningDeadlineSeconds", 1),
    ):
        if spec.get(field, least) < least:
            yield f"spec.{field}: {spec[field]} is below {least}"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.ttlSecondsAfterFinished: goes with shutdownAfterJobFinishes: true alone"
    if "deletionStrategy" in spec:
        both = " and shutdownAfterJobFinishes says the same" if spec.get("shutdownAfterJobFinishes") else ""
        yield f"spec.deletionStrategy: is behind a gate of the operator{both}; keep shutdownAfterJobFinishes"


def _cluster_spec_problems(spec: Tree, where: str) -> Iterator[str]:
    for field, instead in _ALPHA.items():
        if field in spec:
            yield f"{where}.{field}: an operator with its defaults refuses it; {instead}"
    version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
    if spec.get("authOptions", {}).get("mode") == "token" and version < LEAST_RAY_WITH_TOKENS:
        yield f"{where}.rayVersion: tokens need it, from {'.'.join(map(str, LEAST_RAY_WITH_TOKENS))} on"
    groups = spec.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    if len(set(names)) < len(names):
        yield f"{where}.workerGroupSpecs: two have the same groupName"
    for name, group in [("the head", spec["headGroupSpec"]), *zip(names, groups, strict=True)]:
        yield from _group_problems(f"{where}: {name}", group)
    yield from _scaling_problems(spec, where)


def _group_problems(where: str, group: Tree) -> Iterator[str]:
    start = group.get("rayStartParams", {})
    if "labels" in start:
        yield f"{where}: rayStartParams.labels is refused; use the field labels of the group"
    if group.get("resources") and any(start.get(name) for name in _START_RESOURCES):
        yield f"{where}: resources stand in rayStartParams and in the field resources; keep one"
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if not 0 <= least <= group.get("replicas", least) <= most:
        yield f"{where}: 0 ≤ minReplicas ≤ replicas ≤ maxReplicas does not hold"


def _scaling_problems(spec: Tree, where: str) -> Iterator[str]:
    scaled = spec.get("enableInTreeAutoscaling", False)
    second = scaled and spec.get("autoscalerOptions", {}).get("version") == "v2"
    if not scaled and "autoscalerOptions" in spec:
        yield f"{where}.autoscalerOptions: enableInTreeAutoscaling is off"
    for group in spec.get("workerGroupSpecs", []):
        name = f"{where}: {group['groupName']}"
        if group.get("suspend"):
            yield f"{name}: suspend is behind a gate of the operator, and does not go with the autoscaler"
        for field in ("priority", "idleTimeoutSeconds"):
            if field in group and not second:
                yield f"{name}: {field} needs autoscalerOptions.version: v2"
    if scaled and not second:
        yield f"{where}.autoscalerOptions.version: set v2"
    head = _environment(spec["headGroupSpec"])
    if "RAY_enable_autoscaler_v2" in head:
        yield f"{where}: RAY_enable_autoscaler_v2 in the head's environment; autoscalerOptions.version says it"
    if "RAY_REDIS_ADDRESS" in head:
        yield f"{where}: RAY_REDIS_ADDRESS in the head's environment switches GCS fault tolerance on, and is refused"


def _environment(group: Tree) -> Mapping[str, object]:
    container = group["template"]["spec"]["containers"][0]
    return {variable["name"]: variable for variable in container.get("env", [])}


def _queue_problems(spec: Tree) -> Iterator[str]:
    """What Kueue's webhook refuses of a job with a queue."""
    cluster = spec.get("rayClusterSpec", {})
    if spec.get("clusterSelector"):
        yield f"spec.clusterSelector: a job with {QUEUE} has a cluster of its own"
    if not spec.get("shutdownAfterJobFinishes"):
        yield f"spec.shutdownAfterJobFinishes: a job with {QUEUE} gives its cluster back; set true"
    if cluster.get("enableInTreeAutoscaling"):
        yield f"spec.rayClusterSpec.enableInTreeAutoscaling: a job with {QUEUE} is admitted as a whole; set false"
    names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
    if "head" in names or len(names) > 7:
        yield f"spec.rayClusterSpec.workerGroupSpecs: a job with {QUEUE} has at most 7, and none is called head"
