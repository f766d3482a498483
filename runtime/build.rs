//! Where `bulkhead` is linked statically, it is linked to a fixed address.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        for argument in ["-no-pie", "-static"] {
            println!("cargo::rustc-link-arg-bin=bulkhead={argument}");
        }
    }
}
