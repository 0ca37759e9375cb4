# syntax=docker/dockerfile:1
# Models alone, as an image volume or KServe's OCI storage mounts them; the context is a model repository:
#   docker build -f docker/models.Dockerfile -t ferryman/models:1 models
# checkov:skip=CKV_DOCKER_2: it holds files, and runs nothing
# checkov:skip=CKV_DOCKER_3: the same
FROM scratch
COPY . /
