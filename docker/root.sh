#!/bin/sh
# Builds the root of an image in a folder: Debian's packages of packages.txt, and Ferryman with what it needs.
#
#   sh docker/root.sh ROOT server|export [OPTIONS OF pip]
#
# On Debian 12, as root, after `apt-get update`. No shell and no package manager are in it; its user is 65532. Dockerfiles
# copy it into an empty image; the tests run it without a container engine. ARCH names another architecture of Debian's,
# such as arm64, whose wheels the options of pip must ask for.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=${1:?a folder} what=${2:?a file of docker/requirements} arch=${ARCH:-$(dpkg --print-architecture)}
python=${PYTHON:-python3.11}
shift 2
[ ! -e "$root" ] || { echo "root.sh: $root is there already" >&2; exit 1; }
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
umask 022

# Programs and libraries lie under /usr alone, as on every Debian since 12.
mkdir -p "$root/usr/bin" "$root/usr/lib" "$root/usr/lib64" "$root/usr/sbin" "$root/var/lib/dpkg/status.d"
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$root/$name"; done
grep -v '^#' "$here/packages.txt" | sed "s/\$/:$arch/" >"$packages/names"
chmod 777 "$packages"   # apt downloads as a user of its own
(cd "$packages" && xargs apt-get -qq download <names)
for package in "$packages"/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
  # Where scanners look for what is installed.
  dpkg-deb --field "$package" >"$root/var/lib/dpkg/status.d/$(dpkg-deb --field "$package" Package)"
done
(cd "$root/usr/share" && rm -rf man info lintian locale bug doc-base && find doc -type f ! -name copyright -delete)
[ -e "$root/usr/bin/python3" ] || ln -s python3.11 "$root/usr/bin/python3"

mkdir -p "$root/models" "$root/tmp" "$root/var/lib/ferryman" "$root/var/cache/ferryman" "$root/proc" "$root/dev" "$root/sys"
chmod 1777 "$root/tmp"
echo 'root:x:0:0:root:/:/nonexistent
ferryman:x:65532:65532:ferryman:/var/lib/ferryman:/nonexistent' >"$root/etc/passwd"
echo 'root:x:0:
ferryman:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
chown -R 65532:65532 "$root/var/lib/ferryman" "$root/var/cache/ferryman"

PYTHON=$python sh "$here/install.sh" "$root/opt/ferryman/lib" "$what" "$@"
# The same bytes from the same packages: compiled by content, no paths of this machine, no times.
for lib in /opt/ferryman/lib /usr/lib/python3.11; do
  find "$root$lib" -name __pycache__ -prune -exec rm -rf {} +
  "$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$root" -p / "$root$lib" || true
done
find "$root" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-0}" {} +
