//! Vector registers across a call.

use alloc::{boxed::Box, format, string::String};
use core::arch::{asm, global_asm};

use flexserve_abi::isa::IsaFeatures;
use flexserve_client::Registers;

global_asm!(include_str!("vectors.S"));

/// Bytes of the longest vector and predicate register (2048 bits).
const MAX_VECTOR: usize = 256;
const MAX_PREDICATE: usize = MAX_VECTOR / 8;
const VECTORS: usize = 32;
const PREDICATES: usize = 16;

/// Contents of z0..z31 and p0..p15, as many bytes each as this CPU has; of v0..v31 without SVE.
#[repr(C, align(16))]
pub struct Vectors {
    vectors: [u8; VECTORS * MAX_VECTOR],
    predicates: [u8; PREDICATES * MAX_PREDICATE],
}

unsafe extern "C" {
    /// Loads the vectors from `sent`, makes the call, stores registers and vectors. With `sve`, the whole ones.
    fn smc_with_vectors(registers: *mut Registers, sent: *const Vectors, kept: *mut Vectors, sve: bool);
}

impl Vectors {
    /// A value of its own in every byte's place, as far as bytes go round.
    pub fn pattern() -> Box<Self> {
        let mut this = Self::zero();
        for (i, byte) in this.vectors.iter_mut().chain(&mut this.predicates).enumerate() {
            *byte = (i * 37 + i / 256 * 11) as u8;
        }
        this
    }

    fn zero() -> Box<Self> {
        Box::new(Self { vectors: [0; VECTORS * MAX_VECTOR], predicates: [0; PREDICATES * MAX_PREDICATE] })
    }

    /// The first register in which the two differ.
    pub fn first_difference(&self, other: &Self) -> Option<String> {
        let bytes = vector_bytes();
        let differs = |a: &[u8], b: &[u8], size: usize, count: usize| {
            a.chunks(size).zip(b.chunks(size)).take(count).position(|(a, b)| a != b)
        };
        let z =
            differs(&self.vectors, &other.vectors, bytes, VECTORS).map(|i| format!("z{i} ({bytes} bytes)"));
        if !has_sve() {
            return z;
        }
        z.or_else(|| {
            differs(&self.predicates, &other.predicates, bytes / 8, PREDICATES).map(|i| format!("p{i}"))
        })
    }
}

/// Makes a call with these vectors in the registers; answers the registers and the vectors on return.
pub fn smc(call: &Registers, sent: &Vectors) -> (Registers, Box<Vectors>) {
    // Asked first: it makes the vectors as long as they can be.
    let bytes = vector_bytes();
    assert!(bytes <= MAX_VECTOR, "SVE has vectors of at most 2048 bits");
    let mut registers = *call;
    let mut kept = Vectors::zero();
    // SAFETY: the buffers are as long as the longest registers; the routine keeps what its caller owns.
    unsafe { smc_with_vectors(&mut registers, sent, &mut *kept, has_sve()) };
    (registers, kept)
}

/// Bytes of a vector register, in use by this test.
fn vector_bytes() -> usize {
    if !has_sve() {
        return 16;
    }
    let bytes: usize;
    // SAFETY: the CPU has SVE; the first instruction asks for the longest vectors that EL3 allows.
    unsafe {
        asm!(
            ".arch_extension sve",
            "msr s3_0_c1_c2_0, {length}", // ZCR_EL1
            "isb",
            "rdvl {bytes}, #1",
            length = in(reg) 0xf_u64,
            bytes = out(reg) bytes,
            options(nomem, nostack)
        );
    }
    bytes
}

/// What the ID registers of this core say of the instructions that the LLM partition's kernels use.
#[must_use]
pub fn isa_features() -> IsaFeatures {
    let (isar0, isar1): (u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mrs {}, id_aa64isar0_el1", "mrs {}, id_aa64isar1_el1", out(reg) isar0, out(reg) isar1,
            options(nomem, nostack, preserves_flags));
    }
    let mut sve_version = 0_u64;
    if has_sve() {
        // SAFETY: reads ID_AA64ZFR0_EL1, by its number as not every assembler knows it.
        unsafe {
            asm!("mrs {}, s3_0_c0_c4_4", out(reg) sve_version, options(nomem, nostack, preserves_flags))
        };
    }
    [
        (isar0 >> 44 & 0xf, IsaFeatures::DOTPROD),
        (isar1 >> 52 & 0xf, IsaFeatures::I8MM),
        (has_sve().into(), IsaFeatures::SVE),
        (sve_version & 0xf, IsaFeatures::SVE2),
        (isar0 >> 12 & 0xf, IsaFeatures::SHA256),
    ]
    .into_iter()
    .filter(|(field, _)| *field != 0)
    .fold(IsaFeatures::NONE, |all, (_, feature)| all.union(feature))
}

/// ID_AA64PFR0_EL1.SVE.
fn has_sve() -> bool {
    let features: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, id_aa64pfr0_el1", out(reg) features, options(nomem, nostack, preserves_flags)) };
    features >> 32 & 0xf != 0
}
