# start.sh — makes a guest: its disks and its definition (part of lab-host/guest).
# shellcheck shell=bash

# Bytes of SIZE: terms such as 64M, 1G, 512, joined by +.
bytes_of() {
    local total=0 term
    for term in ${1//+/ }; do
        term=$(numfmt --from=iec "$term" 2>/dev/null) || usage "bad size '$1'"
        total=$((total + term))
    done
    echo "$total"
}

# kvm or qemu (software). /dev/kvm may be there and run no machine, or a boot sector but no kernel (without help of the processor it
# emulates only some instructions), so the guests' own kernel is tried, once per lab host. Its init ends at once, which a kernel tells.
accelerator() {
    local known=/run/lab-guest-accelerator said
    if [ ! -e "$known" ]; then
        said=$([ ! -c /dev/kvm ] || timeout 10 qemu-system-x86_64 -accel kvm -cpu host -m 256 -display none -nodefaults -no-reboot \
            -serial stdio -kernel "$media/vmlinuz" -initrd "$media/initramfs" -append 'console=ttyS0 panic=-1 rdinit=/bin/busybox' 2>&1 </dev/null) || true
        if [[ $said == *'Attempted to kill init'* ]]; then echo kvm; else echo qemu; fi >"$known"
    fi
    cat "$known"
}

# make_disk FILE FORMAT BYTES CONTENT PACE
make_disk() {
    local file=$1 format=$2 bytes=$3 content=$4 pace=$5 raw=$1
    [ ! -e "$file" ] || die "$file exists"
    if [ "$content" = blank ]; then
        if [ "$format" = raw ]; then truncate -s "$bytes" "$file"; else qemu-img create -q -f qcow2 "$file" "$bytes"; fi
        return
    fi
    [ "$format" = raw ] || raw=$file.raw
    case $content in
        ext4) truncate -s "$bytes" "$raw" && mke2fs -q -F -t ext4 "$raw" ;;
        debian)
            qemu-img convert -O raw "$media/debian.qcow2" "$raw"
            [ "$bytes" -ge "$(stat -c %s "$raw")" ] || { rm "$raw"; die "a Debian guest's first disk has at least 1G"; }
            truncate -s "$bytes" "$raw"
            resize2fs -f "$raw" >/dev/null 2>&1 ;;
        meter)
            truncate -s "$bytes" "$raw"
            dd if="$media/meter.bin" of="$raw" conv=notrunc status=none
            local divisor=0
            [ "$pace" = full ] || divisor=$((1193182 / pace))
            printf "$(printf '\\x%02x\\x%02x' $((divisor & 255)) $((divisor >> 8)))" |
                dd of="$raw" bs=1 seek=508 conv=notrunc status=none ;;
    esac
    if [ "$format" = qcow2 ]; then
        qemu-img convert -f raw -O qcow2 "$raw" "$file"
        rm "$raw"
    fi
}

start() {
    local name=$1 kind=agent firmware=bios tpm="" agent=on memory="" cpus=1 network=default dir=/var/lib/libvirt/images pace=100 disks=()
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --tpm) tpm=1; shift; continue ;;
            --kind | --disk | --firmware | --agent | --memory | --cpus | --network | --dir | --pace) [ $# -ge 2 ] || usage "$1 needs a value" ;;&
            --kind) kind=$2 ;;
            --disk) disks+=("$2") ;;
            --firmware) firmware=$2 ;;
            --agent) agent=$2 ;;
            --memory) memory=$2 ;;
            --cpus) cpus=$2 ;;
            --network) network=$2 ;;
            --dir) dir=$2 ;;
            --pace) pace=$2 ;;
            *) usage "unknown option '$1'" ;;
        esac
        shift 2
    done
    local key uuid
    key=$(key_of "$name")
    if [ -e "$state/$key/uuid" ]; then
        uuid=$(cat "$state/$key/uuid")
        [ "$(state_of "$uuid")" = running ] || virsh -q start "$uuid" >/dev/null
        [ "$(kind_of "$uuid")" != meter ] || record "$uuid"
        return
    fi
    ! virsh -q domuuid --domain "$name" >/dev/null 2>&1 || die "there is a domain '$name' that is not ours"

    case $kind in meter | agent | debian) ;; *) usage "--kind is meter, agent or debian" ;; esac
    case $firmware in bios | uefi) ;; *) usage "--firmware is bios or uefi" ;; esac
    case $agent in on | off | hung) ;; *) usage "--agent is on, off or hung" ;; esac
    [ "$kind,$firmware" != meter,uefi ] || usage "a meter has no UEFI"
    [[ $pace = full || ($pace =~ ^[0-9]+$ && $pace -ge 19 && $pace -le 1000) ]] || usage "--pace is 19 to 1000 or full"
    case $network in default | user | none) ;; *) usage "--network is default, user or none" ;; esac
    [[ ${memory:-1} =~ ^[0-9]+$ && $cpus =~ ^[0-9]+$ ]] || usage "--memory and --cpus are numbers"

    local first size
    case $kind in
        meter) first=meter size=64M memory=${memory:-32} ;;
        agent) first=ext4 size=64M memory=${memory:-160} ;;
        debian) first=debian size=2G memory=${memory:-384} ;;
    esac
    [ "${#disks[@]}" -gt 0 ] || disks=("qcow2:$size")

    # All is checked before anything is made.
    local index=0 disk format target content bytes letters=abcdefghijklmnop bus file devices="" plan=()
    for disk in "${disks[@]}"; do
        IFS=: read -r format size target content <<<"$disk"
        target=${target:-vd${letters:index:1}}
        [ "$index" = 0 ] || first=blank
        content=${content:-$first}
        bytes=$(bytes_of "$size") || exit 2
        case $format in raw | qcow2) ;; *) usage "bad format in '$disk'" ;; esac
        case $content in ext4 | blank | meter | debian) ;; *) usage "bad content in '$disk'" ;; esac
        case $target in vd[a-z]) bus=virtio ;; sd[a-z]) bus=scsi ;; *) usage "bad target in '$disk'" ;; esac
        [ "$kind" != debian ] || [ "$index" != 0 ] || [ "$target" = vda ] || usage "a Debian guest's first disk is vda"
        plan+=("$dir/$key-$target.$format|$format|$bytes|$content")
        devices+="<disk type='file' device='disk'><driver name='qemu' type='$format' discard='unmap'/>
            <source file='$(xml_escape "$dir/$key-$target.$format")'/><target dev='$target' bus='$bus'/>"
        [ "$kind" != meter ] || devices+="<boot order='$((index + 1))'/>"
        devices+="</disk>"
        index=$((index + 1))
    done
    mkdir -p "$dir" "$state/$key"
    for disk in "${plan[@]}"; do
        IFS='|' read -r file format bytes content <<<"$disk"
        make_disk "$file" "$format" "$bytes" "$content" "$pace"
    done
    printf '%s\n' "${plan[@]%%|*}" >"$state/$key/disks"

    local os="<os" features="<features><acpi/><apic/></features>" line="console=ttyS0 quiet panic=-1 lab.agent=$agent"
    [ "$firmware" = bios ] || os+=" firmware='efi'"
    os+="><type arch='x86_64' machine='q35'>hvm</type>"
    [ "$firmware" = bios ] || os+="<firmware><feature enabled='no' name='secure-boot'/><feature enabled='no' name='enrolled-keys'/></firmware>"
    if [ "$kind" != meter ]; then
        if [ "$kind" = debian ]; then
            line+=" root=/dev/vda"
            [ "$agent" != off ] || line+=" systemd.mask=qemu-guest-agent.service"
        fi
        os+="<kernel>$state/boot/vmlinuz</kernel><initrd>$state/boot/initramfs</initrd><cmdline>$line</cmdline>"
        devices+="<channel type='unix'><target type='virtio' name='lab.shell'/></channel>"
        [ "$agent" = off ] || devices+="<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    fi
    os+="</os>"
    case $network in
        default) devices+="<interface type='network'><source network='default'/><model type='virtio'/></interface>" ;;
        user) devices+="<interface type='user'><model type='virtio'/></interface>" ;;
    esac
    [ -z "$tpm" ] || devices+="<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    local accelerator cpu
    accelerator=$(accelerator)
    if [ "$accelerator" = kvm ]; then cpu=host-passthrough; else cpu=maximum; fi
    local xml=$state/$key/domain.xml
    cat >"$xml" <<XML
<domain type='$accelerator'>
  <name>$(xml_escape "$name")</name>
  <metadata><lab:guest xmlns:lab='urn:lab-backup:guest' kind='$kind'/></metadata>
  <memory unit='MiB'>$memory</memory>
  <vcpu>$cpus</vcpu>
  $os
  $features
  <cpu mode='$cpu'/>
  <clock offset='utc'/>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    $devices
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='pci' index='0' model='pcie-root'/>
    $(for _ in {1..12}; do echo "<controller type='pci' model='pcie-root-port'/>"; done)
    <serial type='pty'><target port='0'/></serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
</domain>
XML
    virsh -q define "$xml" >/dev/null || { cat "$xml" >&2; forget "$key"; die "libvirt refuses the definition of '$name'"; }
    uuid=$(virsh -q domuuid --domain "$name" | grep .)
    echo "$uuid" >"$state/$key/uuid"
    virsh -q start "$uuid" >/dev/null || { remove "$name"; die "'$name' does not start"; }
    [ "$kind" != meter ] || record "$uuid"
}
