# holds.sh — the faults, and what must hold after each (part of cells).
# shellcheck shell=bash

# ---- faults

guard_pid() { systemctl show -P MainPID lab-backup-guard | grep -vx 0; }
libvirtd_pid() { systemctl show -P MainPID libvirtd | grep -vx 0; }
fd_pid() { systemctl show -P MainPID bacula-fd | grep -vx 0; }
workers() { local vm; for vm in "${vms[@]}"; do echo "${worker[$vm]}"; done; }
go_on() {
    local vm
    for vm in "${vms[@]}"; do
        kill -CONT "${worker[$vm]}" 2>/dev/null || true
        [ "$by" != drive ] || kill -CONT "${job[$vm]}" 2>/dev/null || true
    done
}
plugins_go_on() {
    local vm
    [ "$by" = drive ] || return 0
    for vm in "${vms[@]}"; do kill -CONT "${job[$vm]}" 2>/dev/null || true; done
}

later=
continue_soon() {
    (trap - EXIT; sleep 5; kill -CONT "$1") &
    later=$!
}

# fault NAME: does it, at $when; every worker and plugin that lives goes on.
fault() {
    local pid
    case $1 in
        "worker killed") kill -9 $(workers) ;;
        "guard killed") kill -9 "$(guard_pid)" ;;
        "worker and guard killed") kill -9 $(workers) "$(guard_pid)" ;;
        "libvirtd killed") kill -9 "$(libvirtd_pid)" ;;
        "worker, guard and libvirtd killed") kill -9 $(workers) "$(guard_pid)" "$(libvirtd_pid)" ;;
        "bacula-fd and its control group killed") systemctl kill --signal=KILL --kill-whom=all bacula-fd ;;
        "worker stopped for good") kill -STOP $(workers); plugins_go_on; when=$EPOCHREALTIME; return ;;
        "guard stopped for good") kill -STOP "$(guard_pid)" ;;
        "libvirtd stopped for 5 s") pid=$(libvirtd_pid); kill -STOP "$pid"; continue_soon "$pid" ;;
        "bacula-fd stopped for 5 s") pid=$(fd_pid); kill -STOP "$pid"; continue_soon "$pid" ;;
        "stopped for a moment, no fault") ;;
        *) die "no such fault: $1" ;;
    esac
    when=$EPOCHREALTIME
    go_on
}

# ---- what must hold afterwards

# The socket's file outlives the guard that listened on it, and one that stands still listens as well, until systemd replaces it.
answering() { virsh -q list && socat -u OPEN:/dev/null UNIX-CONNECT:/run/lab-backup/guard.sock && guard_moves; }
guard_moves() { [[ $(sed 's/.*) //' "/proc/$(guard_pid)/stat") != T* ]]; }
no_worker() { [ -z "$(systemctl list-units --no-legend 'lab-backup-worker@*')" ]; }
unleased() { ! compgen -G "$leases/*.json"; }
# The guard sees within its next look that the scratch is gone.
unclaimed() { ! compgen -G "/run/lab-backup/claims/*.json"; }
fd_answers() { (exec 3<>/dev/tcp/127.0.0.1/9102); }

# everything_back: what was killed runs again, by its own means, but for the File Daemon, which Debian does not restart.
everything_back() {
    [ -z "$later" ] || wait "$later" || true
    later=
    systemctl reset-failed bacula-fd libvirtd lab-backup-guard 2>/dev/null || true
    systemctl start bacula-fd
    until_true 60 answering || wrong "$1: guard or libvirtd did not come back"
    until_true 60 fd_answers || wrong "$1: bacula-fd did not come back"
}

# ended VM SECONDS: waits for the end of the job; prints `good` or `failed`.
ended() {
    local letter
    if [ "$by" = drive ]; then
        until_true "$2" test ! -e "/proc/${job[$1]}" || { echo endless; return; }
        if grep -q '^END ' "$dir/drive.$1"; then echo good; else echo failed; fi
    else
        over() { letter=$(catalog "SELECT jobstatus FROM job WHERE jobid=${job[$1]}"); [[ $letter == [TWEfA] ]]; }
        until_true "$2" over "$1" || { echo endless; return; }
        case $letter in [TW]) echo good ;; *) echo failed ;; esac
    fi
}
why() { if [ "$by" = drive ]; then tail -1 "$dir/drive.$1"; else job_log "${job[$1]}" | grep -i 'fatal\|error' | head -1; fi | cut -c1-160; }

# gap VM: the longest gap in ms since its mark, 0 errors and still writing; says what else there was.
gap() {
    local said gap_ms errors lost
    if [ "$1" = "$agent" ]; then
        said=$(guest run "$1" "tail -n +${mark[$1]} /run/ticks; echo end; cut -d' ' -f1 /proc/uptime")
        awk '$1 == "end" { end = 1; next }
             NR > 1 && $1 - last > gap { gap = $1 - last }
             end { if ($1 - last > 2) open = 1 } { last = $1 }
             END { printf "%.0f %s\n", 1000 * gap, open ? "stopped-writing" : "" }' <<<"$said"
        return
    fi
    said=$(guest gap "$1" --since "${mark[$1]}")
    eval "${said//seconds=*/}"
    echo "$gap_ms $([ "$errors,$lost" = 0,0 ] || echo "errors=$errors,lost=$lost")"
}

# checked CELL VM OUTCOME THAW: the guest is unharmed. (Nothing left and the next backup are seen to for the whole round.)
checked() {
    local cell=$1 vm=$2 outcome=$3 thaw=$4 longest other said
    read -r longest other < <(gap "$vm")
    [ "$(virsh -q domstate "$vm" | grep .)" = running ] || wrong "$cell: the guest is $(virsh -q domstate "$vm" --reason)"
    [ -z "$other" ] || wrong "$cell: the guest's writes: $other"
    if [ "$vm" = "$agent" ]; then
        thawed_now || wrong "$cell: the guest is frozen"
        guest run "$vm" --timeout 10 'echo x >/mnt/vda/after && sync' || wrong "$cell: the guest cannot write"
    fi
    case $outcome in
        endless) wrong "$cell: the job does not end" ;;
        good) [ "$by" != drive ] || said=$(exact "$vm") || wrong "$cell: the job is called good: $said" ;;
    esac
    # Who dies without a word cannot have ended well.
    case $cell in *"stopped for a moment"*) [ "$outcome" = good ] || wrong "$cell: the job is $outcome: $(cat "$dir/drive.$vm")" ;;
        *"worker killed"* | *"worker stopped"* | *"worker and guard killed"* | *"worker, guard"* | *"control group killed"*)
        [ "$outcome" = failed ] || wrong "$cell: the job is $outcome" ;;
    esac
    table "$cell" "$longest" "$thaw" "$outcome"
}

# cleared CELLS: one repair run leaves nothing, and the next backups are good and exact.
cleared() {
    local vm said
    until_true 60 no_worker || wrong "$1: a worker is still there: $(systemctl list-units --no-legend 'lab-backup-worker@*')"
    until_true 60 unleased || wrong "$1: a lease is still there"
    timeout 120 "$repair" repair >"$dir/repair" 2>&1 || wrong "$1: repair: $(cat "$dir/repair")"
    until_true 5 unclaimed || true
    for vm in "${vms[@]}"; do
        said=$( (trap - EXIT; clean "$vm") 2>&1) || { wrong "$1: after one repair: $said"; force_clean; }
    done
    local was=$by
    by=drive
    for vm in "${vms[@]}"; do start_job "$vm"; done
    for vm in "${vms[@]}"; do
        [ "$(ended "$vm" 120)" = good ] || { wrong "$1: the next backup of $vm: $(cat "$dir/drive.$vm")"; continue; }
        said=$(exact "$vm") || wrong "$1: the next backup of $vm: $said"
    done
    until_true 60 no_worker || true
    by=$was
}
# So that one wrong cell does not spoil those after it.
force_clean() {
    local vm pid
    for pid in $(pgrep -x lab-backup-work) $(pgrep -x drive); do kill -9 "$pid" 2>/dev/null || true; done
    until_true 30 no_worker || true
    for vm in "${pool[@]}" "$agent"; do
        virsh -q domfsthaw "$vm" >/dev/null 2>&1 || true
        ! virsh -q backup-dumpxml "$vm" >/dev/null 2>&1 || virsh -q domjobabort "$vm" || true
    done
    rm -rf "${scratch:?}"/* /run/lab-backup/nbd/* /var/lib/lab-backup/journal/*
}
