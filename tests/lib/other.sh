# A second libvirt in the lab host, with definitions, run-time state and a host name of its own: somewhere to migrate to and back.
# Sourced after oracle.sh. Images are at the same paths for both.
# shellcheck shell=bash
other=/run/other-libvirt
other_uri="qemu+unix:///system?socket=$other/libvirt-sock"

there() { inside virsh -q -c "$other_uri" "$@"; }

other_up() {
    other_down
    inside_sh 'other=$1
        mkdir -p "$other"
        cp -a /etc/libvirt "$other/etc"
        # No domain, network or pool of the first one.
        rm -rf "$other"/etc/qemu/*.xml "$other/etc/qemu/autostart" "$other/etc/qemu/networks" "$other/etc/storage"
        printf "host_uuid = \"%s\"\nunix_sock_dir = \"%s\"\n" "$(cat /proc/sys/kernel/random/uuid)" "$other" >"$other/etc/libvirtd.conf"
        systemd-run -q --unit other-libvirt --collect -p Type=exec -p KillMode=process unshare --uts --mount bash -euc "
            hostname other
            mount --make-rslave /
            mount --bind \"$other/etc\" /etc/libvirt
            for dir in /run/libvirt /var/lib/libvirt/qemu /var/cache/libvirt; do mount -t tmpfs none \$dir; done
            exec /usr/sbin/libvirtd --pid-file \"$other/pid\""
        for try in {1..100}; do [ ! -S "$other/libvirt-sock" ] || exit 0; sleep 0.1; done
        exit 1' "$other" || die "there is no second libvirt"
}
other_down() { inside_sh 'systemctl stop other-libvirt 2>/dev/null || true; rm -rf "$1"' "$other"; }

# go_there VM, come_back VM: live, on the same images.
go_there() { inside timeout "${2:-120}" virsh -q migrate "$1" "$other_uri" --migrateuri tcp://127.0.0.1 --live --unsafe --persistent; }
come_back() { there migrate "$1" qemu:///system --migrateuri tcp://127.0.0.1 --live --unsafe; }
