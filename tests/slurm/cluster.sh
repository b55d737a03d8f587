#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, for the tests marked `slurm`; from Debian's packages slurm-wlm and munge.
# Needs no root: the daemons run as the user who calls, on ports and with a key of their own.
#   eval "$(tests/slurm/cluster.sh start)"   starts it, or finds it running, and sets SLURM_CONF
#   tests/slurm/cluster.sh stop              ends it
# SLURM_TEST_DIR is where its files lie, by default a folder of the user's under /tmp; SLURM_TEST_PORT is the first of two ports.
set -euo pipefail
dir=${SLURM_TEST_DIR:-/tmp/slurm-test-$(id -u)}
port=${SLURM_TEST_PORT:-17117}
export SLURM_CONF=$dir/slurm.conf

# nproc counts the threads that OpenMP may take, where a variable says how many.
cpus() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc; }

configure() {
  mkdir -p -m 700 "$dir" "$dir/state" "$dir/spool"
  [[ -s $dir/munge.key ]] || (umask 077; head -c 1024 /dev/urandom >"$dir/munge.key")
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
KillWait=10
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(cpus) State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
CONF
}

running() { [[ -f $dir/$1.pid ]] && kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null; }

start() {
  configure
  running munged || munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" >&2
  running slurmctld || slurmctld >&2
  running slurmd || slurmd >&2
  for _ in $(seq 60); do
    if sinfo --noheader --format=%T 2>/dev/null | grep -qE 'idle|mixed|allocated'; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.5
  done
  echo "The cluster did not come up; see $dir/*.log" >&2
  exit 1
}

stop() {
  for daemon in slurmd slurmctld munged; do
    if running "$daemon"; then kill "$(cat "$dir/$daemon.pid")"; fi
  done
}

case ${1:-} in
  start | stop) "$1" ;;
  *) sed -n '2,6p' "$0"; exit 2 ;;
esac
