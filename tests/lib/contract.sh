# Shared by tests/contract-*/run: sourced, not run. The contract between Bacula 15 and the plugin is tried on a real Director,
# Storage Daemon, File Daemon and systemd, with a worker that does what a script says, so that it is proved without libvirt.
# Everything happens in the lab host that LAB names (default: lab-host/lab of this tree).
# shellcheck shell=bash
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LAB=${LAB:-$repo/lab-host/lab}
scenario=$(basename "$(dirname "$(realpath "$0")")")
contract=/var/lib/contract

inside() { "$LAB" exec "$@"; }

scratch=$(mktemp -d)

at_exit() {
    local code=$?
    if [ $code = 0 ]; then
        rm -rf "$scratch"
    else
        cat >&2 <<TEXT
$scenario: FAILED. Look at
  job logs       $LAB exec psql -p 5499 contract -c 'SELECT jobid, logtext FROM log ORDER BY logid'
  daemons        $LAB exec journalctl -u 'contract-*'
  conversations  $LAB exec ls $contract/record (one file per JobId)
  scratch files  $scratch
TEXT
    fi
    exit $code
}
trap at_exit EXIT

die() { echo "$scenario: $*" >&2; exit 1; }
step() { echo "$scenario: $*"; }

# contract_up: builds the plugin and the worker, brings the lab host and its contract Bacula up.
contract_up() {
    local so worker target
    target=$(cd "$repo" && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    (cd "$repo" && cargo build --quiet --release -p fd-plugin --lib --example scripted_worker)
    so=$target/release/liblab_backup_fd.so worker=$target/release/examples/scripted_worker
    "$LAB" up
    inside test -e "$contract/plugins/lab-backup-fd.so" -a -e "$contract/stamp" || inside mkdir -p "$contract"
    local stamp
    stamp=$(cat "$so" "$worker" "$repo/tests/lib/contract-setup" | sha256sum)
    if [ "$(inside cat "$contract/stamp" 2>/dev/null)" != "$stamp" ] || ! inside systemctl -q is-active contract-dir contract-sd contract-worker.socket; then
        "$LAB" cp "$so" :/tmp/lab-backup-fd.so
        "$LAB" cp "$worker" :/tmp/scripted_worker
        "$LAB" cp "$repo/tests/lib/contract-setup" :/tmp/contract-setup
        inside bash /tmp/contract-setup </dev/null
        inside tee "$contract/stamp" <<<"$stamp" >/dev/null
    fi
    inside systemctl start contract-fd
}

# contract_vm KEY [EXTRA-INCLUDE]: a Client, a FileSet and a Job of that name, all on the one File Daemon.
contract_vm() {
    inside tee "/etc/contract/dir.d/$1.conf" >/dev/null <<CONF
Client {
  Name = $1
  Address = 127.0.0.1
  FDPort = 9202
  Catalog = contract
  Password = contract
  Maximum Concurrent Jobs = 8
}
FileSet {
  Name = $1
  Include {
    Options {
      Signature = Xxh3_128
    }
    Plugin = "lab-backup: vm=$1"
${2:-}
  }
}
Job {
  Name = $1
  JobDefs = contract
  Client = $1
  FileSet = $1
}
CONF
    console reload >/dev/null
}

console() { printf '%s\n' "$@" | inside bconsole -n -c /etc/contract/bconsole.conf; }
catalog() { inside psql -p 5499 -d contract -qtA -c "$1"; }

# script NAME <<…: what the worker does for VM NAME (or NAME.restore).
script() { inside tee "$contract/script/$1" >/dev/null; }

# started OUTPUT: the JobId in what the console said.
started() { sed -n 's/.*Job queued. JobId=\([0-9]*\).*/\1/p' <<<"$1" | tail -1; }

# start_backup VM LEVEL: prints the JobId at once.
start_backup() {
    local said
    said=$(console "run job=$1 level=$2 yes")
    started "$said" | grep . || die "the Director did not run $1: $said"
}

# start_restore VM WHERE [JOB [WORDS]]: prints the JobId at once. WORDS select other jobs than the newest chain.
start_restore() {
    local said
    said=$(console "restore client=$1 fileset=$1 restorejob=${3:-contract-restore} where=\"$2\" ${4:-current} select all done yes")
    started "$said" | grep . || die "the Director did not restore $1: $said"
}

# finished JOBID: waits and prints the status letter.
finished() {
    console "wait jobid=$1 timeout=60" >/dev/null
    catalog "SELECT jobstatus FROM job WHERE jobid=$1"
}

contract_log() { catalog "SELECT logtext FROM log WHERE jobid=$1 ORDER BY logid"; }
job_name() { catalog "SELECT job FROM job WHERE jobid=$1"; }

# expect_status JOBID LETTERS: the job ends with one of them.
expect_status() {
    local status
    status=$(finished "$1")
    [[ $2 == *"$status"* ]] || { contract_log "$1" >&2; die "job $1 ended as '$status', not as one of '$2'"; }
}

# expect_log JOBID TEXT (no pipe into grep -q: it leaves early, and pipefail would count the writer's broken pipe)
expect_log() { grep -qF -- "$2" <<<"$(contract_log "$1")" || { contract_log "$1" >&2; die "the log of job $1 does not say: $2"; }; }

# record JOBID [KIND]: what the worker heard in that job, a line of JSON each.
record() { inside cat "$contract/record/$1" 2>/dev/null | { [ $# = 1 ] && cat || grep "\"$2\":" || true; }; }

# backup VM LEVEL: a backup that must succeed; prints its JobId.
backup() {
    local id
    id=$(start_backup "$1" "$2")
    expect_status "$id" T
    echo "$id"
}

# same_image JOBID RESTOREID NAME: the restored file is what the worker sent as of that job.
same_image() { inside cmp "$contract/expect/$1/$3" "$contract/restored/$2/$3" || die "$3 of job $1 was not restored exactly by job $2"; }

# cancel JOBID: prints how many seconds it took until the job had ended.
cancel() {
    local since=$EPOCHREALTIME
    console "cancel jobid=$1 yes" >/dev/null
    finished "$1" >/dev/null
    awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $since }"
}

# until_recorded JOBID KIND: waits until the worker of that job has noted it.
until_recorded() {
    for _ in {1..100}; do
        [ -z "$(record "$1" "$2" 2>/dev/null)" ] || return 0
        sleep 0.1
    done
    die "the worker of job $1 did not note: $2"
}

# no_worker: every worker has gone, within a few seconds.
no_worker() {
    for _ in {1..50}; do
        [ -n "$(inside systemctl list-units --no-legend 'contract-worker@*')" ] || return 0
        sleep 0.1
    done
    inside systemctl list-units 'contract-worker@*' >&2
    die "a worker is still there"
}
