#!/bin/sh
# Installs Ferryman as a service of systemd: `sudo sh docker/edge/install.sh`, from a clone or an unpacked source archive.
# Doing it again upgrades. `--uninstall` removes what this installed, and leaves the configuration and the models.
#
#   --root DIR       install into a system that lies there (an image being built); starts nothing
#   --python PYTHON  the interpreter, by default python3; 3.11 to 3.13
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
source=$(CDPATH='' cd -- "$here/../.." && pwd)
root='' python=python3 uninstall=''
say() { echo "==> $*"; }
die() { echo "install.sh: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --root) root=${2:?--root needs a folder}; shift 2 ;;
    --python) python=${2:?--python needs an interpreter}; shift 2 ;;
    --uninstall) uninstall=yes; shift ;;
    *) die "$1 is no option; see the head of this file" ;;
  esac
done
prefix=$root/opt/ferryman unit=$root/etc/systemd/system/ferryman.service
config=$root/etc/ferryman/ferryman.toml models=$root/srv/ferryman/models
# A systemd that runs here, and serves this system and not one that lies in a folder.
running() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || die "it writes to /opt and /etc: run it as root"

if [ -n "$uninstall" ]; then
  if running && [ -e "$unit" ]; then systemctl disable --now ferryman.service; fi
  rm -rf "$prefix" "$unit"
  if running; then systemctl daemon-reload; fi
  say "Removed $prefix and $unit"
  say "Left alone: $config, $models and /var/lib/ferryman, the certificates"
  exit 0
fi

"$python" -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
  die "$python is not Python 3.11 to 3.13 with pip (Debian: apt install python3-pip); name one by --python"
python=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
case $python in /home/* | /root/*) die "$python lies in a home, which the service can't see; name another by --python" ;; esac

say "Installing Ferryman and what it needs, checked by hash, in $prefix"
new=$prefix.new
rm -rf "$new"
trap 'rm -rf "$new"' EXIT
PYTHON=$python sh "$source/docker/install.sh" "$new/lib" server
"$python" -m compileall -q -j 0 "$new/lib" || true   # templates of numpy's that are no Python
mkdir -p "$new/bin" "$(dirname "$unit")" "$(dirname "$config")" "$models"
cat >"$new/bin/ferryman" <<END
#!/bin/sh
PYTHONPATH=/opt/ferryman/lib exec $python -P -m ferryman "\$@"
END
chmod 755 "$new/bin/ferryman"
if running; then systemctl stop ferryman.service 2>/dev/null || true; fi
rm -rf "$prefix"
mv "$new" "$prefix"

say "Installing the service, $unit"
install -m 644 "$here/ferryman.service" "$unit"
if [ -e "$config" ]; then say "Leaving $config as it is"; else
  say "Writing the settings, $config"
  install -m 644 "$here/ferryman.toml" "$config"
fi
if ! running; then
  say "No systemd runs here: 'systemctl enable --now ferryman' starts the service where one does"
  exit 0
fi
systemctl daemon-reload
systemctl enable --quiet ferryman.service
if [ -z "$(ls "$models")" ]; then
  say "Enabled. Put models in $models (NAME/VERSION/...), then: systemctl start ferryman"
else
  systemctl restart ferryman.service
  say "Serving; 'journalctl -u ferryman' is its log"
fi
