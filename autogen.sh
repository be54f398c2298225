#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Makes configure and the Makefile.in from configure.ac and Makefile.am. Needed
# after a clone and never in a released tarball.
set -e
cd "$(dirname "$0")"

for tool in autoreconf automake libtoolize pkg-config; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        echo "autogen.sh: $tool is missing; Debian has it in: autoconf automake libtool pkg-config" >&2
        exit 1
    fi
done
exec autoreconf --install --warnings=all,no-portability
