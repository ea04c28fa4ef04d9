#!/usr/bin/env bash
# Starts a script on several devices with msrun, under scripts/supervise.py; says what it runs.
#
#   ./scripts/launch.sh --workers 8 train.py --config configs/crossvit_15_ascend.yaml --data_dir /path/to/imagenet
#   several machines: the same line on each, with --nodes 2 --node-rank 0 (1, ...) --master HOST_OF_RANK_0
#   Slurm: srun --ntasks-per-node=1 ./scripts/launch.sh ...; nodes and master are taken from Slurm
#
#   --workers N      ranks on this machine (default: the cards seen)    --port P       the scheduler's (default: 8118)
#   --restarts N     after a failure (default: 3)                       --backoff S    seconds before (default: 5)
#   --start S        seconds to join (default: 300)                     --logs DIR     (default: logs)
#   --compile S      seconds the first update may take (default: 3600)  --print        only say what would be run
#   --hang S         seconds a later one may take (default: 900)
#
# On several machines the run folder must be on storage that all of them see, and should be the logs: there their
# supervisors tell each other how they fare.
#
# MindSpore's and HCCL's own timeouts are set where the environment does not set them, longer than the supervisor's: it
# knows which rank is late, they do not. MS_NODE_TIMEOUT also bounds how far apart ranks may come to their first meeting.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workers='' port=8118 restarts=3 backoff=5 start=300 compile=3600 hang=900 logs=logs only_print=''
nodes=${SLURM_NNODES:-1} node_rank=${SLURM_NODEID:-0} master=''
while [ $# -gt 0 ]; do
  case $1 in
    --print) only_print=yes; shift; continue ;;
    --workers|--port|--restarts|--backoff|--start|--compile|--hang|--logs|--nodes|--node-rank|--master)
      [ $# -ge 2 ] || fail "$1 needs a value"
      name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
    -*) fail "unknown option $1; a script's own come after it: see the top of ${BASH_SOURCE[0]}" ;;
    *) break ;;
  esac
done
[ $# -ge 1 ] || fail "no script given, such as: ./scripts/launch.sh --workers 8 train.py --config ..."
script=$1; shift
[ -f "$script" ] || script=$root/$script
[ -f "$script" ] || fail "no script $script"
if [ -z "$workers" ]; then
  workers=$(find /dev -maxdepth 1 -name 'davinci[0-9]*' 2>/dev/null | wc -l)
  [ "$workers" -gt 0 ] || fail "no Ascend cards seen: give --workers N"
fi
for number in workers port restarts backoff start compile hang nodes node_rank; do
  [[ ${!number} =~ ^[0-9]+$ ]] || fail "--${number//_/-} ${!number}: expected a whole number"
done
[ "$node_rank" -lt "$nodes" ] || fail "--node-rank $node_rank: expected 0 to $((nodes - 1)) for --nodes $nodes"
if [ -z "$master" ] && [ "$nodes" -gt 1 ]; then
  [ -n "${SLURM_JOB_NODELIST:-}" ] || fail "--nodes $nodes: give --master, the address of the machine of rank 0"
  master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi

within() { echo $(($1 < $2 ? $2 : $1 > $3 ? $3 : $1)); }  # VALUE LEAST MOST
margin=60
longest=$((compile > hang ? compile : hang))
# Ranges: hiascend.com, environment variables of CANN 8.5. Of a rank that still compiles the others wait in a collective.
timeouts=(MS_NODE_TIMEOUT="${MS_NODE_TIMEOUT:-$((start + margin))}"
  MS_CPU_COMM_OP_TIMEOUT="${MS_CPU_COMM_OP_TIMEOUT:-$((longest + margin))}"
  HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-$(within $((longest + margin)) 120 7200)}"
  HCCL_EXEC_TIMEOUT="${HCCL_EXEC_TIMEOUT:-$(within $((longest + margin)) 68 17340)}")
msrun=(msrun --bind_core=True --worker_num $((workers * nodes)) --local_worker_num "$workers"
  --master_addr "${master:-127.0.0.1}" --master_port "$port" --cluster_time_out $((start + margin)) --tail_worker_log 0)
[ "$nodes" -eq 1 ] || msrun+=(--node_rank "$node_rank")
command=(env "${timeouts[@]}" python "$root/scripts/supervise.py" --restarts "$restarts" --backoff "$backoff"
  --start "$start" --compile "$compile" --hang "$hang" --logs "$logs" -- "${msrun[@]}" python "$script" "$@")
[ -n "$only_print" ] || printf 'launch: runs '
printf '%q ' "${command[@]}"; echo
[ -n "$only_print" ] || exec "${command[@]}"
