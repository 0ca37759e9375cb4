# syntax=docker/dockerfile:1
# From checkpoints to bundles on a processor, x86-64 or arm64:
#   docker build -f docker/export.Dockerfile -t ferryman/export .
#   docker run --read-only --tmpfs /tmp --user "$(id -u)" -v "$PWD/models:/models" ferryman/export export vit-digits -o /models
# Only the first stage has a shell. Pin its base by digest where the same bytes must come out next year too.
FROM debian:12-slim AS build
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3.11 python3-pip
WORKDIR /source
COPY . .
RUN sh docker/root.sh /root-of-image export
# The CPU build of PyTorch lies in PyTorch's own index alone, and is pinned by its version: a hash of yours goes behind it.
ARG TORCH="torch==2.13.0"
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN echo "${TORCH}" >/torch.txt \
 && python3.11 -m pip install --no-cache-dir --no-compile --no-deps --only-binary :all: --index-url "${TORCH_INDEX}" \
      --target /root-of-image/opt/ferryman/lib --requirement /torch.txt \
 && python3.11 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /root-of-image -p / \
      /root-of-image/opt/ferryman/lib/torch \
 && rm -rf /root-of-image/opt/ferryman/lib/bin

# checkov:skip=CKV_DOCKER_2: a command that ends, not a service
FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ferryman export" \
      org.opencontainers.image.description="Carries ViT, DINOv2 and DETR checkpoints from PyTorch to ONNX and OpenVINO" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /root-of-image /
ENV PYTHONPATH=/opt/ferryman/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib
USER 65532:65532
WORKDIR /models
VOLUME ["/models"]
ENTRYPOINT ["/usr/bin/python3.11", "-P", "-m", "ferryman"]
CMD ["--help"]
