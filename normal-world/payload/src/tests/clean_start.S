// The first instructions of a core that was recalled: x0 = where to record what it finds (`lent_cores::Found`).

.arch_extension sve

.text
.global clean_start
clean_start:
    str     x0, [x0, #16]
    mrs     x1, CurrentEL
    mrs     x2, daif
    stp     x1, x2, [x0, #24]
    mrs     x3, id_aa64pfr0_el1
    ubfx    x3, x3, #32, #4
    cmp     x1, #(2 << 2)
    b.eq    0f
    mov     x1, #0x330000           // CPACR_EL1: no trap of SIMD, SVE
    msr     cpacr_el1, x1
    isb
    cbz     x3, 1f
    mov     x1, #0xf
    msr     s3_0_c1_c2_0, x1        // ZCR_EL1
    b       1f
0:  mov     x1, #0x32ff             // CPTR_EL2, E2H = 0: its RES1 bits; no trap of SIMD, SVE
    msr     cptr_el2, x1
    isb
    cbz     x3, 1f
    mov     x1, #0xf
    msr     s3_4_c1_c2_0, x1        // ZCR_EL2
1:  isb
    mrs     x1, fpcr
    mrs     x2, fpsr
    stp     x1, x2, [x0, #40]
    str     x3, [x0, #56]
    add     x2, x0, #64
    cbz     x3, 2f
    add     x4, x2, #8192
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     z\n, [x2, #\n, mul vl]
.endr
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    str     p\n, [x4, #\n, mul vl]
.endr
    b       3f
2:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     q\n, [x2, #16 * \n]
.endr
3:  dsb     sy
    ldp     x0, x1, [x0]
    br      x1
