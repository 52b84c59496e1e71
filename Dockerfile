# For a CPU:  docker build -t sslkit .
# For a GPU:  docker build -t sslkit --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run:        docker run --rm -v "$PWD:/work" --shm-size 2g sslkit pretrain rotation --data photos
#             and --gpus all for a GPU; --user "$(id -u):$(id -g)" writes files as you
FROM python:3.11-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim
# Triton, with which torch.compile works on a GPU, needs a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=all
# Before sslkit, so that a change of sslkit does not load torch again.
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.9" "torchvision>=0.24"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/sslkit-*.whl)${EXTRAS:+[$EXTRAS]}" && rm -r /wheels \
    && useradd --create-home --uid 1000 sslkit \
    && mkdir --mode=1777 /cache /work
# Torch asks for the user's name, which is unknown with --user.
ENV SSLKIT_CACHE=/cache/sslkit USER=sslkit
VOLUME /cache
WORKDIR /work
USER 1000
ENTRYPOINT ["sslkit"]
CMD ["--help"]
