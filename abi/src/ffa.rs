//! FF-A endpoints of this system (Arm DEN0077A v1.2, section 4.3: bit 15 of an ID means the Secure world).

/// An FF-A endpoint ID.
pub type EndpointId = u16;

/// The normal world's OS kernel or hypervisor.
pub const NORMAL_WORLD: EndpointId = 0x0000;
/// The SPMC.
pub const SPMC: EndpointId = 0x8000;
/// The LLM partition.
pub const LLM_PARTITION: EndpointId = 0x8001;
/// The hostile partition of the attack tests.
pub const HOSTILE_PARTITION: EndpointId = 0x8002;

/// A UUID as the two registers x2 and x3 of `FFA_MSG_SEND_DIRECT_REQ2` carry it: byte 0 of the UUID in bits `[7:0]`
/// of the first (DEN0077A v1.2, section 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UuidRegisters(pub u64, pub u64);

impl UuidRegisters {
    /// From the 16 bytes in their textual order.
    #[must_use]
    pub const fn new(uuid: u128) -> Self {
        let bytes = uuid.to_be_bytes();
        let mut words = [0_u64; 2];
        let mut i = 0;
        while i < 16 {
            words[i / 8] |= (bytes[i] as u64) << (8 * (i % 8));
            i += 1;
        }
        Self(words[0], words[1])
    }
}

/// Service of the LLM partition, [`crate::service`]: 6f1c2b6e-9d0a-4d0b-8a55-1f7c4e3a90d1.
pub const LLM_SERVICE: u128 = 0x6f1c_2b6e_9d0a_4d0b_8a55_1f7c_4e3a_90d1;
/// Service of the SPMC, [`crate::recall`]: 0f6a9d52-7c1e-4a38-b7d4-5be2c19a6680.
pub const RECALL_SERVICE: u128 = 0x0f6a_9d52_7c1e_4a38_b7d4_5be2_c19a_6680;
/// Service of the hostile partition, [`crate::probe`]: b2a7e0c4-53f8-4b60-9c1d-0e6d2f8a7735.
pub const PROBE_SERVICE: u128 = 0xb2a7_e0c4_53f8_4b60_9c1d_0e6d_2f8a_7735;
