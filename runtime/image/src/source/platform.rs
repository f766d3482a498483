//! Which of several images is this machine's: linux/amd64, of the highest level its CPU has.

use oci_spec::image::{Arch, Descriptor, Os, Platform};

/// Says of an image that it suits, and how well; `None` if it does not.
pub fn rank(platform: Option<&Platform>, level: u8) -> Option<u8> {
    // An index may leave the platform out; the configuration says it then.
    let Some(platform) = platform else { return Some(0) };
    if (platform.os(), platform.architecture()) != (&Os::Linux, &Arch::Amd64) {
        return None;
    }
    let wanted = match platform.variant().as_deref() {
        None | Some("" | "v1") => 1,
        Some("v2") => 2,
        Some("v3") => 3,
        Some("v4") => 4,
        Some(_) => return None,
    };
    (wanted <= level).then_some(wanted)
}

/// The platform in words.
pub fn name(descriptor: &Descriptor) -> String {
    let Some(platform) = descriptor.platform() else { return "an unnamed platform".to_owned() };
    let variant = platform.variant().as_ref().map(|variant| format!("/{variant}"));
    format!("{}/{}{}", platform.os(), platform.architecture(), variant.unwrap_or_default())
}

/// The level of this CPU, x86-64-v1 to v4 (System V psABI, "Micro-Architecture Levels"). The guest
/// sees what the host has.
pub fn host_level() -> u8 {
    let v2 = is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("cmpxchg16b");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    1 + u8::from(v2) + u8::from(v3) + u8::from(v4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(json: &str) -> Platform {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_best_that_the_cpu_can_run() {
        let amd64 = platform(r#"{"os":"linux","architecture":"amd64"}"#);
        let v3 = platform(r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#);
        let arm = platform(r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#);
        let windows = platform(r#"{"os":"windows","architecture":"amd64"}"#);
        assert!(rank(Some(&v3), 3) > rank(Some(&amd64), 3));
        assert!(rank(Some(&amd64), 1) > rank(None, 1));
        assert_eq!(rank(Some(&v3), 2), None);
        assert_eq!((rank(Some(&arm), 4), rank(Some(&windows), 4)), (None, None));
        assert!((1..=4).contains(&host_level()));
    }
}
