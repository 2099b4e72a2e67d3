//! Debian's arm64 kernel for the host, with matching headers and build tools, unpacked under `target/kernel`.
//!
//! Nothing is installed: packages of a foreign architecture would change the machine. All versions are resolved
//! together, so that a module always fits the kernel that runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::apt::{Apt, CODENAME};
use crate::failure::Failure;
use crate::paths::Paths;
use crate::process;

/// The meta package that names the current kernel.
const META_PACKAGE: &str = "linux-image-cloud-arm64:arm64";

/// The kernel in use. Paths are relative to the checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// Package version, the same for all its packages.
    pub version: String,
    /// The Image.
    pub image: String,
    /// The folder that modules are built against.
    pub headers: String,
}

/// The release in a dependency line such as `Depends: linux-image-6.12.1-cloud-arm64 (= 6.12.1-1)`.
pub fn release_of(depends: &str) -> Option<(String, String)> {
    let (_, rest) = depends.split_once("linux-image-")?;
    let (release, rest) = rest.split_once(" (= ")?;
    let (version, _) = rest.split_once(')')?;
    release.ends_with("-cloud-arm64").then(|| (release.to_owned(), version.to_owned()))
}

/// Downloads and unpacks the kernel that backports offers now.
pub fn fetch(paths: &Paths, apt: &Apt) -> Result<Kernel> {
    let shown = apt.cache(&["show", &format!("{META_PACKAGE}/{CODENAME}-backports")])?;
    let (release, version) =
        shown.lines().find(|line| line.starts_with("Depends:")).and_then(release_of).ok_or_else(|| {
            Failure::setup(
                format!("{CODENAME}-backports does not say which kernel {META_PACKAGE} is"),
                "repeat later; the package archive may be changing at this moment",
            )
        })?;
    let base = release.strip_suffix("-cloud-arm64").unwrap_or(&release);
    let native = process::output(process::command("dpkg").arg("--print-architecture"))?;
    let packages = [
        format!("linux-image-{release}:arm64={version}"),
        format!("linux-headers-{release}:arm64={version}"),
        format!("linux-headers-{base}-common={version}"),
        format!("linux-kbuild-{base}:{}={version}", native.trim()),
    ];
    let home = paths.target("kernel").join(&release);
    let temporary = paths.target("kernel").join(format!(".unpack-{}", std::process::id()));
    let debs = temporary.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
    eprintln!("setup: downloading Linux {release} ({})", packages.join(" "));
    apt.download(&debs, &packages)?;
    for entry in fs::read_dir(&debs)? {
        let package = entry?.path();
        process::output(process::command("dpkg").arg("-x").arg(&package).arg(&temporary))?;
    }
    fs::remove_dir_all(&debs)?;
    let headers = temporary.join(format!("usr/src/linux-headers-{release}"));
    make_relocatable(&headers)?;
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::rename(&temporary, &home).with_context(|| format!("cannot create {}", home.display()))?;
    let kernel = Kernel {
        image: format!("target/kernel/{release}/boot/vmlinuz-{release}"),
        headers: format!("target/kernel/{release}/usr/src/linux-headers-{release}"),
        release,
        version,
    };
    for part in [&kernel.image, &kernel.headers] {
        if !paths.at(part).exists() {
            return Err(Failure::setup(
                format!("the kernel packages of version {} lack {part}", kernel.version),
                "report this; the packaging of the kernel has changed",
            ));
        }
    }
    Ok(kernel)
}

/// The headers' Makefile names its companion by an absolute path below /usr/src; makes that relative, so that the
/// unpacked tree works where it lies.
fn make_relocatable(headers: &Path) -> Result<()> {
    let makefile = headers.join("Makefile");
    let text =
        fs::read_to_string(&makefile).with_context(|| format!("cannot read {}", makefile.display()))?;
    fs::write(&makefile, text.replace("include /usr/src/", "include ../"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_the_dependency() {
        let line = "Depends: linux-image-6.12.95+deb12-cloud-arm64 (= 6.12.95-1~bpo12+1)";
        assert_eq!(
            release_of(line),
            Some(("6.12.95+deb12-cloud-arm64".to_owned(), "6.12.95-1~bpo12+1".to_owned()))
        );
        assert_eq!(release_of("Depends: linux-image-6.12.95-amd64 (= 6.12.95-1)"), None);
        assert_eq!(release_of("Depends: something"), None);
    }
}
