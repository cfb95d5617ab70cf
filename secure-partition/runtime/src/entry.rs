//! Start-up: what must happen before the first line of Rust.

use core::arch::global_asm;
use flexserve_abi::isa::IsaFeatures;

unsafe extern "Rust" {
    safe fn partition_main(isa: IsaFeatures) -> !;
}

// x0 is reserved, x1 the ISA features. FFA_MEM_PERM_SET (SMC64): x1 = address, x2 = pages, x3 = permissions
// (DEN0140 v1.2, section 2.9: bits [1:0] 01 = read-write, 11 = read-only; bit 2 = not executable). Nothing is written to
// memory, not even the stack, before the second call succeeded.
global_asm!(
    r#"
    .section .text.entry, "ax"
    .global partition_entry
partition_entry:
    mov     x19, x1
    mov     x29, xzr
    mov     x30, xzr

    adrp    x20, __rodata_start
    adrp    x21, __data_start
    adrp    x22, __partition_end

    mov     x1, x20
    sub     x2, x21, x20
    lsr     x2, x2, #12
    mov     x3, #0b111
    bl      1f
    mov     x1, x21
    sub     x2, x22, x21
    lsr     x2, x2, #12
    mov     x3, #0b101
    bl      1f
    mov     x30, xzr

    adrp    x0, __stack_end
    add     x0, x0, :lo12:__stack_end
    mov     sp, x0

    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
0:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       0b

2:  mov     x0, x19
    bl      {start}

1:  mov     w0, #0x0089
    movk    w0, #0xc400, lsl #16
    svc     #0
    mov     w4, #0x0061
    movk    w4, #0x8400, lsl #16
    cmp     w0, w4
    b.ne    3f
    ret
3:  brk     #1
"#,
    start = sym start,
);

extern "C" fn start(isa: u64) -> ! {
    partition_main(IsaFeatures::from_bits(isa))
}
