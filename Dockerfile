# syntax=docker/dockerfile:1.7
# docs/docker.md has the commands that build and use the image.

FROM python:3.11.13-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends 'make=4.3-*' \
    && rm -rf /var/lib/apt/lists/*
# Read by the Makefile.
ENV VENV=/opt/venv
WORKDIR /app

# The packages, a layer of gigabytes, do not depend on the sources: setup.py finds empty folders, and
# what it installs is a link to them.
FROM base AS packages
RUN apt-get update \
    && apt-get install -y --no-install-recommends 'git=1:2.39.*' \
    && rm -rf /var/lib/apt/lists/*
COPY Makefile setup.py pyproject.toml constraints.txt ./
COPY .ci/ .ci/
# Which build of torch: cpu, or cuda, which is PyPI's and has CUDA's libraries with it.
ARG DEVICE=cpu
# Where Detectron2 comes from, if not from GitHub; without a value it is the Makefile's.
ARG DETECTRON2
RUN --mount=type=cache,target=/root/.cache/pip \
    case "${DEVICE}" in \
        cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "error: DEVICE=${DEVICE}: it must be cpu or cuda" >&2; exit 1 ;; \
    esac \
    && mkdir cityscapes_maskrcnn configs datasets tools \
    && touch cityscapes_maskrcnn/__init__.py \
    && make setup

FROM base
# Files in mounted folders belong to the user of this number.
ARG UID=1000
RUN useradd --create-home --no-log-init --uid "${UID}" user \
    && install -d -o user output /data
# Nobody may write into the packages, whose compiled files go to a folder of their own. The last two
# have NVIDIA's container runtime pass GPUs on.
ENV PATH="/opt/venv/bin:${PATH}" \
    DETECTRON2_DATASETS=/data \
    PYTHONPYCACHEPREFIX=/tmp/pycache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages /opt/venv /opt/venv
COPY . .
# A checkout gives setup.py a new date without a change, which would have make set up anew.
RUN touch "${VENV}/.ready"
USER ${UID}
CMD ["make", "help"]
