#!/bin/sh
# A Ray head on this machine, with its dashboard and Jobs API on http://127.0.0.1:8265, until Ctrl-C.
#
#   cluster/local-head.sh                     # from .venv, or from the environment that is active
#   DASHBOARD_PORT=8300 cluster/local-head.sh --num-cpus=4 --temp-dir=/tmp/r2
#
# More arguments go to `ray start`. A second head on one machine needs its own PORT, DASHBOARD_PORT, --temp-dir and
# --dashboard-agent-listen-port.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$root/.venv/bin/ray" ]; then
  PATH="$root/.venv/bin:$PATH"  # jobs get the head's PATH, and run the first `python` in it
fi
if ! command -v ray >/dev/null; then
  echo "no ray here: run \`make run\` first, or activate the environment that has it" >&2
  exit 2
fi

# Said outright: left unset, a head asks for tokens where a stray ~/.ray/auth_token lies.
export PATH RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}"

port=${PORT:-6379}
dashboard_port=${DASHBOARD_PORT:-8265}
echo "orchestrator submit jobs/digits.yaml --address http://127.0.0.1:$dashboard_port"
exec ray start --head --block --disable-usage-stats \
  --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" "$@"
