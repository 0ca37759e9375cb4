#!/bin/sh
# boot.sh ROOT WORK: lays the files of ROOT over this system, in WORK, and boots the whole with systemd until ask.sh is
# done, in namespaces of its own and without network. What it wrote to /srv lies in WORK/srv. As root, under `unshare -m`.
set -eu
root=$1 work=$2
mount -t tmpfs boot "$work"
mkdir "$work/low" "$work/upper" "$work/own" "$work/whole"
cp -a "$root/." "$work/upper/"
mount --bind / "$work/low"
mount -t overlay boot -o "lowerdir=$work/low,upperdir=$work/upper,workdir=$work/own" "$work/whole"
timeout --kill-after=10 150 systemd-nspawn --quiet --directory="$work/whole" --register=no --keep-unit --private-network --boot \
  systemd.unit=asking.service </dev/null >"$root/console" 2>&1 || true
mkdir -p "$root/out"
cp "$work/whole"/srv/* "$root/out/" 2>/dev/null || true
journalctl --directory="$work/whole/var/log/journal" --unit=ferryman.service --no-pager >"$root/out/log" 2>&1 || true
