//! What surrounds jobs: configuration, headers, results.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{FORMATS, INPUT_FORMATS, JOBS_MAX, VERSION};

/// The configuration space of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// [`Config::MAGIC`].
    pub magic: u16,
    /// [`VERSION`].
    pub version: u16,
    /// Jobs that have ended as [`Status::Ok`] since the last reset; wraps.
    pub jobs: u32,
}
const _: () = assert!(size_of::<Config>() == 8);

impl Config {
    /// `NP`.
    pub const MAGIC: u16 = u16::from_le_bytes(*b"NP");

    /// Of this version, after so many jobs.
    pub const fn after(jobs: u32) -> Self {
        Config { magic: Self::MAGIC, version: VERSION as u16, jobs }
    }
}

/// The start of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ListHeader {
    /// [`VERSION`].
    pub version: u32,
    /// Jobs that follow, at most [`JOBS_MAX`].
    pub job_count: u32,
    /// A name for the list, which no other list that has not ended has.
    pub list_id: u32,
    /// Zero.
    pub flags: u32,
}
const _: () = assert!(size_of::<ListHeader>() == 16);

/// How a list or a job ended. Memory that the device did not write is not a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done. Of a list: each of its jobs is.
    Ok = 1,
    /// The list is of another version.
    BadVersion = 2,
    /// The list is malformed: too many jobs, flags that are not known, or parts too short for them. None was begun.
    BadList = 3,
    /// The job is malformed: see [`crate::Error`].
    BadJob = 4,
    /// The job is well-formed, but beyond the [`Capabilities`].
    Unsupported = 5,
    /// Reading [`JobResult::fault`] was refused.
    ReadFault = 6,
    /// Writing [`JobResult::fault`] was refused.
    WriteFault = 7,
    /// The list was cancelled.
    Cancelled = 8,
    /// Not begun, since a job before it in its list failed.
    Aborted = 9,
}

impl Status {
    const ALL: [Self; 9] = [
        Self::Ok,
        Self::BadVersion,
        Self::BadList,
        Self::BadJob,
        Self::Unsupported,
        Self::ReadFault,
        Self::WriteFault,
        Self::Cancelled,
        Self::Aborted,
    ];

    /// Finds a status by its number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|status| *status as u32 == number)
    }
}

/// What the device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Capabilities {
    /// Formats of weights, a bit for each of ggml's numbers.
    pub formats: u64,
    /// Formats of activations.
    pub input_formats: u64,
    /// Most jobs of a list.
    pub jobs_max: u32,
    /// Most pages that the tensors of a job may touch.
    pub pages_max: u32,
    /// Most activations of a job.
    pub elements_max: u32,
    /// Most columns.
    pub columns_max: u32,
    /// Most tokens.
    pub tokens_max: u32,
    /// Zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Capabilities>() == 40);

impl Capabilities {
    /// The most that a device of this version has.
    pub const MOST: Self = Capabilities {
        formats: FORMATS,
        input_formats: INPUT_FORMATS,
        jobs_max: JOBS_MAX as u32,
        pages_max: 4096,
        elements_max: 1 << 22,
        columns_max: 1 << 17,
        tokens_max: 1 << 12,
        reserved: 0,
    };
}

/// The start of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ListResult {
    /// [`VERSION`].
    pub version: u32,
    /// [`Status`]: that of the first job that failed, if any did.
    pub status: u32,
    /// As in the header.
    pub list_id: u32,
    /// Results that follow.
    pub job_count: u32,
    /// What the device can do.
    pub capabilities: Capabilities,
}
const _: () = assert!(size_of::<ListResult>() == 56);

/// The answer to a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct JobResult {
    /// [`Status`].
    pub status: u32,
    /// Zero.
    pub reserved: u32,
    /// The IOVA that was refused, if one was.
    pub fault: u64,
    /// Nanoseconds that it took.
    pub ns: u64,
    /// Bytes that it read and wrote.
    pub bytes: u64,
}
const _: () = assert!(size_of::<JobResult>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_not_written_is_no_success() {
        for number in [0, 10, u32::MAX] {
            assert_eq!(Status::from_number(number), None);
        }
        for status in Status::ALL {
            assert_eq!(Status::from_number(status as u32), Some(status));
        }
    }
}
