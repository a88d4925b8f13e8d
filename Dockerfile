# One image for every service; the command says which: `imprimatur gateway`, `reviewer`, `notifier`, `migrate`.
# It has not been built where it was written (no container engine there): the steps are those of `make setup`.
FROM python:3.13-slim-bookworm AS build
WORKDIR /build
COPY requirements.lock model.lock pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/imprimatur \
 && /opt/imprimatur/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock -r model.lock
COPY protos protos
COPY services services
RUN include=$(/opt/imprimatur/bin/python -c 'import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parents[1])') \
 && PATH="/opt/imprimatur/bin:$PATH" python -m grpc_tools.protoc -Iprotos -I"$include" \
      --python_out=services --grpc_python_out=services protos/imprimatur/v1/*.proto \
 && touch services/imprimatur/v1/__init__.py \
 && /opt/imprimatur/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/imprimatur/bin/pip uninstall --yes check-jsonschema contourpy cycler fonttools grpcio-tools hypothesis import-linter \
      kiwisolver kubernetes-validate matplotlib mypy mypy-protobuf pytest pytest-asyncio pytest-timeout pytest-xdist ruff

FROM python:3.13-slim-bookworm
COPY --from=build /opt/imprimatur /opt/imprimatur
ENV PATH="/opt/imprimatur/bin:$PATH" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin imprimatur
USER 10001:10001
EXPOSE 7443 9101 9102 9103
ENTRYPOINT ["imprimatur"]
CMD ["--help"]
