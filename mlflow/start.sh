#!/usr/bin/env bash
# Starts a tracking server for a team on this machine: runs and models in SQLite, artifacts in a
# folder beside it, both under one data folder. mlflow/README.md says the rest.
set -u

usage() {
  cat <<'TEXT'
usage: mlflow/start.sh [--data DIR] [--host HOST] [--port PORT] [--name NAME] [-- MORE]

  --data DIR   where runs, models and artifacts are kept
               (LONGSPAN_MLFLOW_DATA, else ~/.local/share/longspan-mlflow)
  --host HOST  address to listen on (LONGSPAN_MLFLOW_HOST, else 127.0.0.1: this machine only)
  --port PORT  port to listen on (LONGSPAN_MLFLOW_PORT, else 5000)
  --name NAME  what others call this machine, if not localhost: other names are refused
  MORE         further options of `mlflow server`

Prints its URL once it answers, then runs until SIGINT or SIGTERM and exits 0.
Exit codes: 2 wrong use (one line says what to do), 1 the server failed by itself.
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

data=${LONGSPAN_MLFLOW_DATA:-${XDG_DATA_HOME:-${HOME:-.}/.local/share}/longspan-mlflow}
host=${LONGSPAN_MLFLOW_HOST:-127.0.0.1}
port=${LONGSPAN_MLFLOW_PORT:-5000}
more=()

while [ $# -gt 0 ]; do
  case $1 in
    --data | --host | --port | --name)
      [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value; see mlflow/start.sh --help"
      case $1 in
        --data) data=$2 ;;
        --host) host=$2 ;;
        --port) port=$2 ;;
        --name)
          more+=(--allowed-hosts "localhost,localhost:*,127.0.0.1,127.0.0.1:*,$2,$2:*")
          more+=(--cors-allowed-origins "http://$2,http://$2:*,https://$2,https://$2:*")
          ;;
      esac
      shift 2
      ;;
    -h | --help) usage && exit 0 ;;
    --) shift && more+=("$@") && break ;;
    *) fail "unknown argument $1; see mlflow/start.sh --help" ;;
  esac
done

case $port in
  '' | *[!0-9]*) fail "port $port is no number; give --port a number from 1 to 65535" ;;
esac
[ "${#port}" -le 5 ] && [ "$port" -ge 1 ] && [ "$port" -le 65535 ] ||
  fail "port $port is out of range; give --port a number from 1 to 65535"

server=$(command -v mlflow) || server=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/mlflow
[ -x "$server" ] ||
  fail "mlflow is not installed; run make install, or activate an environment with it"

mkdir -p "$data/artifacts" 2>/dev/null && data=$(cd "$data" 2>/dev/null && pwd) &&
  [ -w "$data" ] && [ -w "$data/artifacts" ] ||
  fail "cannot write to the folder $data; give --data a folder of yours"
case $data in
  *[?#%]*) fail "the folder $data has a ?, # or % in its name; give --data another one" ;;
esac

# Asked for on all addresses, the server is reached on the local one.
case $host in
  0.0.0.0) near=127.0.0.1 ;;
  ::) near=::1 ;;
  *) near=$host ;;
esac
answers() { (exec 3<>"/dev/tcp/$near/$port") 2>/dev/null; }
! answers || fail "port $port on $host is in use; choose another with --port"

export MLFLOW_DISABLE_TELEMETRY=true
# Background jobs of the server (evaluation of chat models) would cost 8 more processes.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

child=
stop() {
  trap '' INT TERM
  [ -z "$child" ] || { kill -TERM "$child" 2>/dev/null && wait "$child"; }
  exit 0
}
trap stop INT TERM

"$server" server --host "$host" --port "$port" --workers 1 \
  --backend-store-uri "sqlite:///$data/mlflow.db" \
  --serve-artifacts --artifacts-destination "$data/artifacts" \
  ${more[@]+"${more[@]}"} &
child=$!

while kill -0 "$child" 2>/dev/null; do
  if answers; then
    case $near in
      *:*) near="[$near]" ;;
    esac
    echo "MLflow at http://$near:$port, data in $data"
    break
  fi
  sleep 0.2
done
wait "$child"
echo "error: the server stopped by itself; the lines above say why" >&2
exit 1
