//! llama.cpp to measure against, and an emulator of user programs: Debian's packages, unpacked under `target/llama`. Nothing
//! is installed. Debian 12 has no llama.cpp, so it comes from the newest suite, with the C library that it was built for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::apt::{self, Apt, Source};
use crate::failure::Failure;
use crate::paths::{Paths, write_whole};
use crate::process;

/// The suite with the newest packages.
const SUITE: &str = "sid";
const PACKAGE: &str = "llama.cpp-tools";
/// The emulated CPU: dot products of bytes, as every CPU of the test matrix has, and no SVE.
pub const EMULATED_CPU: &str = "neoverse-n1";

/// What was unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Llama {
    /// Version of the package.
    pub version: String,
}

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Native,
    /// As an AArch64 program in the emulator.
    Emulated,
}

impl Place {
    /// Debian's names of the architecture and of its folder of libraries, and of the dynamic linker.
    fn names(self) -> Result<[&'static str; 3]> {
        match (self, std::env::consts::ARCH) {
            (Place::Emulated, _) | (_, "aarch64") => {
                Ok(["arm64", "aarch64-linux-gnu", "ld-linux-aarch64.so.1"])
            }
            (_, "x86_64") => Ok(["amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2"]),
            (_, other) => {
                Err(Failure::setup(format!("no llama.cpp is known for {other}"), "use an x86-64 machine"))
            }
        }
    }
}

impl Llama {
    /// Returns what is unpacked; fetches it first if needed (network).
    pub fn ensure(paths: &Paths) -> Result<Self> {
        let _lock = paths.lock("llama")?;
        let record = paths.target("llama/llama.json");
        if let Some(llama) = fs::read(&record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(llama);
        }
        let dir = paths.target("llama");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        let [native, ..] = Place::Native.names()?;
        let [emulated, ..] = Place::Emulated.names()?;
        let mut architectures = vec![native];
        if emulated != native {
            architectures.push(emulated);
        }
        eprintln!("setup: fetching llama.cpp from Debian's suite {SUITE}, for measurements only");
        let newest = Newest::prepare(&dir, &architectures)?;
        for architecture in &architectures {
            newest.unpack(&dir, architecture)?;
        }
        let version = newest.version()?;
        fs::remove_dir_all(dir.join("apt"))?;
        eprintln!("setup: fetching an emulator of user programs");
        let debs = dir.join("debs");
        fs::create_dir_all(&debs)?;
        Apt::prepare(paths)?.download(&debs, &[format!("qemu-user/{}-backports", apt::CODENAME)])?;
        unpack_all(&debs, &dir.join("qemu"))?;
        let llama = Llama { version };
        write_whole(&record, &serde_json::to_vec(&llama)?)?;
        Ok(llama)
    }

    /// llama-bench.
    pub fn bench(&self, paths: &Paths, place: Place) -> Result<Command> {
        let [architecture, triple, linker] = place.names()?;
        let root = paths.target("llama").join(architecture);
        let libraries = root.join("usr/lib").join(triple);
        let mut command = run(paths, place, &libraries.join(linker));
        command.arg("--library-path").arg(format!("{0}:{0}/llama", libraries.display()));
        command.arg(root.join("usr/bin/llama-bench"));
        // It looks for the best back end for the CPU in the working folder, among others.
        command.current_dir(libraries.join("ggml/backends0"));
        Ok(command)
    }
}

/// A program of this machine or of the emulated one.
pub fn run(paths: &Paths, place: Place, program: &Path) -> Command {
    match place {
        Place::Native => process::command(program),
        Place::Emulated => {
            let mut command = process::command(paths.target("llama/qemu/usr/bin/qemu-aarch64"));
            command.args(["-cpu", EMULATED_CPU]).arg(program);
            command
        }
    }
}

/// A private apt of the newest suite, for which nothing is installed.
struct Newest {
    dir: PathBuf,
}

impl Newest {
    fn prepare(dir: &Path, architectures: &[&str]) -> Result<Self> {
        let (main, _) = apt::debian_sources(&apt::machine_sources()).ok_or_else(|| {
            Failure::setup(
                format!("no package source of this machine offers Debian's suite {}", apt::CODENAME),
                "run on Debian 12",
            )
        })?;
        let dir = dir.join("apt");
        for sub in ["parts", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let source = Source { suites: vec![SUITE.to_owned()], ..main };
        write_whole(&dir.join("parts/debian.sources"), source.deb822().as_bytes())?;
        write_whole(&dir.join("sources.list"), b"")?;
        write_whole(&dir.join("status"), b"")?;
        let newest = Newest { dir };
        let both: Vec<String> = architectures.iter().map(|name| format!("\"{name}\";")).collect();
        let configuration =
            format!("{}APT::Architectures {{ {} }};\n", newest.configuration(), both.join(" "));
        write_whole(&newest.dir.join("all.conf"), configuration.as_bytes())?;
        for name in architectures {
            let configuration = format!(
                "{}APT::Architecture \"{name}\";\nAPT::Architectures {{ \"{name}\"; }};\n\
                 Dir::Cache::archives \"{}/{name}\";\n",
                newest.configuration(),
                newest.dir.display()
            );
            fs::create_dir_all(newest.dir.join(name).join("partial"))?;
            write_whole(&newest.dir.join(format!("{name}.conf")), configuration.as_bytes())?;
        }
        process::output(newest.command("all", "apt-get").args(["update", "-q"])).map_err(network)?;
        Ok(newest)
    }

    fn configuration(&self) -> String {
        format!(
            "Dir::Etc::sourcelist \"{0}/sources.list\";\nDir::Etc::sourceparts \"{0}/parts\";\n\
             Dir::State::lists \"{0}/lists\";\nDir::State::status \"{0}/status\";\nDir::Cache \"{0}/cache\";\n\
             APT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\nAcquire::http::Timeout \"30\";\nAcquire::https::Timeout \"30\";\n",
            self.dir.display()
        )
    }

    fn command(&self, configuration: &str, program: &str) -> Command {
        let mut command = process::command(program);
        command.env("APT_CONFIG", self.dir.join(format!("{configuration}.conf")));
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Downloads the package with all that it needs, the C library included, and unpacks it.
    fn unpack(&self, dir: &Path, architecture: &str) -> Result<()> {
        let mut command = self.command(architecture, "apt-get");
        command.args(["install", "--download-only", "-y", "-q", PACKAGE]);
        process::output(&mut command).map_err(network)?;
        unpack_all(&self.dir.join(architecture), &dir.join(architecture))
    }

    fn version(&self) -> Result<String> {
        let text =
            process::output(self.command("all", "apt-cache").args(["policy", PACKAGE])).map_err(network)?;
        let candidate = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(candidate.unwrap_or("unknown").to_owned())
    }
}

/// Unpacks all package files of a folder, and removes them.
fn unpack_all(debs: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(debs).with_context(|| format!("cannot read {}", debs.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            process::output(process::command("dpkg").arg("-x").arg(&path).arg(target))?;
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn network(error: anyhow::Error) -> anyhow::Error {
    Failure::setup(
        format!("llama.cpp could not be fetched: {error:#}"),
        "check the network, the disk space and /etc/apt, then repeat",
    )
}
