//! The user of a session: lines of standard input, and Ctrl-C.
//!
//! Lines go to `flexserve` in the host as JSON, so that the terminal there changes nothing in them. Ctrl-C stops the answer; at
//! the prompt it says how to end; before the model is loaded it ends the run. The end of the input (Ctrl-D) ends the session.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;

use super::{DEFAULT_PROMPT, MAX_PROMPT};
use crate::failure::{Code, Failure};
use crate::vm::{Output, Vm, Watch};

/// How often the user is looked after while the machine is silent.
const LOOK: Duration = Duration::from_millis(20);

/// What the user does.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Line(String),
    Interrupt,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No line was wanted yet.
    Loading,
    /// A line is wanted; the machine may be silent.
    Waiting,
    Answering,
    Ending,
}

/// The user.
pub struct User {
    acts: Receiver<Act>,
    /// The input, once it is to be read; read ahead, it would be lost to whoever comes after us.
    sender: Option<Sender<Act>>,
    state: State,
    /// Seen while something else was to be done first.
    held: std::collections::VecDeque<Act>,
    lines: u32,
    /// Of silence; none while a line is wanted.
    watch: Option<Watch>,
    is_terminal: bool,
}

impl User {
    /// Takes Ctrl-C over. Threads made from here on do not see it.
    pub fn new() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.thread_block().context("cannot take over Ctrl-C")?;
        let (sender, acts) = channel();
        let interrupts = sender.clone();
        std::thread::spawn(
            move || {
                while signals.wait().is_ok() && interrupts.send(Act::Interrupt).is_ok() {}
            },
        );
        Ok(Self {
            acts,
            sender: Some(sender),
            state: State::Loading,
            held: Default::default(),
            lines: 0,
            watch: None,
            is_terminal: std::io::stdin().is_terminal(),
        })
    }

    /// Waits for the machine's next output, and does meanwhile what the user wants.
    pub fn output(&mut self, vm: &mut Vm) -> Result<Output> {
        loop {
            self.serve(vm)?;
            if self.state == State::Waiting {
                self.watch = None;
            } else if self.watch.is_none() {
                self.watch = Some(vm.watch());
            }
            if let Some(output) = vm.output_within(LOOK, self.watch.as_mut())? {
                if let Some(watch) = &mut self.watch {
                    watch.reset();
                }
                return Ok(output);
            }
        }
    }

    /// The host wants a line.
    pub fn wanted(&mut self, chat: bool, vm: &mut Vm) -> Result<()> {
        if self.state == State::Ending {
            return Ok(());
        }
        if let Some(sender) = self.sender.take() {
            let what = if chat { "the next turn of a conversation" } else { "a request of its own" };
            eprintln!("run: each line is {what}; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends");
            std::thread::spawn(move || read(&sender));
        }
        self.state = State::Waiting;
        self.show_prompt();
        self.serve(vm)
    }

    fn show_prompt(&self) {
        if self.is_terminal {
            let mut out = std::io::stdout().lock();
            // Nobody sees it then, and nothing else changes.
            let _ = out.write_all(b"> ").and_then(|()| out.flush());
        }
    }

    /// Does what the user wants, as far as it is time for it.
    fn serve(&mut self, vm: &mut Vm) -> Result<()> {
        loop {
            match self.acts.try_recv() {
                Ok(Act::Interrupt) => self.interrupt(vm)?,
                Ok(act) => self.held.push_back(act),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        while self.state == State::Waiting
            && let Some(act) = self.held.pop_front()
        {
            match act {
                Act::Line(line) if line.len() > MAX_PROMPT => {
                    eprintln!("run: the line is longer than {MAX_PROMPT} bytes; shorten it");
                    self.show_prompt();
                }
                Act::Line(line) => self.say(&line, vm)?,
                // Like `run --prompt`, for whoever calls it without a terminal and without input.
                Act::End if self.lines == 0 && !self.is_terminal => {
                    self.held.push_back(Act::End);
                    self.say(DEFAULT_PROMPT, vm)?;
                }
                Act::End | Act::Interrupt => {
                    self.state = State::Ending;
                    vm.send_line(&json!("end").to_string())?;
                }
            }
        }
        Ok(())
    }

    fn say(&mut self, line: &str, vm: &mut Vm) -> Result<()> {
        self.lines += 1;
        self.state = State::Answering;
        vm.send_line(&json!({"line": line}).to_string())
    }

    fn interrupt(&mut self, vm: &mut Vm) -> Result<()> {
        match self.state {
            State::Loading => {
                vm.stop();
                Err(Failure::new(
                    Code::Interrupted,
                    "interrupted before the model was loaded",
                    "nobody",
                    "run it again",
                ))
            }
            State::Waiting => {
                eprintln!("\nCtrl-D or /bye ends the session.");
                self.show_prompt();
                Ok(())
            }
            State::Answering => vm.send_line(&json!("cancel").to_string()),
            State::Ending => {
                vm.stop();
                Err(Failure::new(
                    Code::Interrupted,
                    "interrupted before the session had ended",
                    "nobody",
                    "run it again",
                ))
            }
        }
    }
}

/// Reads the input to its end.
fn read(acts: &Sender<Act>) {
    let mut input = std::io::stdin().lock();
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match input.read_until(b'\n', &mut bytes) {
            Ok(1..) => {
                let text = String::from_utf8_lossy(&bytes);
                let line = text.trim_end_matches(['\n', '\r']).to_owned();
                if acts.send(Act::Line(line)).is_err() {
                    return;
                }
            }
            Ok(0) | Err(_) => {
                let _ = acts.send(Act::End);
                return;
            }
        }
    }
}
