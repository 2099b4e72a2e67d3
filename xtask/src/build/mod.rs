//! Builds every part and puts together what boots: bundle, initramfs, job.

pub mod cargo;
pub mod cpio;
pub mod kmod;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use monitor::fip::BL32;

use crate::cli::FirmwareName;
use crate::failure::{Code, Failure};
use crate::machine::{Deployment, Machine};
use crate::paths::{Paths, write_whole};
use crate::process;
use crate::setup::Setup;
use crate::setup::tfa::TfA;
use crate::vm::BUNDLE_BASE;

/// Where firmware loads the SPMC (`firmware/tf-a/spmc_manifest.dts`).
const SPMC_BASE: u64 = 0x0e10_0000;

/// The model that runs when none is named.
pub const DEFAULT_MODEL: &str = "tests/models/demo.gguf";

/// Which hypervisor image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// As shipped.
    #[default]
    Shipped,
    /// With operations that a test may skip.
    FaultKnobs,
}

/// What a build made. A part that the checkout does not have yet is none.
#[derive(Clone, Debug, Default)]
pub struct Products {
    /// Flat hypervisor image.
    pub hypervisor: Option<PathBuf>,
    /// ELF files of what runs above the host, for a debugger, and where each is loaded.
    pub symbols: Vec<(PathBuf, u64)>,
    /// Flash with firmware and SPMC. The hypervisor image above is the guard then.
    pub flash: Option<PathBuf>,
    /// Partition image.
    pub guest: Option<PathBuf>,
    /// A partition that misbehaves on command, for tests.
    pub probe: Option<PathBuf>,
    /// `/init` of the host.
    pub init: Option<PathBuf>,
    /// The `flexserve` command.
    pub flexserve: Option<PathBuf>,
    /// The host's kernel module.
    pub module: Option<PathBuf>,
    /// The kernel module of the attack suite, for tests only.
    pub attack_module: Option<PathBuf>,
}

impl Products {
    /// Returns the part or says which one this checkout lacks.
    pub fn need<'a>(part: &'a Option<PathBuf>, name: &str) -> Result<&'a Path> {
        part.as_deref().ok_or_else(|| {
            Failure::new(
                Code::Failed,
                format!("this checkout has no {name} yet"),
                "the checkout",
                "update it",
            )
        })
    }
}

/// `cargo xtask build`.
pub fn main(paths: &Paths, setup: &Setup) -> Result<()> {
    let start = Instant::now();
    let products = all(paths, setup, Variant::Shipped)?;
    let mut chain = Products::default();
    secure(paths, setup, Variant::Shipped, FirmwareName::Own, &mut chain)?;
    let parts = [
        ("hypervisor", &products.hypervisor),
        ("guard", &chain.hypervisor),
        ("firmware and SPMC", &chain.flash),
        ("partition", &products.guest),
        ("init", &products.init),
        ("flexserve", &products.flexserve),
        ("kernel module", &products.module),
        ("attack module", &products.attack_module),
    ];
    for (name, path) in parts {
        let Some(path) = path else {
            eprintln!("build: {name}: not in this checkout yet, skipped");
            continue;
        };
        let size = fs::metadata(path).map(|data| data.len()).unwrap_or(0);
        eprintln!(
            "build: {name}: {} ({} KiB)",
            path.strip_prefix(&paths.root).unwrap_or(path).display(),
            size / 1024
        );
    }
    eprintln!("build: done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Builds the hypervisor alone: all that a foreign host kernel needs.
pub fn hypervisor(paths: &Paths, setup: &Setup, variant: Variant) -> Result<Products> {
    let _lock = paths.lock("build")?;
    let mut products = Products::default();
    if is_bare_metal(paths, "hyp") {
        eprintln!("build: hypervisor");
        let package = hypervisor_package(variant);
        let elf = cargo::build(paths, &setup.toolchain, package)?.join(package.name);
        products.hypervisor = Some(flat(&elf)?);
        products.symbols = vec![(elf, BUNDLE_BASE)];
    }
    Ok(products)
}

fn hypervisor_package(variant: Variant) -> &'static cargo::Package {
    match variant {
        Variant::Shipped => &cargo::HYP,
        Variant::FaultKnobs => &cargo::HYP_KNOBS,
    }
}

/// Builds what runs below the host of the S-EL2 deployment: guard, SPMC and firmware.
pub fn secure(
    paths: &Paths,
    setup: &Setup,
    variant: Variant,
    firmware: FirmwareName,
    products: &mut Products,
) -> Result<()> {
    let tfa = (firmware == FirmwareName::TfA).then(|| TfA::ensure(paths)).transpose()?;
    let _lock = paths.lock("build")?;
    eprintln!("build: guard, SPMC and firmware");
    let build = |package| cargo::build(paths, &setup.toolchain, package);
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let dir = build(hypervisor_package(variant))?;
    let (guard, spmc) = (dir.join("guard"), dir.join("spmc"));
    let image = read(&flat(&spmc)?)?;
    products.symbols = vec![(guard.clone(), BUNDLE_BASE), (spmc.clone(), SPMC_BASE)];
    let flash = match tfa {
        Some(tfa) => tfa.flash(&image)?,
        None => {
            let monitor = build(&cargo::MONITOR)?.join(cargo::MONITOR.name);
            let flash = firmware::flash::pack(&read(&flat(&monitor)?)?, &[(BL32, &image)])?;
            products.symbols.push((monitor, 0));
            flash
        }
    };
    let path = spmc.with_extension(format!("{}.flash", firmware.as_str()));
    if fs::read(&path).map_or(true, |old| old != flash) {
        write_whole(&path, &flash)?;
    }
    products.flash = Some(path);
    products.hypervisor = Some(flat(&guard)?);
    Ok(())
}

/// Builds the model of the NPU for a machine that has one; none if it has none.
pub fn npu(paths: &Paths, machine: &Machine) -> Result<Option<PathBuf>> {
    let _lock = paths.lock("build")?;
    machine.npu.then(|| cargo::npu(paths)).transpose()
}

/// Builds what a machine needs: all of it, or for a foreign host kernel the hypervisor alone.
pub fn machine(
    paths: &Paths,
    setup: &Setup,
    variant: Variant,
    machine: &Machine,
    foreign: bool,
) -> Result<Products> {
    let mut products = match (foreign, machine.deployment) {
        (true, Deployment::SEl2) => Products::default(),
        (true, _) => hypervisor(paths, setup, variant)?,
        (false, Deployment::SEl2) => {
            let mut products = Products::default();
            host(paths, setup, &mut products)?;
            products
        }
        (false, _) => all(paths, setup, variant)?,
    };
    if machine.deployment == Deployment::SEl2 {
        secure(paths, setup, variant, machine.firmware, &mut products)?;
    }
    Ok(products)
}

/// Builds every part that the EL2 deployment has.
pub fn all(paths: &Paths, setup: &Setup, variant: Variant) -> Result<Products> {
    let mut products = hypervisor(paths, setup, variant)?;
    host(paths, setup, &mut products)?;
    Ok(products)
}

/// Builds the partition and what the host has.
fn host(paths: &Paths, setup: &Setup, products: &mut Products) -> Result<()> {
    let _lock = paths.lock("build")?;
    let toolchain = &setup.toolchain;
    let step = |what: &str| eprintln!("build: {what}");
    if is_bare_metal(paths, "guest-llm") {
        step("partition");
        let dir = cargo::build(paths, toolchain, &cargo::GUEST)?;
        products.guest = Some(stripped(&dir.join(cargo::GUEST.name))?);
        products.probe = Some(stripped(&dir.join("guest-probe"))?);
    }
    if paths.at("host-shim/src/bin/init.rs").exists() {
        step("host programs");
        let dir = cargo::build(paths, toolchain, &cargo::HOST)?;
        products.init = Some(stripped(&dir.join("init"))?);
        products.flexserve = Some(stripped(&dir.join("flexserve"))?);
    }
    products.module = kmod::build(paths, &setup.kernel, "host-shim/kmod", "flexserve")?;
    products.attack_module = kmod::build(paths, &setup.kernel, "tests/kmod", "flexserve_attack")?;
    Ok(())
}

/// Whether a package's program is bare-metal code yet.
fn is_bare_metal(paths: &Paths, package: &str) -> bool {
    fs::read_to_string(paths.at(package).join("src/main.rs")).is_ok_and(|text| text.contains("no_std"))
}

/// Makes the flat image beside the ELF file, if that is newer.
fn flat(elf: &Path) -> Result<PathBuf> {
    let flat = elf.with_extension("img");
    let contents = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let bytes =
        firmware::elf::flatten(&contents).with_context(|| format!("cannot flatten {}", elf.display()))?;
    if fs::read(&flat).map_or(true, |old| old != bytes) {
        write_whole(&flat, &bytes)?;
    }
    Ok(flat)
}

/// Makes a copy without debug information beside a program, if that is newer; it keeps all other sections.
pub fn stripped(program: &Path) -> Result<PathBuf> {
    let copy = program.with_extension("stripped");
    let time = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let current = time(program).with_context(|| format!("cannot read {}", program.display()))?;
    if time(&copy).is_ok_and(|copied| copied > current) {
        return Ok(copy);
    }
    let mut strip = process::command("aarch64-linux-gnu-strip");
    process::output(strip.arg("--strip-debug").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// What the host's initramfs holds besides the programs.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Model files: path on this machine; each lands under `/usr/lib/flexserve/models/`.
    pub models: Vec<PathBuf>,
    /// Further files: path in the host, contents, executable or not.
    pub files: Vec<(String, Vec<u8>, bool)>,
    /// The job that `/init` does, as JSON in `/etc/flexserve/job.json`.
    pub job: serde_json::Value,
}

/// Puts the host's initramfs together; the job is an archive of its own at the end.
pub fn initramfs(products: &Products, contents: &Contents) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = cpio::Archive::default();
    archive.character_device("dev/console", 5, 1);
    for folder in ["proc", "sys", "tmp", "run"] {
        archive.folder(folder);
    }
    archive.executable("init", &read(Products::need(&products.init, "init program for the host")?)?);
    if let Some(path) = &products.flexserve {
        archive.executable("bin/flexserve", &read(path)?);
    }
    if let Some(path) = &products.module {
        archive.file("lib/modules/flexserve.ko", &read(path)?);
    }
    if let Some(path) = &products.guest {
        archive.file("usr/lib/flexserve/guest.elf", &read(path)?);
    }
    for model in &contents.models {
        archive.file(&model_path(model)?[1..], &read(model)?);
    }
    for (path, bytes, executable) in &contents.files {
        let path = path.trim_start_matches('/');
        if *executable { archive.executable(path, bytes) } else { archive.file(path, bytes) }
    }
    let mut bytes = archive.finish();
    let mut job = cpio::Archive::default();
    job.file("etc/flexserve/job.json", &serde_json::to_vec(&contents.job)?);
    bytes.extend(job.finish());
    Ok(bytes)
}

/// Where a model lies in the host.
pub fn model_path(model: &Path) -> Result<String> {
    let name = model.file_name().and_then(|name| name.to_str());
    let name = name
        .ok_or_else(|| Failure::usage(format!("{} has no usable file name", model.display()), "rename it"))?;
    Ok(format!("/usr/lib/flexserve/models/{name}"))
}

/// Refuses what is no GGUF file, before anything is built or booted.
pub fn check_model(model: &Path) -> Result<()> {
    let mut magic = [0; 4];
    let result = fs::File::open(model).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    match result {
        Ok(()) if magic == *b"GGUF" => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(Failure::usage(
            format!("the model {} cannot be read: {error}", model.display()),
            "name an existing GGUF file with --model",
        )),
        _ => Err(Failure::new(
            Code::Integrity,
            format!("{} is not a GGUF file", model.display()),
            "the file named",
            "name an intact GGUF file with --model",
        )),
    }
}
