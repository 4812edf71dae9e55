"""The fields of Kubernetes' and Kueue's own objects that the manifests use."""

from __future__ import annotations

from cluster.checks.shapes import BOOL, INT, TEXT, TEXTS, Shape, list_of, matching, one_of, record

QUANTITY = matching(r"[0-9]+(\.[0-9]+)?(m|[kMGTP]i?)?")
LABEL = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)"
METADATA = record({"name": TEXT, "labels": TEXTS, "annotations": TEXTS}, ["name"])
_POD_METADATA = record({"labels": TEXTS, "annotations": TEXTS})
_AMOUNTS: Shape = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = record({"requests": _AMOUNTS, "limits": _AMOUNTS}, ["requests", "limits"])
SELECTOR = record({"matchLabels": TEXTS})

_KEY = record({"name": TEXT, "key": TEXT, "optional": BOOL}, ["name", "key"])
ENV = record(
    {
        "name": matching(r"[A-Za-z_][A-Za-z0-9_]*"),
        "value": {"type": "string"},
        "valueFrom": record({"secretKeyRef": _KEY, "configMapKeyRef": _KEY}),
    },
    ["name"],
)
CONTAINER_SECURITY = record(
    {
        "allowPrivilegeEscalation": BOOL,
        "privileged": BOOL,
        "runAsUser": INT,
        "runAsNonRoot": BOOL,
        "capabilities": record({"drop": list_of(TEXT), "add": list_of(TEXT)}),
    }
)
_CONTAINER = record(
    {
        "name": matching(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"),
        "image": TEXT,
        "imagePullPolicy": one_of("Always", "IfNotPresent", "Never"),
        "command": list_of(TEXT),
        "args": list_of(TEXT),
        "securityContext": CONTAINER_SECURITY,
        "env": list_of(ENV),
        "ports": list_of(
            record(
                {"name": TEXT, "containerPort": INT, "protocol": one_of("TCP", "UDP", "SCTP")},
                ["containerPort"],
            )
        ),
        "resources": RESOURCES,
        "volumeMounts": list_of(
            record({"name": TEXT, "mountPath": TEXT, "readOnly": BOOL, "subPath": TEXT}, ["name", "mountPath"])
        ),
    },
    ["name", "image"],
)
_VOLUME = record(
    {
        "name": TEXT,
        "persistentVolumeClaim": record({"claimName": TEXT, "readOnly": BOOL}, ["claimName"]),
        "configMap": record({"name": TEXT, "optional": BOOL}, ["name"]),
        "secret": record({"secretName": TEXT, "defaultMode": INT}, ["secretName"]),
        "emptyDir": record({"medium": one_of("Memory"), "sizeLimit": QUANTITY}),
    },
    ["name"],
)
_POD = record(
    {
        "restartPolicy": one_of("Always", "OnFailure", "Never"),
        "automountServiceAccountToken": BOOL,
        "serviceAccountName": TEXT,
        "terminationGracePeriodSeconds": INT,
        "nodeSelector": TEXTS,
        "priorityClassName": TEXT,
        "securityContext": record(
            {
                "runAsNonRoot": BOOL,
                "runAsUser": INT,
                "runAsGroup": INT,
                "fsGroup": INT,
                "seccompProfile": record({"type": one_of("RuntimeDefault", "Unconfined")}, ["type"]),
            }
        ),
        "containers": list_of(_CONTAINER),
        "volumes": list_of(_VOLUME),
        "tolerations": list_of(
            record(
                {
                    "key": TEXT,
                    "operator": one_of("Exists", "Equal"),
                    "value": TEXT,
                    "effect": one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
                },
                ["key", "operator"],
            )
        ),
    },
    ["containers"],
)
POD_TEMPLATE = record({"metadata": _POD_METADATA, "spec": _POD}, ["spec"])

_PEER = record({"podSelector": SELECTOR, "namespaceSelector": SELECTOR, "ipBlock": record({"cidr": TEXT}, ["cidr"])})
_PORT = record({"port": INT, "protocol": one_of("TCP", "UDP", "SCTP")}, ["port"])
_QUOTA = record({"name": TEXT, "nominalQuota": QUANTITY}, ["name", "nominalQuota"])
_FLAVOR = record({"name": TEXT, "resources": list_of(_QUOTA)}, ["name", "resources"])


def kind(version: str, name: str, required: list[str], **fields: Shape) -> Shape:
    """The shape of an object with its apiVersion, kind and metadata."""
    head = {"apiVersion": one_of(version), "kind": one_of(name), "metadata": METADATA}
    return record({**head, **fields}, ["apiVersion", "kind", "metadata", *required])


_KUEUE = "kueue.x-k8s.io/v1beta2"
SHAPES: dict[str, Shape] = {
    "ConfigMap": kind("v1", "ConfigMap", ["data"], data=TEXTS),
    "Secret": kind("v1", "Secret", ["type"], type=one_of("Opaque"), stringData=TEXTS, data=TEXTS),
    "PersistentVolumeClaim": kind(
        "v1",
        "PersistentVolumeClaim",
        ["spec"],
        spec=record(
            {
                "accessModes": list_of(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
                "storageClassName": TEXT,
                "resources": record({"requests": record({"storage": QUANTITY}, ["storage"])}, ["requests"]),
            },
            ["accessModes", "resources"],
        ),
    ),
    "NetworkPolicy": kind(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        ["spec"],
        spec=record(
            {
                "podSelector": SELECTOR,
                "policyTypes": list_of(one_of("Ingress", "Egress")),
                "ingress": list_of(record({"from": list_of(_PEER), "ports": list_of(_PORT)})),
            },
            ["podSelector", "policyTypes"],
        ),
    ),
    "ResourceFlavor": kind(_KUEUE, "ResourceFlavor", [], spec=record({"nodeLabels": TEXTS})),
    "ClusterQueue": kind(
        _KUEUE,
        "ClusterQueue",
        ["spec"],
        spec=record(
            {
                "namespaceSelector": SELECTOR,
                "resourceGroups": list_of(
                    record(
                        {"coveredResources": list_of(TEXT), "flavors": list_of(_FLAVOR)},
                        ["coveredResources", "flavors"],
                    )
                ),
            },
            ["resourceGroups"],
        ),
    ),
    "LocalQueue": kind(_KUEUE, "LocalQueue", ["spec"], spec=record({"clusterQueue": TEXT}, ["clusterQueue"])),
}
