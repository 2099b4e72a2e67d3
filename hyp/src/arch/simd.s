// SIMD and SVE state. Each function: x0 = *mut SimdState, 16-byte aligned.
// Layout: 0 FPSR, 8 FPCR, 16 V0-V31 (512 bytes) or, for SVE, 16 FFR (256 bytes), 272 P0-P15, then Z0-Z31.

.section .text.simd, "ax"
.arch_extension fp
.arch_extension simd

.global simd_save
simd_save:
    mrs     x1, fpsr
    mrs     x2, fpcr
    stp     x1, x2, [x0], #16
    stp     q0, q1, [x0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    ret

.global simd_restore
simd_restore:
    ldp     x1, x2, [x0], #16
    msr     fpsr, x1
    msr     fpcr, x2
    ldp     q0, q1, [x0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
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
