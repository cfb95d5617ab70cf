// Entry of every core, and accesses that may fault. Up to eight cores, 8 KiB of stack each.

.section .text.entry, "ax"
.global secure_entry
secure_entry:                       // the core that boots
    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
0:  cmp     x0, x1
    b.hs    1f
    stp     xzr, xzr, [x0], #16
    b       0b
1:  bl      prepare
    b       {primary}

.global secure_secondary
secure_secondary:
    bl      prepare
    b       {secondary}

// Vectors, and a stack by the core's number; answers the number in x0.
prepare:
    adr     x1, vectors
    mrs     x2, CurrentEL
    cmp     x2, #(2 << 2)
    b.eq    2f
    msr     vbar_el1, x1
    b       3f
2:  msr     vbar_el2, x1
3:  isb
    mrs     x0, mpidr_el1
    tbz     x0, #24, 4f
    lsr     x0, x0, #8              // MT: level 0 numbers threads
4:  ubfx    x1, x0, #8, #8
    add     x0, x0, x1, lsl #2      // clusters of four
    and     x0, x0, #7
    adrp    x1, __stack_end
    add     x1, x1, :lo12:__stack_end
    sub     x1, x1, x0, lsl #13
    mov     sp, x1
    ret

// (x0: address, x1: value, x2: whether to write) -> (x0: ESR_ELx or 0, x1: value or FAR_ELx)
.text
.global secure_access
secure_access:
    mov     x9, x0
    mov     x0, xzr
    adr     x10, 5f
    cbnz    x2, 4f
    ldr     x1, [x9]
    b       5f
4:  str     x1, [x9]
5:  dsb     sy
    isb
    ret

// A fault leaves its syndrome and address, and goes on at x10.
.balign 0x800
vectors:
    .space  0x200
    mrs     x11, CurrentEL
    cmp     x11, #(2 << 2)
    b.eq    6f
    mrs     x0, esr_el1
    mrs     x1, far_el1
    msr     elr_el1, x10
    eret
6:  mrs     x0, esr_el2
    mrs     x1, far_el2
    msr     elr_el2, x10
    eret
    .space  0x800 - 0x200 - 44
