# shellcheck shell=bash
# SPDX-License-Identifier: MIT
#
# What scripts/test.sh and scripts/demo.sh share: finding out what is missing and
# installing it, building a tree beside the sources, adding up test results.
# Sourced by bash; the caller has `set -u`.
#
# Nothing here changes a machine beyond the packages it installs: no service is
# started for them, and what guards that is taken away again on any exit.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=$(nproc 2> /dev/null || echo 2)
[ "$jobs" -ge 2 ] || jobs=2
policy=/usr/sbin/policy-rc.d
policy_is_ours=no
on_leave=()

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# The commands given to at_leave run, last first, however the script ends.
at_leave() { on_leave+=("$1"); }
leave() {
    local status=$? i
    trap - EXIT
    for ((i = ${#on_leave[@]} - 1; i >= 0; i--)); do
        eval "${on_leave[i]}"
    done
    exit "$status"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

may_be_root() { [ "$(id -u)" -eq 0 ] || { command -v sudo > /dev/null && sudo -n true 2> /dev/null; }; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }

# ------------------------------------------------------------------ packages

# A thing is there when its command is found (/usr/sbin included: nginx and
# haproxy live there), or its file exists.
have() {
    case $1 in
        /*) compgen -G "$1" > /dev/null ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" > /dev/null ;;
    esac
}

# missing_of THING:PACKAGE… prints the packages whose thing is not there.
missing_of() {
    local pair
    for pair in "$@"; do
        have "${pair%%:*}" || echo "${pair#*:}"
    done | sort -u
}

# A package's service must not start on this machine because tests want its
# program: invoke-rc.d asks this file, where it exists.
services_stay_off() {
    [ -e "$policy" ] && return
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" > /dev/null
    as_root chmod 755 "$policy"
    policy_is_ours=yes
}
services_may_start() {
    [ "$policy_is_ours" = yes ] || return
    as_root rm -f "$policy"
    policy_is_ours=no
}
at_leave services_may_start

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" < /dev/null; }

# install_missing required|wanted THING:PACKAGE…
# What is required and cannot be had ends the script; what is only wanted is
# named, and the tests that need it skip.
install_missing() {
    local kind=$1 package
    shift
    local -a packages
    mapfile -t packages < <(missing_of "$@")
    [ "${#packages[@]}" -gt 0 ] || return 0
    if ! command -v apt-get > /dev/null || ! may_be_root; then
        [ "$kind" = wanted ] || die "install these first (this is no Debian, or there is no root): ${packages[*]}"
        echo "not installed, and cannot be without root: ${packages[*]}"
        return 0
    fi
    say "installing: ${packages[*]}"
    services_stay_off
    [ "${lists_are_fresh:-no}" = yes ] || apt update > /dev/null || echo "apt-get update failed; trying all the same"
    lists_are_fresh=yes
    if ! apt install --no-install-recommends "${packages[@]}" > /dev/null; then
        for package in "${packages[@]}"; do
            apt install --no-install-recommends "$package" > /dev/null || echo "cannot be installed here: $package"
        done
    fi
    services_may_start
    mapfile -t packages < <(missing_of "$@")
    [ "${#packages[@]}" -eq 0 ] && return 0
    [ "$kind" = wanted ] || die "still missing: ${packages[*]}"
    echo "going on without: ${packages[*]}"
}

build_needs=(gcc:gcc make:make autoreconf:autoconf automake:automake libtoolize:libtool pkg-config:pkg-config
    nm:binutils awk:mawk sed:sed '/usr/include/stdio.h:libc6-dev')

# fetch_source PACKAGE DIRECTORY: the source that this machine's own configuration of apt
# names, with the distribution's patches, unpacked as DIRECTORY/source. The lists for it
# are private: apt's own stay as they are. False where it cannot be had.
fetch_source() {
    local package=$1 into=$2 apt=$2/apt list
    local -a options unpacked
    [ -e "$into/source/debian/changelog" ] && return
    rm -rf "$apt" "$into/source"
    mkdir -p "$apt/parts" "$apt/lists/partial" "$apt/cache/archives/partial"
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2> /dev/null |
        sed -nE 's/^deb(-src)?[[:space:]]/deb-src /p' | sort -u > "$apt/sources.list"
    for list in /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$list" ] || sed -E 's/^Types:.*/Types: deb-src/' "$list" > "$apt/parts/${list##*/}"
    done
    options=(-q -o "Dir::Etc::SourceList=$apt/sources.list" -o "Dir::Etc::SourceParts=$apt/parts"
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    # What has no sources, or nothing of this package, is not missed.
    apt-get "${options[@]}" update > "$apt/log" 2>&1 < /dev/null
    if ! (cd "$apt" && apt-get "${options[@]}" source --only-source "$package") >> "$apt/log" 2>&1 < /dev/null; then
        tail -n 5 "$apt/log"
        return 1
    fi
    mapfile -t unpacked < <(find "$apt" -maxdepth 1 -type d -name "$package-*")
    [ "${#unpacked[@]}" -eq 1 ] && mv "${unpacked[0]}" "$into/source"
}

# ------------------------------------------------------------------ building

generate_configure() {
    [ -e "$top/configure" ] && [ ! -e "$top/.git" ] && return
    say "autogen.sh"
    (cd "$top" && ./autogen.sh) > "$work/autogen.log" 2>&1 || { tail -n 40 "$work/autogen.log"; die "autogen.sh failed"; }
}

# configure_tree DIRECTORY FLAG…: anew only when the flags changed or configure
# is newer than what it made.
configure_tree() {
    local tree=$1
    shift
    mkdir -p "$tree"
    if [ "$(cat "$tree/flags" 2> /dev/null)" = "$*" ] && [ "$tree/config.status" -nt "$top/configure" ]; then
        return 0
    fi
    rm -f "$tree/flags"
    if ! (cd "$tree" && "$top/configure" -q "$@") > "$tree/configure.out" 2>&1; then
        tail -n 40 "$tree/configure.out"
        return 1
    fi
    echo "$*" > "$tree/flags"
}

# make_tree DIRECTORY TARGET…: quiet, and the end of its output when it fails.
make_tree() {
    local tree=$1
    shift
    if ! make -C "$tree" -j "$jobs" "$@" > "$tree/make.out" 2>&1; then
        grep -nE 'error|undefined reference|\*\*\*' "$tree/make.out" | head -n 20
        tail -n 40 "$tree/make.out"
        return 1
    fi
}

# ------------------------------------------------------------------- results

# tally_log RESULT LOG prints "passed failed skipped" of one test of the automake
# harness. GoogleTest's own counts where there are any, then a last line
# "NAME: N passed, N failed, N skipped", else the test is one by itself. A failed
# test never counts less than one failure, whatever it managed to print.
tally_log() {
    awk -v result="$1" '
        /^\[  PASSED  \] [0-9]+ tests?\.$/ { p += $4; counted = 1 }
        /^\[  FAILED  \] [0-9]+ tests?, listed below:/ { f += $4; counted = 1 }
        /^\[  SKIPPED \] [0-9]+ tests?, listed below:/ { s += $4; counted = 1 }
        /^[^ ]+: [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { op = $2; of = $4; os = $6; own = 1 }
        END {
            if (!counted && own) { p = op; f = of; s = os }
            else if (!counted) {
                if (result == "PASS" || result == "XFAIL") p = 1
                else if (result == "SKIP") s = 1
                else f = 1
            }
            if (result != "PASS" && result != "XFAIL" && result != "SKIP" && f == 0) f = 1
            print p + 0, f + 0, s + 0
        }' "$2"
}

# tally_tree DIRECTORY: adds all results of a tree to total_*, and shows the ends
# of the logs of what failed.
total_passed=0 total_failed=0 total_skipped=0 failures=()
tally_tree() {
    local tree=$1 trs log result p f s tree_p=0 tree_f=0 tree_s=0
    while IFS= read -r trs; do
        log=${trs%.trs}.log
        result=$(sed -n 's/^:global-test-result: //p' "$trs")
        read -r p f s < <(tally_log "${result:-ERROR}" "$log")
        tree_p=$((tree_p + p)) tree_f=$((tree_f + f)) tree_s=$((tree_s + s))
        if [ "$f" -gt 0 ]; then
            printf '\n---- failed: %s (%s)\n' "${log#"$top"/}" "${result:-no result}"
            grep -E '^\[  FAILED  \] [^0-9]|^NOT OK|^not ok' "$log" | sort -u | head -n 40
            echo "---- what it said of them:"
            awk '/: Failure$/ { left = 14 } left > 0 { print; left-- }' "$log" | head -n 80
            echo "---- the end of its log:"
            tail -n 40 "$log"
            local names
            mapfile -t names < <(sed -nE 's/^\[  FAILED  \] ([^ 0-9][^ ,]*).*/\1/p; s/^(NOT OK|not ok)[ :-]*/ /p' "$log" | sort -u)
            failures+=("${log#"$top"/}: ${names[*]}")
        fi
    done < <(find "$tree" -name '*.trs' | sort)
    printf '%s: %d passed, %d failed, %d skipped\n' "${tree#"$top"/}" "$tree_p" "$tree_f" "$tree_s"
    total_passed=$((total_passed + tree_p))
    total_failed=$((total_failed + tree_f))
    total_skipped=$((total_skipped + tree_s))
}

# Counts one thing that is no test of the harness: count ok|failed|skipped NAME.
count() {
    case $1 in
        ok) total_passed=$((total_passed + 1)) ;;
        failed) total_failed=$((total_failed + 1)) failures+=("$2") ;;
        skipped) total_skipped=$((total_skipped + 1)) ;;
    esac
    printf '%s: %s\n' "$2" "$1"
}

# What failed, by name, in a few lines: a log may be cut before it is read.
say_failures() {
    [ "${#failures[@]}" -eq 0 ] || printf 'failed: %s\n' "${failures[@]}" | cut -c 1-600
}

# Why tests were skipped, most frequent first.
why_skipped() {
    find "$1" -name '*.trs' | sed 's/trs$/log/' | while IFS= read -r log; do
        awk '/: Skipped$/ { getline; print } /^(skipped|SKIP|SKIPPED): / { print }' "$log"
    done | sort | uniq -c | sort -rn | head -n 25
}
