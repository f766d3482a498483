//! Generates the ttrpc service of resources/proto/agent.proto (feature `rpc`).

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "rpc")]
    generate()?;
    Ok(())
}

#[cfg(feature = "rpc")]
fn generate() -> std::io::Result<()> {
    use std::{env, fs, path::PathBuf};

    const PROTO: &str = "../../resources/proto/agent.proto";
    println!("cargo::rerun-if-changed={PROTO}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(std::io::ErrorKind::NotFound)?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("../../resources/proto")
        .input(PROTO)
        .rust_protobuf()
        .run()?;
    // The generator makes a mod.rs that names only the messages, and inner attributes that
    // `include!` refuses; a mod.rs with paths has neither problem.
    let module = |name: &str| {
        let path = out.join(format!("{name}.rs"));
        format!("#[path = {path:?}]\npub mod {name};\n")
    };
    fs::write(out.join("mod.rs"), module("agent") + &module("agent_ttrpc"))
}
