// Reset of every core, and the exceptions that reach EL3.

.section .head, "ax"
.global reset
reset:
    msr     daifset, #0xf
    mrs     x19, mpidr_el1
    ubfx    x19, x19, #0, #24       // affinities 2 to 0; the first cluster's cores are numbered by affinity 0
    cmp     x19, #{MAX_CORES}
    b.hs    park
    adrp    x1, stacks_start
    add     x1, x1, :lo12:stacks_start
    mov     x2, #{STACK_STRIDE}
    madd    x1, x19, x2, x1
    add     x1, x1, x2
    mov     sp, x1
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el3, x1
    isb
    cbnz    x19, 2f
    adrp    x1, bss_start
    add     x1, x1, :lo12:bss_start
    adrp    x2, bss_end
    add     x2, x2, :lo12:bss_end
1:  cmp     x1, x2
    b.hs    3f
    stp     xzr, xzr, [x1], #16
    b       1b
    // The first core enables the distributor's groups last. After every reset they are off, whatever is left in RAM.
2:  mov     x1, #{GICD}
    ldr     w0, [x1]
    tst     w0, #0x6
    b.eq    2b
3:  mov     x0, x19
    bl      core_main
park:
    wfi
    b       park

// A fault of our own.
.macro own number
    .balign 128
    mov     x0, #\number
    b       own_exception
.endm

// Lower EL: the registers go to the frame of the world that runs, which TPIDR_EL3 names.
.macro lower number
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mrs     x0, tpidr_el3
    mov     x1, #\number
    b       save
.endm

.section .text.vectors, "ax"
.balign 2048
vectors:
    .irp n, 0,1,2,3,4,5,6,7
    own     \n
    .endr
    .irp n, 8,9,10,11,12,13,14,15
    lower   \n
    .endr

save:
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el3
    mrs     x3, spsr_el3
    stp     x2, x3, [x0, #248]
    mov     x0, x1
    bl      lower_exception

// enter(x0: frame) -> !: with the stack empty.
.global enter
enter:
    ldr     x1, [x0, #264]
    mov     sp, x1
    msr     tpidr_el3, x0
    ldp     x1, x2, [x0, #248]
    msr     elr_el3, x1
    msr     spsr_el3, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                     // no speculation past the return
    isb

// enable_mmu(x0: root, x1: MAIR, x2: TCR, x3: SCTLR). Identity map: we go on at the same address.
.global enable_mmu
enable_mmu:
    msr     ttbr0_el3, x0
    msr     mair_el3, x1
    msr     tcr_el3, x2
    isb
    tlbi    alle3
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el3, x3
    isb
    ret
