//! Builds the host's kernel modules against the unpacked headers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::failure::{Code, Failure};
use crate::paths::Paths;
use crate::process;
use crate::setup::kernel::Kernel;

/// Builds the module whose sources lie in `source` and returns `NAME.ko`; none if there are no sources. Sources are copied,
/// so that the checkout stays clean; nothing is done while the copy and the kernel are unchanged.
pub fn build(paths: &Paths, kernel: &Kernel, source: &str, name: &str) -> Result<Option<PathBuf>> {
    let files = sources(&paths.at(source))?;
    if !files.iter().any(|(file, _)| file.ends_with(".c")) {
        return Ok(None);
    }
    let dir = paths.target("kmod").join(name);
    let module = dir.join(format!("{name}.ko"));
    let mut wanted = files;
    if !wanted.iter().any(|(file, _)| file == "Kbuild") {
        wanted.push(("Kbuild".to_owned(), kbuild(&wanted, name).into_bytes()));
    }
    wanted.push(("kernel-release".to_owned(), kernel.release.clone().into_bytes()));
    let same =
        |(file, contents): &(String, Vec<u8>)| fs::read(dir.join(file)).is_ok_and(|old| old == *contents);
    if module.exists() && wanted.iter().all(same) {
        return Ok(Some(module));
    }
    eprintln!("build: kernel module {name} for Linux {}", kernel.release);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (file, contents) in &wanted {
        fs::write(dir.join(file), contents).with_context(|| format!("cannot write {file}"))?;
    }
    let mut make = process::command("make");
    make.arg("-s").arg("-C").arg(paths.at(&kernel.headers)).arg(format!("M={}", dir.display()));
    // Without BTF: it needs pahole, and nothing here uses it. Warnings are errors, as in the Rust code.
    make.args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CONFIG_DEBUG_INFO_BTF_MODULES="]);
    make.args(["KCFLAGS=-Werror", "modules"]);
    if let Err(error) = process::output(&mut make) {
        eprintln!("{error:#}");
        return Err(Failure::new(
            Code::Failed,
            format!("the kernel module {name} does not build for Linux {}", kernel.release),
            "its sources, or the set-up",
            "see the compiler's messages above",
        ));
    }
    anyhow::ensure!(module.exists(), "the build of {source} made no {name}.ko");
    let mut strip = process::command("aarch64-linux-gnu-strip");
    process::output(strip.arg("--strip-debug").arg(&module))?;
    Ok(Some(module))
}

/// The kbuild file of a module made of all C files of its folder.
fn kbuild(files: &[(String, Vec<u8>)], name: &str) -> String {
    let mut objects: Vec<String> =
        files.iter().filter_map(|(file, _)| Some(format!("{}.o", file.strip_suffix(".c")?))).collect();
    objects.sort();
    let single = objects == [format!("{name}.o")];
    if single {
        format!("obj-m := {name}.o\n")
    } else {
        format!("obj-m := {name}.o\n{name}-y := {}\n", objects.join(" "))
    }
}

fn sources(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    if !dir.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_file() && (name.ends_with(".c") || name.ends_with(".h") || name == "Kbuild") {
            files.push((name, fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_one_and_of_several_files() {
        let file = |name: &str| (name.to_owned(), Vec::new());
        assert_eq!(kbuild(&[file("m.c"), file("m.h")], "m"), "obj-m := m.o\n");
        assert_eq!(kbuild(&[file("b.c"), file("a.c")], "m"), "obj-m := m.o\nm-y := a.o b.o\n");
    }
}
