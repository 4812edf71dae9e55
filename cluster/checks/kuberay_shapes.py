"""The fields of KubeRay 1.7's objects that the manifests use, and those that a rule of the operator speaks of.

A field that has a default, such as minReplicas, is not required, although the CRD says so: the default comes first.
"""

from __future__ import annotations

from cluster.checks.kubernetes_shapes import CONTAINER_SECURITY, LABEL, POD_TEMPLATE, RESOURCES, kind
from cluster.checks.shapes import BOOL, INT, TEXT, TEXTS, Shape, list_of, matching, one_of, record

_ANY: Shape = {"type": "object"}  # for a field that a rule refuses whatever stands in it
_LABELS: Shape = {
    "type": "object",
    "propertyNames": matching(rf"([a-z0-9.-]+/)?{LABEL}"),
    "additionalProperties": matching(f"{LABEL}?"),
}
_GROUP = {"rayStartParams": TEXTS, "labels": _LABELS, "resources": TEXTS, "template": POD_TEMPLATE}
_WORKERS = record(
    {
        **_GROUP,
        "groupName": matching(r"[a-z]([-a-z0-9]*[a-z0-9])?"),
        "replicas": INT,
        "minReplicas": INT,
        "maxReplicas": INT,
        "idleTimeoutSeconds": INT,
        "priority": INT,
        "suspend": BOOL,
    },
    ["groupName", "template"],
)
_CLUSTER = record(
    {
        "rayVersion": matching(r"[0-9]+\.[0-9]+\.[0-9]+"),
        "authOptions": record({"mode": one_of("disabled", "token"), "secretName": TEXT}, ["mode"]),
        "enableInTreeAutoscaling": BOOL,
        "autoscalerOptions": record(
            {
                "version": one_of("v1", "v2"),
                "idleTimeoutSeconds": INT,
                "upscalingMode": one_of("Default", "Aggressive", "Conservative"),
                "securityContext": CONTAINER_SECURITY,
                "resources": RESOURCES,
            }
        ),
        "headGroupSpec": record(_GROUP, ["template"]),
        "workerGroupSpecs": list_of(_WORKERS),
        "suspend": BOOL,
        "networkPolicy": _ANY,
        "tlsOptions": _ANY,
        "gcsFaultToleranceOptions": _ANY,
    },
    ["headGroupSpec"],
)
_JOB = record(
    {
        "submissionMode": one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "entrypoint": TEXT,
        "metadata": TEXTS,
        "backoffLimit": INT,
        "activeDeadlineSeconds": INT,
        "preRunningDeadlineSeconds": INT,
        "shutdownAfterJobFinishes": BOOL,
        "ttlSecondsAfterFinished": INT,
        "suspend": BOOL,
        "clusterSelector": TEXTS,
        "deletionStrategy": _ANY,
        "submitterPodTemplate": POD_TEMPLATE,
        "submitterConfig": record({"backoffLimit": INT}),
        "rayClusterSpec": _CLUSTER,
    },
    ["entrypoint"],
)
SHAPES: dict[str, Shape] = {
    "RayJob": kind("ray.io/v1", "RayJob", ["spec"], spec=_JOB),
    "RayCluster": kind("ray.io/v1", "RayCluster", ["spec"], spec=_CLUSTER),
}
