//! Which processor a snapshot may be restored on.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::fmt;

use serde::{Deserialize, Serialize};

/// A processor, as far as a guest can tell: maker, model and features.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cpu {
    vendor: [u8; 12],
    /// Family, model and stepping: CPUID leaf 1, EAX.
    signature: u32,
    /// Feature bits of leaves 1, 7.0, 7.1, 0xd.1 and 0x8000_0001, 0x8000_0008.
    features: [u32; 11],
}

/// Leaf 1, ECX: the operating system switched XSAVE on. No feature, but a state.
const ECX_OSXSAVE: u32 = 1 << 27;
/// Leaf 7, ECX: it switched protection keys on.
const OSPKE: u32 = 1 << 4;

impl Cpu {
    /// This one.
    pub fn of_this_host() -> Self {
        let basic = __cpuid(0);
        let extended = __cpuid(0x8000_0000).eax;
        let leaf = |leaf: u32, subleaf: u32| {
            let max = if leaf < 0x8000_0000 { basic.eax } else { extended };
            let [mut eax, mut ebx, mut ecx, mut edx] = [0; 4];
            if leaf <= max {
                let got = __cpuid_count(leaf, subleaf);
                (eax, ebx, ecx, edx) = (got.eax, got.ebx, got.ecx, got.edx);
            }
            [eax, ebx, ecx, edx]
        };
        let one = leaf(1, 0);
        let [seven, seven_one, xsave] = [leaf(7, 0), leaf(7, 1), leaf(0xd, 1)];
        let [high, address] = [leaf(0x8000_0001, 0), leaf(0x8000_0008, 0)];
        let mut vendor = [0; 12];
        for (to, word) in vendor.chunks_exact_mut(4).zip([basic.ebx, basic.edx, basic.ecx]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self {
            vendor,
            signature: one[0],
            features: [
                one[2] & !ECX_OSXSAVE,
                one[3],
                seven[1],
                seven[2] & !OSPKE,
                seven[3],
                seven_one[0],
                xsave[0],
                high[2],
                high[3],
                address[0],
                address[1],
            ],
        }
    }
}

impl Cpu {
    /// Whether it has AMD's kind of virtualization, SVM.
    pub fn is_amd(&self) -> bool {
        [b"AuthenticAMD", b"HygonGenuine"].contains(&&self.vendor)
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let vendor = String::from_utf8_lossy(&self.vendor);
        write!(f, "{} {:x}", vendor.escape_debug(), self.signature)?;
        // The features as one number: two processors of one model may differ in them alone.
        let digest = self.features.iter().fold(0u32, |sum, word| sum.rotate_left(5) ^ word);
        write!(f, "/{digest:x}")
    }
}
