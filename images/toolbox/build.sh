#!/bin/sh
# Builds toolbox.tar (an OCI archive of the image mini.local/toolbox:1) from Debian's busybox-static: a shell and some 270
# tools, without docker. Usage: images/toolbox/build.sh [toolbox.tar]
# The busybox of an installed package is taken; else the package is fetched with apt-get (into a temporary directory).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-toolbox.tar}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if dpkg-query -W -f '${Status}' busybox-static 2>/dev/null | grep -q '^install ok'; then
    busybox=/bin/busybox
    version=$(dpkg-query -W -f '${Version}' busybox-static)
else
    (cd "$work" && apt-get download -q busybox-static >/dev/null)
    version=$(dpkg-deb -f "$work"/busybox-static_*.deb Version)
    dpkg-deb -x "$work"/busybox-static_*.deb "$work/package"
    busybox=$(find "$work/package" -path '*bin/busybox' -type f)
fi
python3 "$here/pack.py" "$busybox" "$version" "$out"
