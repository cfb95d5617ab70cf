//! Which instructions may be used.

/// Instruction sets that the kernels may use beyond the target's baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    dotprod: bool,
    plain: bool,
}

impl Isa {
    /// Bit of `FEAT_DotProd` in the feature word that a partition is given.
    pub const DOTPROD: u64 = 1 << 0;

    /// What every CPU of the target has: NEON on AArch64, SSE2 on x86-64, plain integer code elsewhere.
    pub const BASELINE: Self = Self { dotprod: false, plain: false };

    /// The plain twin of every kernel, on any CPU.
    pub const PLAIN: Self = Self { dotprod: false, plain: true };

    /// From a feature word; bits that no kernel uses are ignored.
    ///
    /// # Safety
    /// The CPU that runs the kernels has every feature whose bit is set.
    #[must_use]
    pub const unsafe fn from_features(features: u64) -> Self {
        Self { dotprod: features & Self::DOTPROD != 0, plain: false }
    }

    /// What the CPU of a hosted process has.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "aarch64")]
        let dotprod = std::arch::is_aarch64_feature_detected!("dotprod");
        #[cfg(not(target_arch = "aarch64"))]
        let dotprod = false;
        Self { dotprod, plain: false }
    }

    /// The kernel that serves it.
    pub(crate) const fn kernel(self) -> Kernel {
        if self.plain {
            Kernel::Plain
        } else if cfg!(target_arch = "x86_64") {
            Kernel::Sse2
        } else if !cfg!(target_arch = "aarch64") {
            Kernel::Plain
        } else if self.dotprod {
            Kernel::Dotprod
        } else {
            Kernel::Neon
        }
    }
}

/// A family of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// [`crate::plain`].
    Plain,
    /// Every x86-64.
    Sse2,
    /// Armv8.0-A.
    Neon,
    /// `FEAT_DotProd`.
    Dotprod,
}
