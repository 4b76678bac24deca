# meter.S — a boot sector that measures how writes fare: it writes one sector to every disk at each tick and tells the
# serial port how that went. No kernel, no cache and no file system stand between the write and the hypervisor.
#
# Per tick, on every BIOS disk: LBA 128 * (1 + n mod slots), n = number of ticks so far (1, 2, …), slots = size / 64 KiB - 1:
#   offset 0 "LABMETER", 8 n (32 bits, little endian), 12 the LBA (32 bits), 16 n again up to the sector's end.
# Per tick, on the serial port: a letter that runs through a…z with n (n mod 26, so lost letters show), or E if a write failed.
# The word at offset 508 of the sector is the timer's divisor (1193182 / divisor ticks a second); 0 means no pause at all.
        .intel_syntax noprefix
        .code16
        .globl _start
        # Not in the code's page: an emulator translates a page anew when something is stored in it.
        .set number, 0x5000
        .set last, 0x5004
        .set failed, 0x5006
        .set packet, 0x5010                     # what int 0x13 is to write
        .set parameters, 0x5020                 # what it says of a disk
        .set slots, 0x5080                      # 32 bits for each disk
        .set stack, 0x7000
        .set sector, 0x8000
_start: ljmp 0, offset begin
begin:  cli
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, stack
        cld
        mov     di, number                      # clears all of the above
        mov     cx, 0x80
        rep     stosw
        mov     al, 0x34                        # timer 0: a rate generator with our divisor
        out     0x43, al
        mov     ax, [divisor]
        out     0x40, al
        mov     al, ah
        out     0x40, al
        sti

        xor     bx, bx                          # how many slots has each disk?
measure:
        mov     word ptr [parameters], 0x1a
        mov     si, parameters
        mov     dl, 0x80
        add     dl, bl
        mov     ah, 0x48
        push    bx
        int     0x13
        pop     bx
        mov     eax, [parameters + 16]
        shr     eax, 7
        dec     eax
        jg      sized
        mov     eax, 1
sized:  mov     di, bx
        shl     di, 2
        mov     [slots + di], eax
        inc     bx
        cmp     bl, [0x475]                     # the BIOS's number of disks
        jb      measure

tick:   cmp     word ptr [divisor], 0
        je      write
        cli                                     # no tick may slip in before hlt
        mov     ax, [0x46c]                     # the BIOS's tick counter
        cmp     ax, [last]
        jne     ticked
        sti
        hlt
        jmp     tick
ticked: sti
        mov     [last], ax
write:  inc     dword ptr [number]
        mov     byte ptr [failed], 0
        xor     bx, bx
each:   mov     eax, [number]
        mov     di, sector + 16
        mov     cx, 124
        rep     stosd
        mov     dword ptr [sector], 0x4d42414c  # LABM
        mov     dword ptr [sector + 4], 0x52455445
        mov     [sector + 8], eax
        mov     di, bx
        shl     di, 2
        xor     edx, edx
        div     dword ptr [slots + di]
        inc     edx
        shl     edx, 7
        mov     [sector + 12], edx
        mov     [packet + 8], edx
        mov     word ptr [packet], 16
        mov     word ptr [packet + 2], 1        # the BIOS clears it after an error
        mov     word ptr [packet + 4], sector
        mov     si, packet
        mov     dl, 0x80
        add     dl, bl
        mov     ax, 0x4300
        push    bx
        int     0x13
        pop     bx
        jnc     next
        mov     byte ptr [failed], 1
next:   inc     bx
        cmp     bl, [0x475]
        jb      each

        mov     eax, [number]
        xor     edx, edx
        mov     ecx, 26
        div     ecx
        mov     al, 'a'
        add     al, dl
        cmp     byte ptr [failed], 0
        je      report
        mov     al, 'E'
report: mov     dx, 0x3f8
        out     dx, al
        jmp     tick

        .org    508
divisor: .word  11931                           # 100 ticks a second
        .word   0xaa55
