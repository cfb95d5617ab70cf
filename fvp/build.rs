//! Turns a platform's `platform.toml` into Rust constants.

use std::{env, fmt::Write as _, fs, path::PathBuf};

/// Regions that some platforms lack: `Option<Region>`.
const OPTIONAL_REGIONS: [&str; 3] = ["rmm", "spmc_manifest_source", "stage2_tables"];
/// Fields of tables that some platforms lack: `Option<u64>`.
const OPTIONAL_FIELDS: [(&str, &str); 1] = [("fw_cfg", "base")];
/// Lists of regions that are empty where the platform says nothing.
const OPTIONAL_LISTS: [&str; 1] = ["ns_devices"];

fn main() {
    println!("cargo:rerun-if-env-changed=FLEXSERVE_PLATFORM");
    let name = env::var("FLEXSERVE_PLATFORM").unwrap_or_else(|_| "qemu-rme".to_owned());
    let path = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join(&name)
        .join("platform.toml");
    println!("cargo:rerun-if-changed={}", path.display());
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("unknown platform {name:?}: cannot read {}: {e}", path.display()));
    let facts: toml::Table = text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));

    let mut out = String::new();
    for (key, value) in &facts {
        let name = key.to_uppercase();
        match value {
            toml::Value::String(s) if key == "isolation" => {
                let value = match s.as_str() {
                    "gpt" => "Isolation::GranuleProtectionTable",
                    "stage-2" => "Isolation::Stage2",
                    _ => panic!("isolation: {s:?} is neither \"gpt\" nor \"stage-2\""),
                };
                constant(&mut out, key, &name, "Isolation", value);
            }
            toml::Value::String(s) => {
                constant(&mut out, key, &name, "&str", &format!("{s:?}"));
            }
            toml::Value::Integer(i) => constant(&mut out, key, &name, "u64", &i.to_string()),
            toml::Value::Array(items) => {
                let regions: Vec<String> = items.iter().map(|i| region(key, i)).collect();
                constant(&mut out, key, &name, "&[Region]", &format!("&[{}]", regions.join(", ")));
            }
            toml::Value::Table(_) if OPTIONAL_REGIONS.contains(&key.as_str()) => {
                constant(&mut out, key, &name, "Option<Region>", &format!("Some({})", region(key, value)));
            }
            toml::Value::Table(fields) if fields.contains_key("size") => {
                constant(&mut out, key, &name, "Region", &region(key, value));
            }
            toml::Value::Table(fields) => {
                for (field, value) in fields {
                    let value =
                        value.as_integer().unwrap_or_else(|| panic!("{key}.{field} is not an integer"));
                    let (kind, value) = if OPTIONAL_FIELDS.contains(&(key.as_str(), field.as_str())) {
                        ("Option<u64>", format!("Some({value})"))
                    } else {
                        ("u64", value.to_string())
                    };
                    let name = format!("{name}_{}", field.to_uppercase());
                    constant(&mut out, &format!("{key}.{field}"), &name, kind, &value);
                }
            }
            other => panic!("{key}: no constant is made of {other}"),
        }
    }
    for key in OPTIONAL_REGIONS.iter().filter(|key| !facts.contains_key(**key)) {
        constant(&mut out, key, &key.to_uppercase(), "Option<Region>", "None");
    }
    for (key, field) in OPTIONAL_FIELDS.iter().filter(|(key, _)| !facts.contains_key(*key)) {
        let name = format!("{key}_{field}").to_uppercase();
        constant(&mut out, &format!("{key}.{field}"), &name, "Option<u64>", "None");
    }
    for key in OPTIONAL_LISTS.iter().filter(|key| !facts.contains_key(**key)) {
        constant(&mut out, key, &key.to_uppercase(), "&[Region]", "&[]");
    }
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("facts.rs");
    fs::write(target, out).expect("OUT_DIR is writable");
}

fn constant(out: &mut String, key: &str, name: &str, kind: &str, value: &str) {
    writeln!(
        out,
        "/// `{key}` of `platform.toml`.\n#[allow(clippy::unreadable_literal)]\npub const {name}: {kind} = {value};"
    )
    .expect("writing to a String");
}

fn region(key: &str, value: &toml::Value) -> String {
    let field = |name| {
        value
            .get(name)
            .and_then(toml::Value::as_integer)
            .unwrap_or_else(|| panic!("{key} has no integer {name:?}"))
    };
    format!("Region {{ base: {}, size: {} }}", field("base"), field("size"))
}
