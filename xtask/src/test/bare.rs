//! `cargo xtask test --bare`: a minimal Debian 12 root with a Rust toolchain, a clean checkout, and the README's commands.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::failure::{Code, Failure};
use crate::paths::Paths;
use crate::process;
use crate::setup::apt;

/// What a Rust toolchain and a checkout need before anything of this project runs.
const INCLUDED: &str = "ca-certificates,gcc,libc6-dev";

/// Runs in a private mount namespace: what it mounts is gone when it ends. Arguments: root, toolchain.
const SCRIPT: &str = r#"
set -eu
root=$1 toolchain=$2
mkdir -p "$root/toolchain"
mount --bind "$toolchain" "$root/toolchain"
mount -o remount,bind,ro "$root/toolchain"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
# This machine's certificate authorities: it may be behind a proxy that has its own.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
exec chroot "$root" /usr/bin/env -i HOME=/root TERM=dumb PATH=/toolchain/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
  /bin/sh -euc 'cd /checkout
    cargo xtask run --prompt "wake me at half past six tomorrow" --json
    cargo xtask test'
"#;

/// Makes the root under `target/bare` and repeats the commands in it.
pub fn main(paths: &Paths) -> Result<()> {
    if process::output(process::command("id").arg("-u"))?.trim() != "0" {
        return Err(Failure::usage(
            "test --bare makes a root folder, which needs root rights",
            "run it as root",
        ));
    }
    let (main, own) = apt::debian_sources(&apt::machine_sources())
        .ok_or_else(|| Failure::setup("this machine has no Debian package source", "run on Debian 12"))?;
    let mirror = main.uris.first().context("the package source has no address")?;
    if process::find("debootstrap").is_none() {
        eprintln!("bare: installing debootstrap");
        apt::Apt::prepare(paths)?.install(&["debootstrap"], false)?;
    }
    let _lock = paths.lock("bare")?;
    let root = paths.target("bare");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    fs::create_dir_all(&root)?;
    eprintln!("bare: making a root folder of Debian {} from {mirror}", apt::CODENAME);
    let mut debootstrap = process::command("debootstrap");
    debootstrap.arg("--variant=minbase").arg(format!("--include={INCLUDED}"));
    process::output(debootstrap.arg(apt::CODENAME).arg(&root).arg(mirror)).map_err(|error| {
        Failure::setup(format!("no Debian root: {error:#}"), "check the network and the disk space")
    })?;
    // The installer of Debian sets up updates and security fixes, too; debootstrap does not.
    let sources: Vec<String> = own.iter().map(apt::Source::deb822).collect();
    fs::write(root.join("etc/apt/sources.list"), "")?;
    fs::write(root.join("etc/apt/sources.list.d/debian.sources"), sources.join("\n"))?;
    checkout(paths, &root.join("checkout"))?;
    let sysroot = process::output(process::command("rustc").args(["--print", "sysroot"]))?;
    eprintln!("bare: running the README's commands in {}", root.display());
    let mut unshare = process::command("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", SCRIPT, "sh"]);
    let status = unshare.arg(&root).arg(sysroot.trim()).status().context("cannot start unshare")?;
    if !status.success() {
        return Err(Failure::new(
            Code::Failed,
            format!("a command of the README failed in the bare root ({status})"),
            "the checkout, or the network",
            format!("see its messages above; the root is {}", root.display()),
        ));
    }
    eprintln!("bare: both commands succeeded");
    Ok(())
}

/// Copies what is committed, as a fresh clone would have it.
fn checkout(paths: &Paths, destination: &Path) -> Result<()> {
    let status = process::output(process::command("git").current_dir(&paths.root).args([
        "status",
        "--porcelain",
        "--untracked-files=no",
    ]))?;
    if !status.trim().is_empty() {
        eprintln!("bare: uncommitted changes are not part of what is tested");
    }
    fs::create_dir_all(destination)?;
    let archive = paths.target("bare/checkout.tar");
    let mut git = process::command("git");
    process::output(git.current_dir(&paths.root).args(["archive", "--output"]).arg(&archive).arg("HEAD"))?;
    process::output(process::command("tar").arg("-xf").arg(&archive).arg("-C").arg(destination))?;
    fs::remove_file(&archive)?;
    Ok(())
}
