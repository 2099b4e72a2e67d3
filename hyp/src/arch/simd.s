// SIMD and SVE state. Each function: x0 = *mut SimdState, 16-byte aligned.
// Layout: 0 FPSR, 8 FPCR, 16 V0-V31 (512 bytes) or, for SVE, 16 FFR (256 bytes), 272 P0-P15, then Z0-Z31.

.section .text.simd, "ax"
.arch_extension fp
.arch_extension simd

// V0-V31, 16 bytes each, from x0 on.
.macro vectors op
    \op     q0, q1, [x0]
    \op     q2, q3, [x0, #32]
    \op     q4, q5, [x0, #64]
    \op     q6, q7, [x0, #96]
    \op     q8, q9, [x0, #128]
    \op     q10, q11, [x0, #160]
    \op     q12, q13, [x0, #192]
    \op     q14, q15, [x0, #224]
    \op     q16, q17, [x0, #256]
    \op     q18, q19, [x0, #288]
    \op     q20, q21, [x0, #320]
    \op     q22, q23, [x0, #352]
    \op     q24, q25, [x0, #384]
    \op     q26, q27, [x0, #416]
    \op     q28, q29, [x0, #448]
    \op     q30, q31, [x0, #480]
.endm

.global simd_save
simd_save:
    mrs     x1, fpsr
    mrs     x2, fpcr
    stp     x1, x2, [x0], #16
    vectors stp
    ret

.global simd_restore
simd_restore:
    ldp     x1, x2, [x0], #16
    msr     fpsr, x1
    msr     fpcr, x2
    vectors ldp
    ret

.arch_extension sve
.global sve_save
sve_save:
    mrs     x1, fpsr
    mrs     x2, fpcr
    stp     x1, x2, [x0]
    add     x1, x0, #272
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    str     p\n, [x1, #\n, mul vl]
    .endr
    rdffr   p0.b
    add     x2, x0, #16
    str     p0, [x2]
    ldr     p0, [x1]
    addpl   x1, x1, #16
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     z\n, [x1, #\n, mul vl]
    .endr
    ret

.global sve_restore
sve_restore:
    ldp     x1, x2, [x0]
    msr     fpsr, x1
    msr     fpcr, x2
    add     x2, x0, #16
    ldr     p0, [x2]
    wrffr   p0.b
    add     x1, x0, #272
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    ldr     p\n, [x1, #\n, mul vl]
    .endr
    addpl   x1, x1, #16
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr     z\n, [x1, #\n, mul vl]
    .endr
    ret
