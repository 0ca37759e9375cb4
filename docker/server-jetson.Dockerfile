# syntax=docker/dockerfile:1
# The server on a Jetson with JetPack 7, whose TensorRT and CUDA are those of NVIDIA's image for arm64. It never ran:
# docs/deploy.md, "Images". JetPack 6 brings TensorRT for Python 3.10 alone, which is older than what Ferryman runs on.
#   docker build --platform linux/arm64 -f docker/server-jetson.Dockerfile -t ferryman/server-jetson .
# TensorRT 10.13, CUDA 13 and Python 3.12, on Ubuntu 24.04. Take the tag that fits the board's JetPack, and pin it by digest.
ARG BASE=nvcr.io/nvidia/tensorrt:25.08-py3
# checkov:skip=CKV_DOCKER_7: the tag stands in BASE
# hadolint ignore=DL3006
FROM ${BASE} AS build
SHELL ["/bin/sh", "-eu", "-c"]
WORKDIR /source
COPY . .
RUN PYTHON=python3.12 sh docker/install.sh /opt/ferryman/lib server-jetson \
 && python3.12 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/ferryman/lib

# NVIDIA's image has a shell and a package manager; nothing here needs them.
# hadolint ignore=DL3006
FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ferryman server-jetson" \
      org.opencontainers.image.description="Serves ViT, DINOv2 and DETR over gRPC on NVIDIA's Jetson" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-Proprietary" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/ferryman/lib /opt/ferryman/lib
RUN mkdir -p /models && install -d -o 65532 -g 65532 /var/lib/ferryman /var/cache/ferryman
ENV PYTHONPATH=/opt/ferryman/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/var/cache/ferryman \
    FERRYMAN_SERVE_REPOSITORY=/models \
    FERRYMAN_SERVE_ADDRESS=0.0.0.0:8001 \
    FERRYMAN_SERVE_METRICS_ADDRESS=0.0.0.0:8002 \
    FERRYMAN_SERVE_CERTIFICATES=/var/lib/ferryman \
    FERRYMAN_SERVE_CERTIFY=true \
    FERRYMAN_SERVE_LOG_FORMAT=json
USER 65532:65532
WORKDIR /tmp
EXPOSE 8001 8002
VOLUME ["/models"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=1800s --start-interval=5s \
  CMD ["/usr/bin/python3.12", "-P", "-m", "ferryman", "health", "127.0.0.1:8001"]
ENTRYPOINT ["/usr/bin/python3.12", "-P", "-m", "ferryman"]
CMD ["serve"]
