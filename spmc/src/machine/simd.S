/*
 * SIMD state, whole: x0 = area. 32 vectors of up to 256 bytes, FPSR and FPCR; with SVE also the predicates and FFR, each
 * an eighth of a vector. Both functions of a pair lay it out alike; FPSR and FPCR lie at 8736 and 8744.
 */
    .arch   armv8-a+fp+simd+sve
    .text

    .macro  each_pair op
    \op     q0, q1, [x0, #0]
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

    .macro  each_vector op
    .irp    n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \op     z\n, [x0, #\n, mul vl]
    .endr
    .endm

    .macro  each_predicate op
    .irp    n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \op     p\n, [x1, #\n, mul vl]
    .endr
    .endm

    .macro  predicates_behind_vectors
    addvl   x1, x0, #31
    addvl   x1, x1, #1
    .endm

    .global simd_save_neon
simd_save_neon:
    each_pair stp
    mrs     x1, fpsr
    mrs     x2, fpcr
    mov     x3, #8736
    add     x0, x0, x3
    stp     x1, x2, [x0]
    ret

    .global simd_restore_neon
simd_restore_neon:
    each_pair ldp
    mov     x3, #8736
    add     x0, x0, x3
    ldp     x1, x2, [x0]
    msr     fpsr, x1
    msr     fpcr, x2
    ret

    .global simd_save_sve
simd_save_sve:
    each_vector str
    predicates_behind_vectors
    each_predicate str
    rdffr   p0.b
    str     p0, [x1, #16, mul vl]
    mrs     x1, fpsr
    mrs     x2, fpcr
    mov     x3, #8736
    add     x0, x0, x3
    stp     x1, x2, [x0]
    ret

    .global simd_restore_sve
simd_restore_sve:
    each_vector ldr
    predicates_behind_vectors
    ldr     p0, [x1, #16, mul vl]
    wrffr   p0.b
    each_predicate ldr
    mov     x3, #8736
    add     x0, x0, x3
    ldp     x1, x2, [x0]
    msr     fpsr, x1
    msr     fpcr, x2
    ret
