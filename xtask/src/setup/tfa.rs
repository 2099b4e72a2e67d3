//! Trusted Firmware-A, the other firmware of the S-EL2 deployment: built once from Debian's source package, under
//! `target/tf-a`. Only a run that asks for it needs it; once it is there, it needs no network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use firmware::flash::{self, BL2, BL31, TB_FW_CONFIG, TOS_FW_CONFIG};
use monitor::fip::{BL32, Name};

use super::apt::{self, Apt, Source};
use crate::failure::Failure;
use crate::paths::{Paths, write_whole};
use crate::process;

/// The Debian release whose package is taken: Debian 12's has no dispatcher for an SPMC that speaks FF-A 1.2.
const SUITE: &str = "trixie";
const PACKAGE: &str = "arm-trusted-firmware";
/// What the build needs besides the packages of every set-up.
const PACKAGES: &[(&str, &str)] = &[("device-tree-compiler", "/usr/bin/dtc"), ("xz-utils", "/usr/bin/xz")];
/// How it is built. The SPMC is at S-EL2; pointer authentication and SVE work in both worlds, since the SPMC switches what
/// EL3 does not; the host's kernel is where QEMU put it. `docs/deployments.md` explains each.
const OPTIONS: &[&str] = &[
    "CROSS_COMPILE=aarch64-linux-gnu-",
    "PLAT=qemu",
    "DEBUG=0",
    "LOG_LEVEL=20",
    "QEMU_USE_GIC_DRIVER=QEMU_GICV3",
    "SPD=spmd",
    "SPMD_SPM_AT_SEL2=1",
    "NEED_BL32=yes",
    "SP_LAYOUT_FILE=sp_layout.json",
    "ARM_LINUX_KERNEL_AS_BL33=1",
    "PRELOADED_BL33_BASE=0x40200000",
    "CTX_INCLUDE_EL2_REGS=1",
    "CTX_INCLUDE_PAUTH_REGS=1",
    "ENABLE_FEAT_SEL2=1",
    "ENABLE_FEAT_MTE2=2",
    "ENABLE_FEAT_TCR2=2",
    "ENABLE_FEAT_SCTLR2=2",
    "ENABLE_SVE_FOR_NS=2",
    "ENABLE_SVE_FOR_SWD=1",
];
/// What it makes: file, and name in the package; the first stage has none.
const IMAGES: &[(&str, Name)] = &[
    ("bl2.bin", BL2),
    ("bl31.bin", BL31),
    ("spmc_manifest.dtb", TOS_FW_CONFIG),
    ("tb_fw_config.dtb", TB_FW_CONFIG),
];
const FIRST_STAGE: &str = "bl1.bin";
const MANIFESTS: &[&str] = &["spmc_manifest", "tb_fw_config"];

/// What was built.
#[derive(Clone, Debug)]
pub struct TfA {
    dir: PathBuf,
}

impl TfA {
    /// Returns what was built; builds it first if needed (network).
    pub fn ensure(paths: &Paths) -> Result<Self> {
        let _lock = paths.lock("tf-a")?;
        let tfa = Self { dir: paths.target("tf-a") };
        let recipe = recipe(paths)?;
        if fs::read_to_string(tfa.dir.join("recipe")).is_ok_and(|built| built == recipe) {
            return Ok(tfa);
        }
        let apt = Apt::prepare(paths)?;
        let missing: Vec<&str> = PACKAGES
            .iter()
            .filter(|(_, file)| !Path::new(file).exists())
            .map(|(package, _)| *package)
            .collect();
        super::install(&apt, &missing, false)?;
        if tfa.dir.exists() {
            fs::remove_dir_all(&tfa.dir).with_context(|| format!("cannot empty {}", tfa.dir.display()))?;
        }
        let source = tfa.dir.join("source");
        fetch(&tfa.dir, &source)?;
        tfa.build(paths, &source)?;
        fs::remove_dir_all(&source).with_context(|| format!("cannot remove {}", source.display()))?;
        write_whole(&tfa.dir.join("recipe"), recipe.as_bytes())?;
        Ok(tfa)
    }

    fn build(&self, paths: &Paths, source: &Path) -> Result<()> {
        eprintln!("setup: building Trusted Firmware-A");
        fs::write(source.join("sp_layout.json"), "{}\n")?;
        let build = source.join("build/qemu/release");
        fs::create_dir_all(&build)?;
        // There are no secure partitions; this file, newer than what it comes from, spares the generator and its language.
        fs::write(build.join("sp_gen.mk"), "")?;
        let mut make = process::command("make");
        make.current_dir(source).arg("-j4").args(OPTIONS).args(["bl1", "bl2", "bl31"]);
        process::output(&mut make)?;
        for name in ["bl1.bin", "bl2.bin", "bl31.bin"] {
            fs::copy(build.join(name), self.dir.join(name)).with_context(|| format!("no {name}"))?;
        }
        for name in MANIFESTS {
            let mut dtc = process::command("dtc");
            dtc.args(["-q", "-I", "dts", "-O", "dtb", "-o"]).arg(self.dir.join(format!("{name}.dtb")));
            process::output(dtc.arg(manifest(paths, name)))?;
        }
        Ok(())
    }

    /// Flash with this firmware and an SPMC.
    pub fn flash(&self, spmc: &[u8]) -> Result<Vec<u8>> {
        let read = |name: &str| {
            fs::read(self.dir.join(name)).with_context(|| format!("cannot read {name} of Trusted Firmware-A"))
        };
        let mut files = Vec::new();
        for (file, name) in IMAGES {
            files.push((*name, read(file)?));
        }
        files.push((BL32, spmc.to_vec()));
        let images: Vec<(Name, &[u8])> =
            files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        Ok(flash::pack(&read(FIRST_STAGE)?, &images)?)
    }
}

fn manifest(paths: &Paths, name: &str) -> PathBuf {
    paths.at("firmware/tf-a").join(format!("{name}.dts"))
}

/// All that the result depends on; another recipe is built anew.
fn recipe(paths: &Paths) -> Result<String> {
    let mut recipe = format!("{PACKAGE} of {SUITE}\n{}\n", OPTIONS.join("\n"));
    for name in MANIFESTS {
        let path = manifest(paths, name);
        recipe += &fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(recipe)
}

/// Unpacks the package's upstream sources into `source`; Debian's own changes concern other platforms.
fn fetch(dir: &Path, source: &Path) -> Result<()> {
    let (main, _) = apt::debian_sources(&apt::machine_sources()).ok_or_else(|| {
        Failure::setup("no package source of this machine offers Debian", "run on Debian 12")
    })?;
    let private = dir.join("apt");
    for sub in ["parts", "lists/partial", "cache/archives/partial", "download"] {
        fs::create_dir_all(private.join(sub))
            .with_context(|| format!("cannot create {}", private.display()))?;
    }
    let entry = Source { suites: vec![SUITE.to_owned()], ..main }.deb822();
    write_whole(&private.join("parts/debian.sources"), entry.replacen("deb\n", "deb-src\n", 1).as_bytes())?;
    write_whole(&private.join("sources.list"), b"")?;
    write_whole(&private.join("status"), b"")?;
    let configuration = format!(
        "Dir::Etc::sourcelist \"{0}/sources.list\";\nDir::Etc::sourceparts \"{0}/parts\";\n\
         Dir::State::lists \"{0}/lists\";\nDir::State::status \"{0}/status\";\nDir::Cache \"{0}/cache\";\n\
         APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
         Acquire::http::Timeout \"30\";\nAcquire::https::Timeout \"30\";\n",
        private.display()
    );
    write_whole(&private.join("apt.conf"), configuration.as_bytes())?;
    let apt_get = |arguments: &[&str]| {
        let mut command = process::command("apt-get");
        command.env("APT_CONFIG", private.join("apt.conf")).current_dir(private.join("download"));
        process::output(command.args(arguments)).map_err(network)
    };
    eprintln!("setup: fetching the sources of Trusted Firmware-A from Debian's suite {SUITE}");
    apt_get(&["update", "-q"])?;
    apt_get(&["source", "--download-only", "-q", PACKAGE])?;
    let archive = fs::read_dir(private.join("download"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains(".orig.tar."))
        .context("the source package has no upstream archive")?;
    fs::create_dir_all(source)?;
    let mut tar = process::command("tar");
    process::output(tar.arg("-xf").arg(&archive).args(["--strip-components=1", "-C"]).arg(source))?;
    fs::remove_dir_all(&private).with_context(|| format!("cannot remove {}", private.display()))
}

fn network(error: anyhow::Error) -> anyhow::Error {
    Failure::setup(
        format!("Trusted Firmware-A could not be fetched: {error:#}"),
        "check the network, the disk space and /etc/apt, then repeat; or leave --firmware tf-a out",
    )
}
