# Norma in a container; docs/cluster.md says how to build and run it.
FROM python:3.11-slim-bookworm

# Another wheel index makes an image with CUDA: https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# pango and harfbuzz: the PDF of the review app. Versions are those of the base image's Debian.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/norma
COPY requirements.txt ./
RUN sed '/^# tests and lint/,$d' requirements.txt > runtime.txt \
    && grep '^torch==' runtime.txt > torch.txt \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" -r torch.txt \
    && pip install --no-cache-dir -r runtime.txt

COPY norma.py LICENSE CITATION.cff ./
COPY preprocessing preprocessing
COPY models models
COPY evaluation evaluation
COPY pipelines pipelines
COPY app app
COPY configs configs
COPY ready ready
COPY container container

RUN useradd --uid 1000 --create-home norma && mkdir /data && chown norma /data

# Commands run in any folder, and no file there takes the place of Norma's own (safe path). Whoever
# runs them, caches of packages go where anybody may write.
ENV PYTHONPATH=/opt/norma PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba

USER 1000
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s CMD ["/opt/norma/container/healthy"]
ENTRYPOINT ["/opt/norma/container/norma"]
CMD ["help"]
