#!/bin/sh
# Inside the system that boot.sh starts: asks the service, hangs it, and asks what its watchdog started instead.
set -eu
ask() { /opt/ferryman/bin/ferryman detect /srv/picture.png --address 127.0.0.1:8001 --model toy-detector --json >"$1"; }
show() { systemctl show ferryman.service --property=NRestarts,StatusText,User,MainPID,ActiveState; }
ask /srv/first.json
show >/srv/before
systemctl kill --signal=STOP ferryman.service
until [ "$(systemctl show ferryman.service --property=NRestarts --value)" = 1 ]; do sleep 0.2; done
until systemctl --quiet is-active ferryman.service; do sleep 0.2; done
ask /srv/second.json
show >/srv/after
find /var/lib/private/ferryman/certificates -type f >/srv/certificates
