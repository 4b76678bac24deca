#!/usr/bin/env bash
# install-bacula.sh [--dry-run] [SETTINGS]: from a fresh host to a running stack. Safe to repeat: what is there stays.
# SETTINGS is a file of NAME=value lines (default /etc/lab-backup/install.env, may be missing):
#   LAB_BACKUP_ADDRESS   host name of this host               default: what `hostname -f` says
#   LAB_BACKUP_STORAGE   directory of the volumes             default: /srv/lab-backup
#   LAB_BACKUP_NFS       share that is mounted there          default: none
#   LAB_BACKUP_BASE      what the container images are built on; default: Debian 13
#   LAB_BACKUP_PACKAGES  no: install no packages              default: yes
# Steps: packages (dnf with EPEL on RHEL 10 and its kin, apt on Debian 13), the program, lab.toml from the VMs that are found, apply.
# An existing lab.toml is never touched.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lab=/etc/lab-backup/lab.toml
dry=false settings=/etc/lab-backup/install.env

say() { echo "install-bacula: $*"; }
die() { echo "install-bacula: $*" >&2; exit 1; }
# do_it CMD…: shows it and runs it.
do_it() {
    printf '$'
    printf ' %q' "$@"
    echo
    $dry || "$@"
}

for word in "$@"; do
    case $word in
        --dry-run) dry=true ;;
        --help | -h) sed -n '2,10s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
        -*) die "'$word' is no option; see --help" ;;
        *) settings=$word; [ -r "$word" ] || die "the settings file '$word' cannot be read" ;;
    esac
done
[ "$(id -u)" = 0 ] || die "needs root; run it with sudo"

# Read, not sourced: a settings file is data.
address='' storage=/srv/lab-backup nfs='' base='' packages=yes
if [ -r "$settings" ]; then
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line =~ ^([A-Z_]+)=\"?([^\"]*)\"?$ ]] || die "$settings line $number: is not NAME=value"
        value=${BASH_REMATCH[2]}
        case ${BASH_REMATCH[1]} in
            LAB_BACKUP_ADDRESS) address=$value ;;
            LAB_BACKUP_STORAGE) storage=$value ;;
            LAB_BACKUP_NFS) nfs=$value ;;
            LAB_BACKUP_BASE) base=$value ;;
            LAB_BACKUP_PACKAGES) packages=$value ;;
            *) die "$settings line $number: ${BASH_REMATCH[1]} is not known; see --help" ;;
        esac
    done <"$settings"
fi

if [ "$packages" != no ]; then
    . /etc/os-release
    case " ${ID:-} ${ID_LIKE:-} " in
        *" rhel "* | *" centos "* | *" fedora "*)
            rpm -q epel-release >/dev/null 2>&1 || [ "${ID:-}" = fedora ] || do_it dnf install -y \
                "https://dl.fedoraproject.org/pub/epel/epel-release-latest-${VERSION_ID%%.*}.noarch.rpm"
            do_it dnf install -y podman crun netavark aardvark-dns passt bacula-client bacula-console libvirt-client libvirt-libs qemu-img \
                gnupg2 tar zstd nfs-utils shadow-utils-subid ;;
        *" debian "*)
            missing=()
            for package in podman crun netavark aardvark-dns passt uidmap bacula-fd bacula-console libvirt0 qemu-utils gpg tar zstd; do
                [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
            done
            [ -z "$nfs" ] || command -v mount.nfs4 >/dev/null || missing+=(nfs-common)
            [ "${#missing[@]}" = 0 ] || do_it env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" ;;
        *) die "packages of ${PRETTY_NAME:-this system} are not known here; install them and set LAB_BACKUP_PACKAGES=no" ;;
    esac
fi

if ! command -v lab-backup >/dev/null; then
    [ -x "$here/target/release/lab-backup" ] || die "lab-backup is not installed and not built; run cargo build --release --workspace in $here, or install its package"
    do_it "$here/packaging/install"
fi

[[ -z $nfs || $nfs =~ ^[][A-Za-z0-9._:/-]+$ ]] || die "LAB_BACKUP_NFS '$nfs' is not server:/path"
if [ -e "$lab" ]; then
    [ -z "$nfs" ] || grep -qF "nfs = \"$nfs\"" "$lab" || die "$lab is there and does not have storage.nfs = \"$nfs\"; write it there, or take LAB_BACKUP_NFS out"
    say "$lab is there and stays"
else
    init=(lab-backup init --storage "$storage")
    [ -z "$address" ] || init+=(--address "$address")
    [ -z "$nfs" ] || init+=(--nfs "$nfs")
    [ -z "$base" ] || init+=(--base "$base")
    do_it "${init[@]}"
fi
do_it lab-backup apply
say "next: look at the tiers in $lab, then: lab-backup run VM"
