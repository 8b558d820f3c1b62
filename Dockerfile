# docker build .                            the service on the CPU: the last stage
# docker build --build-arg RUNTIME=gpu .    the service with CUDA
# docker build --target training .          training, with torch
# With --build-arg BASE=python@sha256:…, the base is that very image and no later one: see docs/security.md.
# `make image` says besides which version and revision it is of: VERSION, REVISION and SOURCE, which become labels.

ARG BASE=python:3.11-slim-bookworm
ARG VERSION=0.1.0

FROM ${BASE} AS build
ARG RUNTIME=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Whatever is installed has one of the hashes in requirements/, and is no code to be built.
ENV PIP_REQUIRE_HASHES=1 PIP_NO_DEPS=1 PIP_ONLY_BINARY=:all:
WORKDIR /build
# What logpx needs comes before what it is: a change of code leaves these layers as they are.
COPY requirements requirements
# The packages' own test suites are a seventh of the whole, and nothing imports them.
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --requirement requirements/service.txt \
      --requirement requirements/$RUNTIME.txt --requirement requirements/otel.txt \
 && rm -rf /opt/venv/lib/python*/site-packages/onnx/backend/test \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} +

FROM build AS build-training
# As the Makefile: torch from a folder of wheels where pip is set to one; for CUDA more than without, which is called +cpu.
RUN pip --python /opt/venv/bin/python install --requirement requirements/training.txt \
 && { pip --python /opt/venv/bin/python install --quiet --no-index --requirement requirements/torch.txt 2>/dev/null \
      || pip --python /opt/venv/bin/python install --requirement requirements/torch.txt; } \
 && if /opt/venv/bin/python -c "from importlib.metadata import version; raise SystemExit(version('torch').endswith('+cpu'))"; \
    then pip --python /opt/venv/bin/python install --requirement requirements/cuda.txt; fi

# What each environment holds, as CycloneDX JSON, by a tool that is in no image itself.
FROM build AS sbom
COPY pyproject.toml ./
RUN python -m venv --without-pip /opt/sbom && pip --python /opt/sbom/bin/python install --requirement requirements/sbom.txt
ENV CYCLONEDX="/opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible"
RUN $CYCLONEDX --output-file /sbom.cdx.json /opt/venv

FROM sbom AS sbom-training
COPY --from=build-training /opt/venv /opt/training
RUN $CYCLONEDX --output-file /sbom.cdx.json /opt/training

FROM build AS build-logpx
RUN pip install --requirement requirements/build.txt
COPY . .
# Models and training lie apart: the models have another owner, and the service has no use for training. Bytecode never goes
# stale here, so nothing checks it against the source, whose times a copy may change.
RUN PIP_REQUIRE_HASHES=0 pip install --no-build-isolation --no-index --no-compile --target /app . \
 && python -m compileall -q --invalidation-mode unchecked-hash /app \
 && mv /app/model_store/artifacts /models && mv /app/training /training

FROM ${BASE} AS runtime
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent logpx
# ONNX Runtime reports its use to Microsoft unless told not to before it starts.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /app
STOPSIGNAL SIGTERM
ARG BASE
ARG VERSION
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title=logpx \
      org.opencontainers.image.description="log P(x), anomaly scores, latent codes and samples of images, over HTTP" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.source=$SOURCE \
      org.opencontainers.image.licenses=MIT \
      org.opencontainers.image.base.name=$BASE \
      logpx.sbom=/sbom.cdx.json

FROM runtime AS training
COPY --from=build-training /opt/venv /opt/venv
COPY --from=build-logpx /app /app
COPY --from=build-logpx /training /app/training
COPY --from=sbom-training /sbom.cdx.json /sbom.cdx.json
COPY --from=build-logpx --chown=logpx:logpx /models /app/model_store/artifacts
# /data holds runs and downloaded data sets; everything else may be read-only.
RUN install --directory --owner logpx --group logpx /data
ENV XDG_CACHE_HOME=/data/cache MPLCONFIGDIR=/tmp/matplotlib
USER logpx
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]

FROM runtime AS service
COPY --from=build /opt/venv /opt/venv
COPY --from=build-logpx /app /app
COPY --from=sbom /sbom.cdx.json /sbom.cdx.json
# The service only reads the models. They are the user's for the sake of a volume mounted here, which takes owner and content
# from the image when it is new: training, under the same user, publishes into it.
COPY --from=build-logpx --chown=logpx:logpx /models /app/model_store/artifacts
ENV LOGPX_HOST=0.0.0.0 LOGPX_PORT=8000
USER logpx
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(p) if (p := os.environ.get('LOGPX_PORT', '').strip()).isdecimal() else 8000, timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]
