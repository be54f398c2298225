#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Shows in about two minutes what ringpoll does: an unmodified memcached serves a
# real client once on epoll and once by `ringpoll run`, with every system call of
# the process counted. Prints both sides per request, then has four threads and
# 200 connections verified on the ring. Installs what is missing, builds into
# build/demo, and ends every process that it started, by its id.
#
# The counter is `perf stat` on the kernel's tracepoints, which does not slow the
# server down, and `strace -c` where perf may not: a server that is stopped at
# every call finds more of them ready at once, so those figures are coarser.
#
# For the count, server and client share one CPU and the client goes first
# (SCHED_IDLE for the server): each round finds all its requests waiting, as a busy
# server does, and the figures repeat. --spread leaves that to the scheduler; how
# many requests meet in one wait is then luck, and differs from run to run.
#
#   scripts/demo.sh [--connections N] [--rounds N] [--counter perf|strace] [--spread]
set -u
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

connections=64 rounds=500 counter= spread=no
while [ $# -gt 0 ]; do
    case $1 in
        --connections) connections=${2:?--connections takes a number}; shift 2 ;;
        --rounds) rounds=${2:?--rounds takes a number}; shift 2 ;;
        --counter) counter=${2:?--counter takes perf or strace}; shift 2 ;;
        --spread) spread=yes; shift ;;
        --help | -h) sed -n '3,/^set/ { s/^# \{0,1\}//; /^set/!p }' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) die "unknown option '$1' (--connections N, --rounds N, --counter perf|strace)" ;;
    esac
done
[[ $connections =~ ^[1-9][0-9]{0,3}$ && $rounds =~ ^[1-9][0-9]{0,4}$ ]] ||
    die "--connections takes 1 to 9999, --rounds 1 to 99999"
[[ $counter =~ ^(|perf|strace)$ ]] || die "--counter takes perf or strace"
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
install_missing wanted perf:linux-perf
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

# start_memcached epoll|ring THREADS [PREFIX…]: sets server and port; waits until
# it answers.
start_memcached() {
    local side=$1 threads=$2 i
    local -a command=("${@:3}" "$memcached" "${user[@]}" -l 127.0.0.1 -U 0 -t "$threads" -m 256 -c 4096)
    port=$(free_port)
    command+=(-p "$port")
    if [ "$side" = ring ]; then
        command=("${@:3}" "$ringpoll" run --require "--stats=$scratch/stats.$threads" -- "${command[@]:$(($# - 2))}")
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

# Another user's process may be traced by root alone; one's own by anybody, unless
# yama says no.
exec_tracer() {
    if [ "$(id -u)" -eq 0 ] || [ "$(cat /proc/sys/kernel/yama/ptrace_scope 2> /dev/null || echo 0)" = 0 ]; then
        exec "$@"
    fi
    exec sudo -n "$@"
}

# The calls that get a row of their own; the rest is "others".
rows=(read readv recvfrom recvmsg write writev sendto sendmsg accept4 close ioctl fcntl epoll_wait epoll_pwait
    epoll_pwait2 epoll_ctl io_uring_enter io_uring_setup io_uring_register poll ppoll futex clock_nanosleep)
perf_events() {
    local row
    printf 'raw_syscalls:sys_enter'
    for row in "${rows[@]}"; do
        [ -e "/sys/kernel/tracing/events/syscalls/sys_enter_$row" ] && printf ',syscalls:sys_enter_%s' "$row"
    done
}
perf_works() {
    (exec_tracer perf stat -x , -e "$(perf_events)" -o "$scratch/perf.try" true) > /dev/null 2>&1 &&
        grep -qE '^[1-9][0-9]*,,raw_syscalls:sys_enter' "$scratch/perf.try"
}
if [ -z "$counter" ]; then
    counter=strace
    perf_works && counter=perf
fi

# counting_begins SIDE: from its return on every call of every thread counts.
counting_begins() {
    local side=$1 i
    if [ "$counter" = perf ]; then
        rm -f "$scratch/ask" "$scratch/answer"
        mkfifo "$scratch/ask" "$scratch/answer"
        exec_tracer perf stat -x , -D -1 --control "fifo:$scratch/ask,$scratch/answer" -e "$(perf_events)" \
            -o "$scratch/perf.$side" -p "$server" > "$scratch/tracer.$side" 2>&1 &
        tracer=$!
        pids+=("$tracer")
        exec {answer}<> "$scratch/answer" {ask}<> "$scratch/ask"
        tell_perf enable
        return
    fi
    exec_tracer strace -c -f -o "$scratch/strace.$side" -p "$server" 2> "$scratch/tracer.$side" &
    tracer=$!
    pids+=("$tracer")
    # Attached to all threads of the process, or the count is of some of them.
    for ((i = 0; i < 200; i++)); do
        if grep -q attached "$scratch/tracer.$side" && ! grep -h '^TracerPid:' "/proc/$server/task/"*/status |
            grep -q '[[:space:]]0$'; then
            return
        fi
        kill -0 "$tracer" 2> /dev/null || break
        sleep 0.05
    done
    cat "$scratch/tracer.$side"
    die "strace cannot attach (a container without CAP_SYS_PTRACE?)"
}
tell_perf() {
    local reply
    echo "$1" >&"$ask"
    read -r -t 30 reply <&"$answer" || { cat "$scratch/tracer.$side"; die "perf does not answer"; }
}
# counting_ends SIDE: leaves lines "CALL COUNT" in $scratch/calls.SIDE.
counting_ends() {
    local side=$1
    if [ "$counter" = perf ]; then
        tell_perf disable
        end_process "$tracer" INT
        exec {answer}>&- {ask}>&-
        awk -F , '$1 ~ /^[0-9]+$/ {
                if ($3 == "raw_syscalls:sys_enter") { all = $1; next }
                sub(/^.*sys_enter_/, "", $3); print $3, $1; known += $1
            }
            END { print "others", (all > known ? all - known : 0) }' "$scratch/perf.$side" > "$scratch/calls.$side"
    else
        end_process "$tracer"
        awk '$1 ~ /^[0-9.]+$/ && $NF != "total" { print $NF, $4 }' "$scratch/strace.$side" > "$scratch/calls.$side"
    fi
    [ -s "$scratch/calls.$side" ] || die "$counter counted nothing on $side"
}

on_one_cpu=() behind=()
if [ "$spread" = no ]; then
    cpu=$(taskset -pc $$ | sed 's/.*: //; s/[-,].*//')
    on_one_cpu=(taskset -c "$cpu") behind=(chrt --idle 0)
fi

# measure SIDE: counts the calls of the measured rounds. The client is connected
# and warm before the count begins, and idle when it ends.
measure() {
    local side=$1 line client to_client from_client
    start_memcached "$side" 1 "${on_one_cpu[@]}" "${behind[@]}"
    coproc LOAD { exec timeout 300 "${on_one_cpu[@]}" python3 "$top/scripts/demo_client.py" load --port "$port" \
        --connections "$connections" --rounds "$rounds"; }
    client=$LOAD_PID to_client=${LOAD[1]} from_client=${LOAD[0]}
    pids+=("$client")
    read -r -t 60 line <&"$from_client" && [ "$line" = ready ] || die "the client did not get ready on $side"
    counting_begins "$side"
    echo go >&"$to_client"
    read -r -t 240 line <&"$from_client" && [[ $line == done\ * ]] || die "the client failed on $side"
    counting_ends "$side"
    echo "${line#done }" > "$scratch/requests.$side"
    echo end >&"$to_client"
    wait "$client" || die "the client failed on $side"
    end_process "$server"
}

say "memcached on epoll: $connections connections, $rounds rounds"
measure epoll
say "the same memcached by: ringpoll run -- memcached …"
measure ring

say "system calls per request ($(cat "$scratch/requests.ring") requests on each side, one worker thread)"
awk '
    FNR == 1 { side++ }
    side > 2 { requests[side - 2] = $1; next }
    { calls[side, $1] = $2; both[$1] += $2; total[side] += $2 }
    END {
        printf "%-20s %12s %12s\n", "", "epoll", "ringpoll"
        for (name in both) if (both[name]) order[++n] = name
        for (i = 1; i <= n; i++)
            for (j = i + 1; j <= n; j++)
                if (both[order[j]] > both[order[i]]) { swap = order[i]; order[i] = order[j]; order[j] = swap }
        for (i = 1; i <= n; i++)
            printf "%-20s %12.4f %12.4f\n", order[i], calls[1, order[i]] / requests[1], calls[2, order[i]] / requests[2]
        printf "%-20s %12.4f %12.4f   ratio %.3f\n", "total", total[1] / requests[1], total[2] / requests[2],
            total[2] / requests[2] / (total[1] / requests[1])
        printf "%-20s %12d %12d\n", "calls in all", total[1], total[2]
    }' "$scratch/calls.epoll" "$scratch/calls.ring" "$scratch/requests.epoll" "$scratch/requests.ring"
echo "(counted by $counter; clock_nanosleep and futex are memcached's own background threads)"

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
