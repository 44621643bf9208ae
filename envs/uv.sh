#!/bin/sh
# Runs the uv of a virtual environment with the package indexes, folders of wheels and certificates that pip is set to use there,
# by its files or PIP_ variables: uv itself does not read them. uv's own variables win, and an empty one counts.
#
#   envs/uv.sh VENV pip install -r envs/cpu.lock
set -eu
VIRTUAL_ENV=$1
export VIRTUAL_ENV
shift

settings=$("$VIRTUAL_ENV/bin/pip" config list)
from_pip() { # from_pip KEY VARIABLE SEPARATOR: set VARIABLE to pip's value, in pip's order of precedence
    for section in :env: install global; do
        value=$(printf '%s\n' "$settings" | sed -n "s/^$section\.$1='\(.*\)'\$/\1/p" | sed 's/\\n/ /g' | tr -s ' ' "$3")
        if [ -n "$value" ] && eval "[ -z \"\${$2+set}\" ]"; then export "$2=${value#"$3"}"; fi
    done
}
from_pip index-url UV_DEFAULT_INDEX ' '
from_pip extra-index-url UV_INDEX ' '
from_pip find-links UV_FIND_LINKS ,
from_pip cert SSL_CERT_FILE ' '
from_pip trusted-host UV_INSECURE_HOST ' '
# Like pip, look for a version in all indexes, not only in the first that has the package.
export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"

exec "$VIRTUAL_ENV/bin/uv" "$@"
