#!/bin/sh
# Certificates for the hops of compose.yaml, of an authority of one's own: certificates.sh FOLDER NAME...
# NAME: under which clients reach Envoy, beside localhost. Clients trust FOLDER/ca.pem. Doing it again renews both
# certificates with the authority that is there; servers take them at once, Envoy when it is started again.
set -eu
umask 077
folder=$1
shift
mkdir -p "$folder"
cd "$folder"

if [ ! -e ca.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout ca.key -out ca.pem -days 3650 \
        -subj '/CN=Ferryman fleet' -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign'
fi

issue() { # NAME, and the names that it proves
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout "$1.new" -subj "/CN=$1" |
        openssl x509 -req -CA ca.pem -CAkey ca.key -days 90 -out "$1.pem.new" -extfile /dev/fd/3 3<<EOF
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=$2
EOF
    mv "$1.new" "$1.key"
    mv "$1.pem.new" "$1.pem"
}

names=DNS:envoy,DNS:localhost,IP:127.0.0.1
for name; do names=$names,DNS:$name; done
issue envoy "$names"
issue server DNS:server,DNS:localhost,IP:127.0.0.1
chmod 644 ca.pem envoy.pem server.pem

# The user of both images. The authority's key belongs to neither: keep it elsewhere.
if [ "$(id -u)" = 0 ]; then
    chown 65532 . envoy.key server.key
fi
