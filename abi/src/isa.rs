//! Instruction-set features that the SPMC finds in the CPU's ID registers and hands a partition in x1 at its entry
//! (S-EL0 cannot read the ID registers itself).

/// A set of optional instruction-set features, one bit each. Unknown bits are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IsaFeatures(u64);

impl IsaFeatures {
    /// `sdot`, `udot` (FEAT_DotProd).
    pub const DOTPROD: Self = Self(1 << 0);
    /// `smmla` and relatives (FEAT_I8MM).
    pub const I8MM: Self = Self(1 << 1);
    /// Scalable vectors (FEAT_SVE).
    pub const SVE: Self = Self(1 << 2);
    /// Scalable vectors, version 2 (FEAT_SVE2).
    pub const SVE2: Self = Self(1 << 3);
    /// `sha256h` and relatives (FEAT_SHA256).
    pub const SHA256: Self = Self(1 << 4);

    /// No optional feature: Armv8.0-A with NEON.
    pub const NONE: Self = Self(0);

    /// Reads the register.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The value that travels in the register.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every feature of `other` is there.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_its_members_and_no_others() {
        let set = IsaFeatures::DOTPROD.union(IsaFeatures::SVE);
        assert!(set.contains(IsaFeatures::SVE));
        assert!(!set.contains(IsaFeatures::SVE.union(IsaFeatures::SVE2)));
        assert_eq!(IsaFeatures::from_bits(set.bits()), set);
    }
}
