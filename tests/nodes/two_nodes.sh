#!/usr/bin/env bash
# Two nodes on this machine, made of Linux namespaces; from util-linux and iproute2, as root.
# Each node has a name (node1, node2), a network (10.203.0.1, 10.203.0.2, joined by one cable), processes, /tmp and /dev/shm of its
# own. Both see this machine's files, which they cannot change, and share one folder that both write to: DIR/shared.
#   tests/nodes/two_nodes.sh start DIR           starts both
#   tests/nodes/two_nodes.sh run DIR 1 COMMAND   runs a command on node 1, in the shared folder; ends with its exit code
#   tests/nodes/two_nodes.sh lose DIR 2          ends node 2 with all its processes, at once, as a power cut does
#   tests/nodes/two_nodes.sh stop DIR            ends both
# A node that nobody stops ends by itself after half an hour.
set -euo pipefail
seconds=1800
repository=$(cd "$(dirname "$0")/../.." && pwd)

running() { [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null; }

# What a node does first, in its new namespaces: `boot DIR NUMBER`.
boot() {
  local dir=$1 number=$2
  hostname "node$number"
  ip link set lo up
  mount -n -t tmpfs tmpfs /mnt # the shared folder and the repository may lie below /tmp, which each node has for itself
  mkdir /mnt/shared /mnt/repository
  mount -n --bind "$dir/shared" /mnt/shared
  mount -n --bind "$repository" /mnt/repository
  mount -n -o remount,bind,ro /mnt/repository
  mount -n --bind "$dir/hosts" /etc/hosts
  mount -n -o remount,bind,ro /
  mount -n -t tmpfs tmpfs /tmp
  mount -n -t tmpfs tmpfs /dev/shm
  for path in "$dir/shared" "$repository"; do
    if [[ $path == /tmp/* ]]; then mkdir -p "$path"; fi
  done
  mount -n --move /mnt/repository "$repository"
  mount -n --move /mnt/shared "$dir/shared"
  umount -n /mnt
  touch "$dir/shared/.node$number"
  sleep "$seconds" & # the shell waits, and so takes what daemons leave
  wait $!
}

start() {
  local dir=$1 number
  mkdir -p "$dir/shared"
  printf '127.0.0.1 localhost\n10.203.0.1 node1\n10.203.0.2 node2\n' >"$dir/hosts"
  for number in 1 2; do
    setsid unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc \
      "$BASH" "$0" boot "$dir" "$number" >"$dir/node$number.log" 2>&1 </dev/null &
    local holder=$!
    for _ in $(seq 100); do
      [[ -e $dir/shared/.node$number ]] && break
      kill -0 "$holder" 2>/dev/null || { cat "$dir/node$number.log" >&2; exit 1; }
      sleep 0.1
    done
    rm "$dir/shared/.node$number"
    tr -d ' ' <"/proc/$holder/task/$holder/children" >"$dir/node$number.pid"
  done
  ip link add eth0 netns "$(<"$dir/node1.pid")" type veth peer name eth0 netns "$(<"$dir/node2.pid")"
  for number in 1 2; do
    run "$dir" "$number" ip address add "10.203.0.$number/32" dev lo # stays when the other node takes the cable with it
    run "$dir" "$number" ip address add "10.203.0.$number/24" dev eth0
    run "$dir" "$number" ip link set eth0 up
  done
}

run() {
  local dir=$1 pid
  pid=$(<"$dir/node$2.pid")
  shift 2
  # a home of its own, and the network that the nodes share: others than `lo` are looked for by some, and not by all
  env HOME=/tmp GLOO_SOCKET_IFNAME=eth0 \
    nsenter --target "$pid" --net --uts --ipc --mount --pid --wd="$dir/shared" -- "$@"
}

lose() {
  local file=$1/node$2.pid
  if running "$file"; then
    run "$1" "$2" ip link set eth0 down 2>/dev/null || true # first, so that no process on it can close its connections
    kill -9 "$(<"$file")"
  fi
  rm -f "$file"
}

stop() { lose "$1" 1; lose "$1" 2; }

case ${1:-} in
  boot | start | run | lose | stop) "$@" ;;
  *) sed -n '2,9p' "$0"; exit 2 ;;
esac
