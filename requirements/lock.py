"""Write requirements/EXTRA.lock, every package that a raydpo environment holds: `python requirements/lock.py cpu|gpu`.

pip resolves pyproject.toml with the extras EXTRA, demo and dev for the interpreter and platform that it runs on; with
pip 24.1 or newer it reads metadata only. Needs the standard library and a package index.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
# vLLM asks for them, raydpo handles text only, and beside a CPU build of torch their CUDA builds break transformers.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
HEADER = """\
# Written by `python requirements/lock.py {extra}` for Python {version} on {platform}; do not edit.
# Complete, so install it with --no-deps: pip would add {left_out} again.
"""


def requirements(extra: str) -> list[str]:
    """The project's requirements with one engine extra."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *optional[extra], *optional["demo"], *optional["dev"]]
    # === takes the version to the letter: a CPU build (2.13.0+cpu) that pip also finds would hide the CUDA libraries.
    return [w.replace("==", "===") if extra == "gpu" and w.startswith("torch==") else w for w in wanted]


def resolve(wanted: list[str]) -> dict[str, str]:
    """Let pip choose a version of everything needed, without installing."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        subprocess.run([*pip, "--report", report.name, *wanted], check=True)
        packages = [entry["metadata"] for entry in json.load(report)["install"]]
    return {package["name"].lower().replace("_", "-"): package["version"] for package in packages}


def main(extra: str) -> None:
    """Write the lock file of one extra."""
    versions = resolve(requirements(extra))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    header = HEADER.format(extra=extra, version=python, platform=sys.platform, left_out=", ".join(sorted(LEFT_OUT)))
    # The local part (+cpu) is left to the index: where there is a CPU build, pip prefers it to the plain one.
    pins = [f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(versions.items())]
    pins = [pin for pin in pins if pin.partition("==")[0] not in LEFT_OUT]
    (HERE / f"{extra}.lock").write_text(header + "".join(pins))


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["gpu"]):
        sys.exit("usage: python requirements/lock.py cpu|gpu")
    main(sys.argv[1])
