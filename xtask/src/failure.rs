//! Failures with the stable exit codes: what failed, whose fault it is, what to do.

use std::fmt;

/// Stable exit codes of `cargo xtask` and `flexserve`. 0 is success, 1 a failed check, build or test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A build, check or test failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Set-up: missing package, no disk, no network.
    Setup = 3,
    /// The machine did not boot, or fell silent.
    Boot = 4,
    /// The partition failed or was refused.
    Partition = 5,
    /// Out of host memory.
    HostMemory = 6,
    /// A file, measurement or evidence does not verify.
    Integrity = 7,
    /// Interrupted by the user before there was an answer.
    Interrupted = 130,
}

impl Code {
    /// Reads a code that the host reported; none if it is not one of the stable ones.
    pub fn from_number(number: i64) -> Option<Self> {
        [
            Self::Failed,
            Self::Usage,
            Self::Setup,
            Self::Boot,
            Self::Partition,
            Self::HostMemory,
            Self::Integrity,
            Self::Interrupted,
        ]
        .into_iter()
        .find(|code| *code as i64 == number)
    }
}

/// One failure, printed as one line.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Exit code.
    pub code: Code,
    /// What failed.
    pub what: String,
    /// Whose fault it is.
    pub fault: &'static str,
    /// What to do about it.
    pub remedy: String,
}

impl Failure {
    /// Makes a failure, as the error that callers pass on; turns line breaks into spaces so that it stays one line.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(
        code: Code,
        what: impl Into<String>,
        fault: &'static str,
        remedy: impl Into<String>,
    ) -> anyhow::Error {
        let line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { code, what: line(what.into()), fault, remedy: line(remedy.into()) }.into()
    }

    /// Makes a usage failure.
    pub fn usage(what: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
        Self::new(Code::Usage, what, "the command line", remedy)
    }

    /// Makes a set-up failure.
    pub fn setup(what: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
        Self::new(Code::Setup, what, "this machine's set-up", remedy)
    }

    /// The failure inside `error`, or a general one that carries its whole chain.
    pub fn of(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<Self>() {
            Some(failure) => failure.clone(),
            None if disk_full(error) => Self {
                code: Code::Setup,
                what: format!("{error:#}"),
                fault: "this machine's set-up",
                remedy: "free some disk space and repeat".into(),
            },
            None => Self {
                code: Code::Failed,
                what: format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" "),
                fault: "xtask or the machine",
                remedy: "see the message".into(),
            },
        }
    }
}

fn disk_full(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|io| io.kind() == std::io::ErrorKind::StorageFull)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; at fault: {}; to do: {}", self.what, self.fault, self.remedy)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_keeps_its_code_through_contexts() {
        let error = Failure::new(Code::Boot, "no\noutput", "the host kernel", "read\nthe log");
        let failure = Failure::of(&error.context("while running"));
        assert_eq!(failure.code, Code::Boot);
        assert_eq!(failure.to_string(), "no output; at fault: the host kernel; to do: read the log");
    }

    #[test]
    fn a_full_disk_is_a_set_up_failure() {
        let error = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(Failure::of(&error.context("write")).code, Code::Setup);
        assert_eq!(Failure::of(&anyhow::anyhow!("other")).code, Code::Failed);
    }

    #[test]
    fn only_stable_codes_are_read() {
        assert_eq!(Code::from_number(6), Some(Code::HostMemory));
        assert_eq!(Code::from_number(0), None);
        assert_eq!(Code::from_number(42), None);
    }
}
