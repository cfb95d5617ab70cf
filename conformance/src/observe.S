// smc_observed(x0: x0..x30 to load, x1: where to store x0..x30 and SP)

.text
.global smc_observed
smc_observed:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mov     x2, sp
    stp     x1, x2, [sp, #96]
    mov     x30, x0
    ldp     x0, x1, [x30]
    ldp     x2, x3, [x30, #16]
    ldp     x4, x5, [x30, #32]
    ldp     x6, x7, [x30, #48]
    ldp     x8, x9, [x30, #64]
    ldp     x10, x11, [x30, #80]
    ldp     x12, x13, [x30, #96]
    ldp     x14, x15, [x30, #112]
    ldp     x16, x17, [x30, #128]
    ldp     x18, x19, [x30, #144]
    ldp     x20, x21, [x30, #160]
    ldp     x22, x23, [x30, #176]
    ldp     x24, x25, [x30, #192]
    ldp     x26, x27, [x30, #208]
    ldp     x28, x29, [x30, #224]
    ldr     x30, [x30, #240]
    smc     #0
    stp     x30, x0, [sp, #-16]!
    ldr     x30, [sp, #112]         // where to store
    stp     x1, x2, [x30, #8]
    stp     x3, x4, [x30, #24]
    stp     x5, x6, [x30, #40]
    stp     x7, x8, [x30, #56]
    stp     x9, x10, [x30, #72]
    stp     x11, x12, [x30, #88]
    stp     x13, x14, [x30, #104]
    stp     x15, x16, [x30, #120]
    stp     x17, x18, [x30, #136]
    stp     x19, x20, [x30, #152]
    stp     x21, x22, [x30, #168]
    stp     x23, x24, [x30, #184]
    stp     x25, x26, [x30, #200]
    stp     x27, x28, [x30, #216]
    str     x29, [x30, #232]
    ldp     x0, x1, [sp], #16       // the x30 and x0 of the return
    str     x1, [x30]
    str     x0, [x30, #240]
    ldr     x0, [sp, #104]          // how far SP is from where it was
    mov     x1, sp
    sub     x0, x1, x0
    str     x0, [x30, #248]
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret

// x0: x0..x17 of a call, x1 and x2: FPCR and FPSR to set, x3: where to store both. Changes no other SIMD state.
.global smc_with_fp
smc_with_fp:
    stp     x29, x30, [sp, #-64]!
    stp     x18, x19, [sp, #16]
    mrs     x4, fpcr
    mrs     x5, fpsr
    stp     x4, x5, [sp, #32]
    str     x3, [sp, #48]
    msr     fpcr, x1
    msr     fpsr, x2
    mov     x18, x0
    ldp     x0, x1, [x18]
    ldp     x2, x3, [x18, #16]
    ldp     x4, x5, [x18, #32]
    ldp     x6, x7, [x18, #48]
    ldp     x8, x9, [x18, #64]
    ldp     x10, x11, [x18, #80]
    ldp     x12, x13, [x18, #96]
    ldp     x14, x15, [x18, #112]
    ldp     x16, x17, [x18, #128]
    smc     #0
    mrs     x0, fpcr
    mrs     x1, fpsr
    ldr     x2, [sp, #48]
    stp     x0, x1, [x2]
    ldp     x4, x5, [sp, #32]
    msr     fpcr, x4
    msr     fpsr, x5
    ldp     x18, x19, [sp, #16]
    ldp     x29, x30, [sp], #64
    ret
