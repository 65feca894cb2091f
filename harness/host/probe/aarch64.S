# The guest code of the accelerator probe, AArch64: a raw image for `qemu-system-aarch64 -M virt
# -kernel`, which loads it 512 KiB into RAM and starts it at EL1 with the MMU off.
#
# It does the same work as x86_64.S beside it and sends the same bytes, on the machine's UART. It ends
# QEMU by PSCI. The MMU is on, with 4 KiB granules and three levels of tables.
#
# Sources: Arm ARM (DDI 0487) D8 "The AArch64 Virtual Memory System Architecture", D1.10 "Exception
# entry"; PSCI (DEN 0022) SYSTEM_OFF; QEMU's docs/system/arm/virt.rst: RAM from 0x40000000, PL011
# UART at 0x09000000. Assembled by __main__.py, beside this file.

        .set    ROUNDS, 256
        .set    LOOPS, 250000           // of arithmetic per round
        .set    FAULTS, 4               // translation faults, and loads of TTBR0, per round

        .set    UART, 0x09000000
        .set    L1, 0x40200000
        .set    L2, L1 + 0x1000
        .set    L3, L1 + 0x2000
        .set    STACK, L1 + 0x10000
        .set    AREA, 0x40400000
        .set    PAGES, 64

        .set    DEVICE, 0x405           // block, access flag, attribute 1
        .set    NORMAL, 0x701           // block, access flag, attribute 0, inner shareable
        .set    TABLE, 0x3
        .set    PAGE, 0x703             // like NORMAL, but a page

start:  mov     x27, #UART
        mov     w0, #0x301              // UART, transmit and receive enabled
        str     w0, [x27, #0x30]
        ldr     x28, =L3
        ldr     x26, =AREA

        ldr     x0, =L1
        mov     x1, x0
        mov     x2, #0x3000
1:      stp     xzr, xzr, [x1], #16
        subs    x2, x2, #16
        b.ne    1b
        mov     x1, #DEVICE             // the first GiB: devices
        str     x1, [x0]
        ldr     x1, =(L2 + TABLE)       // the second: RAM
        str     x1, [x0, #8]
        ldr     x2, =L2
        ldr     x1, =(0x40000000 + NORMAL)
        str     x1, [x2]                // this code
        ldr     x1, =(0x40200000 + NORMAL)
        str     x1, [x2, #8]            // the tables and the stack
        ldr     x1, =(L3 + TABLE)
        str     x1, [x2, #16]
        ldr     x1, =(AREA + PAGE)
        mov     x2, x28
        mov     x3, #PAGES
2:      str     x1, [x2], #8
        add     x1, x1, #0x1000
        subs    x3, x3, #1
        b.ne    2b
        mov     x1, x0                  // drop stale lines: the caches were off for these writes
        mov     x2, #0x3000
3:      dc      ivac, x1
        add     x1, x1, #16
        subs    x2, x2, #16
        b.ne    3b
        dsb     sy

        mov     x1, #0xff               // attribute 0: write-back; 1: device-nGnRnE
        msr     mair_el1, x1
        ldr     x1, =0x803519           // TCR: 39 bits, write-back tables, no TTBR1
        msr     tcr_el1, x1
        msr     ttbr0_el1, x0
        adr     x1, vectors
        msr     vbar_el1, x1
        ldr     x1, =STACK
        mov     sp, x1
        tlbi    vmalle1
        ic      iallu
        dsb     nsh
        isb
        mrs     x1, sctlr_el1
        mov     x2, #0x1005             // I, C, M
        orr     x1, x1, x2
        msr     sctlr_el1, x1
        isb

        mov     x19, #ROUNDS
        mov     x20, #0                 // faults taken
        mov     x21, #0                 // sum of the values read back
        mov     w0, #'b'
        strb    w0, [x27]

round:  ldr     x0, =LOOPS
4:      subs    x0, x0, #1
        b.ne    4b

        mov     x0, x26                 // each page: store, read back
        mov     x1, #PAGES
5:      str     x19, [x0]
        ldr     x2, [x0]
        add     x21, x21, x2
        add     x0, x0, #0x1000
        subs    x1, x1, #1
        b.ne    5b

        mov     x0, x26                 // unmap a page and touch it: the handler maps it again
        mov     x1, x28
        mov     x2, #FAULTS
6:      str     xzr, [x1], #8
        dsb     ishst
        lsr     x3, x0, #12
        tlbi    vaae1is, x3
        dsb     ish
        isb
        str     x19, [x0]
        add     x0, x0, #0x1000
        subs    x2, x2, #1
        b.ne    6b

        mov     x2, #FAULTS             // like a kernel that switches processes
7:      mrs     x0, ttbr0_el1
        msr     ttbr0_el1, x0
        isb
        msr     tpidr_el0, x0
        ldr     x1, [x26]
        subs    x2, x2, #1
        b.ne    7b

        mov     w0, #'.'
        strb    w0, [x27]
        subs    x19, x19, #1
        b.ne    round

        mov     w0, #'!'
        ldr     x1, =(ROUNDS * FAULTS)
        cmp     x20, x1
        b.ne    end
        ldr     x1, =(PAGES * ROUNDS * (ROUNDS + 1) / 2)
        cmp     x21, x1
        b.ne    end
        mov     w0, #'Z'
end:    strb    w0, [x27]
        ldr     x0, =0x84000008         // PSCI SYSTEM_OFF
        hvc     #0
8:      wfi
        b       8b

        .balign 2048
vectors:
        .org    vectors + 0x200         // synchronous, from the same level; the handler owns x15, x16
        add     x20, x20, #1
        mrs     x15, far_el1
        and     x15, x15, #~0xfff
        sub     x16, x15, x26
        orr     x15, x15, #0x700
        orr     x15, x15, #0x3
        lsr     x16, x16, #9            // / 4096 * 8
        str     x15, [x28, x16]
        dsb     ishst
        isb
        eret
        .org    vectors + 0x800
        .ltorg
