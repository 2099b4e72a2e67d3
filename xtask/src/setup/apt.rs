//! A private apt configuration under `target/apt`: the machine's own Debian sources, plus backports. It serves what the
//! machine's own suites lack and leaves neither a package source nor a foreign architecture behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::failure::Failure;
use crate::paths::{Paths, write_whole};
use crate::process;

/// The Debian release this project is set up on.
pub const CODENAME: &str = "bookworm";

/// One apt source entry, in the form both file formats share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Base addresses.
    pub uris: Vec<String>,
    /// Suites.
    pub suites: Vec<String>,
    /// Components.
    pub components: Vec<String>,
    /// The rest, as deb822 lines (`Signed-By:` and the like).
    pub options: Vec<String>,
}

impl Source {
    fn offers(&self, suite: &str) -> bool {
        self.suites.iter().any(|s| s == suite) && self.components.iter().any(|c| c == "main")
    }

    /// Whether an address looks like the main archive's (its path has the folder `debian`).
    fn names_debian(&self) -> bool {
        self.uris.iter().any(|uri| uri.split('/').any(|part| part == "debian"))
    }

    /// The entry in deb822 form.
    pub fn deb822(&self) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
            self.uris.join(" "),
            self.suites.join(" "),
            self.components.join(" ")
        );
        for option in &self.options {
            text.push_str(option);
            text.push('\n');
        }
        text
    }
}

/// Reads a `*.sources` file (deb822). Entries for source packages and disabled ones are left out; a restriction to
/// certain architectures is dropped, since the kernel is for another one.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
        let field = |wanted: &str| -> Vec<String> {
            fields
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .flat_map(|(_, value)| value.split_whitespace().map(str::to_owned))
                .collect()
        };
        let is = |name: &str, words: &[&str]| words.iter().any(|word| name.eq_ignore_ascii_case(word));
        if !field("Types").iter().any(|t| t == "deb")
            || field("Enabled").iter().any(|e| is(e, &["no", "false"]))
        {
            continue;
        }
        let taken = ["Types", "URIs", "Suites", "Components", "Architectures", "Enabled"];
        sources.push(Source {
            uris: field("URIs"),
            suites: field("Suites"),
            components: field("Components"),
            options: fields
                .iter()
                .filter(|(name, _)| !is(name, &taken))
                .map(|(name, value)| format!("{name}: {value}"))
                .collect(),
        });
    }
    sources
}

/// Reads a `*.list` file (one entry per line).
pub fn parse_list(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("").trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t'])) else {
            continue;
        };
        let mut rest = rest.trim();
        let mut options = Vec::new();
        if let Some((inside, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            for option in inside.split_whitespace() {
                let Some((name, value)) = option.split_once('=') else { continue };
                let name = match name {
                    "arch" => continue,
                    "signed-by" => "Signed-By",
                    "trusted" => "Trusted",
                    "check-valid-until" => "Check-Valid-Until",
                    other => other,
                };
                options.push(format!("{name}: {}", value.replace(',', " ")));
            }
            rest = after.trim();
        }
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        sources.push(Source { uris: vec![uri], suites: vec![suite], components: words.collect(), options });
    }
    sources
}

/// The machine's Debian entries and, first, the main archive's among them.
pub fn debian_sources(all: &[Source]) -> Option<(Source, Vec<Source>)> {
    let candidates: Vec<&Source> = all.iter().filter(|source| source.offers(CODENAME)).collect();
    let main = candidates.iter().find(|source| source.names_debian()).or(candidates.first())?;
    let security = format!("{CODENAME}-security");
    let updates = format!("{CODENAME}-updates");
    let own = all
        .iter()
        .filter(|source| source == main || source.offers(&security) || source.offers(&updates))
        .cloned()
        .collect();
    Some(((*main).clone(), own))
}

/// The machine's package sources, from `/etc/apt`.
pub fn machine_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            Some("list") => sources.extend(parse_list(&text)),
            _ => {}
        }
    }
    sources
}

/// The private configuration.
pub struct Apt {
    install: PathBuf,
    kernel: PathBuf,
}

impl Apt {
    /// Writes the configuration and fetches the package lists (network).
    pub fn prepare(paths: &Paths) -> Result<Self> {
        let (main, mut own) = debian_sources(&machine_sources()).ok_or_else(|| {
            Failure::setup(
                format!("no package source of this machine offers Debian's suite {CODENAME}"),
                "run on Debian 12, or install the packages of the README by hand",
            )
        })?;
        own.push(Source { suites: vec![format!("{CODENAME}-backports")], ..main });
        let dir = paths.target("apt");
        for sub in ["parts", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot create {}", dir.join(sub).display()))?;
        }
        let text: Vec<String> = own.iter().map(Source::deb822).collect();
        write_whole(&dir.join("parts/debian.sources"), text.join("\n").as_bytes())?;
        write_whole(&dir.join("sources.list"), b"")?;
        let common = format!(
            "Dir::Etc::sourcelist \"{0}/sources.list\";\nDir::Etc::sourceparts \"{0}/parts\";\n\
             Dir::State::lists \"{0}/lists\";\nDir::Cache \"{0}/cache\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             Acquire::http::Timeout \"30\";\nAcquire::https::Timeout \"30\";\n",
            dir.display()
        );
        let apt = Self { install: dir.join("install.conf"), kernel: dir.join("kernel.conf") };
        write_whole(&apt.install, common.as_bytes())?;
        let both = format!("{common}APT::Architectures {{ \"{}\"; \"arm64\"; }};\n", native_architecture()?);
        write_whole(&apt.kernel, both.as_bytes())?;
        eprintln!("setup: fetching package lists");
        process::output(apt.command(&apt.kernel, "apt-get").args(["update", "-q"])).map_err(network)?;
        Ok(apt)
    }

    fn command(&self, configuration: &Path, program: &str) -> Command {
        let mut command = process::command(program);
        command.env("APT_CONFIG", configuration).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn install_command(&self, packages: &[&str], backports: bool) -> Command {
        let mut command = self.command(&self.install, "apt-get");
        command.args(["install", "-y", "-q", "--no-install-recommends"]);
        if backports {
            command.arg("-t").arg(format!("{CODENAME}-backports"));
        }
        command.args(packages);
        command
    }

    /// The install command as a user without root rights would type it.
    pub fn shown_install(&self, packages: &[&str], backports: bool) -> String {
        format!(
            "sudo env DEBIAN_FRONTEND=noninteractive APT_CONFIG={} {}",
            self.install.display(),
            process::shown(&self.install_command(packages, backports))
        )
    }

    /// Installs packages; needs root rights.
    pub fn install(&self, packages: &[&str], backports: bool) -> Result<()> {
        process::output(&mut self.install_command(packages, backports)).map_err(network)?;
        Ok(())
    }

    /// Runs `apt-cache` over all suites and both architectures.
    pub fn cache(&self, args: &[&str]) -> Result<String> {
        // Without a network `apt-get update` only warns, and the lists stay empty.
        process::output(self.command(&self.kernel, "apt-cache").args(args)).map_err(network)
    }

    /// Downloads package files into `dir`, all or none.
    pub fn download(&self, dir: &Path, packages: &[String]) -> Result<()> {
        let mut command = self.command(&self.kernel, "apt-get");
        process::output(command.current_dir(dir).args(["download", "-q"]).args(packages)).map_err(network)?;
        Ok(())
    }
}

fn native_architecture() -> Result<String> {
    Ok(process::output(process::command("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

fn network(error: anyhow::Error) -> anyhow::Error {
    Failure::setup(
        format!("packages could not be fetched or installed: {error:#}"),
        "check the network, the disk space and /etc/apt, then repeat",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb deb-src\n# comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main contrib\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\nArchitectures: amd64\n\n\
        Types: deb\nURIs: http://other.example/tool\nSuites: bookworm\nComponents: main\nEnabled: no\n\n\
        Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\nSigned-By:\n -----BEGIN\n .\n end\n";

    #[test]
    fn deb822_entries_are_read_and_written_without_architectures() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2);
        assert_eq!(
            sources[0].deb822(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        assert!(sources[1].deb822().ends_with("Signed-By: \n -----BEGIN\n .\n end\n"));
    }

    #[test]
    fn the_main_archive_is_found_among_strangers() {
        let mut all = parse_list(
            "deb http://tool.example/repo bookworm main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian/ bookworm main # c\n\
             deb-src http://mirror.example/debian bookworm main\ndebug\n",
        );
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].options, ["Signed-By: /k.gpg"]);
        let (main, own) = debian_sources(&all).unwrap();
        assert_eq!(main, all[1]);
        assert_eq!(own, [all[1].clone()]);
        all.truncate(1);
        assert_eq!(debian_sources(&all).unwrap().0, all[0], "an unusual mirror name still counts");
        all.extend(parse_deb822(DEB822));
        let (main, own) = debian_sources(&all).unwrap();
        assert_eq!(main.uris, ["http://mirror.example/debian"]);
        assert_eq!(own.len(), 2, "main and security, not the stranger");
        assert!(debian_sources(&[]).is_none());
    }
}
