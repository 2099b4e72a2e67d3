//! Process 1 of the host's initramfs: sets the system up, loads modules, does one job, and turns the machine off.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use flexserve::events::Event;
use flexserve::job::{JOB_PATH, Job};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{LocalFlags, SetArg, tcdrain, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, sync};

const MODULES: &str = "/lib/modules";
const SHELL: &str = "/bin/sh";
/// Code of a job that could not be started, as shells have it.
const NOT_STARTED: i32 = 127;

fn main() {
    if std::process::id() != 1 {
        eprintln!("init: this is process 1 of the host's initramfs; it has nothing to do here");
        std::process::exit(2);
    }
    set_up();
    emit(&Event::Ready { uptime_s: uptime(), ticks: flexserve::sys::counter() });
    let code = match fs::read(JOB_PATH) {
        Ok(bytes) => do_job(&bytes),
        Err(_) if Path::new(SHELL).exists() => start(&[SHELL.into()]),
        Err(_) => console(),
    };
    emit(&Event::Exit { code });
    // A job that was killed is not done, whatever it reported.
    if code < 128 {
        emit(&Event::Done);
    }
    power_off()
}

fn emit(event: &Event<'_>) {
    // There is nobody to tell when the console is gone.
    let _ = event.emit();
}

fn complain(what: &str, error: impl std::fmt::Display) {
    eprintln!("init: {what}: {error}");
}

fn set_up() {
    let nosuid = MsFlags::MS_NOSUID;
    let strict = nosuid | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let file_systems = [
        ("proc", "/proc", strict),
        ("sysfs", "/sys", strict),
        ("devtmpfs", "/dev", nosuid),
        ("tmpfs", "/tmp", nosuid | MsFlags::MS_NODEV),
        ("tmpfs", "/run", nosuid | MsFlags::MS_NODEV),
    ];
    let results = file_systems.map(|(kind, place, flags)| {
        let made = fs::create_dir_all(place);
        made.and_then(|()| Ok(mount(Some(kind), place, Some(kind), flags, None::<&str>)?))
            .map_err(|error| (place, error))
    });
    // The console that the kernel opened may be missing: there was no /dev yet.
    if let Err(error) = open_console() {
        complain("/dev/console", error);
    }
    for (place, error) in results.into_iter().filter_map(Result::err) {
        complain(place, error);
    }
    for module in modules() {
        if let Err(error) = load(&module) {
            complain(&module.display().to_string(), error);
        }
    }
}

fn open_console() -> io::Result<()> {
    let console = File::options().read(true).write(true).open("/dev/console")?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    if Path::new(JOB_PATH).exists() {
        // What is typed then are answers for programs; their echo would mix with events.
        let mut settings = tcgetattr(&console)?;
        settings.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&console, SetArg::TCSANOW, &settings)?;
    }
    // Descriptors 0 to 2 stay; a console that is one of them already must not be closed.
    if console.as_raw_fd() <= 2 {
        std::mem::forget(console);
    }
    Ok(())
}

/// Modules, by name.
fn modules() -> Vec<PathBuf> {
    let entries = fs::read_dir(MODULES).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut modules: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "ko")).collect();
    modules.sort();
    modules
}

fn load(module: &Path) -> io::Result<()> {
    let file = File::open(module)?;
    finit_module(&file, &CString::default(), ModuleInitFlags::empty()).map_err(io::Error::from)
}

/// Seconds since the kernel started.
fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0)
}

fn do_job(bytes: &[u8]) -> i32 {
    match Job::parse(bytes) {
        Ok(job) => start(&job.command(Path::new(JOB_PATH))),
        Err(error) => {
            let code = error.code as u8;
            emit(&Event::Error { code, kind: error.code.kind(), message: &error.to_string() });
            i32::from(code)
        }
    }
}

/// Runs a program to its end; returns its exit code.
fn start(command: &[OsString]) -> i32 {
    let Some((program, arguments)) = command.split_first() else { return NOT_STARTED };
    match Command::new(program).args(arguments).spawn() {
        Ok(child) => wait_for(Pid::from_raw(child.id() as i32)),
        Err(error) => {
            let message =
                format!("{}: {error}; the initramfs is at fault; build it again", program.display());
            emit(&Event::Error { code: 4, kind: "job", message: &message });
            NOT_STARTED
        }
    }
}

/// Reaps children, adopted ones too, until this one ends.
fn wait_for(child: Pid) -> i32 {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                complain("wait", error);
                return NOT_STARTED;
            }
        }
    }
}

/// A line console: each line is a program and its arguments, split at blanks.
fn console() -> i32 {
    println!("init: no job. Type a command with its path, `flexserve ...`, or `poweroff`.");
    let mut code = 0;
    loop {
        print!("# ");
        let _ = io::stdout().flush();
        let mut line = String::new();
        // End of file: the console is gone.
        if io::stdin().lock().read_line(&mut line).map_or(true, |count| count == 0) {
            return code;
        }
        let mut words: Vec<OsString> = line.split_ascii_whitespace().map(OsString::from).collect();
        match words.first_mut() {
            None => continue,
            Some(word) if word == "poweroff" => return code,
            Some(word) if word == "flexserve" => *word = "/bin/flexserve".into(),
            Some(_) => {}
        }
        code = start(&words);
    }
}

fn power_off() -> ! {
    sync();
    // The last event must be out before the machine is.
    let _ = tcdrain(io::stdout().as_fd());
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    complain("power off", error);
    // The kernel panics when process 1 ends.
    loop {
        std::thread::park();
    }
}
