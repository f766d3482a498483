//! Memory sizes as other container tools write them: `134217728`, `128m`, `1g`, `512MiB`.

use bulkhead_vmm::spec::{MEMORY_MIB_MAX, MEMORY_MIB_MIN};

/// Why a text is no size of a VM's memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error("{0}: give a number of bytes, or of k, m or g, e.g. 256m")]
    Syntax(String),
    #[error("{0}: a VM has {MEMORY_MIB_MIN}m to {MEMORY_MIB_MAX}m")]
    Range(String),
}

/// Reads a size; rounds up to whole MiB.
pub fn mib(text: &str) -> Result<u32, MemoryError> {
    let syntax = || MemoryError::Syntax(text.to_owned());
    let range = || MemoryError::Range(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return Err(syntax());
    }
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(syntax()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let mib = u32::try_from(bytes.ok_or_else(range)?.div_ceil(1 << 20)).map_err(|_| range())?;
    match (MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&mib) {
        true => Ok(mib),
        false => Err(range()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_in_every_unit() {
        for (text, expected) in [
            ("134217728", 128),
            ("134217728b", 128),
            ("134217729", 129),
            ("131072k", 128),
            ("128m", 128),
            ("128M", 128),
            ("128MiB", 128),
            ("1g", 1024),
            ("1T", 1 << 20),
        ] {
            assert_eq!(mib(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size() {
        for text in ["", "m", "1x", "1.5g", "-1", "12 m", "0x10m"] {
            assert_eq!(mib(text), Err(MemoryError::Syntax(text.to_owned())), "{text}");
        }
        for text in ["0", "47m", "2t", "99999999999999999999g", "18446744073709551615t"] {
            assert_eq!(mib(text), Err(MemoryError::Range(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_outside_what_a_vm_may_have(text in "\\PC{0,24}") {
            if let Ok(mib) = mib(&text) {
                prop_assert!((MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&mib));
            }
        }
    }
}
