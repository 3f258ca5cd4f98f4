# shellcheck shell=bash
# What scripts/test, scripts/check, scripts/quickstart and .ci/run share. Sourced; leaves the caller in the project's root.

shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# The command as it can be typed again.
show() {
    local line
    printf -v line ' %q' "$@"
    say "+$line"
}

run() {
    show "$@"
    "$@"
}

now_ms() {
    local microseconds=${EPOCHREALTIME/[.,]/}
    say $((microseconds / 1000))
}

# As run, and says how long it took.
timed() {
    local begun_ms spent_ms
    begun_ms=$(now_ms)
    run "$@"
    spent_ms=$(($(now_ms) - begun_ms))
    printf '  %d.%03d s\n' $((spent_ms / 1000)) $((spent_ms % 1000))
}

# install_packages PACKAGE...: through apt where that needs no question answered; else names the command.
install_packages() {
    local install=(apt-get install -y --no-install-recommends "$@")
    local -a become=()
    command -v apt-get >/dev/null || fail "please install these with your system's package manager: $*"
    if [[ $(id -u) != 0 ]]; then
        if ! { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; then
            fail "missing: $*; install with: sudo ${install[*]}"
        fi
        become=(sudo -n)
    fi
    run "${become[@]}" apt-get update -qq
    run "${become[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}" </dev/null
}

# need_commands COMMAND=PACKAGE...: installs the packages of the commands that are missing.
need_commands() {
    local pair
    local -a missing=()
    for pair in "$@"; do
        # sbin is not on every user's PATH
        PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    if ((${#missing[@]})); then
        install_packages "${missing[@]}"
    fi
}

# want_packages COMMAND=PACKAGE...: as need_commands, for what not every release has; the tests that use them skip without.
want_packages() {
    local pair
    for pair in "$@"; do
        if ! command -v "${pair%%=*}" >/dev/null && apt-cache show "${pair#*=}" >/dev/null 2>&1; then
            install_packages "${pair#*=}"
        fi
    done
}

is_recent_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

can_make_venvs() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Prints the Python to use: $PYTHON, else the first of the usual names that is 3.10 or later and can make environments.
find_python() {
    local name
    if [[ -n ${PYTHON:-} ]]; then
        if ! is_recent_python "$PYTHON"; then
            fail "PYTHON=$PYTHON does not run as Python 3.10 or later"
        fi
        say "$PYTHON"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
        if is_recent_python "$name" && can_make_venvs "$name"; then
            say "$name"
            return
        fi
    done
    install_packages python3 python3-venv >&2
    if ! { is_recent_python /usr/bin/python3 && can_make_venvs /usr/bin/python3; }; then
        fail "Python 3.10 or later is needed; this system's own is older: install one and set PYTHON=/path/to/python3"
    fi
    say /usr/bin/python3
}

# What an environment was made from; when this changes it is brought up to date.
stamp_of() {
    sha256sum pyproject.toml | cut -d ' ' -f 1
    pwd
    readlink -m "$1/bin/python"
}

# make_venv DIRECTORY EXTRA: an environment with the project installed for editing. Does nothing when it is current.
make_venv() {
    local directory=$1 extra=$2 known python
    for known in "$extra" dev; do # dev includes all that the others have
        if [[ -x $directory/bin/python && -f $directory/.twinport-$known ]] &&
            [[ $(<"$directory/.twinport-$known") == "$(stamp_of "$directory")" ]]; then
            return
        fi
    done
    if ! { is_recent_python "$directory/bin/python" && "$directory/bin/python" -m pip --version >/dev/null 2>&1; }; then
        python=$(find_python)
        run "$python" -m venv --clear "$directory"
    fi
    run "$directory/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
    stamp_of "$directory" >"$directory/.twinport-$extra"
}
