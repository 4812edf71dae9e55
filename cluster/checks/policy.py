"""What we ask of Kubernetes objects beyond what Kubernetes asks, and what has to hold between objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version

from cluster.checks import commands, operator, pods
from cluster.checks.kuberay_shapes import SHAPES as KUBERAY
from cluster.checks.kubernetes_shapes import SHAPES as KUBERNETES
from cluster.checks.pods import Role
from cluster.checks.reading import Manifest
from cluster.checks.shapes import Tree, shape_problems

PLACEHOLDER = "REPLACE_ME"
CONFIG = "/config/"
DASHBOARD = 8265
OPERATOR = {"kubernetes.io/metadata.name": "kuberay-system"}


@cache
def ray_version() -> str:
    """The Ray that raydpo is locked to."""
    return version("ray")


def kubernetes_problems(objects: Sequence[Manifest]) -> list[str]:
    """Everything wrong with a folder's objects, each problem with its file and object in front."""
    problems = []
    sound = []
    for one in objects:
        found = _object_problems(one)
        problems += [f"{one}: {problem}" for problem in found]
        if not found:
            sound.append(one)
    # Across objects only where each is sound, so that a reader of problems can rely on fields.
    if len(sound) == len(objects):
        problems += _problems_between(sound)
    return problems


def _object_problems(one: Manifest) -> list[str]:
    shape = (KUBERAY | KUBERNETES).get(one.kind)
    if shape is None:
        return [f"kind {one.kind} is none that is used here"]
    if found := shape_problems(one.tree, shape):
        return found
    rules = {
        "RayJob": _job_problems,
        "RayCluster": _shared_cluster_problems,
        "Secret": _secret_problems,
        "ConfigMap": _config_problems,
        "PersistentVolumeClaim": _claim_problems,
        "NetworkPolicy": _network_problems,
        "ClusterQueue": _quota_problems,
    }
    return list(rules[one.kind](one.tree)) if one.kind in rules else []


def _job_problems(tree: Tree) -> Iterator[str]:
    yield from operator.job_problems(tree)
    spec = tree["spec"]
    if spec.get("submissionMode") != "K8sJobMode":
        yield "spec.submissionMode: set K8sJobMode, whose pod shows the job's log"
    for field in ("backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished"):
        if field not in spec:
            yield f"spec.{field}: say it; a cluster that waits or fails for ever costs money"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes: set true; the run is on the volume, not in the cluster"
    for problem in commands.entrypoint_problems(spec["entrypoint"]):
        yield f"spec.entrypoint: {problem}"
    cluster = spec.get("rayClusterSpec")
    if cluster is None:
        yield "spec.rayClusterSpec: a job here brings its own cluster"
        return
    yield from _ray_problems(cluster, "spec.rayClusterSpec")
    submitter = spec.get("submitterPodTemplate")
    if submitter is None:
        yield "spec.submitterPodTemplate: KubeRay's own may run as root and without the label of the network policy"
        return
    for problem in pods.pod_problems(submitter, Role(ray=False)):
        yield f"spec.submitterPodTemplate.{problem}"
    if _image(submitter) != _image(cluster["headGroupSpec"]["template"]):
        yield "spec.submitterPodTemplate: its image is not the head's; both need the same Ray"


def _shared_cluster_problems(tree: Tree) -> Iterator[str]:
    yield from operator.cluster_problems(tree)
    yield from _ray_problems(tree["spec"], "spec")
    if not any(group.get("minReplicas", 0) for group in tree["spec"].get("workerGroupSpecs", [])):
        yield "spec.workerGroupSpecs: raydpo counts the nodes that run; keep one group's minReplicas above 0"


def _ray_problems(spec: Tree, where: str) -> Iterator[str]:
    """Of the cluster in a RayJob or a RayCluster."""
    if spec.get("authOptions", {}).get("mode") != "token":
        yield f"{where}.authOptions.mode: set token; whoever reaches a Ray without one runs code on every node"
    if spec.get("rayVersion") != ray_version():
        yield f"{where}.rayVersion: raydpo's images have Ray {ray_version()}"
    scaled = bool(spec.get("enableInTreeAutoscaling"))
    head = spec["headGroupSpec"]
    start = head.get("rayStartParams", {})
    if start.get("num-cpus") != "0" or start.get("num-gpus", "0") != "0":
        yield f'{where}.headGroupSpec.rayStartParams: set num-cpus: "0"; work beside the head may take it down'
    if start.get("dashboard-host") != "0.0.0.0":
        yield f"{where}.headGroupSpec.rayStartParams: set dashboard-host: 0.0.0.0; jobs come from other pods"
    for problem in pods.pod_problems(head["template"], Role(head=True, autoscaled=scaled)):
        yield f"{where}.headGroupSpec.template.{problem}"
    if scaled:
        yield from _sidecar_problems(spec.get("autoscalerOptions", {}), f"{where}.autoscalerOptions")
    if not spec.get("workerGroupSpecs"):
        yield f"{where}.workerGroupSpecs: there is none, and the head takes no work"
    for group in spec.get("workerGroupSpecs", []):
        name = f"{where}: {group['groupName']}"
        for problem in pods.pod_problems(group["template"], Role()):
            yield f"{name}: {problem}"
        if _image(group["template"]) != _image(head["template"]):
            yield f"{name}: its image is not the head's; Ray's versions have to be the same everywhere"
        if "maxReplicas" not in group:
            yield f"{name}: set maxReplicas; without it the group may grow for ever"


def _sidecar_problems(options: Tree, where: str) -> Iterator[str]:
    """Of the autoscaler's container, which KubeRay puts beside the head."""
    for problem in pods.privilege_problems(options.get("securityContext", {})):
        yield f"{where}.{problem}"
    for problem in pods.resource_problems(options.get("resources", {})):
        yield f"{where}.{problem}"


def _image(template: Tree) -> str:
    return str(template["spec"]["containers"][0]["image"])


def _secret_problems(tree: Tree) -> Iterator[str]:
    values = tree.get("stringData", {})
    if "data" in tree or not values or set(values.values()) != {PLACEHOLDER}:
        yield f"a secret in a checkout is an example: stringData, and {PLACEHOLDER} for every value"


def _config_problems(tree: Tree) -> Iterator[str]:
    for name, text in tree["data"].items():
        if pods.holds_secret(text):
            yield f"data.{name}: holds something that looks like a key; a ConfigMap is no secret"
        for problem in commands.run_file_problems(text):
            yield f"data.{name}: {problem}"


def _claim_problems(tree: Tree) -> Iterator[str]:
    if tree["spec"]["accessModes"] != ["ReadWriteMany"]:
        yield "spec.accessModes: set ReadWriteMany; pods on many nodes write to it"


def _network_problems(tree: Tree) -> Iterator[str]:
    spec = tree["spec"]
    if spec["podSelector"] != {"matchLabels": pods.POD_LABELS}:
        yield f"spec.podSelector: select {pods.POD_LABELS}, which every pod here has"
    if "Ingress" not in spec["policyTypes"]:
        yield "spec.policyTypes: has to name Ingress"
    asks = False
    for index, rule in enumerate(spec.get("ingress", [])):
        where = f"spec.ingress[{index}]"
        if not rule.get("from"):
            yield f"{where}: without `from` everybody may connect"
        for peer in rule.get("from", []):
            selectors = [peer.get(name, {}).get("matchLabels") for name in ("podSelector", "namespaceSelector")]
            if "ipBlock" in peer or not any(selectors):
                yield f"{where}: a peer has to be selected by labels; this one lets in more"
            elif selectors[0] is None and not rule.get("ports"):
                yield f"{where}: a whole namespace may reach every port; name the ports"
            ports = [port["port"] for port in rule.get("ports", [])]
            asks = asks or (selectors[1] == OPERATOR and ports == [DASHBOARD])
    if not asks:
        yield f"spec.ingress: KubeRay's operator ({OPERATOR}) has to reach port {DASHBOARD}, where it asks for jobs"


def _quota_problems(tree: Tree) -> Iterator[str]:
    for group in tree["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            if [resource["name"] for resource in flavor["resources"]] != group["coveredResources"]:
                yield f"spec.resourceGroups: {flavor['name']} has to give coveredResources, in their order"


def _problems_between(objects: Sequence[Manifest]) -> Iterator[str]:
    """Of names in one object that stand for another."""
    seen: set[tuple[str, str]] = set()
    for one in objects:
        if (one.kind, one.name) in seen:
            yield f"{one}: there is another of this name"
        seen.add((one.kind, one.name))
    by_name = {(one.kind, one.name): one.tree for one in objects}
    for one in objects:
        for kind, name, key in _references(one):
            target = by_name.get((kind, name))
            if target is None:
                yield f"{one}: names the {kind} {name}, which no file here has"
            elif key and key not in (target.get("data") or target.get("stringData") or {}):
                yield f"{one}: names the key {key} of the {kind} {name}, which lacks it"
        if one.kind == "RayJob":
            yield from _admission_problems(one, by_name)


def _references(one: Manifest) -> Iterator[tuple[str, str, str | None]]:
    """Kind, name and key of whatever an object names."""
    if one.kind == "LocalQueue":
        yield "ClusterQueue", one.tree["spec"]["clusterQueue"], None
    if one.kind == "ClusterQueue":
        for group in one.tree["spec"]["resourceGroups"]:
            yield from (("ResourceFlavor", flavor["name"], None) for flavor in group["flavors"])
    if one.kind not in ("RayJob", "RayCluster"):
        return
    if queue := one.tree["metadata"].get("labels", {}).get(operator.QUEUE):
        yield "LocalQueue", queue, None
    maps = set()
    for template, _ in pod_templates(one.tree):
        for volume in template["spec"].get("volumes", []):
            if "persistentVolumeClaim" in volume:
                yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
            if "configMap" in volume:
                maps.add(volume["configMap"]["name"])
                yield "ConfigMap", volume["configMap"]["name"], None
            if "secret" in volume:
                yield "Secret", volume["secret"]["secretName"], None
        for variable in (v for c in template["spec"]["containers"] for v in c.get("env", [])):
            for source, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if found := variable.get("valueFrom", {}).get(source):
                    yield kind, found["name"], found["key"]
    run_file = commands.run_file_of(one.tree["spec"]["entrypoint"]) if one.kind == "RayJob" else None
    if run_file and run_file.startswith(CONFIG):
        yield from (("ConfigMap", name, run_file.removeprefix(CONFIG)) for name in maps)


def pod_templates(tree: Tree) -> list[tuple[Tree, int]]:
    """Every pod template of a RayJob or RayCluster, with how many pods of it there are to begin with."""
    spec = tree["spec"]
    cluster = spec.get("rayClusterSpec", {}) if tree["kind"] == "RayJob" else spec
    found = [(cluster["headGroupSpec"]["template"], 1)]
    found += [(g["template"], g.get("replicas", g.get("minReplicas", 0))) for g in cluster["workerGroupSpecs"]]
    if "submitterPodTemplate" in spec:
        found.append((spec["submitterPodTemplate"], 1))
    return found


def _admission_problems(one: Manifest, by_name: dict[tuple[str, str], Tree]) -> Iterator[str]:
    """Of a job in a queue whose quota could never hold it."""
    queue = by_name.get(("LocalQueue", one.tree["metadata"].get("labels", {}).get(operator.QUEUE, "")))
    quotas = by_name.get(("ClusterQueue", queue["spec"]["clusterQueue"])) if queue else None
    if quotas is None:
        return
    given = {
        resource["name"]: pods.amount(resource["nominalQuota"])
        for group in quotas["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for resource in flavor["resources"]
    }
    asked: dict[str, float] = {}
    for template, count in pod_templates(one.tree):
        for container in template["spec"]["containers"]:
            for name, quantity in container["resources"]["requests"].items():
                asked[name] = asked.get(name, 0) + count * pods.amount(quantity)
    for name in sorted(asked):
        if asked[name] > given.get(name, 0):
            yield f"{one}: asks for more {name} than its queue will ever have, so that it would wait for ever"
