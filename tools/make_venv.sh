#!/bin/sh
# Makes a virtual environment with pip in it, whatever of Python's own tools the distribution left out.
#
#     sh tools/make_venv.sh PYTHON DIRECTORY
#
# Debian and Ubuntu ship Python without ensurepip, which `python3 -m venv` needs. Then, in this order:
# an installed pip fills the environment; root installs the missing package; anyone else is told its name.
set -eu

directory=$2

fail() {
    echo "shoal: error: $*" >&2
    exit 1
}

python=$(command -v "$1") ||
    fail "no Python found ($1); install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $version, Shoal needs 3.11 or newer; name another: make PYTHON=/path/to/python3.11"

if "$directory/bin/python" -c "import pip, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
    exit 0 # a good environment of this Python is there already
fi

echo "Making a virtual environment in $directory with Python $version."
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    exec "$python" -m venv --clear "$directory"
fi
if "$python" -m pip --python "$python" --version >/dev/null 2>&1; then
    "$python" -m venv --clear --without-pip "$directory"
    exec "$python" -m pip --python "$directory/bin/python" install -qq pip
fi
package="python$version-venv"
command -v apt-get >/dev/null 2>&1 ||
    fail "$python lacks ensurepip, so it can make no environment; install your system's package for Python's venv module"
[ "$(id -u)" = 0 ] ||
    fail "$python lacks ensurepip, so it can make no environment; run: sudo apt-get install $package, then make again"
echo "Python's venv module is incomplete here; installing Debian's $package."
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package"; } >/dev/null ||
    fail "apt-get could not install $package; install it by hand, then make again"
exec "$python" -m venv --clear "$directory"
