# syntax=docker/dockerfile:1
# The server on a processor, x86-64 or arm64:
#   docker build -f docker/server-cpu.Dockerfile -t ferryman/server-cpu .
# Only the first stage has a shell. Pin its base by digest where the same bytes must come out next year too.
FROM debian:12-slim AS build
SHELL ["/bin/sh", "-eu", "-c"]
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3.11 python3-pip
WORKDIR /source
COPY . .
RUN sh docker/root.sh /root-of-image server

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ferryman server-cpu" \
      org.opencontainers.image.description="Serves ViT, DINOv2 and DETR over gRPC, and proves that nothing was lost" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /root-of-image /
ENV PYTHONPATH=/opt/ferryman/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MALLOC_ARENA_MAX=1 \
    MALLOC_TRIM_THRESHOLD_=65536 \
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
# By the loopback address of the container: with TLS there, name `--ca` too. Kubernetes' own gRPC probe is cheaper.
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --start-interval=2s \
  CMD ["/usr/bin/python3.11", "-P", "-m", "ferryman", "health", "127.0.0.1:8001"]
ENTRYPOINT ["/usr/bin/python3.11", "-P", "-m", "ferryman"]
CMD ["serve"]
