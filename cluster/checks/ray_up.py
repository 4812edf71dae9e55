"""`ray up` files: by Ray's own functions, and by what Ray leaves open (provider, node_config, commands) and we ask."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import shlex
from collections.abc import Iterator
from typing import Any

from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config  # what `ray up` itself calls, without a cloud
from ray.scripts.scripts import start

from cluster.checks.pods import LEAST_STOP_S, SHARED, STOP, holds_secret, is_pinned
from cluster.checks.shapes import BOOL, INT, TEXT, TEXTS, Shape, Tree, list_of, matching, one_of, record, shape_problems

TOKEN = "~/.ray/auth_token"
SPOT = "ray.io/market-type"
_PROVIDERS: dict[str, Shape] = {
    "aws": record(
        {
            "type": one_of("aws"),
            "region": TEXT,
            "availability_zone": TEXT,
            "cache_stopped_nodes": BOOL,
            "use_internal_ips": BOOL,
        },
        ["type", "region", "use_internal_ips"],
    ),
    "gcp": record(
        {"type": one_of("gcp"), "region": TEXT, "availability_zone": TEXT, "project_id": TEXT},
        ["type", "region", "availability_zone", "project_id"],
    ),
    "local": record(
        {"type": one_of("local"), "head_ip": TEXT, "worker_ips": list_of(TEXT)}, ["type", "head_ip", "worker_ips"]
    ),
}
_NODES: dict[str, Shape] = {
    "aws": record(
        {
            "InstanceType": matching(r"[a-z0-9-]+\.[a-z0-9-]+"),
            "ImageId": matching("ami-[0-9a-f]+"),
            "InstanceMarketOptions": record({"MarketType": one_of("spot")}, ["MarketType"]),
            "BlockDeviceMappings": list_of(
                record({"DeviceName": TEXT, "Ebs": record({"VolumeSize": INT, "VolumeType": TEXT}, ["VolumeSize"])})
            ),
        },
        ["InstanceType"],
    ),
    "gcp": record(
        {
            "machineType": matching(r"[a-z0-9]+-[a-z0-9-]+"),
            "scheduling": list_of(
                record({"preemptible": BOOL, "onHostMaintenance": one_of("TERMINATE", "MIGRATE")}),
            ),
            "disks": list_of(
                record(
                    {
                        "boot": BOOL,
                        "autoDelete": BOOL,
                        "type": one_of("PERSISTENT", "SCRATCH"),
                        "initializeParams": record({"diskSizeGb": INT, "sourceImage": TEXT}, ["sourceImage"]),
                    },
                    ["initializeParams"],
                )
            ),
        },
        ["machineType", "disks"],
    ),
}
_COUNTS: Shape = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}, "required": ["CPU"]}


def ray_up_problems(tree: Any) -> list[str]:
    """Everything wrong with a `ray up` file."""
    kind = tree.get("provider", {}).get("type") if isinstance(tree, dict) else None
    if kind not in _PROVIDERS:
        return [f"provider.type: has to be one of {', '.join(_PROVIDERS)}"]
    if found := [*_refusals_of_ray(tree), *_shape_problems(tree, kind)]:
        return found
    return [*_node_problems(tree, kind), *_policy_problems(tree), *_command_problems(tree, kind)]


def _refusals_of_ray(tree: Tree) -> Iterator[str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(tree)))
    except ValidationError as error:
        yield f"Ray refuses it: {error.message}"
    except (Exception, SystemExit) as error:  # Ray raises what comes, and leaves for some mistakes
        yield f"Ray refuses it: {error}"


def _shape_problems(tree: Tree, kind: str) -> list[str]:
    problems = [f"provider: {problem}" for problem in shape_problems(tree["provider"], _PROVIDERS[kind])]
    if "cluster_name" not in tree:
        problems.append("cluster_name: say one; Ray calls it default, and two clusters of a name are one to a cloud")
    if kind not in _NODES:  # whose machines have no types; Ray refuses a file that says some
        return problems
    for name, node in tree.get("available_node_types", {}).items():
        where = f"available_node_types.{name}"
        if "resources" not in node:
            problems.append(f"{where}: say its resources; Ray asks the cloud otherwise, which may not know")
        else:
            problems += [f"{where}.resources: {problem}" for problem in shape_problems(node["resources"], _COUNTS)]
        problems += [f"{where}.labels: {problem}" for problem in shape_problems(node.get("labels", {}), TEXTS)]
        problems += [f"{where}.node_config: {p}" for p in shape_problems(node.get("node_config"), _NODES[kind])]
    return problems


def _node_problems(tree: Tree, kind: str) -> Iterator[str]:
    """Of the pools: a head without work, CPUs, GPUs, and spot nodes for what outlives its nodes."""
    if kind == "local":
        return
    nodes = tree["available_node_types"]
    head = nodes[tree["head_node_type"]]
    workers = [node for name, node in nodes.items() if name != tree["head_node_type"]]
    if head["resources"]["CPU"] or head["resources"].get("GPU") or head.get("max_workers"):
        yield "the head's node type: set resources: {CPU: 0} and max_workers: 0; work beside it may take it down"
    if not any(not node["resources"].get("GPU") for node in workers):
        yield "available_node_types: a pool of CPUs is missing"
    if not any(node["resources"].get("GPU") and not _is_spot(node) for node in workers):
        yield "available_node_types: a pool of GPUs that stay is missing"
    if not any(_is_spot(node) for node in workers):
        yield "available_node_types: a spot pool is missing"
    if not any(node.get("min_workers") for node in workers):
        yield "available_node_types: raydpo counts the nodes that run; keep one pool's min_workers above 0"
    for name, node in nodes.items():
        least, most = node.get("min_workers", 0), node.get("max_workers")
        if most is None or not 0 <= least <= most <= tree["max_workers"]:
            yield f"available_node_types.{name}: 0 ≤ min_workers ≤ max_workers ≤ the cluster's does not hold"
        if _is_spot(node) != (node.get("labels", {}).get(SPOT) == "spot"):
            yield f"available_node_types.{name}: the label {SPOT}: spot and the market of node_config differ"


def _is_spot(node: Tree) -> bool:
    config = node["node_config"]
    preemptible = any(each.get("preemptible") for each in config.get("scheduling", []))
    return preemptible or config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"


def _policy_problems(tree: Tree) -> Iterator[str]:
    docker = tree.get("docker", {})
    if not is_pinned(str(docker.get("image"))):
        yield "docker.image: name it by its digest, as NAME@sha256:…"
    options = shlex.split(" ".join(docker.get("run_options", [])))
    if f"{SHARED}:{SHARED}" not in options:
        yield f"docker.run_options: -v {SHARED}:{SHARED} is missing; every node sees output_dir under one path"
    patience = [int(option.partition("=")[2]) for option in options if re.fullmatch(r"--stop-timeout=\d+", option)]
    if not patience or patience[0] < LEAST_STOP_S:
        yield f"docker.run_options: --stop-timeout of {LEAST_STOP_S} s or more is missing; docker kills after 10 s"
    if "--privileged" in options or "--network=host" in options:
        yield "docker.run_options: --privileged takes the container's walls away, and Ray sets the network"
    if tree.get("file_mounts", {}).get(TOKEN) != TOKEN:
        yield f"file_mounts: {TOKEN}: {TOKEN} is missing, the token that every node asks for"
    if holds_secret(str(tree)):
        yield "something in it looks like a key; the cloud's own configuration of this machine has them"


def _command_problems(tree: Tree, kind: str) -> Iterator[str]:
    """Of the commands that start Ray."""
    port = None
    for role in ("head", "worker"):
        where = f"{role}_start_ray_commands"
        commands = tree.get(where, [])
        starts = [command for command in commands if "ray start" in command]
        if commands[:1] != ["ray stop"] or len(starts) != 1:
            yield f"{where}: `ray stop` first, then one `ray start`"
            continue
        settings, options = _start_command(starts[0])
        if settings.get("RAY_AUTH_MODE") != "token":
            yield f"{where}: RAY_AUTH_MODE=token is missing in front of `ray start`"
        for option in sorted(options.keys() - _options_of_ray_start()):
            yield f"{where}: `ray start` has no option {option}"
        if "--disable-usage-stats" not in options:
            yield f"{where}: --disable-usage-stats is missing"
        if role == "head":
            port = options.get("--port")
            yield from _head_problems(where, settings, options, kind)
        elif options.get("--address") != f"$RAY_HEAD_IP:{port}" or "--head" in options:
            yield f"{where}: --address=$RAY_HEAD_IP:{port}, the head's port, is missing"


def _head_problems(where: str, settings: Tree, options: Tree, kind: str) -> Iterator[str]:
    stop = settings.get(STOP, "")
    if not stop.isdigit() or int(stop) < LEAST_STOP_S:
        yield f"{where}: {STOP} of {LEAST_STOP_S} s or more is missing; `ray job stop` kills after 3 s"
    if options.get("--dashboard-host") != "127.0.0.1":
        yield f"{where}: --dashboard-host=127.0.0.1 is missing; `ray dashboard` forwards it"
    if "--head" not in options or options.get("--autoscaling-config") != "~/ray_bootstrap_config.yaml":
        yield f"{where}: --head and --autoscaling-config=~/ray_bootstrap_config.yaml are missing"
    if kind == "local" and (options.get("--num-cpus") != "0" or options.get("--num-gpus") != "0"):
        yield f"{where}: --num-cpus=0 --num-gpus=0 are missing; work beside the head may take it down"


def _start_command(command: str) -> tuple[dict[str, str], dict[str, str]]:
    """The variables in front of `ray start`, and its options."""
    before, _, after = command.partition("ray start")
    pairs = (word.partition("=") for word in shlex.split(before))
    options = (word.partition("=") for word in shlex.split(after))
    return {name: value for name, _, value in pairs}, {name: value for name, _, value in options}


def _options_of_ray_start() -> set[str]:
    return {option for parameter in start.params for option in parameter.opts + parameter.secondary_opts}
