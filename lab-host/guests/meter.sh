# meter.sh — what a meter's serial line tells (part of lab-host/guest).
# shellcheck shell=bash

# record UUID: one recorder for each run of a meter, reading its serial line as fast as it comes.
record() {
    local tty unit=lab-meter-$1
    tty=$(virsh -q ttyconsole "$1" | grep .) || return 0
    if [ "$(systemctl is-active "$unit")" = active ] && [ "$(cat "$state/$1.tty" 2>/dev/null)" = "$(virsh -q domid "$1") $tty" ]; then return 0; fi
    systemctl stop "$unit" 2>/dev/null || true
    echo "$(virsh -q domid "$1") $tty" >"$state/$1.tty"
    [ -e "$state/$1.record" ] || : >"$state/$1.record"
    systemd-run -q --collect --unit "$unit" -p Nice=-15 perl -e "$recorder" -- "$tty" "$state/$1.record"
}
# One line per 100 ms: time (monotonic, s), longest gap that ended in it or is open at its end (ms), writes, errors, reports lost.
recorder='
    use strict; use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC); use IO::Select; use IO::Handle; use Fcntl;
    my ($tty, $file) = @ARGV;
    sysopen my $in, $tty, O_RDWR | O_NOCTTY or die "$tty: $!";
    open my $out, ">>", $file or die "$file: $!"; $out->autoflush(1);
    my ($last, $letter, $end) = (undef, undef, clock_gettime(CLOCK_MONOTONIC) + 0.1);
    my ($gap, $writes, $errors, $lost) = (0, 0, 0, 0);
    my $select = IO::Select->new($in);
    while (1) {
        my $now = clock_gettime(CLOCK_MONOTONIC);
        if ($now >= $end) {
            my $open = defined $last ? 1000 * ($now - $last) : 0;
            $gap = $open if $open > $gap;
            printf {$out} "%.3f %.1f %d %d %d\n", $now, $gap, $writes, $errors, $lost;
            ($gap, $writes, $errors, $lost) = (0, 0, 0, 0);
            $end = $now + 0.1;
        }
        next unless $select->can_read($end > $now ? $end - $now : 0);
        sysread $in, my $bytes, 4096 or exit;
        $now = clock_gettime(CLOCK_MONOTONIC);
        if (defined $last and 1000 * ($now - $last) > $gap) { $gap = 1000 * ($now - $last) }
        $last = $now;
        for my $report (unpack "C*", $bytes) {
            # An error takes the place of its letter.
            if ($report == 69) { $errors++; $letter = ($letter + 1) % 26 if defined $letter; next }
            next if $report < 97 or $report > 122;
            $lost += ($report - 97 - $letter - 1) % 26 if defined $letter;
            $letter = $report - 97;
            $writes++;
        }
    }
'

meter_of() {
    local uuid
    uuid=$(uuid_of "$1")
    [ "$(kind_of "$uuid")" = meter ] || die "'$1' is not a meter"
    record "$uuid"
    echo "$uuid"
}

mark() {
    local uuid
    uuid=$(meter_of "$1")
    perl -MTime::HiRes=clock_gettime,CLOCK_MONOTONIC -e 'printf "%.3f\n", clock_gettime(CLOCK_MONOTONIC)' | tee "$state/$uuid.mark"
}

gap() {
    local uuid since=0
    uuid=$(meter_of "$1")
    ! [ -e "$state/$uuid.mark" ] || since=$(cat "$state/$uuid.mark")
    if [ "${2:-}" = --since ]; then since=$3; fi
    sleep 0.15      # what happened up to now is written down every 100 ms
    # A gap that was open at the mark counts from the mark.
    awk -v since="$since" '
        $1 > since { gap = $2; if (since > 0 && gap > 1000 * ($1 - since)) gap = 1000 * ($1 - since)
                     if (gap > longest) longest = gap
                     if (!from) from = $1
                     writes += $3; errors += $4; lost += $5; last = $1 }
        END { if (!from) exit 1
              printf "gap_ms=%.0f writes=%d errors=%d lost=%d seconds=%.1f\n", longest, writes, errors, lost, last - (since > 0 ? since : from) }
    ' "$state/$uuid.record" || die "nothing was recorded since $since"
}

counter() {
    perl -e '
        use strict;
        open my $image, "<:raw", $ARGV[0] or die "guest: $ARGV[0]: $!\n";
        my ($counter, $torn, $size) = (0, 0, -s $image);
        for (my $at = 65536; $at + 512 <= $size; $at += 65536) {
            seek $image, $at, 0; read $image, my $sector, 512;
            next if $sector eq "\0" x 512;
            my ($magic, $number, $lba, @rest) = unpack "a8 V V V124", $sector;
            if ($magic ne "LABMETER" or $lba != $at / 512 or grep { $_ != $number } @rest) { $torn++; next }
            $counter = $number if $number > $counter;
        }
        print "counter=$counter torn=$torn\n";
    ' -- "$1"
}
