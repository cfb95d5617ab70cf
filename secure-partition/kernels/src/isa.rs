//! Which instructions may be used.

use crate::activations::BATCH_MIN;

/// Instruction sets that the kernels may use beyond the target's baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    /// Serves fewer tokens than [`BATCH_MIN`].
    few: Kernel,
    /// Serves batches.
    many: Kernel,
}

impl Isa {
    /// Bit of `FEAT_DotProd` in the feature word that a partition is given.
    pub const DOTPROD: u64 = 1 << 0;
    /// Bit of `FEAT_I8MM`.
    pub const I8MM: u64 = 1 << 1;
    /// Bit of `FEAT_SVE`.
    pub const SVE: u64 = 1 << 2;
    /// Bit of `FEAT_SVE2`.
    pub const SVE2: u64 = 1 << 3;

    /// What every CPU of the target has: NEON on AArch64, SSE2 on x86-64, plain integer code elsewhere.
    pub const BASELINE: Self = Self::of(if cfg!(target_arch = "aarch64") {
        Kernel::Neon
    } else if cfg!(target_arch = "x86_64") {
        Kernel::Sse2
    } else {
        Kernel::Plain
    });

    /// The plain twins of products and of attention, on any CPU. On AArch64, single values (norms, SiLU, rotations, rounding) take
    /// NEON even so; tests compare each of these with a plain twin of its own.
    pub const PLAIN: Self = Self::of(Kernel::Plain);

    const fn of(kernel: Kernel) -> Self {
        Self { few: kernel, many: kernel }
    }

    /// From a feature word; bits that no kernel uses are ignored. The length of SVE's vectors is the current one.
    ///
    /// # Safety
    /// The CPU that runs the kernels has every feature whose bit is set, with vectors of the same length wherever they run,
    /// and their instructions are not trapped.
    #[must_use]
    pub unsafe fn from_features(features: u64) -> Self {
        let has = |bits| cfg!(target_arch = "aarch64") && features & bits == bits;
        let matrix = has(Self::DOTPROD | Self::I8MM);
        let many = if matrix {
            Kernel::I8mm
        } else if has(Self::DOTPROD) {
            Kernel::Dotprod
        } else {
            Self::BASELINE.many
        };
        if !has(Self::SVE) {
            return Self::of(many);
        }
        // SAFETY: the caller promises SVE.
        let few = match (unsafe { vector_bytes() }, has(Self::SVE2)) {
            (64.., true) => Kernel::Sve2x64,
            (32, true) => Kernel::Sve2x32,
            (64, false) => Kernel::Sve64,
            _ => many,
        };
        Self { few, many: if matrix && few.has_sve2() { few } else { many } }
    }

    /// What the CPU of a hosted process has.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn detect() -> Self {
        Self::detect_within(u64::MAX)
    }

    /// What the CPU of a hosted process has of some features.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn detect_within(features: u64) -> Self {
        // SAFETY: the features were found.
        unsafe { Self::from_features(detected() & features) }
    }

    /// Whether there is `FEAT_SVE2`.
    #[cfg(target_arch = "aarch64")]
    pub(crate) const fn has_sve2(self) -> bool {
        self.few.has_sve2()
    }

    /// Whether there is `FEAT_DotProd`.
    #[cfg(target_arch = "aarch64")]
    pub(crate) const fn has_dotprod(self) -> bool {
        matches!(self.many, Kernel::Dotprod | Kernel::I8mm | Kernel::Sve2x32 | Kernel::Sve2x64)
    }

    /// The kernels that serve so many tokens.
    #[inline]
    pub(crate) const fn kernel(self, tokens: usize) -> Kernel {
        if tokens < BATCH_MIN { self.few } else { self.many }
    }
}

/// The feature word of a hosted process.
#[cfg(feature = "std")]
fn detected() -> u64 {
    #[cfg(target_arch = "aarch64")]
    let features = {
        use std::arch::is_aarch64_feature_detected as has;
        let bits = [
            (has!("dotprod"), Isa::DOTPROD),
            (has!("i8mm"), Isa::I8MM),
            (has!("sve"), Isa::SVE),
            (has!("sve2"), Isa::SVE2),
        ];
        bits.into_iter().filter(|(has, _)| *has).fold(0, |all, (_, bit)| all | bit)
    };
    #[cfg(not(target_arch = "aarch64"))]
    let features = 0;
    features
}

/// Bytes of an SVE vector.
///
/// # Safety
/// The CPU has SVE.
#[allow(clippy::missing_const_for_fn, reason = "only where there is nothing to ask")]
unsafe fn vector_bytes() -> usize {
    #[cfg(target_arch = "aarch64")]
    {
        let bytes: usize;
        // SAFETY: the instruction writes one register.
        unsafe {
            core::arch::asm!(
                ".arch_extension sve", "rdvl {bytes}, #1", ".arch_extension nosve",
                bytes = out(reg) bytes, options(pure, nomem, nostack, preserves_flags)
            );
        }
        bytes
    }
    #[cfg(not(target_arch = "aarch64"))]
    0
}

/// A family of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// [`crate::plain`].
    Plain,
    /// Every x86-64.
    #[allow(dead_code, reason = "of another architecture")]
    Sse2,
    /// Armv8.0-A.
    Neon,
    /// `FEAT_DotProd`.
    Dotprod,
    /// `FEAT_I8MM`.
    I8mm,
    /// `FEAT_SVE`, vectors of 64 bytes. No batches; shorter vectors multiply no faster than NEON's, of which a CPU has more at a time
    /// (docs/adr/0013).
    Sve64,
    /// `FEAT_SVE2`, vectors of 32 bytes; for batches `FEAT_I8MM`, too.
    Sve2x32,
    /// The same with vectors of 64 bytes or more, of which 64 are used.
    Sve2x64,
}

impl Kernel {
    /// Whether it has `FEAT_SVE2`.
    pub(crate) const fn has_sve2(self) -> bool {
        matches!(self, Self::Sve2x32 | Self::Sve2x64)
    }
}
