# Sourced by the setup scripts of code that needs other versions than this package.

# make_layer FOLDER REQUIREMENTS: create a virtual environment that holds only what REQUIREMENTS adds; torch and the
# rest come from PYTHON's environment (default .venv), which is not changed. Nothing is done if it is up to date.
# Afterwards $added is its folder of packages. Exits with 3 if the package registry cannot be reached.
make_layer() {
    local folder=$1 requirements=$2 key
    local repository python
    repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    python=${PYTHON:-$repository/.venv/bin/python}
    [ -x "$python" ] || { echo "error: no $python; run scripts/test.sh once, or set PYTHON" >&2; exit 1; }
    key=$(cat "$requirements" "${BASH_SOURCE[0]}" | cksum | cut -d' ' -f1)
    key="$key $("$python" -c 'import sys; print(sys.prefix)')"
    if [ "$(cat "$folder/made-of" 2>/dev/null)" = "$key" ]; then
        added=$(packages_of "$folder/bin/python")
        return
    fi

    rm -rf "$folder"
    "$python" -m venv --without-pip "$folder"
    added=$(packages_of "$folder/bin/python")
    packages_of "$python" >"$added/base.pth"
    pip_install "$folder" -r "$requirements"
    echo "$key" >"$folder/made-of"
}

packages_of() { # PYTHON
    "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

# pip_install FOLDER ARGUMENTS...: install into the environment, without dependencies.
pip_install() {
    local folder=$1 log=$1/install.log
    shift
    "$folder/bin/python" -m pip install --no-input --retries 1 --timeout 30 --no-compile --no-deps "$@" >"$log" 2>&1 &&
        return
    tail -n 5 "$log" >&2
    echo "error: the installation failed (whole log: $log)" >&2
    grep -qiE "connection|name resolution|timed out|unreachable" "$log" && exit 3
    exit 1
}
