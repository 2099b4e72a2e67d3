//! Errors, each with a stable exit code and one line: what failed, whose fault it is, what to do.

use std::fmt::{self, Write};

use hyp_abi::ffa;
use nix::errno::Errno;

use crate::machine::CallError;

/// Stable exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Wrong usage.
    Usage = 2,
    /// The host did not boot under the hypervisor.
    Boot = 4,
    /// The partition failed or was refused.
    Partition = 5,
    /// Out of host memory.
    HostMemory = 6,
    /// A measurement does not verify.
    Integrity = 7,
    /// Interrupted by the user, before there was an answer.
    Interrupted = 130,
}

impl Code {
    /// Short name, for events.
    pub fn kind(self) -> &'static str {
        match self {
            Code::Usage => "usage",
            Code::Boot => "no-hypervisor",
            Code::Partition => "partition",
            Code::HostMemory => "host-memory",
            Code::Integrity => "integrity",
            Code::Interrupted => "interrupted",
        }
    }
}

/// An error of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Exit code.
    pub code: Code,
    /// What failed.
    pub what: String,
    /// Whose fault it is.
    pub fault: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// Result of this program.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error.
    pub fn new(code: Code, what: impl Into<String>, fault: &'static str, remedy: &'static str) -> Self {
        Error { code, what: what.into(), fault, remedy }
    }

    /// An error in how the program was called.
    pub fn usage(what: impl Into<String>, remedy: &'static str) -> Self {
        Error::new(Code::Usage, what, "the caller's", remedy)
    }

    /// An image that is not what it must be.
    pub fn image(what: impl Into<String>) -> Self {
        Error::new(
            Code::Partition,
            format!("the partition image is refused: {}", what.into()),
            "the image's",
            "use the image that `cargo xtask build` makes",
        )
    }

    /// The partition said or did what it must not.
    pub fn protocol(what: impl Into<String>) -> Self {
        Error::new(
            Code::Partition,
            format!("the partition broke the session: {}", what.into()),
            "the partition's",
            "do not trust its answer; check which image ran",
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, and nothing that a terminal would obey: parts of it may come from a file or a partition.
        for c in self.what.chars() {
            f.write_char(if c.is_control() { ' ' } else { c })?;
        }
        write!(f, "; {} fault; {}", self.fault, self.remedy)
    }
}

impl std::error::Error for Error {}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        let CallError { call, errno, status, detail } = error;
        match errno {
            Errno::ENOMEM => Error::new(
                Code::HostMemory,
                format!("{call}: the host has no memory left for the partition"),
                "the machine's size is at",
                "give the host more memory, or use a smaller model, context (-c) or --mem-heap",
            ),
            Errno::EINTR => Error::new(
                Code::Interrupted,
                format!("{call}: interrupted"),
                "the caller's, no",
                "call it again",
            ),
            _ if call == GIVE_PRIVATE => Error::new(
                Code::Partition,
                format!("no secure RAM is left for the partition's image (at {detail:#x})"),
                "the number of partitions is at",
                "end another partition first (flexserve ps shows them)",
            ),
            _ if status != 0 => Error::new(
                Code::Partition,
                format!("the hypervisor refuses {call}: {} (detail {detail:#x})", status_name(status)),
                "the image's or the host's",
                "check that image, hypervisor and module come from the same build",
            ),
            _ => Error::new(
                Code::Partition,
                format!("{call}: {errno}"),
                "the host's",
                "check that module and program come from the same build",
            ),
        }
    }
}

/// Name of a GIVE that is refused for lack of secure RAM.
pub const GIVE_PRIVATE: &str = "GIVE of the image";

/// Name of an FF-A status.
pub fn status_name(status: i32) -> String {
    match status {
        ffa::error::NOT_SUPPORTED => "NOT_SUPPORTED".into(),
        ffa::error::INVALID_PARAMETERS => "INVALID_PARAMETERS".into(),
        ffa::error::NO_MEMORY => "NO_MEMORY".into(),
        ffa::error::BUSY => "BUSY".into(),
        ffa::error::INTERRUPTED => "INTERRUPTED".into(),
        ffa::error::DENIED => "DENIED".into(),
        ffa::error::RETRY => "RETRY".into(),
        ffa::error::ABORTED => "ABORTED".into(),
        ffa::error::NO_DATA => "NO_DATA".into(),
        other => format!("status {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_error(errno: Errno, status: i32) -> Error {
        CallError { call: "GIVE", errno, status, detail: 0x4000 }.into()
    }

    #[test]
    fn each_kind_of_refusal_has_its_code() {
        assert_eq!(call_error(Errno::ENOMEM, 0).code, Code::HostMemory);
        assert_eq!(call_error(Errno::ENOMEM, ffa::error::NO_MEMORY).code, Code::HostMemory);
        assert_eq!(call_error(Errno::EACCES, ffa::error::DENIED).code, Code::Partition);
        let full = CallError {
            call: GIVE_PRIVATE,
            errno: Errno::EACCES,
            status: ffa::error::DENIED,
            detail: 0x40_0000,
        };
        assert_eq!(
            Error::from(full).to_string(),
            "no secure RAM is left for the partition's image (at 0x400000); the number of partitions is at fault; \
             end another partition first (flexserve ps shows them)"
        );
        assert_eq!(call_error(Errno::EINTR, 0).code, Code::Interrupted);
        assert_eq!(call_error(Errno::EBUSY, 0).code, Code::Partition);
        assert_eq!(
            [Code::Usage, Code::Boot, Code::Partition, Code::HostMemory, Code::Integrity]
                .map(|code| code as u8),
            [2, 4, 5, 6, 7]
        );
    }

    #[test]
    fn the_message_is_one_line_that_a_terminal_does_not_obey() {
        let error = Error::image("bad\n\u{1b}[2Jname\u{9b}");
        let line = error.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let line = call_error(Errno::EACCES, ffa::error::DENIED).to_string();
        assert!(line.contains("GIVE") && line.contains("DENIED") && line.contains("0x4000"), "{line}");
    }
}
