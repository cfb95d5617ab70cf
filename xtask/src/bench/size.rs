//! `bench size`: how much of BL31 is ours, what stack it takes, and how big the images are.
//!
//! - Lines: Rust lines of the crates that are linked into BL31 and are not of the ABI or the platform's facts, without tests,
//!   measurements, comments and blank lines.
//! - Bytes: from the linker's map, what is left of our static library (crates it depends on included) after unused sections
//!   are dropped.
//! - Stack: from BL31's machine code: the deepest path of calls from any function of ours that runs after boot, with every
//!   adjustment of the stack pointer in each of them added up. No function may call itself, and none of Rust's through a pointer; what TF-A's call
//!   through a pointer (PSCI's hooks of a platform) is not followed.

use super::Row;
use crate::{
    elf::Image,
    images::{self, Images},
    paths::Paths,
    platform::Platform,
};
use anyhow::{Context as _, Result, bail};
use flexserve_abi::log::World;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind, read::elf::ElfFile64};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What the EL3 part may have: lines, and bytes of code and constants.
const LIMITS: (usize, u64) = (3000, 48 << 10);
/// Names of the crate's functions contain this.
const CRATE: &str = "flexserve_el3_svc";
/// Mangled names begin with this.
const RUST: &str = "_R";
/// A function that runs once, at boot: mangled `init`. TF-A maps memory for it by a function that calls itself.
const BOOT: &str = "4init";
/// Mangled names of functions that end in a panic contain this.
const RUST_PANICS: &str = "4core9panicking";
/// Where BL31's own panic begins, which does not return.
const PANIC: &str = "el3_panic";

/// Measures all rows.
///
/// # Errors
///
/// If the images do not build, or the EL3 part has more lines or bytes than it may, recurs, or can panic.
pub fn measure(paths: &Paths, platform: &Platform) -> Result<Vec<Row>> {
    let images = images::build(paths, platform, &images::Replacements::default())?;
    let lines = lines(&paths.root.join("el3-svc/src"))? + lines(&paths.root.join("secure-log/src"))?;
    let map = fs::read_to_string(&images.el3_map).context("cannot read BL31's map")?;
    let (constant, variable) = linked(&map);
    if lines > LIMITS.0 || constant > LIMITS.1 {
        bail!(
            "the EL3 part has {lines} lines and {constant} bytes, and may have {} and {}",
            LIMITS.0,
            LIMITS.1
        );
    }
    let code = fs::read(elf(&images, World::El3)?)?;
    let stack = Program::parse(&code)?.deepest(CRATE)?;
    let image = |world| -> Result<f64> { Ok(Image::read(elf(&images, world)?)?.memory as f64) };
    Ok(vec![
        Row::alone("el3_lines", "lines", lines as f64),
        Row::alone("el3_text_rodata", "bytes", constant as f64),
        Row::alone("el3_data", "bytes", variable as f64),
        Row::alone("el3_stack", "bytes", stack as f64),
        Row::alone("spmc_memory", "bytes", image(World::Spmc)?),
        Row::alone("llm_partition_memory", "bytes", image(World::LlmPartition)?),
    ])
}

fn elf(images: &Images, world: World) -> Result<&PathBuf> {
    let found = images.logs.iter().find(|(of, _)| *of == world);
    found.map(|(_, elf)| elf).with_context(|| format!("no ELF file of {world:?}"))
}

/// Lines of code of a crate's source folder.
fn lines(folder: &Path) -> Result<usize> {
    let root = fs::read_to_string(folder.join("lib.rs"))?;
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let module = path.file_stem().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|e| e == "rs") && !is_left_out(&root, &module) {
            sum += code_lines(&fs::read_to_string(&path)?);
        }
    }
    Ok(sum)
}

/// Whether a module is there only for tests or for measurements.
fn is_left_out(root: &str, module: &str) -> bool {
    let declaration = format!("mod {module};");
    root.lines().zip(root.lines().skip(1)).any(|(attribute, line)| {
        line.trim_start_matches("pub ") == declaration
            && (attribute == "#[cfg(test)]" || attribute.contains("feature = \"bench\""))
    })
}

fn code_lines(source: &str) -> usize {
    let source = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

/// Bytes of the library's code and constants, and of its variables, that a linker's map has.
fn linked(map: &str) -> (u64, u64) {
    let (mut constant, mut variable) = (0, 0);
    let mut name = "";
    for line in map.lines().skip_while(|line| *line != "Linker script and memory map") {
        let mut words = line.split_whitespace();
        // A long name has a line of its own.
        if line.starts_with(" .") || line.starts_with(" *") {
            name = words.next().unwrap_or_default();
        }
        let (Some(_), Some(size), Some(file)) = (words.next(), words.next(), words.next()) else { continue };
        let Some(size) = size.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()) else {
            continue;
        };
        if !file.contains("libflexserve_el3_svc.a(") {
            continue;
        }
        let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if is(&[".text", ".rodata", ".rt_svc_descs", ".__pubsub"]) {
            constant += size;
        } else if is(&[".data", ".bss"]) {
            variable += size;
        }
    }
    (constant, variable)
}

/// One function of a program.
#[derive(Debug, Default)]
struct Function {
    name: String,
    /// Bytes by which it moves the stack pointer down, all together.
    frame: u64,
    calls: Vec<u64>,
    calls_through_pointers: bool,
}

/// A program's functions, by address.
#[derive(Debug)]
struct Program(BTreeMap<u64, Function>);

impl Program {
    fn parse(data: &[u8]) -> Result<Self> {
        let elf = ElfFile64::<object::Endianness>::parse(data)?;
        let mut functions = BTreeMap::new();
        for symbol in elf.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() != 0) {
            let Some(section) = symbol.section_index().and_then(|index| elf.section_by_index(index).ok())
            else {
                continue;
            };
            if let Some(code) = section.data_range(symbol.address(), symbol.size())? {
                let words = code.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
                let name = symbol.name()?.to_owned();
                functions.insert(symbol.address(), Function::decode(name, symbol.address(), words));
            }
        }
        Ok(Self(functions))
    }

    /// Bytes of stack from a function whose name contains `part` on, at most, after boot.
    fn deepest(&self, part: &str) -> Result<u64> {
        let mut known = BTreeMap::new();
        let is_root = |name: &str| name.contains(part) && !name.contains(BOOT);
        let roots = self.0.iter().filter(|(_, function)| is_root(&function.name));
        let depths: Vec<u64> =
            roots.map(|(address, _)| self.depth(*address, &mut known)).collect::<Result<_>>()?;
        depths.into_iter().max().with_context(|| format!("no function of {part}"))
    }

    /// `known` has a `None` for what is being looked at.
    fn depth(&self, address: u64, known: &mut BTreeMap<u64, Option<u64>>) -> Result<u64> {
        // A branch into the middle of a function is a part of it.
        let Some((start, function)) = self.0.range(..=address).next_back() else { return Ok(0) };
        match known.get(start) {
            Some(Some(depth)) => return Ok(*depth),
            Some(None) => bail!("{} is recursive", function.name),
            None if function.name.contains(RUST_PANICS) => bail!("{} can be called", function.name),
            None if function.name == PANIC => return Ok(0),
            None if function.calls_through_pointers && function.name.starts_with(RUST) => {
                bail!("{} calls through a pointer", function.name)
            }
            None => {}
        }
        known.insert(*start, None);
        let mut deepest = 0;
        for call in &function.calls {
            deepest = deepest.max(self.depth(*call, known)?);
        }
        let depth = function.frame + deepest;
        known.insert(*start, Some(depth));
        Ok(depth)
    }
}

impl Function {
    /// Looks at those A64 instructions (Arm DDI 0487, C4.1) that call, or that move the stack pointer.
    fn decode(name: String, address: u64, words: impl ExactSizeIterator<Item = u32>) -> Self {
        let end = address + words.len() as u64 * 4;
        let mut function = Self { name, ..Self::default() };
        for (at, word) in (address..).step_by(4).zip(words) {
            let signed =
                |shift: u32, bits: u32| i64::from((word << (32 - bits - shift)) as i32 >> (32 - bits));
            let target = at.wrapping_add_signed(signed(0, 26) * 4);
            match word {
                // BL; B out of the function: a tail call.
                _ if word >> 26 == 0b100_101 => function.calls.push(target),
                _ if word >> 26 == 0b000_101 && !(address..end).contains(&target) => {
                    function.calls.push(target);
                }
                // BLR.
                _ if word & 0xffff_fc1f == 0xd63f_0000 => function.calls_through_pointers = true,
                // SUB SP, SP, #imm12, perhaps times 4096.
                _ if word & 0xff80_03ff == 0xd100_03ff => {
                    function.frame += u64::from(word >> 10 & 0xfff) << ((word >> 22 & 1) * 12);
                }
                // STP of X registers, [SP, #imm7 * 8]!
                _ if word & 0xffc0_03e0 == 0xa980_03e0 => {
                    function.frame += u64::try_from(-signed(15, 7) * 8).unwrap_or(0);
                }
                // STR of an X register, [SP, #imm9]!
                _ if word & 0xffe0_0fe0 == 0xf800_0fe0 => {
                    function.frame += u64::try_from(-signed(12, 9)).unwrap_or(0);
                }
                _ => {}
            }
        }
        function
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_tests_and_blank_lines_are_not_counted() {
        let source = "//! Says.\n\nfn a() {\n    // Why.\n    b();\n}\n\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
        assert_eq!(code_lines(source), 3);
        let root = "#[cfg(test)]\nmod fake;\n#[cfg(feature = \"bench\")]\nmod peer;\npub mod real;\n";
        assert!(is_left_out(root, "fake") && is_left_out(root, "peer") && !is_left_out(root, "real"));
    }

    #[test]
    fn only_the_librarys_sections_that_are_linked_count() {
        let map = "Discarded input sections\n\
             \u{20}.text.gone 0x0 0x100 /x/libflexserve_el3_svc.a(a.o)\n\
             Linker script and memory map\n\
             \u{20}.text.short 0x1000 0x10 /x/libflexserve_el3_svc.a(a.o)\n\
             \u{20}.rodata.very_long_name\n                0x2000 0x20 /x/libflexserve_el3_svc.a(b.o)\n\
             \u{20}.text.other 0x3000 0x40 /x/bl31_main.o\n\
             \u{20}.bss.counters 0x4000 0x80 /x/libflexserve_el3_svc.a(a.o)\n\
             \u{20}.debug_info 0x0 0x800 /x/libflexserve_el3_svc.a(a.o)\n";
        assert_eq!(linked(map), (0x30, 0x80));
    }

    fn program(functions: &[(&str, u64, &[u32])]) -> Program {
        let decode = |(name, address, words): &(&str, u64, &[u32])| {
            (*address, Function::decode((*name).to_owned(), *address, words.iter().copied()))
        };
        Program(functions.iter().map(decode).collect())
    }

    #[test]
    fn the_deepest_path_of_calls_is_found() {
        let program = program(&[
            // stp x29, x30, [sp, #-32]!; bl 0x2000; b 0x3000
            ("our_a", 0x1000, &[0xa9be_7bfd, 0x9400_03ff, 0x1400_07fe]),
            // sub sp, sp, #0x100; ret
            ("leaf", 0x2000, &[0xd104_03ff, 0xd65f_03c0]),
            // str x30, [sp, #-16]!; sub sp, sp, #1, lsl #12
            ("tail", 0x3000, &[0xf81f_0ffe, 0xd140_07ff]),
        ]);
        assert_eq!(program.deepest("our").unwrap(), 32 + 16 + 4096);
        assert_eq!(program.deepest("leaf").unwrap(), 256);
        assert!(program.deepest("none").is_err());
    }

    #[test]
    fn recursion_pointers_to_functions_and_panics_are_refused() {
        // bl 0x2000, bl 0x1000; blr x8; bl 0x5000
        let program = program(&[
            ("a", 0x1000, &[0x9400_0400]),
            ("b", 0x2000, &[0x97ff_fc00]),
            ("_RNvc", 0x3000, &[0xd63f_0100]),
            ("_RNvd", 0x4000, &[0x9400_0400]),
            ("_RNvNtCs0_4core9panicking9panic_fmt", 0x5000, &[]),
        ]);
        assert!(program.deepest("a").unwrap_err().to_string().contains("recursive"));
        assert!(program.deepest("_RNvd").unwrap_err().to_string().contains("panicking"));
        assert!(program.deepest("_RNvc").unwrap_err().to_string().contains("pointer"));
    }
}
