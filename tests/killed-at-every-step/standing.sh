# standing.sh — a job that stands still at one of its steps (part of cells).
# shellcheck shell=bash

# The counters of a meter's image, and whether it is what the disk held at one instant: tick n wrote slot n mod slots, one after the
# other, so the newest counter tells what every slot must hold. What lies between the slots never changes.
counter() {
    perl -e '
        use strict; use Digest::SHA;
        my ($path, $checked) = @ARGV;
        open my $image, "<:raw", $path or die "$path: $!\n";
        my $slots = (-s $image) / 65536 - 1;
        my ($newest, @held) = (0);
        my $rest = Digest::SHA->new(256);
        for my $slot (0 .. $slots - 1) {
            seek $image, 65536 * ($slot + 1), 0; read $image, my $bytes, 65536;
            my $sector = substr $bytes, 0, 512, "";
            $rest->add($bytes);
            my ($magic, $number, $lba, @copies) = unpack "a8 V V V124", $sector;
            my $whole = $magic eq "LABMETER" && $lba == 128 * ($slot + 1) && !grep { $_ != $number } @copies;
            push @held, $sector eq "\0" x 512 ? 0 : $whole ? $number : -1;
            $newest = $number if $whole && $number > $newest;
        }
        my $wrong = 0;
        for my $slot (0 .. $slots - 1) {
            my $due = $newest - ($newest - $slot) % $slots;
            $wrong++ if $held[$slot] != ($due > 0 ? $due : 0);
        }
        print $checked ? "$newest $wrong " . $rest->hexdigest : $newest, "\n";
    ' -- "$@"
}
image() { echo "/var/lib/libvirt/images/$1-vda.raw"; }

# exact VM: what the last job of that VM left in out/ is the disk at one instant between `before` and now.
exact() {
    local now newest bad rest
    if [ "$1" = "$agent" ]; then
        e2fsck -fn "$dir/out/$1/vda.raw" >"$dir/fsck" 2>&1 || { echo "the file system in the backup is not clean"; return 1; }
        [ "$(debugfs -R 'cat /data' "$dir/out/$1/vda.raw" 2>/dev/null | sha256sum)" = "$sum" ] || { echo "the file in the backup is another"; return 1; }
        return
    fi
    now=$(counter "$(image "$1")")
    read -r newest bad rest < <(counter "$dir/out/$1/vda.raw" checked)
    [ "$bad" = 0 ] || { echo "$bad slots are not of the instant of tick $newest"; return 1; }
    [ "$newest" -ge "${before[$1]}" ] && [ "$newest" -le "$now" ] || { echo "tick $newest is not between ${before[$1]} and $now"; return 1; }
    [ "$rest" = "$(read -r _ _ rest < <(counter "$(image "$1")" checked); echo "$rest")" ] || { echo "what never changes did change"; return 1; }
}

start_job() {
    [ "$1" = "$agent" ] || before[$1]=$(counter "$(image "$1")")
    if [ "$by" = drive ]; then
        rm -rf "$dir/out/$1"
        mkdir -p "$dir/out/$1"
        drive backup "$1" "$dir/out/$1" >"$dir/drive.$1" 2>&1 &
        job[$1]=$!
    else
        job[$1]=$(start_backup "$1" Full)
    fi
}
marked() { if [ "$1" = "$agent" ]; then guest run "$1" 'wc -l </run/ticks'; else cut -d' ' -f1 /proc/uptime; fi; }

# stopped_at VM CALL NUMBER: begins a job whose worker stops after its NUMBER-th CALL; false if the worker ended without.
stopped_at() {
    local vm=$1 file
    rm -f "$dir"/workers/* "$dir/worker.$vm"
    mark[$vm]=$(marked "$vm")
    echo "$vm $2 $3" >"$dir/next"
    start_job "$vm"
    until_true 30 test ! -e "$dir/next" || { rm -f "$dir/next"; die "no worker began for $vm"; }
    until_true 5 compgen -G "$dir/workers/*"
    file=$(echo "$dir"/workers/*)
    worker[$vm]=${file##*/}
    # Looking for the stop itself: under strace a worker is `stopped` for a moment at every system call.
    for try in {1..6000}; do
        ! [ -e "$dir/log.${worker[$vm]}" ] || [[ "$(<"$dir/log.${worker[$vm]}")" != *"stopped by SIGSTOP"* ]] || return 0
        [ -e "/proc/${worker[$vm]}" ] || return 1
        sleep 0.02
    done
    die "the worker of $vm neither ended nor stopped at $2 $3"
}

# streaming VM: a job whose plugin takes no more.
streaming() {
    local vm=$1 was=-1 now=0
    stopped_at "$vm" fdatasync "$begins" || die "$vm: there is no step $begins"
    kill -STOP "${job[$vm]}"
    kill -CONT "${worker[$vm]}"
    until [ -S /run/lab-backup/nbd/"${job[$vm]}"/nbd.sock ] && now=$(sed -n 's/^wchar: //p' "/proc/${worker[$vm]}/io") && [ "$now" -gt 1000000 ] && [ "$now" = "$was" ]; do
        was=$now
        sleep 0.1
        [ -e "/proc/${worker[$vm]}" ] || die "$vm does not stream: $(cat "$dir/drive.$vm")"
    done
}

# reached VM STATE: the job of VM stands in that state.
reached() {
    if [ "$2" = streaming ]; then streaming "$1"; else stopped_at "$1" $2; fi
}

frozen_now() { virsh -q qemu-agent-command "$agent" --timeout 5 "$status" 2>/dev/null | grep -q frozen; }
thawed_now() { virsh -q qemu-agent-command "$agent" --timeout 5 "$status" 2>/dev/null | grep -q thawed; }
hook() { guest run "$agent" "printf '#!/bin/sh\n[ \"\$1\" != freeze ] || usleep $1\n' >/run/fsfreeze-hook; chmod 755 /run/fsfreeze-hook"; }

# leased: the guest has a lease, its worker is stopped, and the freeze was sent.
leased() {
    mark[$agent]=$(marked "$agent")
    start_job "$agent"
    until_true 60 compgen -G "$leases/*.json" || die "there was no lease"
    worker[$agent]=$(systemctl show -P MainPID 'lab-backup-worker@*' | grep .)
    # The worker is at its freeze call, which libvirt has taken: the hook in the guest is slower than this.
    sleep 0.05
    kill -STOP "${worker[$agent]}"
}
frozen() {
    leased
    until frozen_now; do
        compgen -G "$leases/*.json" >/dev/null || die "the guest was not frozen while the lease ran"
        sleep 0.02
    done
}
# second_begin: the guest is frozen, its begin is refused for a bitmap and another one follows; the worker is stopped somewhere in there.
second_begin() {
    local checkpoint
    stopped_at "$agent" fdatasync "${agent_step["journal: freeze"]}" || die "$agent: the job ended before its freeze"
    checkpoint=$(cat /var/lib/lab-backup/journal/"$agent"@*.jsonl | jq -r 'select(.do == "checkpoint").name')
    # One that is there already, by the name that the job is about to use.
    virsh -q checkpoint-create-as "$agent" "$checkpoint" --diskspec vda,checkpoint=bitmap >/dev/null
    kill -CONT "${worker[$agent]}"
    until_true 10 compgen -G "$leases/*.json" || die "there was no lease"
    sleep 0.32
    kill -STOP "${worker[$agent]}"
}
