//! Links without a C library, at a fixed address, with the note that PVH boot asks for.

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    let script = format!("-Wl,-T,{}/link.ld", env!("CARGO_MANIFEST_DIR"));
    let arguments = ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"];
    for argument in arguments.into_iter().chain([script.as_str()]) {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
