# The oracle: what a disk held at the instant of a backup, copied by a reader that is not ours from the very export that the job reads.
# Sourced after stack.sh. The Storage Daemon is stopped meanwhile, so the job stands still with its export open for as long as is needed.
# shellcheck shell=bash

# inside_sh SCRIPT [ARG…]: a bash script in the lab host.
inside_sh() { local script=$1; shift; inside bash -euo pipefail -c "$script" - "$@" </dev/null; }

# power_off DOMAIN…: those that run; their definitions and disks stay. What a failed scenario leaves running slows all others down.
power_off() { inside_sh 'for vm in "$@"; do virsh -q destroy "$vm" >/dev/null 2>&1 || true; done' "$@"; }

sd_pid() {
    inside runuser -u lab-backup -- env -C / "XDG_RUNTIME_DIR=/run/user/$(inside id -u lab-backup)" \
        podman inspect --format '{{.State.Pid}}' lab-backup-storage
}

held_sd=
release() {
    [ -z "$held_sd" ] || inside kill -CONT "$held_sd" || true
    held_sd=
}
# What fails while the Storage Daemon is stopped must not leave it so for the next scenario.
at_exit() { release; }

# hold KEY DOMAIN: begins a Full and stops it in its tracks as soon as its export is there. Sets `job` and `socket`.
hold() {
    local watcher pid
    pid=$(sd_pid)
    [ "$(inside cat "/proc/$pid/comm")" = bacula-sd ] || die "process $pid is not the Storage Daemon"
    held_sd=$pid
    # Waits where the socket appears: a job of some hundred MB is over within a second.
    inside_sh 'for ((i = 0; i < 6000; i++)); do
            for socket in /run/lab-backup/nbd/*/nbd.sock; do
                [ -S "$socket" ] || continue
                kill -STOP "$1"
                exit 0
            done
            sleep 0.01
        done
        exit 1' "$pid" &
    watcher=$!
    job=$(start_backup "$1" Full)
    wait "$watcher" || { job_log "$job" >&2; die "job $job opens no export"; }
    socket=$(export_of "$2")
    [ "$socket" = "/run/lab-backup/nbd/$job/nbd.sock" ] || die "the export of '$2' is '$socket', not that of job $job"
}

# export_of DOMAIN: the socket of its backup job, as libvirt tells; empty without a job.
export_of() { inside virsh -q backup-dumpxml "$1" 2>/dev/null | sed -n "s/.*<server .*socket='\([^']*\)'.*/\1/p"; }

# copy_export DIR DISK…: every disk as raw image DIR/<disk>.raw.
copy_export() {
    local dir=$1
    shift
    inside_sh 'socket=$1 dir=$2; shift 2
        mkdir -p "$dir"
        for disk in "$@"; do
            nbdcopy --connections=1 "nbd+unix:///$disk?socket=$socket" "$dir/$disk.raw"
        done' "$socket" "$dir" "$@"
}

# let_go DOMAIN: the job goes on; it must be the one that was held all the while, and it must end well.
let_go() {
    [ "$(export_of "$1")" = "$socket" ] || die "the export of job $job did not stay open"
    release
    expect_status "$job" T
}

# same FILE FILE WHAT: equal in size and every byte.
same() { inside cmp "$1" "$2" || die "$3: $2 is not what $1 holds"; }

# same_disk ORACLE IMAGE FORMAT WHAT: an image of that format holds exactly the bytes of the oracle, no more and no less.
same_disk() {
    local info
    info=$(inside qemu-img info --output=json "$2" | jq -r '"\(.format) \(."virtual-size")"')
    [ "$info" = "$3 $(inside stat -c %s "$1")" ] || die "$4: $2 is '$info', the oracle has $(inside stat -c %s "$1") bytes"
    inside qemu-img compare -q -f raw -F "$3" "$1" "$2" || die "$4: $2 is not what the guest had at the instant of the backup"
}

# proven IMAGE MANIFEST DISK: `root` says that the image is the disk that the manifest describes.
worker=/usr/libexec/lab-backup/lab-backup-worker
proven() { inside "$worker" root "$1" --manifest "$2" --disk "$3" >/dev/null || die "$1 is not proven as disk $3"; }

# refuted IMAGE MANIFEST DISK OFFSET: with one byte flipped there, `root` must fail and name the disk. The image is put right again.
refuted() {
    local said code=0
    flip "$1" "$4"
    said=$(inside "$worker" root "$1" --manifest "$2" --disk "$3" 2>&1) || code=$?
    flip "$1" "$4"
    [ "$code" = 1 ] && [[ $said == "$3: NOT the disk"* ]] || die "$1 with byte $4 flipped: exit $code: $said"
}
flip() {
    inside perl -e 'open my $f, "+<:raw", $ARGV[0] or die; sysseek $f, $ARGV[1], 0; sysread $f, my $b, 1 or die;
        sysseek $f, $ARGV[1], 0; syswrite $f, chr(ord($b) ^ 1) or die' "$1" "$2"
}
