//! `cargo xtask tcb`: what must be trusted, counted. First-party lines in the dependency closure of each privileged binary, and
//! in all of them together, each package once; third-party beside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::cli::TcbArgs;
use crate::paths::Paths;
use crate::process;
use crate::setup::toolchain::HYP_TARGET;

/// Binaries that run at EL2 or above: package, binary, where it runs. All are for one target.
const BINARIES: &[(&str, &str, &str)] = &[
    ("hyp", "hyp", "EL2"),
    ("hyp", "spmc", "S-EL2"),
    ("hyp", "guard", "EL2"),
    ("monitor", "monitor", "EL3"),
];

/// One package in a closure.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Package {
    name: String,
    /// Lines with code: no blank lines, comments or test modules.
    lines: usize,
    /// `unsafe` blocks, functions and implementations.
    unsafe_count: usize,
}

/// Packages, counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Count {
    first_party_lines: usize,
    third_party_lines: usize,
    unsafe_count: usize,
    first_party: Vec<Package>,
    third_party: Vec<Package>,
}

impl Count {
    fn add(&mut self, package: Package, first_party: bool) {
        if first_party {
            self.first_party_lines += package.lines;
            self.unsafe_count += package.unsafe_count;
            self.first_party.push(package);
        } else {
            self.third_party_lines += package.lines;
            self.third_party.push(package);
        }
    }

    fn print(&self) {
        for package in &self.first_party {
            println!("  {:<24} {:>6} lines, {:>3} unsafe", package.name, package.lines, package.unsafe_count);
        }
        println!("third party: {} lines", self.third_party_lines);
        for package in &self.third_party {
            println!("  {:<24} {:>6} lines, {:>3} unsafe", package.name, package.lines, package.unsafe_count);
        }
    }
}

/// One binary.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Binary {
    name: String,
    level: String,
    image_bytes: Option<u64>,
    /// What it occupies once it runs, stacks and tables included, and code that runs in flash.
    memory_bytes: Option<u64>,
    #[serde(flatten)]
    count: Count,
}

/// Counts and prints.
pub fn main(paths: &Paths, args: &TcbArgs) -> Result<()> {
    let metadata = metadata(paths)?;
    let mut binaries = Vec::new();
    let mut all = BTreeMap::new();
    for (package, name, level) in BINARIES {
        let closure = closure(&metadata, package)?;
        let roots = other_roots(&metadata, package, name);
        let mut count = Count::default();
        for (label, folder) in &closure {
            count.add(count_package(label, folder, &roots)?, folder.starts_with(&paths.root));
        }
        let elf = paths.target("aarch64").join(HYP_TARGET).join("release").join(name);
        let image_bytes = fs::metadata(elf.with_extension("img")).ok().map(|data| data.len());
        let memory_bytes = fs::read(&elf).ok().and_then(|bytes| memory(&bytes));
        let (name, level) = ((*name).into(), (*level).into());
        binaries.push(Binary { name, level, image_bytes, memory_bytes, count });
        all.extend(closure);
    }
    let mut union = Count::default();
    for (label, folder) in &all {
        union.add(count_package(label, folder, &[])?, folder.starts_with(&paths.root));
    }
    if args.json {
        println!("{}", serde_json::json!({"schema": 1, "binaries": binaries, "union": union}));
        return Ok(());
    }
    for Binary { name, level, image_bytes, memory_bytes, count } in &binaries {
        let shown = |bytes: &Option<u64>| {
            bytes.map_or("not built".to_owned(), |bytes| format!("{} KiB", bytes.div_ceil(1024)))
        };
        println!(
            "{name} at {level}: {} first-party lines, image {}, memory {}",
            count.first_party_lines,
            shown(image_bytes),
            shown(memory_bytes)
        );
        count.print();
    }
    println!("all together, each package once: {} first-party lines", union.first_party_lines);
    union.print();
    Ok(())
}

/// Bytes of all loadable segments of an ELF file.
fn memory(elf: &[u8]) -> Option<u64> {
    let elf = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(elf).ok()?;
    let segments = elf.segments()?;
    Some(
        segments
            .iter()
            .filter(|segment| segment.p_type == elf::abi::PT_LOAD)
            .map(|segment| segment.p_memsz)
            .sum(),
    )
}

fn metadata(paths: &Paths) -> Result<Value> {
    let mut command = process::command("cargo");
    command.current_dir(&paths.root);
    command.args(["metadata", "--format-version", "1", "--filter-platform", HYP_TARGET]);
    serde_json::from_str(&process::output(&mut command)?).context("output of cargo metadata")
}

/// The main files of a package's other binaries: what `binary` does not hold.
fn other_roots(metadata: &Value, package: &str, binary: &str) -> Vec<PathBuf> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    list(metadata, "packages")
        .iter()
        .filter(|entry| entry["name"] == package && entry["source"].is_null())
        .flat_map(|entry| list(entry, "targets"))
        .filter(|target| target["name"] != binary && list(target, "kind").iter().any(|kind| kind == "bin"))
        .filter_map(|target| target["src_path"].as_str().map(PathBuf::from))
        .collect()
}

fn count_package(label: &str, folder: &Path, without: &[PathBuf]) -> Result<Package> {
    let (lines, unsafe_count) = count_folder(&folder.join("src"), without)?;
    Ok(Package { name: label.to_owned(), lines, unsafe_count })
}

/// Every package whose code is linked into `root`: normal dependencies, without build scripts and procedural macros.
fn closure(metadata: &Value, root: &str) -> Result<BTreeMap<String, PathBuf>> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(metadata, "packages").into_iter().map(|package| (text(&package, "id"), package)).collect();
    let is_macro = |package: &Value| {
        list(package, "targets")
            .iter()
            .any(|target| list(target, "kind").iter().any(|kind| kind == "proc-macro"))
    };
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"], "nodes").into_iter().map(|node| (text(&node, "id"), node)).collect();
    let start = packages
        .iter()
        .find(|(_, package)| package["name"] == root && package["source"].is_null())
        .map(|(id, _)| id.clone())
        .with_context(|| format!("no package {root}"))?;
    let mut waiting = vec![start];
    let mut seen = BTreeSet::new();
    let mut found = BTreeMap::new();
    while let Some(id) = waiting.pop() {
        let Some(package) = packages.get(&id).filter(|package| !is_macro(package)) else { continue };
        if !seen.insert(id.clone()) {
            continue;
        }
        let manifest = PathBuf::from(text(package, "manifest_path"));
        let label = if package["source"].is_null() {
            text(package, "name")
        } else {
            format!("{} {}", text(package, "name"), text(package, "version"))
        };
        found.insert(label, manifest.parent().unwrap_or(Path::new("/")).to_path_buf());
        for dependency in nodes.get(&id).map(|node| list(node, "deps")).unwrap_or_default() {
            if list(&dependency, "dep_kinds").iter().any(|kind| kind["kind"].is_null()) {
                waiting.push(text(&dependency, "pkg"));
            }
        }
    }
    Ok(found)
}

fn count_folder(folder: &Path, without: &[PathBuf]) -> Result<(usize, usize)> {
    let mut total = (0, 0);
    let Ok(entries) = fs::read_dir(folder) else { return Ok(total) };
    for entry in entries {
        let path = entry?.path();
        // Test-only modules are declared by their folder's module, which the reader cannot see: named so by convention.
        let is_test =
            path.file_stem().is_some_and(|stem| stem == "tests" || stem == "test" || stem == "fake");
        let counted = if is_test || without.contains(&path) {
            (0, 0)
        } else if path.is_dir() {
            count_folder(&path, without)?
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "s") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            count_text(&text)
        } else {
            (0, 0)
        };
        total = (total.0 + counted.0, total.1 + counted.1);
    }
    Ok(total)
}

/// Counts lines with code and uses of `unsafe`. Test modules are skipped up to the brace that closes them.
fn count_text(text: &str) -> (usize, usize) {
    let (mut lines, mut unsafe_count) = (0, 0);
    let mut in_comment = false;
    let mut test_depth: Option<i64> = None;
    let mut test_next = false;
    for line in text.lines() {
        let line = line.trim();
        if in_comment {
            in_comment = !line.contains("*/");
            continue;
        }
        if line.starts_with("/*") {
            in_comment = !line.contains("*/");
            continue;
        }
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        let balance = line.matches('{').count() as i64 - line.matches('}').count() as i64;
        if let Some(depth) = &mut test_depth {
            *depth += balance;
            if *depth <= 0 {
                test_depth = None;
            }
            continue;
        }
        if line == "#[cfg(test)]" {
            test_next = true;
            continue;
        }
        if std::mem::take(&mut test_next) {
            if line.contains("mod ") && balance > 0 {
                test_depth = Some(balance);
            }
            continue;
        }
        lines += 1;
        let code = line.split("//").next().unwrap_or(line);
        unsafe_count += ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .map(|word| code.matches(word).count())
            .sum::<usize>();
    }
    (lines, unsafe_count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_code_counts() {
        let text = "//! Doc.\n\n/* a\n b */\nfn f() { // c\n    unsafe { g() } // unsafe {\n}\n#[cfg(test)]\nmod tests {\n    fn t() {\n    }\n}\nfn h() {}\n";
        assert_eq!(count_text(text), (4, 1));
    }

    #[test]
    fn a_binary_is_counted_without_its_packages_others() {
        let target = |name: &str, kind: &str| json!({"name": name, "kind": [kind], "src_path": format!("/p/{name}.rs")});
        let metadata = json!({"packages": [
            {"name": "p", "source": null, "targets": [target("p", "lib"), target("a", "bin"), target("b", "bin")]},
            {"name": "q", "source": null, "targets": [target("c", "bin")]},
        ]});
        assert_eq!(other_roots(&metadata, "p", "a"), [PathBuf::from("/p/b.rs")]);
    }

    #[test]
    fn the_closure_leaves_out_macros_and_build_dependencies() {
        let package = |name: &str, kind: &str, source: Value| {
            json!({"id": name, "name": name, "version": "1", "source": source, "manifest_path": format!("/{name}/Cargo.toml"),
                   "targets": [{"kind": [kind]}]})
        };
        let dependency = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("hyp", "bin", Value::Null), package("a", "lib", json!("r")), package("m", "proc-macro", json!("r")),
                         package("b", "lib", json!("r")), package("c", "lib", json!("r"))],
            "resolve": {"nodes": [
                {"id": "hyp", "deps": [dependency("a", Value::Null), dependency("m", Value::Null), dependency("b", json!("build"))]},
                {"id": "a", "deps": [dependency("c", Value::Null)]},
            ]},
        });
        let names: Vec<String> = closure(&metadata, "hyp").unwrap().into_keys().collect();
        assert_eq!(names, ["a 1", "c 1", "hyp"]);
        assert!(closure(&metadata, "none").is_err());
    }
}
