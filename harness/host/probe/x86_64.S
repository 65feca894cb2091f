# The guest code of the accelerator probe, x86-64: a complete firmware image.
#
# It is the whole 64 KiB ROM for `qemu-system-x86_64 -bios`. From the reset vector it enters long mode
# with 4-level paging, then does ROUNDS equal rounds of common kernel work: arithmetic, stores through
# 4 KiB pages, page faults that map a page, reloads of CR3, an MSR. It sends its progress to port 0xe9
# (QEMU's isa-debugcon), one byte each:
#
#       b       64-bit paged code runs
#       .       a round is done
#       Z       all rounds are done, and memory and faults are as expected
#       !       all rounds are done, and they are not
#
# It ends QEMU by port 0xf4 (isa-debug-exit).
#
# Sources: Intel SDM volume 3A, 9.8.5 "Initializing IA-32e Mode", 4.5 "4-Level Paging", 6.14
# "Exception and Interrupt Handling in 64-bit Mode". Assembled by __main__.py, beside this file.

        .set    ROUNDS, 256
        .set    LOOPS, 250000           # of arithmetic per round
        .set    FAULTS, 4               # page faults, and CR3 reloads, per round

        .set    ROM, 0xf0000            # where a 64 KiB ROM appears below 1 MiB
        .set    IDT, 0x5000
        .set    STACK, 0x9000
        .set    PML4, 0x10000           # then a PDPT, a PD and two page tables, one page each
        .set    PDPT, PML4 + 0x1000
        .set    PD, PML4 + 0x2000
        .set    PT, PML4 + 0x3000
        .set    AREA, 0x200000          # at an even MiB, so the A20 gate makes no difference
        .set    PAGES, 64
        .set    AREA_PT, PT + 0x1000

        .code16
start:  cli
        lgdtl   %cs:(gdtr - start)
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $0x08, $(ROM + start32 - start)

        .code32
start32:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        xor     %eax, %eax
        mov     $PML4, %edi
        mov     $(5 * 1024), %ecx
        rep stosl
        movl    $(PDPT + 3), PML4       # 3: present, writable
        movl    $(PD + 3), PDPT
        movl    $(PT + 3), PD
        movl    $(AREA_PT + 3), PD + 8
        mov     $3, %eax                # identity-map the first 4 MiB
        mov     $PT, %edi
1:      mov     %eax, (%edi)
        add     $0x1000, %eax
        add     $8, %edi
        cmp     $(PT + 0x2000), %edi
        jb      1b
        mov     %cr4, %eax
        or      $0x20, %eax             # CR4.PAE
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx       # IA32_EFER.LME
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80010000, %eax       # CR0.PG, CR0.WP
        mov     %eax, %cr0
        ljmpl   $0x18, $(ROM + start64 - start)

        .code64
start64:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $STACK, %esp
        lea     page_fault(%rip), %rax
        mov     $(IDT + 14 * 16), %edi
        mov     %ax, (%rdi)
        movw    $0x18, 2(%rdi)
        movw    $0x8e00, 4(%rdi)        # present, interrupt gate
        shr     $16, %eax
        mov     %ax, 6(%rdi)
        movq    $0, 8(%rdi)
        lidt    idtr(%rip)

        xor     %r14d, %r14d            # page faults taken
        xor     %r13d, %r13d            # sum of the values read back
        mov     $ROUNDS, %r15d
        mov     $'b', %al
        outb    %al, $0xe9

round:  mov     $LOOPS, %ecx
2:      dec     %ecx
        jnz     2b

        mov     $AREA, %edi             # each page: store, read back
3:      mov     %r15, (%rdi)
        add     (%rdi), %r13
        add     $0x1000, %edi
        cmp     $(AREA + PAGES * 0x1000), %edi
        jb      3b

        mov     $FAULTS, %ecx           # unmap a page and touch it: page_fault maps it again
        mov     $AREA, %edi
        mov     $AREA_PT, %ebx
4:      movq    $0, (%rbx)
        invlpg  (%rdi)
        mov     %r15, (%rdi)
        add     $8, %ebx
        add     $0x1000, %edi
        dec     %ecx
        jnz     4b

        mov     $FAULTS, %ebx           # like a kernel that switches processes
5:      mov     %cr3, %rax
        mov     %rax, %cr3
        mov     AREA, %eax
        dec     %ebx
        jnz     5b

        mov     $0xc0000100, %ecx       # IA32_FS_BASE, which each thread switch writes
        rdmsr
        wrmsr

        mov     $'.', %al
        outb    %al, $0xe9
        dec     %r15d
        jnz     round

        cmp     $(ROUNDS * FAULTS), %r14
        jne     wrong
        cmp     $(PAGES * ROUNDS * (ROUNDS + 1) / 2), %r13
        jne     wrong
        mov     $'Z', %al
        jmp     end
wrong:  mov     $'!', %al
end:    outb    %al, $0xe9
        outb    %al, $0xf4
6:      hlt
        jmp     6b

page_fault:
        push    %rax
        push    %rdx
        inc     %r14
        mov     %cr2, %rax
        and     $-0x1000, %rax
        mov     %rax, %rdx
        sub     $AREA, %rdx
        shr     $9, %rdx                # / 4096 * 8
        or      $3, %rax
        mov     %rax, AREA_PT(%rdx)
        pop     %rdx
        pop     %rax
        add     $8, %rsp                # the error code
        iretq

        # The descriptors are marked as accessed. The processor would otherwise write the mark into this
        # ROM, and a KVM that emulates the load would repeat it for ever.
        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08: 32-bit code
        .quad   0x00cf93000000ffff      # 0x10: data
        .quad   0x00af9b000000ffff      # 0x18: 64-bit code
gdtr:   .word   . - gdt - 1
        .long   ROM + gdt - start
idtr:   .word   15 * 16 - 1
        .quad   IDT
