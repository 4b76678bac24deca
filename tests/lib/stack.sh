# Shared by the scenarios that use the whole stack: sourced, not run. Everything happens in the lab host that LAB names; the stack was
# brought up there by lab-host/deploy, with the VM keys of every tests/*/vms.toml in its lab.toml.
# shellcheck shell=bash
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LAB=${LAB:-$repo/lab-host/lab}
GUEST=${GUEST:-$repo/lab-host/guest}
scenario=$(basename "$(dirname "$(realpath "$0")")")
conf=/etc/lab-backup/bconsole.conf
scratch=/var/lib/libvirt/lab-backup/scratch

inside() { "$LAB" exec "$@"; }
guest() { "$GUEST" "$@"; }
step() { echo "$scenario: $*"; }
die() { echo "$scenario: $*" >&2; exit 1; }

# What a scenario or another library must put right however it ends; they redefine it.
at_exit() { :; }
# Where to look when something failed.
trap 'code=$?; at_exit; [ $code = 0 ] || echo "$scenario: FAILED; look with: $LAB exec journalctl -u \"lab-backup-*\" -u bacula-fd -u libvirtd; job logs: $LAB exec lab-backup status" >&2; exit $code' EXIT

console() { printf '%s\n' "$@" | inside bconsole -n -c "$conf"; }
catalog() { inside runuser -u lab-backup -- env -C / "XDG_RUNTIME_DIR=/run/user/$(inside id -u lab-backup)" podman exec lab-backup-catalog psql -U bacula -d bacula -qtA -c "$1"; }

# started OUTPUT: the JobId in what the console said.
started() { sed -n 's/.*Job queued. JobId=\([0-9]*\).*/\1/p' <<<"$1" | tail -1; }

# start_backup VM [LEVEL]: prints the JobId at once.
start_backup() {
    local said
    said=$(console "run job=$1 level=${2:-Full} yes")
    started "$said" | grep . || die "the Director did not run $1: $said"
}

# start_restore VM WHERE [JOBID]: prints the JobId at once; the newest chain without JOBID.
start_restore() {
    local said which=current
    [ $# -lt 3 ] || which="jobid=$3"
    [ $# -ge 3 ] && said=$(console "restore client=$1 restorejob=lab-backup-restore jobid=$3 where=\"$2\" all done yes") ||
        said=$(console "restore client=$1 fileset=$1 restorejob=lab-backup-restore where=\"$2\" $which select all done yes")
    started "$said" | grep . || die "the Director did not restore $1: $said"
}

# finished JOBID [SECONDS]: waits and prints the status letter.
finished() {
    console "wait jobid=$1 timeout=${2:-300}" >/dev/null
    catalog "SELECT jobstatus FROM job WHERE jobid=$1"
}
job_log() { catalog "SELECT logtext FROM log WHERE jobid=$1 ORDER BY logid"; }
job_name() { catalog "SELECT job FROM job WHERE jobid=$1"; }

# expect_status JOBID LETTERS: the job ends with one of them.
expect_status() {
    local status
    status=$(finished "$1")
    [[ -n $status && $2 == *"$status"* ]] || { job_log "$1" >&2; die "job $1 ended as '$status', not as one of '$2'"; }
}
# expect_log JOBID TEXT
expect_log() { job_log "$1" | grep -F -- "$2" >/dev/null || { job_log "$1" >&2; die "the log of job $1 does not say: $2"; }; }

# backup VM [LEVEL]: a backup that must succeed; prints its JobId.
backup() {
    local id
    id=$(start_backup "$@")
    expect_status "$id" T
    echo "$id"
}

# clean VM [DOMAIN]: nothing of ours is left: no backup job, scratch, socket, journal, lease, claim, worker, no checkpoint of a failed job
# (those of a domain that is off stay until it runs: nothing can be removed from its images before).
clean() {
    local left
    left=$(inside bash -c '
        exec 2>/dev/null
        ls -A '"$scratch"' /run/lab-backup/nbd /run/lab-backup/leases /run/lab-backup/claims /var/lib/lab-backup/journal | grep -v ":$" | grep .
        virsh backup-dumpxml "$1" && echo "a backup job of $1"
        [ "$(virsh -q domstate "$1")" = "shut off" ] || for name in $(virsh -q checkpoint-list "$1" --name | grep ^lab-backup-); do
            compgen -G "/var/lib/lab-backup/maps/*/${name#lab-backup-}.json" >/dev/null || echo "checkpoint $name"
        done
        systemctl list-units --no-legend "lab-backup-worker@*"
        pgrep -a qemu-nbd
        true' - "${2:-$1}")
    [ -z "$left" ] || die "left behind: $left"
}
# clean_soon VM [DOMAIN]: the same within 30 seconds.
clean_soon() {
    local try
    for try in {1..30}; do
        (trap - EXIT; clean "$@") 2>/dev/null && return 0
        sleep 1
    done
    clean "$@"
}
