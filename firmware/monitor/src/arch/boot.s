// Reset of every core, and the exceptions that reach EL3.

.section .head, "ax"
.global reset
reset:
    msr     daifset, #0xf
    mrs     x0, mpidr_el1
    ubfx    x0, x0, #0, #24         // affinities 2 to 0; the first cluster's cores are numbered by affinity 0
    cmp     x0, #{MAX_CORES}
    b.hs    park
    cbnz    x0, 2f
    adrp    x1, bss_start
    add     x1, x1, :lo12:bss_start
    adrp    x2, bss_end
    add     x2, x2, :lo12:bss_end
1:  stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    1b
    b       core_entry
    // The first core enables the distributor's groups last. After every reset they are off, whatever is left in RAM.
2:  mov     x1, #{GICD}
    ldr     w2, [x1]
    tst     w2, #0x6
    b.eq    2b

// A core starts, from reset or because it went off: with its stack empty.
.global core_entry
core_entry:
    mrs     x0, mpidr_el1
    and     x0, x0, #0xff
    adrp    x1, stacks_start
    add     x1, x1, :lo12:stacks_start
    mov     x2, #{STACK_STRIDE}
    madd    x1, x0, x2, x1
    add     sp, x1, x2
    adr     x1, vectors
    msr     vbar_el3, x1
    isb
    bl      core_main
park:
    wfi
    b       park

.section .text.vectors, "ax"
.balign 2048
vectors:
    .rept 8                         // current EL: a fault of our own
    .balign 128
    b       own_exception
    .endr
    // Lower EL: registers go to the frame of the world that runs, which this core's state begins with.
    .irp n, 8,9,10,11,12,13,14,15
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mrs     x0, tpidr_el3
    mov     x1, #\n
    b       save
    .endr

.macro most operation
    \operation x4, x5, [x0, #32]
    \operation x6, x7, [x0, #48]
    \operation x8, x9, [x0, #64]
    \operation x10, x11, [x0, #80]
    \operation x12, x13, [x0, #96]
    \operation x14, x15, [x0, #112]
    \operation x16, x17, [x0, #128]
    \operation x18, x19, [x0, #144]
    \operation x20, x21, [x0, #160]
    \operation x22, x23, [x0, #176]
    \operation x24, x25, [x0, #192]
    \operation x26, x27, [x0, #208]
    \operation x28, x29, [x0, #224]
.endm

save:
    ldr     x0, [x0]
    stp     x2, x3, [x0, #16]
    most    stp
    mrs     x2, elr_el3
    stp     x30, x2, [x0, #240]
    mrs     x2, spsr_el3
    str     x2, [x0, #256]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x0, tpidr_el3
    bl      lower_exception
    mrs     x0, tpidr_el3

// enter(x0: this core's state) -> !
.global enter
enter:
    msr     tpidr_el3, x0
    ldr     x0, [x0]
    most    ldp
    ldp     x30, x2, [x0, #240]
    msr     elr_el3, x2
    ldr     x2, [x0, #256]
    msr     spsr_el3, x2
    ldp     x2, x3, [x0, #16]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                     // no speculation past the return
    isb
