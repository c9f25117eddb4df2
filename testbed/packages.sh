#!/bin/sh
# Debian packages that the real nodes of the embedded cluster and the compiler of the decision core need; with the word "torch" also
# that for the tests of what trains the agent. Installs what is missing, as root; says so otherwise.
set -eu

# command that must exist -> package that brings it
needed="containerd:containerd runc:runc buildah:buildah mmdebstrap:mmdebstrap nft:nftables ip:iproute2"
missing=""
for pair in $needed; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -x /usr/lib/cni/ptp ] || missing="$missing containernetworking-plugins"
python3 -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || missing="$missing python3-dev"
if [ "${1-}" = torch ]; then
    /usr/bin/python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null || missing="$missing python3-torch"
    /usr/bin/python3 -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
fi

[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing for real nodes, the compiler or tests:$missing. Install them (Debian: sudo apt-get install$missing); going on without." >&2
    exit 0
fi
echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -qq --yes --no-install-recommends $missing >/dev/null
