# shell.sh — commands in a running guest, and waiting for it (part of lab-host/guest).
# shellcheck shell=bash

# shell UUID TIMEOUT SCRIPT: runs it in the guest through the channel lab.shell (image/guest-shell has the protocol).
shell() {
    local path
    path=$(attribute "$1" "//channel[target/@name='lab.shell']/source/@path")
    [ -n "$path" ] || { echo "guest: it is not running, or has no shell" >&2; return 125; }
    perl -e "$shell_client" -- "$path" "$2" "$3"
}
shell_client='
    use strict; use IO::Socket::UNIX; use MIME::Base64; use Fcntl ":flock";
    my ($path, $timeout, $script) = @ARGV;
    # QEMU serves one peer at a time; the others wait their turn.
    open my $lock, ">", "/run/lab-guest-shell." . ((stat $path)[1] // 0) or die "guest: $!\n";
    $SIG{ALRM} = sub { print STDERR "guest: no answer within $timeout s\n"; exit 124 };
    alarm $timeout;
    flock $lock, LOCK_EX;
    my $port = IO::Socket::UNIX->new(Peer => $path) or do { print STDERR "guest: its shell cannot be reached: $!\n"; exit 125 };
    my $id = "$$-" . time;
    print {$port} "$id " . encode_base64($script, "") . "\n" or exit 125;
    # What comes before our own answer is the rest of one whose asker left.
    my $buffer = "";
    my ($code, $out, $err);
    until (defined $code) {
        sysread $port, $buffer, 65536, length $buffer or do { print STDERR "guest: it went away\n"; exit 125 };
        next unless $buffer =~ s/.*?\Q$id\E (\d+) (\d+) (\d+)\n//s;
        ($code, $out, $err) = ($1, $2, $3);
    }
    while (length $buffer < $out + $err) { sysread $port, $buffer, 65536, length $buffer or exit 125 }
    print STDOUT substr($buffer, 0, $out);
    print STDERR substr($buffer, $out, $err);
    exit $code;
'

run() {
    local uuid timeout=60 script="" word
    uuid=$(uuid_of "$1")
    shift
    if [ "${1:-}" = --timeout ]; then timeout=$2; shift 2; fi
    [ $# -gt 0 ] || usage "run needs a command"
    if [ $# = 1 ]; then
        script=$1
    else
        for word in "$@"; do script+="'${word//\'/\'\\\'\'}' "; done
    fi
    shell "$uuid" "$timeout" "$script"
}

wait_for() {
    local name=$1 uuid agent="" timeout=120 kind deadline
    uuid=$(uuid_of "$name")
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --agent) agent=1; shift ;;
            --timeout) timeout=$2; shift 2 ;;
            *) usage "unknown option '$1'" ;;
        esac
    done
    deadline=$((SECONDS + timeout))
    kind=$(kind_of "$uuid")
    [ "$kind" != meter ] || record "$uuid"
    while :; do
        case $(state_of "$uuid") in
            running | paused) ;;
            *) die "'$name' is not running" ;;
        esac
        if [ -n "$agent" ]; then
            ! virsh -q qemu-agent-command "$uuid" --timeout 5 '{"execute":"guest-ping"}' >/dev/null 2>&1 || return 0
        elif [ "$kind" = meter ]; then
            ! awk '$3 > 0 { found = 1 } END { exit !found }' "$state/$uuid.record" || return 0
        else
            ! shell "$uuid" 5 true 2>/dev/null || return 0
        fi
        [ "$SECONDS" -lt "$deadline" ] || die "'$name' is not ready after $timeout s"
        sleep 0.3
    done
}
