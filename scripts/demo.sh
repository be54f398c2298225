#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Shows in about two minutes what ringpoll does: an unmodified memcached serves a
# real client once on epoll and once by `ringpoll run`, with every system call of
# the process counted. Prints both sides per request, then has four threads and
# 200 connections verified on the ring. Installs what is missing, builds into
# build/demo, and ends every process that it started, by its id.
#
#   scripts/demo.sh [--connections N] [--rounds N]
set -u
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

connections=64 rounds=200
while [ $# -gt 0 ]; do
    case $1 in
        --connections) connections=${2:?--connections takes a number}; shift 2 ;;
        --rounds) rounds=${2:?--rounds takes a number}; shift 2 ;;
        --help | -h) sed -n '3,/^set/ { s/^# \{0,1\}//; /^set/!p }' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) die "unknown option '$1' (--connections N, --rounds N)" ;;
    esac
done
[[ $connections =~ ^[1-9][0-9]{0,3}$ && $rounds =~ ^[1-9][0-9]{0,4}$ ]] ||
    die "--connections takes 1 to 9999, --rounds 1 to 99999"
unset RINGPOLL RINGPOLL_MASK RINGPOLL_PROFILE RINGPOLL_STATS LD_PRELOAD
export LC_ALL=C

work=$top/build
mkdir -p "$work"
scratch=$(mktemp -d)
at_leave 'rm -rf "$scratch"'

# The processes of this script. A process is asked to end, waited for, and only
# then, if it did not listen, killed.
pids=()
end_process() { # PID [SIGNAL]
    local i
    kill -"${2:-TERM}" "$1" 2> /dev/null
    for ((i = 0; i < 100; i++)); do
        kill -0 "$1" 2> /dev/null || break
        sleep 0.05
    done
    kill -KILL "$1" 2> /dev/null
    wait "$1" 2> /dev/null
}
end_all() { local pid; for pid in "${pids[@]}"; do kill -0 "$pid" 2> /dev/null && end_process "$pid"; done; }
at_leave end_all

# ----------------------------------------------------------- install and build
install_missing required "${build_needs[@]}" memcached:memcached strace:strace python3:python3 timeout:coreutils
memcached=$(PATH=$PATH:/usr/sbin:/sbin command -v memcached)
generate_configure
say "building into build/demo"
configure_tree "$work/demo" --disable-tests || die "configure failed"
make_tree "$work/demo" all || die "the build failed"
ringpoll=$work/demo/tools/ringpoll
[ -x "$ringpoll" ] || die "the build made no tools/ringpoll"

# --------------------------------------------------------------- the two sides
user=()
[ "$(id -u)" -ne 0 ] || user=(-u "$(id -un)")

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start_memcached epoll|ring THREADS: sets server and port; waits until it answers.
start_memcached() {
    local side=$1 threads=$2 i
    local -a command=("$memcached" "${user[@]}" -l 127.0.0.1 -U 0 -t "$threads" -m 256 -c 4096)
    port=$(free_port)
    command+=(-p "$port")
    if [ "$side" = ring ]; then
        command=("$ringpoll" run --require "--stats=$scratch/stats.$threads" -- "${command[@]}")
    fi
    "${command[@]}" > "$scratch/$side.log" 2>&1 &
    server=$!
    pids+=("$server")
    for ((i = 0; i < 200; i++)); do
        if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
            return 0
        fi
        kill -0 "$server" 2> /dev/null || break
        sleep 0.05
    done
    cat "$scratch/$side.log"
    die "memcached does not serve on $side"
}

# measure epoll|ring: leaves strace's table in $scratch/calls.SIDE and the number
# of requests in $scratch/requests.SIDE. The client is connected and warm before
# strace attaches, and strace has attached before the client goes on.
measure() {
    local side=$1 line tracer client to_client from_client i
    start_memcached "$side" 1
    coproc LOAD { exec timeout 300 python3 "$top/scripts/demo_client.py" load --port "$port" \
        --connections "$connections" --rounds "$rounds"; }
    client=$LOAD_PID to_client=${LOAD[1]} from_client=${LOAD[0]}
    pids+=("$client")
    read -r -t 60 line <&"$from_client" && [ "$line" = ready ] || die "the client did not get ready on $side"

    as_root_if_needed strace -c -f -S calls -o "$scratch/calls.$side" -p "$server" 2> "$scratch/strace.$side" &
    tracer=$!
    pids+=("$tracer")
    # All threads of the process, or the count is of some of them.
    for ((i = 0; i < 200; i++)); do
        grep -q attached "$scratch/strace.$side" &&
            ! grep -L '^TracerPid:[[:space:]]*[1-9]' "/proc/$server/task/"*/status | grep -q . && break
        kill -0 "$tracer" 2> /dev/null || break
        sleep 0.05
    done
    if ! kill -0 "$tracer" 2> /dev/null; then
        cat "$scratch/strace.$side"
        die "strace cannot attach (a container without CAP_SYS_PTRACE?)"
    fi
    echo go >&"$to_client"
    read -r -t 240 line <&"$from_client" && [[ $line == done\ * ]] || die "the client failed on $side"
    echo "${line#done }" > "$scratch/requests.$side"
    end_process "$tracer"
    echo end >&"$to_client"
    wait "$client" || die "the client failed on $side"
    end_process "$server"
}
as_root_if_needed() {
    if [ "$(id -u)" -eq 0 ] || [ "$(cat /proc/sys/kernel/yama/ptrace_scope 2> /dev/null || echo 0)" = 0 ]; then
        exec "$@"
    fi
    exec sudo -n "$@"
}

say "memcached on epoll: $connections connections, $rounds rounds"
measure epoll
say "the same memcached by: ringpoll run -- memcached …"
measure ring

say "system calls per request ($(cat "$scratch/requests.ring") requests on each side, one worker thread)"
awk '
    FNR == 1 { side++ }
    FILENAME ~ /requests/ { requests[side] = $1; next }
    $1 ~ /^[0-9.]+$/ && $NF != "total" { calls[side, $NF] = $4; names[$NF] += $4; total[side] += $4 }
    END {
        printf "%-22s %12s %12s %9s\n", "", "epoll", "ringpoll", ""
        n = 0
        for (name in names) order[++n] = name
        for (i = 1; i <= n; i++)
            for (j = i + 1; j <= n; j++)
                if (names[order[j]] > names[order[i]]) { t = order[i]; order[i] = order[j]; order[j] = t }
        for (i = 1; i <= n; i++)
            printf "%-22s %12.4f %12.4f\n", order[i], calls[1, order[i]] / requests[3], calls[2, order[i]] / requests[4]
        printf "%-22s %12.4f %12.4f %8.1f%%\n", "total", total[1] / requests[3], total[2] / requests[4],
            100 * (total[2] / requests[4]) / (total[1] / requests[3])
        printf "%-22s %12d %12d\n", "calls in all", total[1], total[2]
    }' "$scratch/calls.epoll" "$scratch/calls.ring" "$scratch/requests.epoll" "$scratch/requests.ring"

say "what the library says of that run (--stats)"
cat "$scratch/stats.1" 2> /dev/null || die "memcached on the ring left no stats"

say "four worker threads, 200 connections, every reply verified"
for side in epoll ring; do
    start_memcached "$side" 4
    verified=$(timeout 120 python3 "$top/scripts/demo_client.py" verify --port "$port" --rounds 10) ||
        die "wrong replies on $side"
    printf '%-6s %s replies\n' "$side" "$verified"
    end_process "$server"
done
