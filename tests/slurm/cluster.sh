#!/usr/bin/env bash
# A SLURM cluster on this machine for the tests marked `slurm`; from Debian's packages slurm-wlm and munge.
# Needs no root: the daemons run as the user who calls, on ports and with a key of their own.
#   eval "$(tests/slurm/cluster.sh start)"   starts it, or finds it running, and sets SLURM_CONF
#   tests/slurm/cluster.sh stop              ends it
# SLURM_TEST_NODES is how many nodes it has, by default 1: each a slurmd of its own, all on this machine. SLURM_TEST_DIR is where
# its files lie, by default a folder of the user's under /tmp; SLURM_TEST_PORT is the first of its ports, one more than nodes.
set -euo pipefail
dir=${SLURM_TEST_DIR:-/tmp/slurm-test-$(id -u)}
port=${SLURM_TEST_PORT:-17117}
count=${SLURM_TEST_NODES:-1}
export SLURM_CONF=$dir/slurm.conf

# nproc counts the threads that OpenMP may take, where a variable says how many.
cpus() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc; }

configure() {
  mkdir -p -m 700 "$dir" "$dir/state"
  [[ -s $dir/munge.key ]] || (umask 077; head -c 1024 /dev/urandom >"$dir/munge.key")
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
KillWait=10
$(nodes)
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
CONF
}

# Processes of a job meet at the name of its first node, which must lead somewhere: an address does.
nodes() {
  local number
  for number in $(seq "$count"); do
    echo "NodeName=127.0.0.$number NodeHostname=$(hostname -s) NodeAddr=127.0.0.$number" \
      "Port=$((port + number)) CPUs=$(cpus) State=UNKNOWN"
  done
}

running() { [[ -f $dir/$1.pid ]] && kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null; }

start() {
  configure
  running munged || munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" >&2
  running slurmctld || slurmctld >&2
  for number in $(seq "$count"); do
    running "slurmd-127.0.0.$number" && continue
    mkdir -p "$dir/spool-127.0.0.$number"
    slurmd -N "127.0.0.$number" >&2
  done
  for _ in $(seq 60); do
    if (($(sinfo --noheader --Node --format=%T 2>/dev/null | grep -cE 'idle|mixed|allocated') == count)); then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.5
  done
  echo "The cluster did not come up; see $dir/*.log" >&2
  exit 1
}

stop() {
  local file
  for file in "$dir"/{slurmd-*,slurmctld,munged}.pid; do
    if running "$(basename "$file" .pid)"; then kill "$(cat "$file")"; fi
  done
}

case ${1:-} in
  start | stop) "$1" ;;
  *) sed -n '2,8p' "$0"; exit 2 ;;
esac
