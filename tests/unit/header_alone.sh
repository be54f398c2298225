#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Each public header compiles first and alone, as C11 and as C++17 and as what
# came after them, to the letter and without a warning, by every compiler of this
# machine. header_test is the other half: both languages mean the same by it.
set -u
export LC_ALL=C

srcdir=${top_srcdir:-.}
passed=0 failed=0 skipped=0
scratch=$(mktemp -d) || exit 99
trap 'rm -rf "$scratch"' EXIT

# compiles COMPILER LANGUAGE STANDARD HEADER
compiles() {
    local name="$4 by $1 as $3" source=$scratch/alone.${2/c++/cc}
    if ! command -v "$1" > /dev/null; then
        skipped=$((skipped + 1)); echo "skipped: $name: no $1"
        return
    fi
    # A standard that this compiler is too old for is none of the header's business.
    if ! echo 'int nothing;' | "$1" -x "$2" "-std=$3" -fsyntax-only - 2> /dev/null; then
        skipped=$((skipped + 1)); echo "skipped: $name: $1 does not know it"
        return
    fi
    # Twice, for its guard.
    printf '#include <%s>\n#include <%s>\n' "$4" "$4" > "$source"
    if "$1" -x "$2" "-std=$3" -pedantic-errors -Wall -Wextra -Wshadow -Wundef -Werror -fsyntax-only \
        -I "$srcdir/backend/include" "$source"; then
        passed=$((passed + 1)); echo "ok: $name"
    else
        failed=$((failed + 1)); echo "NOT OK: $name"
    fi
}

cd "$srcdir/backend/include" || exit 99
srcdir=$(cd ../.. && pwd)
for header in ringpoll/*.h; do
    for compiler in gcc clang; do
        for standard in c11 c17 c2x; do
            compiles "$compiler" c "$standard" "$header"
        done
    done
    for compiler in g++ clang++; do
        for standard in c++17 c++20; do
            compiles "$compiler" c++ "$standard" "$header"
        done
    done
done

echo "header_alone: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] || exit 1
[ "$passed" -gt 0 ] || exit 77
