# Targets: `cpu` (the default) and `cuda`. BASE_IMAGE needs `python` 3.11 or newer and useradd.
# See docker/README.md for the lines to build and run.
ARG BASE_IMAGE=python:3.11-slim


FROM ${BASE_IMAGE} AS builder

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/wavllm
ENV PATH=/opt/wavllm/bin:$PATH
WORKDIR /src

# The lock pins the tools of development too; what is installed is what pyproject.toml needs at run time.
COPY requirements.lock pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > runtime.txt


# The package is built once per target, after what changes seldom: a new line of code downloads nothing again.
FROM builder AS builder-cuda

# The CUDA version must be one that your driver knows.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
RUN pip install --extra-index-url "${TORCH_INDEX}" -c requirements.lock -r runtime.txt setuptools
COPY README.md LICENSE NOTICE ./
COPY model model
COPY server server
RUN pip install --no-deps --no-build-isolation .


FROM builder AS builder-cpu

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --extra-index-url "${TORCH_INDEX}" -c requirements.lock -r runtime.txt setuptools
COPY README.md LICENSE NOTICE ./
COPY model model
COPY server server
RUN pip install --no-deps --no-build-isolation .


FROM ${BASE_IMAGE} AS runtime

RUN useradd --uid 1000 --create-home --shell /usr/sbin/nologin wavllm && mkdir /model

# With a read-only root, /tmp is the one place to write to; numba wants a cache it can write.
ENV PATH=/opt/wavllm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    HF_HOME=/tmp/huggingface

# A converted checkpoint goes here, with `serve --model /model`. Without it the embedded default is served.
VOLUME ["/model"]
WORKDIR /home/wavllm
EXPOSE 8000 50051 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('WAVLLM_HTTP_PORT', '8000')), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["wavllm"]
CMD ["serve"]


FROM runtime AS cuda

# Triton compiles a small launcher for each kernel when it is first used.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/tmp/triton
COPY --from=builder-cuda /opt/wavllm /opt/wavllm
USER 1000:1000


FROM runtime AS cpu

COPY --from=builder-cpu /opt/wavllm /opt/wavllm
USER 1000:1000
