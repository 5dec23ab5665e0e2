#!/bin/sh
# Installs Debian's etcd where it is missing and root may: tests/registry starts its members on loopback.
# Where it cannot be installed, those tests say so and are left out; nothing else needs it.
set -eu

if command -v etcd >/dev/null 2>&1 && command -v etcdctl >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "etcd is not installed, so its tests are left out; install your system's package for it (etcd-server, etcd-client)."
    exit 0
fi
echo "Installing Debian's etcd-server and etcd-client for the registry's tests."
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq etcd-server etcd-client; } >/dev/null 2>&1 ||
    echo "apt-get could not install etcd-server, so its tests are left out."
