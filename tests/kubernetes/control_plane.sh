#!/bin/sh
# Runs etcd and kube-apiserver for as long as somebody holds the other end of its input, however that one ends, and
# then leaves nothing behind: no process and no directory.
#
# control_plane.sh PROGRAMS DIRECTORY PORT. Its input has an order a line, each answered by a line:
#   start NAME           answered by the process id
#   signal NAME SIGNAL
#   kill NAME            and waits for its end
# where NAME is etcd or api.
programs=$1 directory=$2 port=$3 etcd='' api=''
# No reasons to end: an answer that nobody hears, and the kernel's signal to a group that nobody waits for any more while
# one of it, such as etcd, stands still.
trap '' PIPE HUP

run() {
  name=$1
  shift
  "$@" </dev/null >>"$name.log" 2>&1 &
  eval "$name=$!"
  echo "$!"
}

# What a test of the API needs, and nothing that takes time. Unix sockets, since nobody can take their place.
start() {
  cd "$directory" || exit 1
  case $1 in
    etcd)
      run etcd "$programs/etcd" --data-dir="$directory/data" --unsafe-no-fsync --log-level=warn \
        --listen-client-urls="unix://$directory/etcd.sock" --advertise-client-urls="unix://$directory/etcd.sock" \
        --listen-peer-urls="unix://$directory/peer.sock" --initial-advertise-peer-urls="unix://$directory/peer.sock" \
        --initial-cluster="default=unix://$directory/peer.sock"
      ;;
    api)
      run api "$programs/kube-apiserver" --etcd-servers="unix://$directory/etcd.sock" --bind-address=127.0.0.1 \
        --secure-port="$port" --tls-cert-file=server.pem --tls-private-key-file=server.key \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=accounts.pub \
        --service-account-signing-key-file=accounts.key --token-auth-file=tokens.csv --authorization-mode=RBAC \
        --service-cluster-ip-range=10.96.0.0/24 --endpoint-reconciler-type=none --enable-priority-and-fairness=false \
        --profiling=false -v=1
      ;;
  esac
  cd /
}

finish() {
  kill -KILL "$1"
  wait "$1"
}

while read -r order name signal; do
  eval "process=\$$name"
  case $order in
    start) start "$name" ;;
    signal) kill "-$signal" "$process"; echo done ;;
    kill) finish "$process"; eval "$name="; echo done ;;
  esac
done 2>/dev/null

for process in $api $etcd; do
  finish "$process"
done 2>/dev/null
rm -rf "$directory"
