//! What a request asks of a partition.

use flexserve_engine::{Grammar, KvFormat, Sampling};
use guest_abi::session::{self, MAX_FRAME, SCHEMA_BYTES_MAX, STOP_COUNT_MAX, SYSTEM_BYTES_MAX};
use zerocopy::IntoBytes;

use crate::error::{Error, Result};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt.
    pub prompt: String,
    /// What surrounds it.
    pub form: Form,
    /// System text; none: the template's own.
    pub system: Option<String>,
    /// Whether the model is to think before it answers; none: as its template does by itself.
    pub think: Option<bool>,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// Context length in tokens; 0: the model's own.
    pub context: u32,
    /// How keys and values are stored; none: as the partition does by default.
    pub cache: Option<KvFormat>,
    /// Tokens that are kept when the context is full and the answer goes on; none: it ends there.
    pub shift: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// JSON schema that the answer follows.
    pub schema: Option<String>,
    /// Without the NPU.
    pub no_npu: bool,
}

/// What surrounds a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The model's request template.
    Independent,
    /// Nothing.
    Raw,
    /// The model's chat template; the request is the conversation's next turn.
    Turn,
}

impl Request {
    /// A greedy request of any length.
    pub fn new(prompt: impl Into<String>, form: Form) -> Self {
        Request {
            prompt: prompt.into(),
            form,
            system: None,
            think: None,
            max_tokens: u32::MAX,
            context: 0,
            cache: None,
            shift: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            schema: None,
            no_npu: false,
        }
    }

    /// The payload of a REQUEST frame.
    ///
    /// # Errors
    /// Code 2 if something does not fit, or will be refused for sure.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let refused =
            |error: flexserve_engine::Error, remedy: &'static str| Error::usage(error.to_string(), remedy);
        self.sampling.check().map_err(|error| refused(error, "correct it; see flexserve run --help"))?;
        let schema = self.schema.as_deref().unwrap_or_default();
        if self.schema.is_some() {
            Grammar::from_schema(schema, usize::MAX)
                .map_err(|error| refused(error, "correct the schema, or leave the keyword out"))?;
        }
        let system = self.system.as_deref().unwrap_or_default();
        let stop = self.stop_list()?;
        for (name, length, limit) in
            [("system text", system.len(), SYSTEM_BYTES_MAX), ("schema", schema.len(), SCHEMA_BYTES_MAX)]
        {
            if length > limit {
                return Err(Error::usage(
                    format!("the {name} has {length} bytes of at most {limit}"),
                    "shorten it",
                ));
            }
        }
        let mut flags = match self.form {
            Form::Independent => 0,
            Form::Raw => session::REQUEST_RAW,
            Form::Turn => session::REQUEST_CHAT,
        };
        if self.system.is_some() {
            flags |= session::REQUEST_SYSTEM;
        }
        flags |= match self.think {
            Some(true) => session::REQUEST_THINK,
            Some(false) => session::REQUEST_NO_THINK,
            None => 0,
        };
        if self.shift.is_some() {
            flags |= session::REQUEST_SHIFT;
        }
        if self.no_npu {
            flags |= session::REQUEST_NO_NPU;
        }
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let head = session::Request {
            flags,
            max_tokens: self.max_tokens,
            context: self.context,
            seed: self.sampling.seed,
            temperature: self.sampling.temperature.to_bits(),
            top_k: count(self.sampling.top_k),
            top_p: self.sampling.top_p.to_bits(),
            min_p: self.sampling.min_p.to_bits(),
            repeat_penalty: self.sampling.repeat_penalty.to_bits(),
            repeat_last_n: count(self.sampling.repeat_last_n),
            system_bytes: count(system.len()),
            schema_bytes: count(schema.len()),
            stop_bytes: count(stop.len()),
            cache: match self.cache {
                Some(KvFormat::F32) => session::cache::F32,
                Some(KvFormat::F16) => session::cache::F16,
                Some(KvFormat::Q8_0) => session::cache::Q8_0,
                _ => session::cache::DEFAULT,
            },
            keep: self.shift.unwrap_or(0),
            ..session::Request::default()
        };
        let bytes =
            [head.as_bytes(), system.as_bytes(), schema.as_bytes(), &stop, self.prompt.as_bytes()].concat();
        if bytes.len() > MAX_FRAME {
            let limit = MAX_FRAME.saturating_sub(bytes.len() - self.prompt.len());
            return Err(Error::usage(
                format!("the prompt has {} bytes of at most {limit}", self.prompt.len()),
                "shorten it",
            ));
        }
        Ok(bytes)
    }

    fn stop_list(&self) -> Result<Vec<u8>> {
        use flexserve_engine::stop::STOP_BYTES_MAX;
        if self.stop.len() > STOP_COUNT_MAX {
            return Err(Error::usage(format!("more than {STOP_COUNT_MAX} stop strings"), "use fewer"));
        }
        let mut list = Vec::new();
        for text in &self.stop {
            if text.is_empty() || text.len() > STOP_BYTES_MAX {
                let what = format!("a stop string is empty or longer than {STOP_BYTES_MAX} bytes");
                return Err(Error::usage(what, "correct it"));
            }
            list.extend((text.len() as u16).to_le_bytes());
            list.extend(text.as_bytes());
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use guest_abi::session::parse_request;

    #[test]
    fn the_partition_reads_what_was_asked() {
        let request = Request {
            system: Some("be kind".into()),
            think: Some(false),
            max_tokens: 5,
            context: 99,
            cache: Some(KvFormat::Q8_0),
            shift: Some(6),
            sampling: Sampling {
                temperature: 0.5,
                top_k: 7,
                repeat_penalty: 1.25,
                seed: 3,
                ..Sampling::default()
            },
            stop: vec!["\n\n".into(), "水".into()],
            schema: Some("{}".into()),
            no_npu: true,
            ..Request::new("wake me", Form::Turn)
        };
        let bytes = request.to_bytes().unwrap();
        let parts = parse_request(&bytes).unwrap();
        assert_eq!((parts.system, parts.schema, parts.prompt), (Some("be kind"), Some("{}"), "wake me"));
        assert_eq!(parts.stops().collect::<Vec<_>>(), ["\n\n", "水"]);
        let head = parts.request;
        assert_eq!(
            head.flags,
            session::REQUEST_CHAT
                | session::REQUEST_SYSTEM
                | session::REQUEST_NO_THINK
                | session::REQUEST_SHIFT
                | session::REQUEST_NO_NPU
        );
        assert_eq!((head.cache, head.keep), (session::cache::Q8_0, 6));
        assert_eq!((head.max_tokens, head.context, head.seed, head.top_k), (5, 99, 3, 7));
        assert_eq!((f32::from_bits(head.temperature), f32::from_bits(head.repeat_penalty)), (0.5, 1.25));
        assert_eq!(
            (f32::from_bits(head.top_p), f32::from_bits(head.min_p), head.repeat_last_n),
            (0.95, 0.05, 64)
        );
        let plain = Request::new("x", Form::Raw).to_bytes().unwrap();
        let parts = parse_request(&plain).unwrap();
        assert_eq!((parts.request.flags, parts.system, parts.schema), (session::REQUEST_RAW, None, None));
    }

    #[test]
    fn what_will_be_refused_is_not_sent() {
        let base = || Request::new("x", Form::Turn);
        let bad = [
            Request { prompt: "x".repeat(MAX_FRAME), ..base() },
            Request { system: Some("x".repeat(SYSTEM_BYTES_MAX + 1)), ..base() },
            Request { schema: Some(r#"{"pattern":"x"}"#.into()), ..base() },
            Request { schema: Some(String::new()), ..base() },
            Request { stop: vec![String::new()], ..base() },
            Request { stop: vec!["x".repeat(257)], ..base() },
            Request { stop: vec!["x".into(); 17], ..base() },
            Request { sampling: Sampling { top_p: 0.0, ..Sampling::default() }, ..base() },
        ];
        for request in bad {
            assert_eq!(request.to_bytes().unwrap_err().code, Code::Usage, "{request:?}");
        }
    }
}
