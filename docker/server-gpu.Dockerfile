# syntax=docker/dockerfile:1
# The server on NVIDIA's GPUs, x86-64, with CUDA and cuDNN from wheels that are checked by hash like all others; the driver is
# the machine's, which NVIDIA's container toolkit puts in. It never ran: docs/deploy.md, "Images".
#   docker build -f docker/server-gpu.Dockerfile -t ferryman/server-gpu .
# Only the first stage has a shell. Pin its base by digest where the same bytes must come out next year too.
FROM debian:12-slim AS build
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3.11 python3-pip
WORKDIR /source
COPY . .
RUN sh docker/root.sh /root-of-image server-gpu
# TensorRT lies in NVIDIA's own index alone, and is pinned by its version. 10, as ONNX Runtime's provider was linked with it.
ARG TENSORRT=10.16.1.11
ARG TENSORRT_INDEX=https://pypi.nvidia.com
RUN python3.11 -m pip install --no-cache-dir --no-compile --no-deps --only-binary :all: --index-url "${TENSORRT_INDEX}" \
      --target /root-of-image/opt/ferryman/lib \
      "tensorrt-cu13==${TENSORRT}" "tensorrt-cu13-bindings==${TENSORRT}" "tensorrt-cu13-libs==${TENSORRT}"

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ferryman server-gpu" \
      org.opencontainers.image.description="Serves ViT, DINOv2 and DETR over gRPC on NVIDIA's GPUs" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-Proprietary" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /root-of-image /
# TARGET: a variant of the bundles for a GPU. Engines of `ferryman build` lie in the bundle, those of ONNX Runtime's TensorRT
# in XDG_CACHE_HOME: a volume there spares each start minutes.
ENV PYTHONPATH=/opt/ferryman/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LD_LIBRARY_PATH=/opt/ferryman/lib/nvidia/cu13/lib:/opt/ferryman/lib/nvidia/cudnn/lib:/opt/ferryman/lib/tensorrt_libs \
    HOME=/tmp \
    XDG_CACHE_HOME=/var/cache/ferryman \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
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
  CMD ["/usr/bin/python3.11", "-P", "-m", "ferryman", "health", "127.0.0.1:8001"]
ENTRYPOINT ["/usr/bin/python3.11", "-P", "-m", "ferryman"]
CMD ["serve"]
