#!/bin/sh
# Puts Ferryman and what it needs into one folder for PYTHONPATH, every package a wheel that is checked by its hash:
#
#   sh docker/install.sh LIB server|export|... [OPTIONS OF pip]
#
# The second names a file of docker/requirements. PYTHON names the interpreter that installs, by default python3, with pip.
# Images, the service of docker/edge and the tests all install by this.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
lib=${1:?a folder} what=${2:?a file of docker/requirements} python=${PYTHON:-python3}
shift 2
requirements=$here/requirements/$what.txt
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
mkdir -p "$lib"

pip() { "$python" -m pip --disable-pip-version-check --quiet install --root-user-action ignore \
  --no-compile --only-binary :all: "$@"; }
pip --target "$build/tools" --require-hashes --requirement "$here/requirements/build.txt"
pip --target "$lib" --require-hashes --requirement "$requirements" "$@"
(cd "$here/.." && PYTHONPATH=$build/tools "$python" -m hatchling build --target wheel --directory "$build")
rm -rf "${lib:?}/bin"   # commands that name the interpreter of this machine
pip --target "$lib" --no-deps --no-index "$build"/ferryman-*.whl
rm -rf "${lib:?}/bin" "$lib"/ferryman-*.dist-info/direct_url.json   # a path of this machine
