# raydpo with the CUDA builds of torch and vLLM; the CUDA libraries come as Python packages. From the checkout's root:
#   docker build -f cluster/docker/gpu.Dockerfile -t raydpo:gpu .
# The host has the driver and NVIDIA's container runtime.
FROM python:3.11-slim-bookworm

# gcc: Triton compiles a launcher for every kernel. wget: probes of older KubeRay. rsync: `ray up` copies files with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 rsync wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --user-group --create-home --shell /bin/bash ray

WORKDIR /opt/raydpo
COPY requirements/gpu.lock requirements/gpu.lock
RUN pip install --no-cache-dir --no-deps -r requirements/gpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY raydpo raydpo
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# A Ray that is started in here asks for a token; KubeRay gives it one, otherwise mount ~/.ray/auth_token.
ENV RAY_AUTH_MODE=token PYTHONUNBUFFERED=1
USER 1000:1000
