#!/bin/sh
# contain.sh ROOT MODELS COMMAND...: runs it as an engine runs an image: nothing can be written but a scratch folder and
# /tmp, as user 65532 without capabilities. Under `unshare --mount --pid --fork`.
set -eu
root=$1 models=$2
shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 none "$root/tmp"
mount -t tmpfs -o uid=65532,gid=65532,mode=700 none "$root/var/lib/ferryman"
mount -t tmpfs -o mode=755 none "$root/dev"   # as engines make it, but for /dev/shm
for device in null zero random urandom; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mount -t proc none "$root/proc"
mount --bind "$models" "$root/models"
mount -o remount,bind,ro "$root/models"
exec setpriv --no-new-privs \
  chroot --userspec=65532:65532 "$root" "$@"
