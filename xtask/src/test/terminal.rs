//! Sessions of `cargo xtask run`: at a terminal of our own, and through a pipe.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::pty::openpty;

use super::commands::{ANSWER, Bench, PROMPT};
use crate::process;

/// The longest silence of the terminal; a boot prints little, and this computer may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
/// What Ctrl-C and Ctrl-D send.
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

/// A program at a terminal.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What was shown and not yet expected.
    shown: String,
}

impl Terminal {
    /// Starts `command` with a new terminal as its controlling one, so that Ctrl-C is a signal as usual.
    fn start(command: &Command) -> Result<Self> {
        let pty = openpty(None, None).context("no terminal")?;
        let mut wrapped = process::command("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        wrapped.current_dir(command.get_current_dir().context("no folder")?);
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        let slave = || pty.slave.try_clone().map(Stdio::from);
        wrapped.stdin(slave()?).stdout(slave()?).stderr(slave()?);
        let child = wrapped.spawn().context("setsid does not start")?;
        // Both keep the terminal open, and its end would not be seen.
        drop(wrapped);
        drop(pty.slave);
        let keyboard = File::from(pty.master);
        let mut master = keyboard.try_clone()?;
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end, too: Linux says EIO when nobody has the terminal open any more.
            while let Ok(count @ 1..) = master.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, keyboard, screen, shown: String::new() })
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("the terminal is closed")
    }

    /// Waits until `text` is shown; returns what was shown before it.
    fn expect(&mut self, text: &str) -> Result<String> {
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.shown, rest);
                before.truncate(at);
                return Ok(before);
            }
            match self.screen.recv_timeout(PATIENCE) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => bail!("{text:?} is not shown; since the last expectation: {:?}", self.shown),
            }
        }
    }

    fn end(mut self) -> Result<(ExitStatus, String)> {
        let start = Instant::now();
        while let Ok(bytes) = self.screen.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            self.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(start.elapsed() < PATIENCE, "it does not end: {}", self.shown);
            std::thread::sleep(Duration::from_millis(50));
        };
        Ok((status, std::mem::take(&mut self.shown)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A conversation with a model whose weights are random: its first answer is as long as the context.
pub fn at_a_terminal(bench: &Bench) -> Result<()> {
    let model = bench.root.join("tests/models/tiny-chat.gguf");
    let mut command = bench.command(&["run", "--model"]);
    command.arg(&model);
    let mut terminal = Terminal::start(&command)?;
    terminal.expect("the next turn of a conversation")?;
    terminal.expect("> ")?;
    // At the prompt Ctrl-C ends nothing.
    terminal.press(CTRL_C)?;
    terminal.expect("Ctrl-D or /bye ends the session.")?;
    terminal.expect("> ")?;
    terminal.press("wake me\n")?;
    terminal.expect("wake me\r\n")?;
    // The answer has begun.
    let start = Instant::now();
    while terminal.shown.trim().is_empty() {
        ensure!(start.elapsed() < PATIENCE, "no answer begins");
        if let Ok(bytes) = terminal.screen.recv_timeout(Duration::from_millis(100)) {
            terminal.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    terminal.press(CTRL_C)?;
    terminal.expect("(stopped)")?;
    terminal.expect("> ")?;
    terminal.press("at six\n")?;
    terminal.expect("at six\r\n")?;
    terminal.expect("\n> ")?;
    // More than the context holds: the partition says so and goes on.
    terminal.press(&format!("{}\n", "word ".repeat(100)))?;
    terminal.expect("left of the context")?;
    terminal.expect("> ")?;
    terminal.press("/clear\n")?;
    terminal.expect("the conversation is forgotten")?;
    terminal.expect("> ")?;
    terminal.press("at eight\n")?;
    terminal.expect("at eight\r\n")?;
    terminal.expect("\n> ")?;
    terminal.press(CTRL_D)?;
    terminal.expect("protected")?;
    let (status, rest) = terminal.end()?;
    ensure!(status.success(), "{status}: {rest}");
    Ok(())
}

/// Independent requests from a pipe, on one boot.
pub fn through_a_pipe(bench: &Bench) -> Result<()> {
    let mut command = bench.command(&["run"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Longer than a line of the host's terminal may be; the model's context does not hold it.
    let lines = format!("{PROMPT}\n{}\n{PROMPT}\n", "word ".repeat(1500));
    child.stdin.take().context("no input")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text == format!("{ANSWER}\n{ANSWER}\n"), "the answers are {text:?}: {errors}");
    ensure!(errors.contains("left of the context"), "nobody says that the line is too long: {errors}");
    ensure!(errors.contains("a request of its own") && errors.contains("protected"), "{errors}");
    Ok(())
}

/// Without a terminal and without input it does what it is best known for.
pub fn without_input(bench: &Bench) -> Result<()> {
    let output = bench.command(&["run"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && text == format!("{ANSWER}\n"), "{text:?}: {errors}");
    Ok(())
}
