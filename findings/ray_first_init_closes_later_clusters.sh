#!/bin/sh
# One ray.init() on a machine changes what `ray start --head` and ray.init("HOST:PORT") of the same user do from then on.
# It leaves a token in ~/.ray. The next `ray start --head` asks for it, and ray.init("HOST:PORT") does not send it without RAY_AUTH_MODE=token.
# Before: ray.init("127.0.0.1:PORT") connects. After one local ray.init() and ray.shutdown(), the same two commands: it is refused.
set -eu
work=$(mktemp -d)
mkdir "$work/home"
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" "ray==2.60.0"
cd "$work"
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH RAY_ADDRESS
export HOME="$work/home" PYTHONPATH="$work/packages" RAY_gcs_server_port_wait_time_s=3
cat >connect.py <<'PYTHON'
import sys

import ray

small = {} if sys.argv[1] != "local" else {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
try:
    ray.init(sys.argv[1], log_to_driver=False, **small)
    print("connected")
    ray.shutdown()
except ConnectionError:
    print("refused")
PYTHON
cluster() { # connects to a cluster of its own, as it is and with RAY_AUTH_MODE=token
  port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
  python3 -c 'import sys; from ray.scripts.scripts import main; sys.exit(main())' start --head --block --port="$port" \
    --node-ip-address=127.0.0.1 --num-cpus=1 --object-store-memory=100000000 --include-dashboard=false --temp-dir="$work/ray$port" \
    --disable-usage-stats >start.log 2>&1 &
  started=$!
  for second in $(seq 120); do
    grep -q "Ray runtime started" start.log && break
    sleep 1
  done
  explicit=$(python3 connect.py "127.0.0.1:$port" 2>>log)
  [ -e "$HOME/.ray/auth_token" ] && with_mode=$(RAY_AUTH_MODE=token python3 connect.py "127.0.0.1:$port" 2>>log)
  kill "$started"
  wait "$started" || true
}
cluster
before="$explicit"
python3 connect.py local >/dev/null 2>>log
cluster
version=$(python3 -c 'import ray; print(ray.__version__)')
echo "ray $version: ray.init(\"127.0.0.1:PORT\") of \`ray start --head\`: $before; after one local ray.init(): $explicit; with RAY_AUTH_MODE=token: $with_mode"
[ "$before $explicit $with_mode" = "connected refused connected" ] || { cat log start.log; exit 1; }
