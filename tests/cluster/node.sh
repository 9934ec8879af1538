#!/bin/sh
# Runs a Kubernetes of one node for as long as somebody holds the other end of its input. Only below `inside`, which
# leaves nothing of it behind.
#
# node.sh PROGRAMS IMAGES DIRECTORY. IMAGES has an archive for each image that the node shall have. Its input has an order a line, each answered by a line:
#   up                   starts everything; answered once the node is ready
#   start NAME           answered by the process id
#   signal NAME SIGNAL
#   kill NAME            and waits for its end
# where NAME is etcd, api, manager, scheduler, proxy, containerd or kubelet.
programs=$1 images=$2 directory=$3 etcd='' api='' manager='' scheduler='' proxy='' containerd='' kubelet=''
node=10.245.0.1 services=10.96.0.0/16 pods=10.244.0.0/16
export KUBECONFIG="$directory/admin.conf"
trap '' PIPE HUP
cd "$directory" || exit 1

run() {
  name=$1
  shift
  "$@" </dev/null >>"$name.log" 2>&1 &
  eval "$name=$!"
  echo "$!"
}

# A kubeconfig for a user of tokens.csv.
identity() {
  user=$1 groups=$2
  token=$(openssl rand -hex 16)
  printf '%s,%s,%s,"%s"\n' "$token" "$user" "$user" "$groups" >>tokens.csv
  cat >"$3" <<END
apiVersion: v1
kind: Config
clusters:
  - {name: cluster, cluster: {server: "https://$node:6443", certificate-authority: $directory/api/apiserver.crt}}
users:
  - {name: user, user: {token: $token}}
contexts:
  - {name: context, context: {cluster: cluster, user: user}}
current-context: context
END
}

write() {
  umask 022
  openssl genrsa -out accounts.key 2048 2>/dev/null
  openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
  identity admin system:masters admin.conf
  identity system:kube-controller-manager '' manager.conf
  identity system:kube-scheduler '' scheduler.conf
  identity system:kube-proxy '' proxy.conf
  identity system:node:node system:nodes kubelet.conf
  mkdir cni
  cat >cni/bridge.conflist <<END
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  cat >containerd.toml <<END
version = 2
root = "$directory/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$directory/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
END
  cat >kubelet.yaml <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
evictionHard: {}
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
resolvConf: ""
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
podLogsDir: $directory/logs
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
END
}

start() {
  case $1 in
    etcd)
      run etcd "$programs/etcd" --data-dir="$directory/etcd" --unsafe-no-fsync --log-level=warn
      ;;
    # Its certificate is one that it makes.
    api)
      run api "$programs/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 \
        --advertise-address="$node" --cert-dir="$directory/api" \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=accounts.pub \
        --service-account-signing-key-file=accounts.key --token-auth-file=tokens.csv --authorization-mode=Node,RBAC \
        --enable-admission-plugins=NodeRestriction --service-cluster-ip-range="$services" --allow-privileged=true \
        --kubelet-preferred-address-types=InternalIP --profiling=false
      ;;
    manager)
      run manager "$programs/kube-controller-manager" --kubeconfig=manager.conf --leader-elect=false \
        --use-service-account-credentials=true --service-account-private-key-file=accounts.key \
        --root-ca-file=ca.crt --profiling=false
      ;;
    scheduler) run scheduler "$programs/kube-scheduler" --kubeconfig=scheduler.conf --leader-elect=false ;;
    proxy)
      run proxy "$programs/kube-proxy" --kubeconfig=proxy.conf --hostname-override=node --cluster-cidr="$pods" \
        --proxy-mode=iptables --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
        --conntrack-tcp-timeout-close-wait=0
      ;;
    containerd) run containerd containerd --config "$directory/containerd.toml" ;;
    kubelet)
      run kubelet "$programs/kubelet" --config=kubelet.yaml --kubeconfig=kubelet.conf --hostname-override=node \
        --node-ip="$node" --root-dir="$directory/kubelet" --cert-dir="$directory/kubelet-certificates"
      ;;
  esac
}

# Waits until a command succeeds while a program runs.
until_it() {
  name=$1
  shift
  eval "process=\$$name"
  for _ in $(seq 600); do
    "$@" >/dev/null 2>&1 && return
    kill -0 "$process" 2>/dev/null || break
    sleep 0.2
  done
  fail "$name is not ready: $(grep -v '^I' "$name.log" | tail -n 3 | tr '\n' ' ')"
}

fail() {
  echo "$1"
  exit 1
}

up() {
  write
  start etcd >&3
  start api >&3
  start containerd >&3
  until_it containerd ctr version
  for archive in "$images"/*.tar; do
    ctr --namespace k8s.io images import "$archive" >/dev/null 2>>import.log || fail "$archive cannot be imported: $(tail -n 1 import.log)"
  done
  until_it api "$programs/kubectl" get --raw /readyz
  # Behind the certificate is the one of the authority that it is of.
  awk '/BEGIN/ { n++ } n == 2' api/apiserver.crt >ca.crt
  start manager >&3
  start scheduler >&3
  start kubelet >&3
  start proxy >&3
  until_it kubelet "$programs/kubectl" wait --for=condition=Ready node/node --timeout=1s
}

finish() {
  kill -KILL "$1"
  wait "$1" 2>/dev/null
}

exec 3>>"$directory/orders.log"
while read -r order name signal; do
  eval "process=\$$name"
  case $order in
    up) up; echo ready ;;
    start) start "$name" ;;
    signal) kill "-$signal" "$process"; echo done ;;
    kill) finish "$process"; eval "$name="; echo done ;;
  esac
done
