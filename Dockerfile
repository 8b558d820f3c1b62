# docker build .                            the service on the CPU: the last stage
# docker build --build-arg RUNTIME=gpu .    the service with CUDA
# docker build --target training .          training, with torch

FROM python:3.11-slim-bookworm AS build
ARG RUNTIME=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# What logpx needs comes before what it is: a change of code leaves these layers as they are.
COPY pyproject.toml constraints.txt ./
# The packages' own test suites are a seventh of the whole, and nothing imports them.
RUN python -m venv --without-pip /opt/venv \
 && python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      extras = p['optional-dependencies']; \
      print(*p['dependencies'], *extras['$RUNTIME'], *extras['otel'], sep='\n')" >service.txt \
 && pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement service.txt \
 && rm -rf /opt/venv/lib/python*/site-packages/onnx/backend/test \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} +

FROM build AS build-training
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(*p['optional-dependencies']['training'], sep='\n')" >training.txt \
 && pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement training.txt

FROM build AS build-logpx
COPY . .
# Models and training lie apart: the models have another owner, and the service has no use for training. Bytecode never goes
# stale here, so nothing checks it against the source, whose times a copy may change.
RUN pip install --no-deps --no-compile --target /app . \
 && python -m compileall -q --invalidation-mode unchecked-hash /app \
 && mv /app/model_store/artifacts /models && mv /app/training /training

FROM python:3.11-slim-bookworm AS runtime
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent logpx
# ONNX Runtime reports its use to Microsoft unless told not to before it starts.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /app
STOPSIGNAL SIGTERM

FROM runtime AS training
COPY --from=build-training /opt/venv /opt/venv
COPY --from=build-logpx /app /app
COPY --from=build-logpx /training /app/training
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
# The service only reads the models. They are the user's for the sake of a volume mounted here, which takes owner and content
# from the image when it is new: training, under the same user, publishes into it.
COPY --from=build-logpx --chown=logpx:logpx /models /app/model_store/artifacts
ENV LOGPX_HOST=0.0.0.0 LOGPX_PORT=8000
USER logpx
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(p) if (p := os.environ.get('LOGPX_PORT', '').strip()).isdecimal() else 8000, timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]
