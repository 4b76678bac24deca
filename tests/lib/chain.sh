# Chains: writes that are made in the guest and, by tools of the host alone, on a model of each disk. Sourced after stack.sh and oracle.sh.
# What a job must restore is a copy of the models from before it began: nothing of ours is asked what the guest wrote.
# shellcheck shell=bash
images=/var/lib/libvirt/images
chain=$images/chain-$scenario

# model VM DISK SIZE: begins the model of a disk that is all zero.
model() { inside_sh 'mkdir -p "$1"; rm -f "$1/$2.raw"; truncate -s "$3" "$1/$2.raw"' "$chain/$1" "$2" "$3"; }

# The pieces of a write: `DISK AT LEN WHAT`, AT and LEN in KiB, WHAT a word that is written over and over, `zero` (written) or `trim`
# (zeros that may become a hole). Several pieces are separated by commas.
puts() {
    local disk at len what
    tr ',' '\n' <<<"$1" | while read -r disk at len what; do
        case $what in
            trim) echo "$2 $disk $at $len trim" ;;
            zero) echo "head -c $((len << 10)) /dev/zero | $2 $disk $at $len" ;;
            # `yes` ends by a broken pipe, which is no failure.
            *) echo "{ yes $what || :; } | head -c $((len << 10)) | $2 $disk $at $len" ;;
        esac
    done
}
# put VM PIECES: in the running guest, and on the models. Flushed: what was not may be lost with QEMU.
put() {
    guest run "$1" --timeout 120 'set -e
        into() { [ -b "/dev/$1" ] || { echo "no disk $1" >&2; exit 1; }
        case ${4:-} in
            # Zeros first: what is read after a discard alone is not promised.
            trim) head -c $(($3 << 10)) /dev/zero | into "$1" "$2" "$3"
                blkdiscard -o $(($2 << 10)) -l $(($3 << 10)) "/dev/$1" ;;
            *) dd of="/dev/$1" bs=4k seek=$(($2 / 4)) iflag=fullblock oflag=direct conv=notrunc,fsync 2>/dev/null ;;
        esac; }
        '"$(puts "$2" into)" </dev/null || die "the guest $1 did not write $2"
    put_model "$@"
}
# put_off VM FORMAT PIECES: the VM is off, qemu-io writes into its images.
put_off() {
    local vm=$1 format=$2 disk at len what
    tr ',' '\n' <<<"$3" | while read -r disk at len what; do
        case $what in
            trim) set -- "write -z -u ${at}k ${len}k" ;;
            zero) set -- "write -P 0 ${at}k ${len}k" ;;
            *) inside_sh '{ yes "$1" || :; } | head -c $(($2 << 10)) >"$3"' "$what" "$len" "$chain/piece"
               set -- "write -s $chain/piece ${at}k ${len}k" ;;
        esac
        inside qemu-io -f "$format" -c "$1" "$images/$vm-$disk.$format" >/dev/null </dev/null
    done
    put_model "$vm" "$3"
}
put_model() {
    inside_sh 'cd "$1"
        into() { case ${4:-} in
            trim) fallocate --punch-hole -o $(($2 << 10)) -l $(($3 << 10)) "$1.raw" ;;
            *) dd of="$1.raw" bs=4k seek=$(($2 / 4)) iflag=fullblock conv=notrunc status=none ;;
        esac; }
        '"$(puts "$2" into)" "$chain/$1"
}

# job VM [LEVEL]: a backup that must succeed, with what the disks hold now kept beside. Sets $job.
job() {
    inside_sh 'mkdir -p "$1/points"; rm -rf "$1/points/next"; mkdir "$1/points/next"; cp --sparse=always "$1"/*.raw "$1/points/next/"' "$chain/$1"
    job=$(backup "$@")
    inside mv "$chain/$1/points/next" "$chain/$1/points/$job"
}
# says JOB TEXT: its log says so.
says() { expect_log "$1" "$2"; }
# sent JOB DISK: KiB that it sent of a disk, from its manifest as restored by `back`; needs a `back` of that job before.
sent() { inside jq -r --arg disk "$2" '.disks[] | select(.target == $disk) | .sent_bytes / 1024 | floor' "$chain/back/manifest-$1.json"; }

# back VM JOB: restores that point into plain files, and compares every model with what came.
back() {
    local disk
    inside rm -rf "$chain/back/$1"
    inside lab-backup restore "$1" --job "$2" --to "$chain/back" --yes >"/tmp/$scenario.restore" 2>&1 ||
        { cat "/tmp/$scenario.restore" >&2; die "job $2 of $1 is not restored"; }
    for disk in $(inside ls "$chain/$1/points/$2"); do
        inside cmp "$chain/$1/points/$2/$disk" "$chain/back/$1/$disk" || die "job $2 of $1: $disk is not what the guest had"
    done
    inside cp "$chain/back/$1/manifest.json" "$chain/back/manifest-$2.json"
    [ "$(inside jq -r .job_id "$chain/back/manifest-$2.json")" = "$2" ] || die "the manifest is not that of job $2"
}
# tidy_chain VM…: guests and files go.
tidy_chain() {
    local vm
    for vm in "$@"; do guest remove "$vm" >/dev/null 2>&1 || true; done
    inside rm -rf "$chain"
    inside mkdir -p "$chain/back"
}
