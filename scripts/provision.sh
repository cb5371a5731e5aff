#!/usr/bin/env bash
# Turns a bare Debian host (12 or newer) into one raftspine node; the Vagrantfile's machines are made by it too.
# Running it again changes only what differs: configuration, code or unit; nothing that differs, nothing restarted.
#
# usage: provision.sh --node ID [options]
#   --node ID         which node of the cluster file this host is (or RAFTSPINE_NODE)
#   --source DIR      a checkout of raftspine; default: the one this script lies in
#   --config FILE     the cluster file; default: conf/cluster.yaml of the source
#   --secret FILE     the cluster secret, the same on every node (or RAFTSPINE_CLUSTER_SECRET, at least 16 bytes)
#   --await WHAT      what the closing health check waits for: ready (needs a majority of the nodes up; the default
#                     under systemd), alive (this process answers; for the first nodes of a new cluster) or nothing
#   --no-systemd      install everything, start nothing
#   --root DIR        install below DIR as the present user, without system packages, a user account or systemd
# environment:
#   RAFTSPINE_API_KEY the operator's API key, the same on every node; without it the first run makes one and shows it
#   PYTHON            the interpreter for the node's environment; default /usr/bin/python3 (with --root: python3).
#                     The service reaches neither /root nor /home, so an interpreter from there will not do
#
# Needs the package registries (Debian's, PyPI) as the host is configured for them, and nothing else from the network.
# Secrets come by file or environment, never as arguments, which every user of the host can read in the process list.
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
fail() {
    echo "provision.sh: $*" >&2
    exit 1
}
say() { echo "provision.sh: $*"; }

node=${RAFTSPINE_NODE:-}
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
config=
secret_file=
await=
systemd=yes
root=
python=${PYTHON:-}
while [ $# -gt 0 ]; do
    case $1 in
        --node | --source | --config | --secret | --await | --root)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --node) node=$2 ;;
                --source) source_dir=$(cd "$2" && pwd) ;;
                --config) config=$2 ;;
                --secret) secret_file=$2 ;;
                --await) await=$2 ;;
                --root) mkdir -p "$2" && root=$(cd "$2" && pwd) ;;
            esac
            shift 2
            ;;
        --no-systemd)
            systemd=no
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown argument $1 (--help shows them)" ;;
    esac
done
[ -n "$node" ] || fail "which node is this host? --node ID"
case $await in '' | ready | alive | nothing) ;; *) fail "--await is ready, alive or nothing, not $await" ;; esac
config=${config:-$source_dir/conf/cluster.yaml}
[ -r "$config" ] || fail "no cluster file at $config"
[ -r "$source_dir/requirements.lock" ] || fail "$source_dir is not a checkout of raftspine (no requirements.lock)"
if [ -n "$root" ]; then
    systemd=no
    python=${python:-python3}
elif [ "$(id -u)" -ne 0 ]; then
    fail "run it as root (or with --root DIR to install below a directory)"
elif [ "$systemd" = yes ] && [ ! -d /run/systemd/system ]; then
    fail "systemd is not running here; --no-systemd installs everything and starts nothing"
fi

python=${python:-/usr/bin/python3}
[ "$systemd" = yes ] && await=${await:-ready}

etc=$root/etc/raftspine
home=$root/opt/raftspine
state=$root/var/lib/raftspine
venv=$home/venv
key=${RAFTSPINE_API_KEY:-}
changes=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

changed() {
    changes=$((changes + 1))
    say "$*"
}

# Ownership is a matter of a real installation; below --root everything belongs to whoever runs this.
owned() { # owned OWNER:GROUP PATH
    [ -n "$root" ] || chown "$1" "$2"
}

# put FILE DEST MODE: DEST has FILE's content and MODE, and belongs to root and the node's group. Never readable
# wider than MODE, not even for a moment, and never half-written.
put() {
    local group=0
    [ -n "$root" ] || group=raftspine
    if cmp -s "$1" "$2" && [ "$(stat -c %a "$2")" = "${3#0}" ]; then return; fi
    install -m 0600 "$1" "$2.new"
    owned "root:$group" "$2.new"
    chmod "$3" "$2.new"
    mv "$2.new" "$2"
    changed "wrote $2"
}

system_packages() {
    [ -z "$root" ] || return 0
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    say "installing python3 and python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    apt-get install -q -y --no-install-recommends python3 python3-venv >/dev/null
    changes=$((changes + 1))
}

python_new_enough() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python 3.11 or newer; set PYTHON (Debian 12's python3 will do)"
    [ -z "$root" ] || return 0
    case $(readlink -f "$(command -v "$python")") in
        /root/* | /home/*) fail "the service cannot reach $python; set PYTHON to one outside of home directories" ;;
    esac
}

account_and_folders() {
    if [ -z "$root" ] && ! getent passwd raftspine >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/raftspine --no-create-home --shell /usr/sbin/nologin raftspine
        changed "made the user raftspine"
    fi
    local folder
    for folder in "$etc" "$home" "$state"; do
        [ -d "$folder" ] && continue
        mkdir -p "$folder"
        changed "made $folder"
    done
    owned root:raftspine "$etc" && chmod 0750 "$etc"
    owned raftspine:raftspine "$state" && chmod 0700 "$state"
}

# The part of the lock above its marker: what a node needs, without the developers' tools.
runtime_lock() { sed '/^# --- development ---/,$d' "$source_dir/requirements.lock"; }

# One line that changes when the code, the locked versions or the interpreter do.
code_fingerprint() {
    {
        "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
        runtime_lock
        cd "$source_dir"
        find pyproject.toml raftspine -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d' ' -f1
}

code() {
    local fingerprint
    fingerprint=$(code_fingerprint)
    if [ "$(cat "$home/installed" 2>/dev/null || true)" = "$fingerprint" ] && [ -x "$venv/bin/raftspine" ]; then return; fi
    say "building raftspine and installing it into $venv (a minute or so)"
    # Built from a copy: the source may be a read-only or shared folder, and a build leaves files behind.
    mkdir "$work/source"
    (cd "$source_dir" && tar -cf - --exclude='*.pyc' pyproject.toml README.md LICENSE raftspine) | tar -xf - -C "$work/source"
    rm -f "$home/installed"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
    runtime_lock >"$work/lock"
    awk '/^[a-zA-Z]/ { keep = /^setuptools==/ } keep' "$work/lock" >"$work/setuptools.lock"
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input --quiet)
    "${pip[@]}" install --require-hashes -r "$work/setuptools.lock"
    "${pip[@]}" install --require-hashes --no-build-isolation --use-pep517 -r "$work/lock"
    "${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$work/source"
    "${pip[@]}" install --no-deps --force-reinstall "$work/wheel"/raftspine-*.whl
    # Compiled now, as root: the service may not write here, and would compile everything anew at each start.
    "$venv/bin/python" -m compileall -q "$venv/lib" || true
    echo "$fingerprint" >"$home/installed"
    changed "installed $("$venv/bin/python" -c 'import raftspine; print("raftspine", raftspine.__version__)')"
}

random_text() { "$python" -c 'import secrets; print(secrets.token_urlsafe(32))'; }

# The cluster secret: given by file or environment; kept when already there; made only when there is neither.
secret() {
    if [ -n "$secret_file" ]; then
        cp "$secret_file" "$work/secret"
    elif [ -n "${RAFTSPINE_CLUSTER_SECRET:-}" ]; then
        printf '%s\n' "$RAFTSPINE_CLUSTER_SECRET" >"$work/secret"
    elif [ -s "$etc/secret" ]; then
        return
    else
        random_text >"$work/secret"
        say "made a cluster secret: give $etc/secret to the other nodes with --secret before they start"
    fi
    [ "$(tr -d '\r\n' <"$work/secret" | wc -c)" -ge 16 ] || fail "the cluster secret has fewer than 16 bytes"
    put "$work/secret" "$etc/secret" 0640
}

# API keys are kept as SHA-256 digests: this file does not yield a key, so a new one is shown once.
api_keys() {
    if [ -z "$key" ]; then
        [ -s "$etc/api_keys.yaml" ] && return
        key=$(random_text)
        say "operator's API key, shown this once: $key"
        say "give it to the other nodes as RAFTSPINE_API_KEY when you provision them"
    fi
    local digest
    digest=$(printf %s "$key" | sha256sum | cut -d' ' -f1)
    # Keys that were added by hand stay; this only sees to it that the operator's key is among them.
    if grep -qs "$digest" "$etc/api_keys.yaml"; then return; fi
    {
        cat "$etc/api_keys.yaml" 2>/dev/null || echo "# SHA-256 of an API key: its role (reader, writer, operator)"
        echo "$digest: operator"
    } >"$work/api_keys.yaml"
    put "$work/api_keys.yaml" "$etc/api_keys.yaml" 0640
}

# What the node would refuse at its next start is refused here, while the old file is still in place.
configuration() {
    RAFTSPINE_CLUSTER_SECRET=$(cat "$etc/secret") "$venv/bin/python" - "$config" "$node" <<'PY' || exit 1
import os, sys
from raftspine import config
from raftspine.errors import Misuse
try:
    config.load(sys.argv[1], os.environ).member(sys.argv[2])
except Misuse as error:
    sys.exit(f"provision.sh: {error.message}")
PY
    put "$config" "$etc/cluster.yaml" 0640
    printf 'RAFTSPINE_NODE=%s\n' "$node" >"$work/node.env"
    put "$work/node.env" "$etc/node.env" 0640
}

unit() {
    mkdir -p "$root/etc/systemd/system"
    put "$source_dir/conf/raftspine.service" "$root/etc/systemd/system/raftspine.service" 0644
    [ "$systemd" = yes ] || return 0
    systemctl daemon-reload
    systemctl --quiet enable raftspine.service
    if [ "$changes" -gt 0 ]; then
        systemctl restart raftspine.service
    else
        systemctl start raftspine.service
    fi
}

# The address the cluster file gives this node.
own_url() {
    RAFTSPINE_CLUSTER_SECRET=$(cat "$etc/secret") "$venv/bin/python" - "$etc/cluster.yaml" "$node" <<'PY'
import os, sys
from raftspine import config
member = config.load(sys.argv[1], os.environ).member(sys.argv[2])
print(f"http://{member.host}:{member.port}")
PY
}

# Asks this node itself until it answers 200 or two minutes are over, then shows the cluster.
health_check() {
    case $await in '' | nothing) return ;; esac
    local url path=/readyz
    url=$(own_url)
    [ "$await" = ready ] || path=/healthz
    if ! "$venv/bin/python" - "$url$path" <<'PY'; then
import sys, time, urllib.error, urllib.request
deadline = time.monotonic() + 120
while True:
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=5):
            sys.exit(0)
    except urllib.error.HTTPError as error:
        said = f"{error.code} {error.read(2000).decode(errors='replace')}"
    except OSError as error:
        said = str(error)
    if time.monotonic() > deadline:
        sys.exit(f"provision.sh: {sys.argv[1]} is not well after two minutes: {said}")
    time.sleep(1)
PY
        if [ "$systemd" = yes ]; then
            systemctl --no-pager --lines=0 status raftspine.service >&2 || true
            journalctl --no-pager --unit raftspine.service --lines 40 >&2 || true
        fi
        fail "the node is installed but not $await"
    fi
    say "$node is $await at $url"
    if [ "$await" = ready ] && [ -n "$key" ]; then
        RAFTSPINE_API_KEY=$key "$venv/bin/raftspine" cluster status --url "$url"
    fi
}

system_packages
python_new_enough
account_and_folders
code
secret
api_keys
configuration
unit
if [ "$changes" -eq 0 ]; then say "$node: nothing changed"; fi
health_check
