//! Renders a model's own chat template, whatever it is: a program in Jinja, run by minijinja.
//!
//! The partition knows a few templates by their marks and runs none of them. For models with others the conversation can be
//! rendered outside, which means that **whoever renders sees it**: on the development machine, or on a host that the model's
//! owner and the user trust with their prompts. It is never done unasked.
//!
//! Templates come out of model files and are hostile. [`render`] bounds the instructions that one executes, how deep it recurses
//! and how long its text is; nothing it says makes this crate panic. What an engine of this kind does not bound is the memory that
//! a template may build up in between: where that matters, render in a process with limits, as `flexserve` does.

use std::fmt;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use serde::{Deserialize, Serialize};

/// Longest template in bytes; the longest in circulation have about 20 KiB.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// Longest text that results, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Instructions that a template may execute.
const FUEL: u64 = 1_000_000;
/// Elements of a range: one instruction may look at all of them. Templates count turns and tools.
const RANGE_MAX: usize = 1000;
/// How deep macros and includes may call each other.
const RECURSION_MAX: usize = 64;

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// What a template is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Input {
    /// The template's text.
    pub template: String,
    /// The conversation, the user's turn last.
    pub messages: Vec<Message>,
    /// Text of the token that begins a text.
    pub bos_token: String,
    /// Text of the token that ends one.
    pub eos_token: String,
    /// Whether the model is to think, for templates that ask.
    pub enable_thinking: Option<bool>,
}

/// Why a template could not be rendered: its own words, or the engine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    /// One line, without control characters: the words may be the template's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.chars().take(300).map(|c| if c.is_control() { ' ' } else { c });
        shown.into_iter().try_for_each(|c| write!(f, "{c}"))
    }
}

impl std::error::Error for Error {}

impl From<minijinja::Error> for Error {
    fn from(error: minijinja::Error) -> Self {
        Error(format!("{error:#}"))
    }
}

/// A text that may not grow beyond a limit.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_BYTES_MAX {
            return Err(std::io::Error::other("the text is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Renders the conversation up to where the answer begins.
///
/// # Errors
/// What the template says by `raise_exception`, what is wrong with it, or the bound that it met.
pub fn render(input: &Input) -> Result<String, Error> {
    if input.template.len() > TEMPLATE_BYTES_MAX {
        return Err(Error(format!("the template is longer than {TEMPLATE_BYTES_MAX} bytes")));
    }
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    // As the templates' authors run them.
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |text: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_function("range", range);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    environment.add_function("strftime_now", move |format: String| strftime(&format, now));
    environment.add_template("chat", &input.template)?;

    let thinking = input.enable_thinking.map_or(Value::UNDEFINED, Value::from);
    let variables = context! {
        messages => input.messages,
        bos_token => input.bos_token,
        eos_token => input.eos_token,
        add_generation_prompt => true,
        enable_thinking => thinking,
        tools => (),
        documents => (),
    };
    let mut text = Bounded(Vec::new());
    environment.get_template("chat")?.render_captured_to(variables, &mut text)?;
    String::from_utf8(text.0).map_err(|_| Error("the text is not UTF-8".into()))
}

/// The engine's own, but shorter.
fn range(lower: isize, upper: Option<isize>, step: Option<isize>) -> Result<Value, minijinja::Error> {
    let range = minijinja::functions::range(lower, upper, step)?;
    match range.len() {
        Some(0..=RANGE_MAX) => Ok(range),
        _ => {
            let what = format!("a range of more than {RANGE_MAX} elements");
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, what))
        }
    }
}

/// The date and time, in UTC, in as much of C's notation as templates use.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match characters.next() {
            Some('Y') => text += &format!("{year:04}"),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{month:02}"),
            Some('d') => text += &format!("{day:02}"),
            Some('e') => text += &format!("{day:2}"),
            Some('B') => text += month_name,
            Some('b') => text += &month_name[..3],
            Some('A') => text += day_name,
            Some('a') => text += &day_name[..3],
            Some('H') => text += &format!("{:02}", seconds / 3600 % 24),
            Some('M') => text += &format!("{:02}", seconds / 60 % 60),
            Some('S') => text += &format!("{:02}", seconds % 60),
            Some('Z') => text += "UTC",
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// Year, month and day of a day counted from 1970-01-01: years in eras of 400, beginning in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(template: &str) -> Input {
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        Input {
            template: template.into(),
            messages: vec![
                message("system", "be kind"),
                message("user", "hi"),
                message("assistant", " yo "),
                message("user", "ok"),
            ],
            bos_token: "<s>".into(),
            eos_token: "</s>".into(),
            enable_thinking: None,
        }
    }

    #[test]
    fn ranges_are_bounded() {
        assert_eq!(render(&input("{% for i in range(3) %}{{ i }}{% endfor %}")).unwrap(), "012");
        assert_eq!(render(&input("{% for i in range(7, 1, -3) %}{{ i }}{% endfor %}")).unwrap(), "74");
        assert_eq!(render(&input("{{ range(1000)|length }}")).unwrap(), "1000");
        for long in ["range(1001)", "range(0, 99999)", "range(99999, 0, -1)", "range(-1001, 0)"] {
            let error = render(&input(&format!("{{{{ {long} }}}}"))).unwrap_err();
            assert!(error.to_string().contains("more than 1000"), "{long}: {error}");
        }
    }

    #[test]
    fn slices_go_backwards() {
        let joined = |slice: &str| {
            render(&input(&format!("{{% for m in messages[{slice}] %}}{{{{ m.content }}}},{{% endfor %}}")))
                .unwrap()
        };
        assert_eq!(joined("::-1"), "ok, yo ,hi,be kind,");
        assert_eq!(joined(":2:-1"), "ok,");
        // Nothing lies between the last and one behind it (an overflow in minijinja 2.24, were it checked).
        assert_eq!(joined(":9:-1"), "");
    }

    #[test]
    fn templates_as_they_circulate() {
        let chat_ml = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        assert_eq!(
            render(&input(chat_ml)).unwrap(),
            "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n yo <|im_end|>\n\
             <|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n"
        );
        // Namespaces, methods of Python's strings, slices, loop variables, blocks on lines of their own.
        let busy = "{{- bos_token }}\n{%- set ns = namespace(count=0, last='') %}\n{%- for m in messages[1:] %}\n    {%- if m.role == 'user' %}\n\
            {%- set ns.count = ns.count + 1 %}\n    {%- endif %}\n{%- if not loop.first and loop.previtem.role == 'user' %}{{- '|' }}{% endif %}\n\
            {{- m.content.strip().upper() }}\n{%- if m.content.startswith('o') %}{{ m['content'].split('k')[0] }}{% endif %}\n{%- endfor %}\n\
            {{- ns.count }}{{ messages | length }}{{ messages[0]['content'] | trim | tojson }}\n{%- if tools %}no{% endif %}{% if enable_thinking is defined %}no{% endif %}";
        assert_eq!(render(&input(busy)).unwrap(), "<s>HI|YOOKo24\"be kind\"");
        let thinking =
            "{% if enable_thinking is defined and enable_thinking is false %}off{% else %}on{% endif %}";
        assert_eq!(render(&input(thinking)).unwrap(), "on");
        assert_eq!(render(&Input { enable_thinking: Some(false), ..input(thinking) }).unwrap(), "off");
        // No escaping of markup.
        assert_eq!(render(&input("{{ '<a&b>' }}")).unwrap(), "<a&b>");
    }

    #[test]
    fn faults_are_errors_in_one_line() {
        let refused = |template: &str| render(&input(template)).unwrap_err().to_string();
        assert!(refused("{{ raise_exception('roles must\n alternate') }}").contains("roles must  alternate"));
        for template in
            ["{% if %}", "{{ x.y.z }}", "{{ messages.nothing() }}", "{% include 'a' %}", "{{ 1 + 'a' }}"]
        {
            assert!(!refused(template).contains('\n'), "{template}");
        }
        assert!(refused(&"x".repeat(TEMPLATE_BYTES_MAX + 1)).contains("longer"));
    }

    #[test]
    fn what_would_not_end_is_stopped() {
        for template in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
            "{% set x = 'x' * 99999999 %}{{ x }}",
            "{% set x = 'x' * 999999999999 %}",
        ] {
            assert!(render(&input(template)).is_err(), "{template}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(
            strftime("%A %a %d %B %Y %H:%M:%S %Z", 1_709_210_096),
            "Thursday Thu 29 February 2024 12:34:56 UTC"
        );
        assert_eq!(strftime("%Y-%m-%d", 951_782_400), "2000-02-29");
        assert_eq!(strftime("%Y-%m-%d", 4_107_542_400), "2100-03-01");
        assert_eq!(strftime("%e %y %% %q %", 86_400 * 364), "31 70 % %q %");
    }
}
